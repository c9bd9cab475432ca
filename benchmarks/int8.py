"""Beside onnxruntime's 8-bit quantization, and before it.

    python benchmarks/int8.py ZOO LARGE [MODEL ...]

Four files of each model: as it is; `basis` at 0.6 of the multiplications; onnxruntime's
quantize_static (QDQ, weights per channel) of both; and `auto` at a ratio of its own.  Figures: file
size, score by the zoo's ``evaluate.py`` on data that was never used for fitting, latency against
the original (paired, one thread: median and quartiles), seconds that the file took to make.
onnxruntime gets the same calibration samples, and its own pre-processing first.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from zoo_data import brain, cifar10, imagenet_caffe, imagenet_lite

import onnxcompress as oc
from onnxcompress.execution.latency import latency

CIFAR = ("classify", "data/cifar10/test.npz", "--prep", "cifar", "--batch", "200")
IMAGENET = ("classify", "data/imagenet1k-sample", "--limit", "500", "--prep")
BRAIN = ("classify", "data/brain-mri", "--part", "testing", "--prep", "keras240")
Given = tuple[Callable[[Path], np.ndarray], Sequence[str], float]
MODELS: dict[str, Given] = {  # samples, judge, ratio of `auto`
    "cifar10_resnet20": (cifar10, CIFAR, 6.3),
    "cifar10_resnet56": (cifar10, CIFAR, 6.5),
    "squeezenet1_1": (imagenet_caffe, (*IMAGENET, "caffe227"), 5.2),
    "efficientnet_lite0": (imagenet_lite, (*IMAGENET, "lite224"), 4.8),
    "vgg16_brain_mri": (brain, BRAIN, 8.0),
}


def quantized(source: Path, target: Path, calibration: Path) -> None:
    script = Path(__file__).parent / "peers/ort_static.py"
    subprocess.run([sys.executable, script, source, target, calibration], check=True)


def compressed(source: Path, target: Path, calibration: Path, arguments: str) -> None:
    command = [sys.executable, "-m", "onnxcompress", str(source), str(target), "--quiet"]
    subprocess.run([*command, "--calib", str(calibration), *arguments.split()], check=True)


def score(zoo: Path, path: Path, judge: Sequence[str]) -> str:
    task, data, *options = judge
    command = [sys.executable, str(zoo / "evaluate.py"), task, str(path), str(zoo / data), *options]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return answer.stdout.split('"top1": ')[1].split(",")[0]


def rows(zoo: Path, source: Path, given: Given, folder: Path) -> Iterator[Sequence[str]]:
    make, judge, ratio = given
    samples = make(zoo)
    calibration = folder / "calibration.npy"
    np.save(calibration, samples)
    files = {key: folder / f"{key}.onnx" for key in ("basis", "int8", "both", "auto")}
    makers = {
        "basis": lambda: compressed(source, files["basis"], calibration, "--macs 0.6"),
        "int8": lambda: quantized(source, files["int8"], calibration),
        "both": lambda: quantized(files["basis"], files["both"], calibration),
        "auto": lambda: compressed(source, files["auto"], calibration, f"--ratio {ratio}"),
    }
    titles = {
        "basis": "basis, 0.6 of the MACs",
        "both": "basis, then int8",
        "auto": f"auto {ratio}x",
    }
    original = oc.load(source)
    [value] = original.graph.input
    yield source.stem, "float", f"{original.nbytes:,}", "1.00", score(zoo, source, judge), "", ""
    for key, maker in makers.items():
        start = time.perf_counter()
        maker()
        seconds = f"{time.perf_counter() - start:.0f} s"
        model = oc.load(files[key])
        spent = latency(original, model, {value.name: samples[:1]}, ("CPUExecutionProvider",))
        times = f"{spent.ratio:.2f} ({spent.low:.2f} to {spent.high:.2f})"
        ratio_ = f"{original.nbytes / model.nbytes:.2f}"
        title = titles.get(key, key)
        yield "", title, f"{model.nbytes:,}", ratio_, score(zoo, files[key], judge), times, seconds


def main() -> None:
    zoo, large = (Path(word) for word in sys.argv[1:3])
    table = Table("model", "variant", "bytes", "ratio", "top-1", "time", "made in")
    for name in sys.argv[3:] or MODELS:
        places = (zoo / "models" / f"{name}.onnx", large / f"{name}.onnx")
        source = next(place for place in places if place.exists())
        with TemporaryDirectory() as folder:
            for row in rows(zoo, source, MODELS[name], Path(folder)):
                print(*row, sep=" | ", flush=True)
                table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
