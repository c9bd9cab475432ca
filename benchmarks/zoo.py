"""Compress the zoo's networks through the command line and print what the results are worth.

    python benchmarks/zoo.py ZOO LARGE [ROW ...]

ZOO is the folder of trained models and labelled data with its ``evaluate.py``; LARGE the folder
with the models that are not kept there.  Each row runs ``onnxcompress`` as a user would, in a
process of its own, on unlabelled calibration samples, and then judges the written file with
``evaluate.py`` on data that was never used for fitting.  Figures: share of multiplications kept,
file ratio, paired latency ratio (median, quartiles), score before and after, agreement with the
original on the same evaluation data, wall time and peak memory of the compression.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from launch import launch
from rich.console import Console
from rich.table import Table
from shapes import resnet50
from zoo_data import (
    brain,
    cifar10,
    cifar10_all,
    cifar10_labelled,
    cifar10_whole,
    imagenet_caffe,
    imagenet_lite,
    noisy,
    noisy_patches,
)

sys.path.insert(0, str(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))


@dataclass(frozen=True)
class Row:
    """One run: a model, what to ask, what to calibrate with, and how to judge the result."""

    name: str
    model: str
    arguments: str
    samples: Callable[[Path], np.ndarray] | None
    judge: Sequence[str]
    bar: str


CIFAR = ("classify", "data/cifar10/test.npz", "--prep", "cifar", "--batch", "200")
IMAGENET = ("classify", "data/imagenet1k-sample", "--limit", "500", "--prep")
BRAIN = ("classify", "data/brain-mri", "--part", "testing", "--prep", "keras240")
DENOISE = ("denoise", "data/set12", "--sigma", "25")


def cifar(name: str, net: str, arguments: str, bar: str) -> Row:
    method = "" if "--method" in arguments or "--ratio" in arguments else "--method basis "
    return Row(name, f"cifar10_{net}", method + arguments, cifar10, CIFAR, bar)


def refined(name: str, net: str, arguments: str, epochs: int, bar: str, images: int = 5000) -> Row:
    arguments += f" --samples {images} --refine {epochs} --augment flip,crop,mix"
    samples = cifar10_all if images == 5000 else cifar10_whole
    return Row(name, f"cifar10_{net}", arguments, samples, CIFAR, bar)


ROWS = (
    cifar("resnet56-0.75", "resnet56", "--macs 0.75", "93.0 %"),
    cifar("resnet56-0.5", "resnet56", "--macs 0.5", "91.8 %, goal 92.5"),
    cifar("resnet56-0.36", "resnet56", "--macs 0.36", "89 %, goal 91"),
    cifar("resnet20-0.75", "resnet20", "--macs 0.75", "91.2 %"),
    cifar("resnet20-0.5", "resnet20", "--macs 0.5", "88.5 %"),
    Row(
        "resnet56-energy",
        "cifar10_resnet56",
        "--method basis:unfolding=filter --energy 0.63",
        cifar10,
        CIFAR,
        "0.3233 of the MACs",
    ),
    Row(
        "dncnn-0.6", "dncnn_s25", "--method basis --macs 0.6", noisy, DENOISE, "-0.38 dB, goal -0.2"
    ),
    Row(
        "vgg16-0.4", "vgg16_brain_mri", "--method basis --macs 0.4", brain, BRAIN, "97.5 %, goal 99"
    ),
    Row(
        "efficientnet-25dB",
        "efficientnet_lite0",
        "--method basis --min-snr 25",
        imagenet_lite,
        (*IMAGENET, "lite224"),
        "0.95 of the MACs or exit 1",
    ),
    Row(
        "squeezenet-25dB",
        "squeezenet1_1",
        "--method basis --min-snr 25",
        imagenet_caffe,
        (*IMAGENET, "caffe227"),
        "0.95 of the MACs or exit 1",
    ),
    cifar("resnet56-4bit", "resnet56", "--method integer:bits=4", "93.3 %, goal 93.4"),
    cifar("resnet56-3bit", "resnet56", "--method integer:bits=3", "92.7 %, goal 93.0"),
    cifar("resnet56-2bit", "resnet56", "--method integer:bits=2", "90 %, goal 91"),
    cifar("resnet56-binary4", "resnet56", "--method binary:stacks=4", ""),
    cifar("resnet56-binary3", "resnet56", "--method binary:stacks=3", ""),
    cifar("resnet56-binary2", "resnet56", "--method binary:stacks=2", ""),
    cifar("resnet56-binary1", "resnet56", "--method binary:stacks=1", ""),
    cifar("resnet56-shared2.15", "resnet56", "--method binary:stacks=2,parts=2", ""),
    cifar("resnet56-shared1.40", "resnet56", "--method binary:stacks=2,parts=8,share=0.5", ""),
    cifar("resnet56-shared0.95", "resnet56", "--method binary:stacks=1,parts=8,share=0.5", ""),
    cifar("resnet56-shared0.68", "resnet56", "--method binary:stacks=1,parts=8,share=0.25", ""),
    cifar("resnet56-hashed2", "resnet56", "--method hashed:share=2", ""),
    cifar("resnet56-hashed3", "resnet56", "--method hashed:share=3", ""),
    cifar("resnet56-hashed4", "resnet56", "--method hashed:share=4", ""),
    cifar("resnet56-codebook4", "resnet56", "--method codebook:vector=4", ""),
    cifar("resnet56-codebook8", "resnet56", "--method codebook:vector=8", ""),
    cifar("resnet56-8x", "resnet56", "--ratio 8", "93.2 %, goal 93.4"),
    cifar("resnet56-12x", "resnet56", "--ratio 12", "92.0 %, goal 92.8"),
    cifar("resnet56-16x", "resnet56", "--ratio 16", "89.5 %, goal 91.5"),
    cifar("resnet56-24x", "resnet56", "--ratio 24", "83 %, goal 87"),
    cifar(
        "resnet56-drop", "resnet56", "--method auto --max-drop 1 --eval {labelled}", "10x, goal 12x"
    ),
    Row("dncnn-8x", "dncnn_s25", "--ratio 8", noisy, DENOISE, "-0.15 dB"),
    Row(
        "squeezenet-7x",
        "squeezenet1_1",
        "--ratio 7",
        imagenet_caffe,
        (*IMAGENET, "caffe227"),
        "-3.5 points, goal -1.5",
    ),
    Row(
        "efficientnet-6x",
        "efficientnet_lite0",
        "--ratio 6",
        imagenet_lite,
        (*IMAGENET, "lite224"),
        "-2.5 points, goal -1",
    ),
    Row(
        "vgg16-8x",
        "vgg16_brain_mri",
        "--ratio 8 --samples 64",
        brain,
        BRAIN,
        "300 s, 4 GB",
    ),
    refined("resnet20-refined", "resnet20", "--method basis --macs 0.5", 10, "90.8 %, goal 91.3"),
    refined(
        "resnet56-refined", "resnet56", "--method basis --macs 0.36 --ratio 2.63", 20, "92.6 %"
    ),
    refined(
        "resnet56-refined-50000",
        "resnet56",
        "--method basis --macs 0.36 --ratio 2.63",
        4,
        "93.0 %, goal 93.3",
        50_000,
    ),
    refined("resnet56-12x-refined", "resnet56", "--ratio 12", 6, "92.4 %, goal 93.3"),
    refined("resnet56-16x-refined", "resnet56", "--ratio 16", 8, "91.2 %, goal 92.8"),
    refined(
        "resnet56-binary-refined",
        "resnet56",
        "--method binary:stacks=1,channels=16 --skip /conv1/Conv --skip /linear/Gemm",
        12,
        "89.9 %",
    ),
    refined(
        "resnet56-binary-refined-50000",
        "resnet56",
        "--method binary:stacks=1,channels=16 --skip /conv1/Conv --skip /linear/Gemm",
        3,
        "90.89 %, goal 91.89",
        50_000,
    ),
    refined("resnet56-hashed-refined", "resnet56", "--method hashed --ratio 11.56", 56, "85.4 %"),
    refined(
        "resnet56-hashed-refined-50000",
        "resnet56",
        "--method hashed --ratio 11.56",
        7,
        "86.9 %, goal 89.4",
        50_000,
    ),
    Row(
        "dncnn-refined",
        "dncnn_s25",
        "--method basis --macs 0.4 --samples 960 --refine 40 --augment flip",
        noisy_patches,
        DENOISE,
        "-0.15 dB",
    ),
    Row("resnet50-8x", "resnet50", "--ratio 8 --samples 64", None, (), "300 s, 4 GB"),
    Row("resnet50-0.6", "resnet50", "--method basis --macs 0.6", None, (), "90 s, 2.5 GB"),
)


def main() -> None:
    zoo, large = (Path(word).resolve() for word in sys.argv[1:3])
    wanted = sys.argv[3:]
    table = Table(
        "row", "MACs", "file", "latency", "before", "after", "agree", "time", "memory", "bar"
    )
    for row in ROWS:
        if not wanted or row.name in wanted:
            table.add_row(row.name, *measure(row, zoo, large), row.bar)
    Console(width=160).print(table)


def measure(row: Row, zoo: Path, large: Path) -> list[str]:
    """The cells of one row."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = next((p for p in _places(row.model, zoo, large) if p.exists()), folder / "net.onnx")
        if not model.exists():
            resnet50(model)
        source = large if row.samples is cifar10_whole else zoo
        samples = row.samples(source) if row.samples else _random_images()
        np.save(folder / "calibration.npy", samples)
        out = folder / "small.onnx"
        labelled = folder / "labelled.npz"
        if "{labelled}" in row.arguments:
            images, classes = cifar10_labelled(zoo)
            np.savez(labelled, x=images, y=classes)
        command = [sys.executable, "-m", "onnxcompress", str(model), str(out)]
        arguments = row.arguments.format(labelled=labelled).split()
        command += [*arguments, "--calib", str(folder / "calibration.npy"), "--json"]
        command += ["--force"]  # what is under the floor is measured too, and marked with exit 1
        print("$", *command, file=sys.stderr)
        cost, printed, said = launch(command, folder)
        print(said, end="", file=sys.stderr)
        report = json.loads(printed) if printed.startswith("{") else {}
        cells = [*_sizes(report), *_scores(row, zoo, model, out)]
        return [*cells, f"{cost.seconds:.0f} s", f"{cost.peak / 2**30:.2f} GiB"]


