"""What is made when the pages are built: figures, from real fits, and the schema of --config."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import latex2mathml.converter
import numpy as np
from mkdocs.structure.files import File, Files
from PIL import Image

import onnxcompress as oc
from onnxcompress.cli.commands import cli
from onnxcompress.cli.config_file import Rules
from onnxcompress.cli.json_schema import FILE as REPORT_SCHEMA
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.method_spec import parse

ROOT = Path(__file__).parents[1]
LAYER = "stage2/block2/conv1"
SHOWN = {
    "basis": "basis:unfolding=filter,rank=12",
    "integer": "integer:bits=3",
    "codebook": "codebook:vector=4",
    "binary": "binary:stacks=2",
    "hashed": "hashed:share=3",
}
SCALE, GAP, FILTERS = 5, 3, 16  # pixels a weight, weights between two pictures, rows shown
METHODS = ("codebook", "integer", "binary", "basis", "hashed")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 380, 60, 44, 16, 96
COLORS = ("#0b63c4", "#c2410c", "#15803d", "#7c3aed", "#a16207")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the figures to the files of the site (a hook of mkdocs)."""
    layer, statistics = _layer()
    for name, spec in SHOWN.items():
        [method] = parse(spec)
        decoded = method.settings(layer)[-1].fit(layer, statistics).decode()
        files.append(
            File.generated(config, f"figures/{name}.png", content=_filters(layer, decoded))
        )
    curves = {name: list(_curve(name, layer, statistics)) for name in METHODS}
    files.append(File.generated(config, "figures/curves.svg", content=_plot(curves)))
    schema = json.dumps(_schema(), indent=2)
    files.append(File.generated(config, "schema.json", content=schema))
    files.append(
        File.generated(config, "report.schema.json", content=REPORT_SCHEMA.read_text("utf-8"))
    )
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings end the line before an indented block with two colons; a page needs one."""
    html = html.replace("<p>::</p>\n", "").replace("::</p>", ":</p>")
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', _formula, html, flags=re.S)


def _formula(found: re.Match[str]) -> str:
    """LaTeX as MathML, which browsers show without a script; wide formulas scroll."""
    formula = latex2mathml.converter.convert(unescape(found[1]), display="block")
    return f'<div style="overflow-x: auto">{formula}</div>'


def _schema() -> dict[str, Any]:
    """The JSON schema of a configuration file."""
    schema = Rules.model_json_schema()
    for param in cli.commands["compress"].params:
        for opt in param.opts:
            if isinstance(param, click.Option) and opt.startswith("--") and opt != "--config":
                schema["properties"][opt.removeprefix("--")] = _wanted(param)
    return schema


def _wanted(option: click.Option) -> dict[str, Any]:
    kinds = {"integer": "integer", "integer range": "integer", "float": "number"}
    kind = "boolean" if option.is_flag else kinds.get(option.type.name)
    one: dict[str, Any] = {"type": kind} if kind else {"type": ["string", "number"]}
    several = {"anyOf": [one, {"type": "array", "items": one}]}
    return {"description": option.help, **(several if option.multiple else one)}


def _layer() -> tuple[oc.Layer, oc.Statistics]:
    model = oc.load(ROOT / "models/cifar10_resnet.onnx")
    layers, _ = oc.find_layers(model)
    samples = oc.load_samples(
        ROOT / "models/calibration.npz",
        oc.input_specs(model),
        preprocess=ROOT / "models/preprocess.yaml",
        limit=128,
    )
    return layers[LAYER], calibrate(model, {LAYER: layers[LAYER]}, samples)[LAYER]


def _filters(layer: oc.Layer, decoded: np.ndarray) -> bytes:
    """The first filters, decoded, and their difference: blue is negative, red positive."""
    first, second = (w.reshape(len(w), -1)[:FILTERS, :144] for w in (layer.weight, decoded))
    gap = np.full((GAP, first.shape[1]), np.nan)
    values = np.concatenate([first, gap, second, gap, first - second])
    unit = np.clip(values / (2.5 * first.std()), -1, 1)
    pixels = np.full((*unit.shape, 4), 0, np.uint8)
    strength = (255 * (1 - np.abs(np.nan_to_num(unit)))).astype(np.uint8)
    known = ~np.isnan(unit)
    pixels[..., 0] = np.where(unit < 0, strength, 255)
    pixels[..., 1] = strength
    pixels[..., 2] = np.where(unit > 0, strength, 255)
    pixels[..., 3] = np.where(known, 255, 0)
    stream = BytesIO()
    Image.fromarray(pixels.repeat(SCALE, 0).repeat(SCALE, 1)).save(stream, "png")
    return stream.getvalue()


def _curve(name: str, layer: oc.Layer, statistics: oc.Statistics) -> Iterator[tuple[float, float]]:
    """Bits a weight and error in dB of every setting that no smaller one beats."""
    best = 1.0
    found = parse(name)[0].candidates(layer, statistics)
    for candidate in sorted(found, key=lambda c: c.nbytes):
        if candidate.error < best:
            best = candidate.error
            yield 8 * candidate.nbytes / layer.weight.size, 10 * np.log10(max(best, 1e-6))


def _plot(curves: dict[str, list[tuple[float, float]]]) -> str:
    """Error against size, one line for each method."""

    def place(bits: float, error: float) -> tuple[float, float]:
        x = LEFT + (np.log2(bits) + 1) / 6 * (WIDTH - LEFT - RIGHT)
        y = TOP + -error / 50 * (HEIGHT - TOP - BOTTOM)
        return round(float(x), 1), round(float(y), 1)

    parts = []
    for error in range(0, -51, -10):
        (x1, y), (x2, _) = place(0.5, error), place(32, error)
        parts.append(f'<line x1="{x1}" x2="{x2}" y1="{y}" y2="{y}" stroke="#8884"/>')
        parts.append(f'<text x="{x1 - 8}" y="{y + 4}" text-anchor="end">{error}</text>')
    for bits in (0.5, 1, 2, 4, 8, 16, 32):
        x, y = place(bits, -50)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{bits:g}</text>')
    middle, bottom = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6
    parts.append(f'<text x="{middle}" y="{bottom}" text-anchor="middle">bits a weight</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 4}">error, dB</text>')
    for (name, points), color in zip(curves.items(), COLORS, strict=True):
        places = [place(*point) for point in points]
        line = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
        x, y = places[-1]
        parts.append(f'<text x="{x + 8}" y="{y + 4}" style="fill:{color}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'style="font:13px sans-serif;fill:#777">' + "".join(parts) + "</svg>\n"
    )
