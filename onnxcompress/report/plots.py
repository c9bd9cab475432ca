"""Plots as SVG, drawn without a library: lines, points, bars and text are all that is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log2, log10

from onnxcompress.report.report import Comparison, Point, Refinement, Row, TradeOff
from onnxcompress.report.words import guessed, layer, refusal

# These are the sides and margins of a plot; all sizes here are in units of the viewBox.
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 56, 54, 36, 20

LINE = 22  # A line of text is so high.

PANEL, HEAD = 80, 44  # A row of bars is so high, and so is the room above for its name.

# A layer's number is so wide, and the line of numbers so high.
NUMBER, NUMBERS = 24, 26

NOISE, SAME = 0.0, 100.0  # Outputs of so many dB hold nothing, or everything.

COLOURS = (
    ":root{--paper:#fdfcfa;--ink:#1d1c1a;--soft:#6b6862;--rule:#dedbd4;--pale:#cbc6bb;"
    "--blue:#1f5aa8;--rust:#b3471f;--green:#2c6e49;color-scheme:light dark}"
    "@media screen and (prefers-color-scheme:dark){:root{--paper:#171716;--ink:#e9e6df;"
    "--soft:#a09b91;--rule:#35332f;--pale:#54514a;--blue:#78aef0;--rust:#ee8f62;--green:#7cc49a}}"
)

STYLE = (
    ".plot{font:12px/1 system-ui,sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums}"
    ".plot line{stroke:var(--rule)}.plot .level{stroke:var(--soft);stroke-dasharray:2 3}"
    ".plot .soft{fill:var(--soft)}.plot .second{stroke:var(--pale)}"
    ".plot polyline{fill:none;stroke:var(--blue);stroke-width:1.75;stroke-linejoin:round}"
    ".plot circle{fill:var(--blue);stroke:var(--paper);stroke-width:1.5}"
    ".plot .open{fill:var(--paper);stroke:var(--blue)}.plot .other{fill:var(--rust)}"
    ".plot .was{fill:var(--pale)}.plot .is{fill:var(--blue)}.plot .error{fill:var(--rust)}"
    ".plot .name{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}"
)

SMALLER = {
    "bytes": "times smaller file",
    "macs": "times fewer multiplications",
    "latency": "times less time in the layers",
}

Pair = tuple[float, float]


def sweep(points: Sequence[Point], metric: str) -> Plot:
    """Quality against size: the metric where there are labels, else the SNR of the outputs.

    What `compress` would not write is an open circle, what was not measured is left out.
    """
    shown = [point for point in points if point.ratio is not None]
    labelled = all(point.metric is not None and isfinite(point.metric) for point in shown)
    macs = [point.macs or 1 for point in shown]
    fewer = len({*macs}) > 1
    marks = []
    for point, work in zip(shown, macs, strict=True):
        x = max(macs) / work if fewer else point.ratio or 1.0
        y = (point.metric if labelled else point.snr) or 0.0
        label = ", ".join(filter(None, (f"{x:.3g}: {y:.2f}", refusal(point))))
        marks.append(Mark((x, y), "open" if point.failures else "", label))
    opened = "; open: refused" * any(point.failures for point in shown)
    return Plot(
        x=SMALLER["macs" if fewer else "bytes"],
        y=(metric if labelled else f"SNR of the outputs{guessed(shown)}, dB") + opened,
        lines=[("", [mark.place for mark in marks])],
        marks=marks,
        key=False,
        level=shown[0].baseline if labelled else None,
    )


def trade_off(curve: TradeOff, both: Comparison | None) -> Plot:
    """What the candidates allowed, what was chosen of it, and what came of that."""

    def place(pair: Pair) -> Pair:
        return curve.whole / max(pair[0], 1e-9), pair[1]

    def mark(pair: Pair, kind: str, name: str) -> Mark:
        x, y = place(pair)
        return Mark((x, y), kind, f"{name}: {x:.2f}, {y:.1f} dB")

    marks = [mark(curve.chosen, "open", "predicted")]
    if both is not None and both.real and both.worst_snr is not None:
        before, after = both.before, both.after
        cost = {"bytes": after.nbytes, "macs": after.macs}.get(curve.cost) or curve.chosen[0]
        whole = {"bytes": before.nbytes, "macs": before.macs}.get(curve.cost) or curve.whole
        marks.insert(0, mark((cost * curve.whole / whole, both.worst_snr), "", "this result"))
    if curve.grid is not None:
        marks.append(mark(curve.grid, "other", "4 bits everywhere"))
    marks = [m for m in marks if m.place[1] < SAME]
    lowest = min([NOISE, *(m.place[1] for m in marks)])
    line = [place(pair) for pair in curve.points if lowest <= pair[1] < SAME]
    return Plot(SMALLER[curve.cost], "SNR of the outputs, dB", [("", line)], marks)


def training(refined: Refinement) -> Plot:
    """Loss after each epoch, on what was trained with and on what was held out.

    Shares of their first values: they are not measured alike.
    """
    lost = _shares([(float(e.epoch), e.loss) for e in refined.epochs if isfinite(e.loss)])
    held = _shares([(float(e.epoch), e.held_out) for e in refined.epochs if isfinite(e.held_out)])
    best = refined.best
    return Plot(
        x="epoch",
        y="loss, of the first: held out, and of the samples trained with (pale)",
        lines=[("second", lost), ("", held)],
        marks=[
            Mark((best.epoch, dict(held).get(best.epoch, 1.0)), "", f"kept: epoch {best.epoch}")
        ],
        log=False,
    )


def _shares(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y / max(points[0][1], 1e-30)) for x, y in points]


def layers(rows: Sequence[Row]) -> str:
    """Bytes and multiplications before and after, and the error, of every layer in their order."""
    panels = [
        ("bytes, before and after", "KB", 1e3, [row.nbytes for row in rows]),
        ("multiplications, before and after", "million", 1e6, [row.macs for row in rows]),
        ("error, share of the layer's output", "", 1, [(0, row.error) for row in rows]),
    ]
    panels = [panel for panel in panels if any(map(any, panel[3]))]
    step = min(WIDTH / max(len(rows), 1), 40)
    bars: list[list[str]] = [[] for _ in rows]
    parts = []
    for index, (name, unit, scale, pairs) in enumerate(panels):
        bottom = (index + 1) * (PANEL + HEAD)
        most = max(map(max, pairs))
        top = (
            f"{most / scale:,.{0 if most >= 100 * scale else 2}f} {unit}" if unit else f"{most:.3g}"
        )
        parts.append(
            f'<text x="0" y="{bottom - PANEL - 14}">{name}<tspan class="soft" dx="8">'
            f"up to {top}</tspan></text>"
            f'<line x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}"/>'
        )
        for column, values in zip(bars, pairs, strict=True):
            kinds = ("was", "is") if unit else ("", "error")
            for kind, value, width in zip(kinds, values, (0.8, 0.5), strict=True):
                height = round(PANEL * value / most, 1)
                x, wide = round(step * (1 - width) / 2, 2), round(step * width, 2)
                if height:
                    column.append(
                        f'<rect class="{kind}" x="{x}" y="{round(bottom - height, 1)}" '
                        f'width="{wide}" height="{height}"/>'
                    )
    tall = len(panels) * (PANEL + HEAD) + NUMBERS
    every = ceil(NUMBER / step)
    numbers = [_number(i + 1, step, tall) * (not (i + 1) % every) for i in range(len(rows))]
    for index, (row, column) in enumerate(zip(rows, bars, strict=True)):
        parts.append(
            f'<g class="layer" data-error="{row.error:.6g}" '
            f'transform="translate({round(index * step, 2)} 0)">'
            f"<title>{escape(layer(row))}</title>"
            f'<rect class="back" y="0" width="{round(step, 2)}" height="{tall}"/>'
            f"{''.join(column)}{numbers[index]}</g>"
        )
    return _svg("layers in network order", tall, parts)


def _number(number: int, step: float, tall: int) -> str:
    """Of a layer, below its bars."""
    where = f'x="{round(step / 2, 2)}" y="{tall - 6}" text-anchor="middle"'
    return f'<text class="soft" {where}>{number}</text>'


def _svg(title: str, height: int, parts: Sequence[str], look: str = "") -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{escape(title)}">{look}{"".join(parts)}</svg>\n'
    )


@dataclass(frozen=True)
class Mark:
    """A point: its kind is a class of the style."""

    place: Pair
    kind: str
    name: str


@dataclass(frozen=True)
class Plot:
    """Lines, each with its kind, and marks over one pair of axes.

    Attributes:
        log: whether x is logarithmic.
        key: whether the names of the marks are written; they are told by pointing at them anyhow.
        level: y of the original, if there is such.
    """

    x: str
    y: str
    lines: Sequence[tuple[str, Sequence[Pair]]]
    marks: Sequence[Mark]
    log: bool = True
    key: bool = True
    level: float | None = None

    def svg(self, alone: bool = False) -> str:
        """The drawing, for a page that has the style, or ``alone`` as a file of its own."""
        look = f"<style>{COLOURS}svg{{background:var(--paper)}}{STYLE}</style>" if alone else ""
        parts = [*self._axes(), *self._lines(), *self._marks(), *self._key()]
        return _svg(f"{self.y} against {self.x}", HEIGHT, parts, look)

    def _ranges(self) -> tuple[float, float, float, float]:
        """Of x on its scale, and of y, with some room around."""
        pairs = [*(pair for _, line in self.lines for pair in line), *(m.place for m in self.marks)]
        xs, ys = [self._scaled(x) for x, _ in pairs], [y for _, y in pairs]
        ys += [] if self.level is None else [self.level]
        wide = max(0.04 * (max(xs) - min(xs)), 0.05)
        high = max(0.06 * (max(ys) - min(ys)), 0.01 * abs(max(ys)), 1e-9)
        return min(xs) - wide, max(xs) + wide, min(ys) - high, max(ys) + high

    def _scaled(self, x: float) -> float:
        return log2(x) if self.log else x

    def _place(self, x: float, y: float) -> Pair:
        left, right, low, high = self._ranges()
        across = (self._scaled(x) - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        down = (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - down, 1)

    def _axes(self) -> Iterator[str]:
        left, right, low, high = self._ranges()
        end, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in _even(low, high):
            _, y = self._place(1, value)
            yield f'<line x1="{LEFT}" x2="{end}" y1="{y}" y2="{y}"/>'
            where = f'x="{LEFT - 8}" y="{y + 4}" text-anchor="end"'
            yield f'<text class="soft" {where}>{value:g}</text>'
        for value in _powers(2**left, 2**right) if self.log else _even(left, right):
            x, _ = self._place(value, low)
            yield f'<line x1="{x}" x2="{x}" y1="{foot}" y2="{foot + 4}"/>'
            where = f'x="{x}" y="{foot + 20}" text-anchor="middle"'
            yield f'<text class="soft" {where}>{value:g}</text>'
        yield f'<text x="{end}" y="{HEIGHT - 8}" text-anchor="end">{escape(self.x)}</text>'
        yield f'<text x="{LEFT}" y="{TOP - 16}">{escape(self.y)}</text>'
        if self.level is not None:
            _, y = self._place(1, self.level)
            yield f'<line class="level" x1="{LEFT}" x2="{end}" y1="{y}" y2="{y}"/>'
            yield f'<text class="soft" x="{end}" y="{y - 6}" text-anchor="end">original</text>'

    def _lines(self) -> Iterator[str]:
        for kind, line in self.lines:
            places = " ".join(f"{x},{y}" for x, y in (self._place(*pair) for pair in line))
            yield f'<polyline class="{kind}" points="{places}"/>'

    def _marks(self) -> Iterator[str]:
        """The first mark lies above the others."""
        for mark in reversed(self.marks):
            x, y = self._place(*mark.place)
            note = f"<title>{escape(mark.name)}</title>"
            yield f'<circle class="{mark.kind}" cx="{x}" cy="{y}" r="5">{note}</circle>'

    def _key(self) -> Iterator[str]:
        """What the marks are, at the top right, where a falling line leaves room."""
        for index, mark in enumerate(self.marks if self.key else ()):
            x, y = WIDTH - RIGHT - 6, TOP + 14 + LINE * index
            yield f'<circle class="{mark.kind}" cx="{x}" cy="{y}" r="5"/>'
            where = f'x="{x - 14}" y="{y + 4}" text-anchor="end"'
            yield f'<text class="name" {where}>{escape(mark.name)}</text>'


def _even(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 7
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    return [i * step for i in range(ceil(low / step), floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis."""
    if high / low < 4:
        return _even(low, high)
    powers = [2.0**k for k in range(ceil(log2(low)), floor(log2(high)) + 1)]
    between = [1.5 * 2.0**k for k in range(ceil(log2(low / 1.5)), floor(log2(high / 1.5)) + 1)]
    return sorted(powers + between) if len(powers) < 5 else powers