def _places(name: str, zoo: Path, large: Path) -> list[Path]:
    return [zoo / "models" / f"{name}.onnx", large / f"{name}.onnx"]


def _random_images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 3, 224, 224)).astype(np.float32)


def _sizes(report: dict) -> list[str]:
    if not report.get("comparison"):
        return ["none written", "", ""]
    both = report["comparison"]
    share = both["after"]["macs"] / both["before"]["macs"]
    spent = both["latency"]
    marks = "" if not report["failures"] else " (exit 1)"
    latency = f"{spent['ratio']:.2f} ({spent['low']:.2f} to {spent['high']:.2f})"
    return [f"{share:.4f}{marks}", f"{both['ratio']:.2f}x", latency]


def _scores(row: Row, zoo: Path, model: Path, out: Path) -> list[str]:
    """Score before and after by the zoo's own judge, and agreement on the same data."""
    if not out.exists() or not row.judge:
        return ["", "", ""]
    task, data, *options = row.judge
    scores = []
    for path in (model, out):
        command = [sys.executable, str(zoo / "evaluate.py"), task, str(path), str(zoo / data)]
        answer = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        figures = json.loads(answer.stdout.splitlines()[-1])
        scores.append(figures.get("top1", figures.get("psnr")))
    agreement = f"{_agreement(row, zoo, model, out):.2f}" if task == "classify" else ""
    return [f"{scores[0]}", f"{scores[1]}", agreement]


def _agreement(row: Row, zoo: Path, model: Path, out: Path) -> float:
    import evaluate  # the zoo's  # pyright: ignore[reportMissingImports]

    _, data, *options = row.judge
    given = dict(zip(options[::2], options[1::2], strict=True))
    prepare = evaluate.PREP[given["--prep"]]
    pairs = evaluate.labelled(
        str(zoo / data), given.get("--part", ""), int(given.get("--limit", "0"))
    )
    images = [prepare(image) for image, _ in pairs]
    tops = []
    for path in (model, out):
        session = evaluate.session(str(path), os.cpu_count() or 1)
        name = session.get_inputs()[0].name
        batches = (images[i : i + 32] for i in range(0, len(images), 32))
        answers = [session.run(None, {name: np.stack(b).astype(np.float32)})[0] for b in batches]
        tops.append(np.concatenate([a.reshape(len(a), -1).argmax(1) for a in answers]))
    return 100 * float(np.mean(tops[0] == tops[1]))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
