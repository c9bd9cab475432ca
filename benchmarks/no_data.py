"""What the commands without data are worth, beside the same ones with calibration samples.

    python benchmarks/no_data.py ZOO [MODEL ...]

ZOO is the folder of trained models and labelled data with its ``evaluate.py``.  Every command is
run as a user would run it, with ``--force`` so that what is under the floor can be judged too;
the score is that of ``evaluate.py`` on data that was never used for fitting.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table
from zoo_data import cifar10, imagenet_caffe, imagenet_lite, noisy, pictures

IMAGENET = "classify {} data/imagenet1k-sample --limit 500 --prep"
CIFAR = "classify {} data/cifar10/test.npz --prep cifar --batch 200"
MODELS: dict[str, tuple[str, Callable[[Path], np.ndarray], str]] = {
    # name -> share of the multiplications, samples, how evaluate.py judges
    "cifar10_resnet20": ("0.5", cifar10, CIFAR),
    "cifar10_resnet56": ("0.5", cifar10, CIFAR),
    "squeezenet1_1": ("0.8", imagenet_caffe, f"{IMAGENET} caffe227"),
    "efficientnet_lite0": ("0.8", imagenet_lite, f"{IMAGENET} lite224"),
    "dncnn_s25": ("0.6", noisy, "denoise {} data/set12 --sigma 25"),
    "waifu2x_photo_x2": ("0.6", pictures, "upscale {} data/set5-hr --scale 2 --pad 7"),
}
COMMANDS = ("--method basis --macs {}", "--method hashed", "--method binary", "--ratio 7")


def score(zoo: Path, judge: str, model: Path) -> float:
    """Top-1 in percent, or PSNR in dB."""
    words = [word.format(model) for word in judge.split()]
    words = [str(zoo / word) if word.startswith("data/") else word for word in words]
    command = [sys.executable, str(zoo / "evaluate.py"), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    facts = json.loads(done.stdout)
    return facts.get("top1", facts.get("psnr"))


def result(zoo: Path, model: Path, arguments: str, judge: str, out: Path) -> str:
    """The score of what a command writes, and what its exit code would be without ``--force``."""
    command = [sys.executable, "-m", "onnxcompress", str(model), str(out), *arguments.split()]
    done = subprocess.run([*command, "--force"], capture_output=True, text=True)
    if done.returncode:
        return f"exit {done.returncode}"
    under = "no longer does the job" in done.stderr
    smaller = model.stat().st_size / out.stat().st_size
    return f"{score(zoo, judge, out):.2f} at {smaller:.2f} x" + " (needs --force)" * under


def main(zoo: Path, names: list[str]) -> None:
    table = Table("model", "command", "original", "without data", "calibrated")
    with TemporaryDirectory() as folder:
        for name in names:
            share, samples, judge = MODELS[name]
            model, calib = zoo / f"models/{name}.onnx", Path(folder) / "calib.npz"
            np.savez(calib, x=samples(zoo))
            before = f"{score(zoo, judge, model):.2f}"
            for command in COMMANDS:
                asked, out = command.format(share), Path(folder) / "out.onnx"
                scores = [
                    result(zoo, model, asked + data, judge, out)
                    for data in ("", f" --calib {calib}")
                ]
                table.add_row(name, asked, before, *scores)
    Console(width=120).print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(MODELS))
