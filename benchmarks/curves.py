"""Size against output error of every method, layer by layer, fitted blind and with calibration.

    python benchmarks/curves.py ZOO [PLOT.svg]

Each setting is fitted to every layer of cifar10_resnet56 and squeezenet1_1, once from the weights
alone and once with the statistics of calibration samples; the error is measured on the statistics
of other samples: mean relative squared output error over the layers, bits with scales.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from zoo_data import cifar10, imagenet_caffe

import onnxcompress as oc
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Method
from onnxcompress.core.parallel import cores, each, one_thread_each
from onnxcompress.core.statistics import Statistics

SETTINGS: tuple[tuple[str, Sequence[Any]], ...] = (
    ("basis", (0.75, 0.5, 0.25, 0.125)),  # shares of the bytes
    ("hashed", (2, 3, 4, 8, 16)),
    ("hashed uniform", (2, 4, 8, 16)),
    ("binary", (4, 3, 2, 1)),
    ("binary shared", ((2, 8, 0.5), (2, 4, 0.5), (1, 8, 0.5), (1, 8, 0.25))),
)
MODELS: Mapping[str, Callable[[Path], np.ndarray]] = {
    "cifar10_resnet56": cifar10,
    "squeezenet1_1": imagenet_caffe,
}
COLOURS = ("#2563eb", "#16a34a", "#86c79a", "#dc2626", "#ea9a5b")


def chosen(name: str, value: Any, layer: Layer) -> Method | None:
    """The setting for one layer, None where it does not apply."""
    found: Sequence[Method] = ()
    if name == "basis":
        every = list(oc.Basis().candidates(layer, Statistics.white(layer)))
        fitting = [c for c in every if c.nbytes <= value * layer.weight.nbytes]
        best = min(fitting, key=lambda c: (c.error, c.nbytes), default=None)
        return best.setting if best else None
    if name == "hashed":
        found = oc.Hashed(share=value).settings(layer)
    elif name == "hashed uniform":
        found = oc.Hashed(share=value, allocation="uniform").settings(layer)
    elif name == "binary":
        found = oc.Binary(stacks=value).settings(layer)
    else:
        stacks, parts, share = value
        found = oc.Binary(stacks, parts=parts, share=share).settings(layer)
    return found[0] if found else None


def curve(
    layers: Mapping[str, Layer],
    known: Mapping[str, Statistics],
    unseen: Mapping[str, Statistics],
    name: str,
    value: Any,
) -> tuple[float, float, float]:
    """Bits a weight, and the mean error fitted blind and with calibration."""

    def one(key: str) -> tuple[int, int, float, float] | None:
        layer = layers[key]
        setting = chosen(name, value, layer)
        if setting is None:
            return None
        blind = setting.fit(layer, Statistics.white(layer))
        aware = setting.fit(layer, known[key])
        errors = [unseen[key].error(layer.weight, w.decode()) for w in (blind, aware)]
        return 8 * aware.nbytes, layer.weight.size, errors[0], errors[1]

    rows = [row for row in each(one, list(layers), cores(), len(layers)) if row]
    bits, sizes, blind, aware = (np.array(column) for column in zip(*rows, strict=True))
    return float(bits.sum() / sizes.sum()), float(blind.mean()), float(aware.mean())


def main() -> None:
    zoo = Path(sys.argv[1])
    plots = []
    for model_name, samples in MODELS.items():
        model = oc.load(zoo / "models" / f"{model_name}.onnx")
        layers, _ = oc.find_layers(model)
        [value] = model.graph.input
        batches = [{value.name: batch} for batch in np.array_split(samples(zoo)[:256], 8)]
        known = oc.calibrate(model, layers, batches[:6], jobs=cores())
        unseen = oc.calibrate(model, layers, batches[6:], jobs=cores())
        table = Table(model_name, "bits a weight", "error, weights alone", "error, calibrated")
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, values in SETTINGS:
            for given in values:
                bits, blind, aware = curve(layers, known, unseen, name, given)
                lines.setdefault(name, []).append((bits, aware))
                table.add_row(f"{name} {given}", f"{bits:.2f}", f"{blind:.4f}", f"{aware:.4f}")
        Console(width=120).print(table)
        plots.append((model_name, lines))
    if sys.argv[2:]:
        Path(sys.argv[2]).write_text(plot(plots))


def plot(plots: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]]) -> str:
    """Both axes logarithmic, one panel a model."""
    parts, width, height = [], 420, 320

    def place(bits: float, error: float, left: int) -> tuple[float, float]:
        x = left + 50 + 340 * (np.log2(bits) + 1) / 6  # from 1/2 to 32 bits
        y = 20 + 250 * (-np.log10(max(error, 1e-4))) / 4  # from 1 down to 1e-4
        return round(float(x), 1), round(float(y), 1)

    for index, (title, lines) in enumerate(plots):
        left = index * width
        parts.append(f'<text x="{left + 200}" y="14">{title}</text>')
        for bits in (0.5, 1, 2, 4, 8, 16, 32):
            x, y = place(bits, 1e-4, left)
            parts.append(f'<text x="{x}" y="{y + 16}">{bits:g}</text>')
        for error in (1, 0.1, 0.01, 0.001, 0.0001):
            x, y = place(0.5, error, left)
            parts.append(f'<text x="{x - 22}" y="{y}">{error:g}</text>')
        for row, ((name, points), colour) in enumerate(zip(lines.items(), COLOURS, strict=True)):
            line = " ".join(f"{x},{y}" for x, y in (place(*p, left) for p in sorted(points)))
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
            parts.append(
                f'<text x="{left + 320}" y="{34 + 14 * row}" fill="{colour}">{name}</text>'
            )
    style = "font: 11px sans-serif; text-anchor: middle"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(plots)}" height="{height}" '
        f'style="{style}">{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with one_thread_each():
        main()
