"""What decoded weights cost when a model is loaded and run: file, peak memory, load time, speed.

    python benchmarks/decoders.py [ROW ...]

Models of well-known shapes with random weights are compressed without data; then each is loaded
by onnxruntime in a process of its own, the original and the result in turn.  Load times are
medians of 5, peak memory is that of the process, and speed is the median of paired runs on one
thread (below 1 is faster than the original).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from shapes import one_conv, one_gemm, resnet18

import onnxcompress as oc
from onnxcompress.compression.method_spec import parse
from onnxcompress.execution.latency import latency

LOAD = """
import json, sys, time
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
start = time.perf_counter()
session = ort.InferenceSession(sys.argv[1], options)
seconds = time.perf_counter() - start
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([seconds, int(status["VmHWM"].split()[0]) / 1024]))  # getrusage counts the parent
"""


@dataclass(frozen=True)
class Row:
    """A model, how to compress it, and the bar."""

    name: str
    make: Callable[[Path], None]
    spec: str
    shape: Sequence[int]
    bar: str


IMAGE = (1, 3, 224, 224)
ROWS = (
    Row("resnet18-hashed", resnet18, "hashed:share=16", IMAGE, "3.1 MB, 1.4x, 0.97 to 1.03"),
    Row("resnet18-binary", resnet18, "binary:stacks=1", IMAGE, ""),
    Row(
        "fc-hashed",
        lambda path: one_gemm(path, 25088, 4096),
        "hashed:share=16",
        (1, 25088),
        "1.75x memory, 1.3x time",
    ),
    Row(
        "conv512-feature",
        lambda path: one_conv(path, 512, 7),
        "binary:stacks=1,channels=64,filters=16",
        (1, 512, 7, 7),
        "0.2",
    ),
)


def main() -> None:
    table = Table("row", "file, MB", "peak memory, MB", "load, s", "speed", "bar")
    for row in ROWS:
        if not sys.argv[1:] or row.name in sys.argv[1:]:
            table.add_row(row.name, *measure(row), row.bar)
    Console(width=150).print(table)


def measure(row: Row) -> list[str]:
    """The cells of one row."""
    with TemporaryDirectory() as scratch:
        before, after = Path(scratch, "before.onnx"), Path(scratch, "after.onnx")
        row.make(before)
        model, _ = oc.compress(oc.load(before), methods=parse(row.spec))
        oc.save(model, after)
        loads = [[loaded(path) for path in (before, after)] for _ in range(5)]
        seconds = [median(pair[i][0] for pair in loads) for i in (0, 1)]
        memory = [median(pair[i][1] for pair in loads) for i in (0, 1)]
        sample = {"image": np.random.default_rng(0).normal(size=row.shape).astype(np.float32)}
        spent = latency(oc.load(before), oc.load(after), sample, ["CPUExecutionProvider"])
        sizes = [path.stat().st_size / 1e6 for path in (before, after)]
        return [
            f"{sizes[0]:.2f} -> {sizes[1]:.3f}",
            f"{memory[0]:.0f} -> {memory[1]:.0f} ({memory[1] / memory[0]:.2f}x)",
            f"{seconds[0]:.2f} -> {seconds[1]:.2f} ({seconds[1] / seconds[0]:.2f}x)",
            f"{spent.ratio:.3f} ({spent.low:.3f} to {spent.high:.3f})",
        ]


def loaded(path: Path) -> tuple[float, float]:
    """Seconds to load a model, and the peak memory of the process in MB."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, check=True)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


if __name__ == "__main__":
    main()
