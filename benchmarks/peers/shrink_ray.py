"""onnx-shrink-ray: 8-bit weights that nodes widen again, per channel."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

source, target = sys.argv[1:3]
with tempfile.TemporaryDirectory() as folder:
    shutil.copy(source, folder)
    out = Path(folder) / "out"
    command = [sys.executable, "-m", "onnx_shrink_ray.shrink", folder, "-o", str(out)]
    subprocess.run(command, check=True)
    shutil.copy(next(out.glob("*.onnx")), target)
