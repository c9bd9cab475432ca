"""Plots as SVG, drawn without a library: lines, points and text are all that is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor, log2

from onnxcompress.report import Point

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 400, 64, 48, 32, 24
STYLE = (
    "svg{font:13px system-ui,sans-serif;fill:#1a1a1a;background:#fff}"
    "line{stroke:#d8d8d8}polyline{fill:none;stroke:#0b63c4;stroke-width:2}circle{fill:#0b63c4}"
    "@media(prefers-color-scheme:dark){svg{fill:#e8e8e8;background:#161616}line{stroke:#3a3a3a}"
    "polyline{stroke:#6db3ff}circle{fill:#6db3ff}}"
)


def trade_off(points: Sequence[Point], metric: str) -> str:
    """Quality against size: the metric where there are labels, else the SNR of the outputs."""
    labelled = all(point.metric is not None for point in points)
    name = metric if labelled else "SNR of the outputs, dB"
    fewer = len({point.macs for point in points}) > 1
    most = max(point.macs for point in points)
    pairs = [
        (
            most / point.macs if fewer else point.ratio,
            (point.metric or 0) if labelled else point.snr,
        )
        for point in points
    ]
    what = "times fewer multiplications" if fewer else "times smaller file"
    body = "".join(_axes(pairs, what, name)) + "".join(_line(pairs))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{name} against size</title><style>{STYLE}</style>{body}</svg>\n"
    )


Pairs = Sequence[tuple[float, float]]


def _ranges(pairs: Pairs) -> tuple[float, float, float, float]:
    """Of log2 of the first numbers, and of the second, with some room around."""
    sizes, values = [log2(x) for x, _ in pairs], [y for _, y in pairs]
    room = max(0.05 * (max(values) - min(values)), 0.1)
    low, high = min(sizes), max(max(sizes), min(sizes) + 0.5)
    return low - 0.1, high + 0.1, min(values) - room, max(values) + room


def _place(pair: tuple[float, float], pairs: Pairs) -> tuple[float, float]:
    left, right, low, high = _ranges(pairs)
    x = LEFT + (log2(pair[0]) - left) / (right - left) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - (pair[1] - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
    return round(x, 1), round(y, 1)


def _axes(pairs: Pairs, what: str, name: str) -> Iterator[str]:
    _, _, low, high = _ranges(pairs)
    step = _step(high - low)
    for i in range(ceil(low / step), floor(high / step) + 1):
        _, y = _place((pairs[0][0], i * step), pairs)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{i * step:g}</text>'
    for size, _ in pairs:
        x, _ = _place((size, low), pairs)
        yield f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size:.3g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{what}</text>'
    yield f'<text x="{LEFT}" y="{TOP - 12}">{name}</text>'


def _step(span: float) -> float:
    """A round number that divides the span into about five."""
    for step in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        if span / step <= 6:
            return step
    return 50


def _line(pairs: Pairs) -> Iterator[str]:
    places = [_place(pair, pairs) for pair in pairs]
    yield f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
    for (x, y), (size, value) in zip(places, pairs, strict=True):
        yield f'<circle cx="{x}" cy="{y}" r="4"><title>{size:.3g}: {value:.2f}</title></circle>'
