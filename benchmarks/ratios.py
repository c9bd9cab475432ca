"""`auto` beside each single method at the same file size.

    python benchmarks/ratios.py ZOO LARGE [MODEL ...]

Output SNR in dB on held-out samples of the file that `compress` writes for each ratio, from one
`trade_off` a method; "-" where the ratio is out of reach.  The last column is what `auto` has more
than the best single method.  `binary` and `hashed` are shown for the smallest model alone: at
equal bytes they are far below the others, and slow to fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.table import Table
from zoo_data import brain, cifar10, imagenet_caffe, imagenet_lite, noisy, pictures

import onnxcompress as oc
from onnxcompress.compression.auto import auto
from onnxcompress.compression.method_spec import parse

RATIOS = (2, 4, 6, 8, 12)
SINGLE = ("codebook", "integer", "basis", "basis+integer:bits=8", "basis+integer:bits=4")
SMALLEST = ("binary", "hashed")
MODELS: Mapping[str, tuple[Callable[[Path], np.ndarray], int]] = {  # samples, how many of them
    "cifar10_resnet20": (cifar10, 96),
    "cifar10_resnet56": (cifar10, 96),
    "dncnn_s25": (lambda zoo: noisy(zoo)[..., :64, :64], 60),
    "waifu2x_photo_x2": (pictures, 24),
    "squeezenet1_1": (imagenet_caffe, 96),
    "efficientnet_lite0": (imagenet_lite, 192),
    "vgg16_brain_mri": (brain, 32),
}


@dataclass(frozen=True)
class Remembered(oc.Method):
    """A method whose candidates are fitted once: `auto` chooses among those of single methods."""

    quick: ClassVar[bool] = True  # fitted in this process, where it remembers

    inner: oc.Method
    known: dict[tuple[str, str], list[oc.Candidate]] = field(repr=False, compare=False)

    def settings(self, layer: oc.Layer) -> Sequence[Any]:
        return self.inner.settings(layer)

    def fit(self, layer: oc.Layer, statistics: oc.Statistics) -> oc.CompressedWeight:
        return self.inner.fit(layer, statistics)

    def candidates(self, layer: oc.Layer, statistics: oc.Statistics) -> Iterator[oc.Candidate]:
        key = (str(self.inner), layer.name)
        if key not in self.known:
            self.known[key] = list(self.inner.candidates(layer, statistics))
        yield from self.known[key]


def curve(model: oc.Model, methods: Sequence[oc.Method], samples: np.ndarray) -> dict[float, float]:
    """Ratio -> output SNR."""
    [value] = model.graph.input
    batches = [{value.name: samples[i : i + 16]} for i in range(0, len(samples), 16)]
    targets = [oc.Target(ratio=ratio) for ratio in RATIOS]
    points = oc.trade_off(model, targets, methods=methods, samples=batches)
    by_ratio = {float(point.target.split()[0]): point for point in points}
    return {  # those under the floor of what does the job, too
        ratio: point.snr
        for ratio, point in by_ratio.items()
        if point.snr is not None and (point.ratio or 0) >= ratio
    }


def main() -> None:
    zoo, large = (Path(word) for word in sys.argv[1:3])
    for name in sys.argv[3:] or MODELS:
        places = (zoo / "models" / f"{name}.onnx", large / f"{name}.onnx")
        model = oc.load(next(place for place in places if place.exists()))
        read, count = MODELS[name]
        samples = read(zoo)
        samples = samples[np.linspace(0, len(samples) - 1, count).astype(int)]
        single = (*SINGLE, *SMALLEST) if name == "cifar10_resnet20" else SINGLE
        known: dict[tuple[str, str], list[oc.Candidate]] = {}
        ways = {title: parse(title) for title in single}
        ways["auto"] = auto(oc.Target(ratio=2))
        found = {
            title: curve(model, [Remembered(m, known) for m in methods], samples)
            for title, methods in ways.items()
        }
        table = Table(name, *single, "auto", "more")
        for ratio in RATIOS:
            reached = [found[title].get(ratio) for title in ways]
            best = max((snr for snr in reached[:-1] if snr is not None), default=-np.inf)
            row = ["-" if snr is None else f"{snr:.2f}" for snr in reached]
            table.add_row(f"{ratio}x", *row, f"{found['auto'].get(ratio, -np.inf) - best:+.2f}")
        Console(width=140).print(table)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
