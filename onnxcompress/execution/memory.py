"""What a model takes of the memory: at its peak while it is loaded, and afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from onnxcompress.graph import Model, save

LEAST = 3 << 20  # Weights of fewer bytes take less memory than the runtime itself.
MOST = 1 << 30  # A file of more bytes is not worth loading once more for this.
# Loading may take so many seconds, and one more for so many bytes; after that nothing is known of
# either model.
SECONDS, RATE = 5.0, 40 << 20
LOADING = """
import sys
import onnxruntime

def now(key):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(key))

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
for library in sys.argv[2:]:
    options.register_custom_ops_library(library)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the peak starts here
before = now("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(now("VmHWM") - before, now("VmRSS") - before)
"""


class Memory(NamedTuple):
    """Bytes that a loaded model adds to its process; None where that is not known."""

    peak: int | None = None
    resting: int | None = None


def load_memory(path: Path, libraries: tuple[str, ...] = ()) -> Memory:
    """What loading a file takes, in a process of its own.

    It is not known where the file cannot be loaded, or the system is not Linux.
    """
    words = [sys.executable, "-c", LOADING, str(path), *libraries]
    try:
        seconds = SECONDS + path.stat().st_size / RATE
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=seconds)
    except (OSError, subprocess.SubprocessError):
        return Memory()
    peak, resting = (max(int(word), 0) for word in done.stdout.split())
    return Memory(peak, resting)


def memory_of(*models: Model) -> list[Memory]:
    """The same of models as their files would be, one after the other.

    It is not known either where weights are so small that it says nothing, or where a file is so
    large that it is not loaded as a whole.
    """
    weights, sizes = ([getattr(m, kind) for m in models] for kind in ("weight_bytes", "nbytes"))
    if max(weights) < LEAST or max(sizes) > MOST:
        return [Memory() for _ in models]
    measured = []
    for model in models:
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            save(model, path)
            measured.append(load_memory(path, model.extensions))
        if measured[-1].peak is None:
            return [Memory() for _ in models]
    return measured
