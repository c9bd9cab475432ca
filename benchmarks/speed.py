"""What a compression takes: processor seconds and peak memory, beside another version's.

    python benchmarks/speed.py ZOO LARGE WILD [--only ROW ...] [--results FILE] [--baseline FILE]

ZOO and LARGE: see zoo.py; WILD: see wild.py; rows without a model are left out.  Each row runs
``onnxcompress`` once, as a user would, in processes of its own (the version that PYTHONPATH names).
Processor seconds are those of all threads and processes together, so that a busy machine does not
count; memory is that of the largest process.  ``--results`` keeps every row in a JSON file as it
comes, and rows that are in it are not run again; ``--baseline`` is such a file of another version.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from launch import Cost, launch
from rich.console import Console
from rich.table import Table
from shapes import resnet50
from zoo_data import brain, cifar10, imagenet_lite, noisy

Samples = Callable[[Path], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        samples: reads calibration samples of the zoo; None: without data.
        floor: the processor seconds to stay below; 0 where none is set.
        memory: the peak to stay below, in GB; 0 where none is set.
    """

    name: str
    model: str
    arguments: str
    samples: Samples | None = None
    floor: float = 0
    memory: float = 0


def first(count: int, samples: Samples) -> Samples:
    """The same samples, fewer of them, evenly spread."""

    def read(zoo: Path) -> np.ndarray:
        every = samples(zoo)
        return every[np.linspace(0, len(every) - 1, count).astype(int)]

    return read


def random_images(_: Path) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 3, 224, 224)).astype(np.float32)


ROWS = (
    Row("efficientnet-6x", "efficientnet_lite0", "--ratio 6", first(128, imagenet_lite), 105),
    Row("resnet20-8x", "cifar10_resnet20", "--ratio 8", cifar10, 16),
    Row("resnet56-8x", "cifar10_resnet56", "--ratio 8", cifar10, 45, 0.7),
    Row("resnet56-snr", "cifar10_resnet56", "--min-snr 28.9", cifar10, 90),
    Row("dncnn-8x", "dncnn_s25", "--ratio 8", noisy, 70),
    Row("vgg16-8x", "vgg16_brain_mri", "--ratio 8 --samples 64", brain, 100),
    Row("resnet50-8x", "resnet50", "--ratio 8 --samples 64", random_images, 110),
    Row("minilm-4x", "paraphrase-MiniLM-L3-v2", "--ratio 4", None, 20),
    Row(
        "efficientnet-8bit",
        "efficientnet_lite0",
        "--method integer:bits=8 --samples 64",
        imagenet_lite,
        30,
    ),
    Row("resnet56-0.6", "cifar10_resnet56", "--method basis --macs 0.6", cifar10, 25),
    Row("efficientnet-0.6", "efficientnet_lite0", "--method basis --macs 0.6", imagenet_lite, 50),
    Row("resnet56-4x", "cifar10_resnet56", "--ratio 4", cifar10, 0, 0.7),
    Row("efficientnet-4x", "efficientnet_lite0", "--ratio 4", imagenet_lite, 0, 1.2),
    Row("ppocr_cls-4x", "ch_ppocr_mobile_v2.0_cls_infer", "--ratio 4 --calib {wild}", None, 0, 0.4),
    Row("resnet56-int8", "cifar10_resnet56", "--compute int8 --ratio 8", cifar10, 67),
    Row(
        "efficientnet-int8",
        "efficientnet_lite0",
        "--compute int8 --ratio 6",
        first(128, imagenet_lite),
        157,
    ),
    Row("out-of-reach", "cifar10_resnet20", "--ratio 1000", cifar10, 3),
)


def find(row: Row, zoo: Path, large: Path, wild: Path, scratch: Path) -> Path | None:
    """The model of a row, or None."""
    places = [*(folder.rglob(f"{row.model}.onnx") for folder in (zoo / "models", large, wild))]
    model = next((path for place in places for path in place), None)
    if model is None and row.model == "resnet50":
        model = scratch / "resnet50.onnx"
        resnet50(model)
    return model


def measure(row: Row, zoo: Path, large: Path, wild: Path) -> Cost | None:
    """What a row takes, or None where its model is not there."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = find(row, zoo, large, wild, folder)
        if model is None:
            return None
        there = wild / "data" / f"{row.name.partition('-')[0]}_calib.npz"
        words = row.arguments.format(wild=there).split()
        if row.samples:
            np.save(folder / "calibration.npy", row.samples(zoo))
            words += ["--calib", "calibration.npy"]
        command = [sys.executable, "-m", "onnxcompress", str(model.resolve()), "out.onnx", *words]
        cost, _, said = launch([*command, "--quiet"], folder)
        print(f"$ {row.name}: exit {cost.code}, {cost.processor:.0f} s", file=sys.stderr)
        if cost.code > 1:
            print(said, file=sys.stderr)
        return cost


def read(path: Path | None) -> dict[str, Cost]:
    """The rows of a file of results; none where there is no file."""
    if path is None or not path.exists():
        return {}
    return {name: Cost(**values) for name, values in json.loads(path.read_text()).items()}


def cells(row: Row, cost: Cost, before: Cost | None) -> list[str]:
    """One line of the table."""
    old = [f"{before.processor:.1f}", f"{before.peak / 1e9:.2f}"] if before else ["", ""]
    share = f"{cost.processor / before.processor:.2f}" if before else ""
    return [
        row.name,
        str(cost.code),
        f"{cost.processor:.1f}",
        old[0],
        share,
        f"{row.floor:g}" if row.floor else "",
        f"{cost.seconds:.1f}",
        f"{cost.peak / 1e9:.2f}",
        old[1],
        f"{row.memory:g}" if row.memory else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("zoo", "large", "wild"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--only", nargs="+", default=[row.name for row in ROWS])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--baseline", type=Path)
    options = parser.parse_args()
    costs, before = read(options.results), read(options.baseline)
    table = Table("row", "exit", "processor s", "before", "share", "floor", "wall s", "peak GB",
                  "before", "floor")  # fmt: skip
    for row in (row for row in ROWS if row.name in options.only):
        cost = costs.get(row.name) or measure(row, options.zoo, options.large, options.wild)
        if cost is None:
            continue
        costs[row.name] = cost
        if options.results:
            kept = {name: asdict(value) for name, value in costs.items()}
            options.results.write_text(json.dumps(kept, indent=1) + "\n")
        table.add_row(*cells(row, cost, before.get(row.name)))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
