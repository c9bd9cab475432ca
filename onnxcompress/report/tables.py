"""Reports and facts as tables of plain text, as a terminal shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onnxcompress.core.messages import printable, shorten
from onnxcompress.report.report import Comparison, Point, Refinement, Report, Row
from onnxcompress.report.words import (
    change,
    computes,
    duration,
    facts,
    number,
    points,
    reached,
    reasons,
    saved,
    small,
    times,
    training,
    verdict,
)

WIDE = 1000  # There are so many columns without a terminal: nothing is cut off or broken.
CURVE = (0.95, 0.9, 0.75, 0.5, 0.25)  # Errors are shown at these shares of a layer's cost.
BAR = 8  # The longest bar has so many columns.
MOST_REST = 6  # Of the bytes that belong to no layer, at most so many kinds are listed.
ADVICE = {  # These words in reasons why no layer can be compressed tell what to do.
    "local function": "write the functions out with onnx.inliner.inline_local_functions",
    "needs opset": "convert the model to a newer opset with onnx.version_converter",
    "computed while": "store computed weights as constants: --simplify, or onnxruntime's "
    "optimized_model_filepath; if no node computes with constants alone, there are no weights",
    "share a byte": "start from the model before it was quantized",
    "bits or fewer": "start from the model before it was quantized, or name fewer bits, such as "
    "--method integer:bits=4",
}
GAP = 2  # Two columns of a table have so many spaces between them.
WRAPPED = 24  # A text that may wrap goes on in the next line after so many letters.
METHOD_LETTERS = 32  # On a terminal, a method and its settings have no more letters.
READABLE_NAME = 24  # Columns leave until there is room for so many letters of a layer's name.
SHORTEST_NAME = 12  # A layer's name has room for at least so many letters.
NAMED = 4  # So many layers are listed where more were skipped for one reason.


def _text(text: str, style: str = "") -> Text:
    """A line or a cell; names in it come from the model."""
    return Text(printable(text), style)


def _render(*parts: RenderableType, styled: bool = True) -> str:
    """Some things as text, each with an empty line before it, but the first."""
    console = Console(highlight=False, force_jupyter=False)
    if not styled:
        console = Console(highlight=False, force_jupyter=False, color_system=None)
    if not console.is_terminal:
        console.width = WIDE
    with console.capture() as captured:
        for index, part in enumerate(parts):
            console.print(Padding(part, (int(index > 0), 0, 0, 0), expand=False))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def plain(report: Report) -> str:
    """A report as its command prints it, but for colours."""
    if report.points:
        return _render(_points(report.points, "metric"), styled=False)
    if report.rows or report.comparison is None:
        return _render(*_parts(report), verdict(report, ""), styled=False)
    return _render(_comparison(report.comparison, ""), reached(report), styled=False)


def render_report(report: Report, place: str, quiet: bool) -> str:
    """The layers, the model before and after, what else is to be known, and the verdict."""
    style = "bold red" if report.worse else "bold green"
    parts = () if quiet else _parts(report)
    return _render(*parts, _text(verdict(report, place), style))


def _parts(report: Report) -> Iterator[RenderableType]:
    """All but the verdict."""
    if report.rows:
        yield _layers(report.rows)
    if report.worse and report.curves:
        yield _text("the least errors at these shares of a layer's cost:")
        yield _curves(report.curves)
    if report.comparison:
        yield _comparison(report.comparison, "held-out", report.refined)
        if report.refined:
            yield _text(training(report.comparison, report.refined))
    if report.seconds is not None:
        yield _text(f"took {duration(report.seconds)}", "dim")
    if notes := _notes(report):
        yield notes


def _layers(rows: Sequence[Row]) -> Table:
    columns = [
        _Column("layer", [row.layer for row in rows]),
        _Column("type", [row.op_type for row in rows], leaves=3),
        _Column("weight", [times(row.shape) for row in rows], leaves=2),
        _Column("method", [row.method or "kept" for row in rows], longest=METHOD_LETTERS),
        _Column("KB", [change(row.nbytes, 1000, 1) for row in rows], number=True),
        _Column("MMACs", [change(row.macs, 1e6, 2) for row in rows], number=True, leaves=4),
        _Column("error", [small(row.error) if row.method else "" for row in rows], number=True,
                leaves=1),
        _Column("SNR dB", [number(row.snr, ".1f") for row in rows], number=True),
    ]  # fmt: skip
    if any(row.arithmetic != "float" for row in rows):
        columns.append(_Column("computes in", [row.arithmetic for row in rows], wraps=True))
    return _fitted(columns, ["" if row.method else "dim" for row in rows])


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    """The error of every layer at some shares of its cost: why the target is out of reach."""

    def least(share: float) -> list[str]:
        errors = [
            min((e for c, e in pairs if c <= share), default=None) for pairs in curves.values()
        ]
        return ["-" if error is None else small(error) for error in errors]

    shares = [_Column(f"{share:.0%}", least(share), number=True) for share in CURVE]
    return _fitted([_Column("layer", [*curves]), *shares], [""] * len(curves))


def _notes(report: Report) -> Text | None:
    """Warnings, and why layers are as they were: those with the same reason in one line."""
    lines = [_text(saved(change)) for change in report.changes]
    lines += [_text(line) for line in filter(None, [computes(report)])]
    lines += [_text(f"warning: {warning}", "yellow") for warning in report.warnings]
    for (what, reason), names in reasons(report).items():
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        lines.append(_text(f"{what}: {', '.join(names[:NAMED])}{more}: {reason}", "dim"))
    return Text("\n").join(lines) if lines else None


def render_comparison(report: Report, quiet: bool) -> str:
    """Two models side by side, and the verdict where a quality was asked for."""
    assert report.comparison is not None
    line = _text(reached(report), "bold red" if report.worse else "bold green")
    table = _comparison(report.comparison, "")
    return _render(*[table] * (not quiet), *[line] * (quiet or bool(report.target)))


def _comparison(comparison: Comparison, which: str, refined: Refinement | None = None) -> Table:
    """Two models; where the second was refined, what it was before stands between them."""
    columns = ("before", "after") if refined is None else ("original", "compressed", "refined")
    table = _table("", **dict.fromkeys(columns, True))
    table.add_column("", overflow="fold")
    for fact in facts(comparison, which, refined):
        middle = [] if refined is None else [fact.between]
        table.add_row(_text(fact.what), fact.before, *middle, fact.after, fact.note)
    if not comparison.finite:
        wrong = Text("NaN or infinities where the original has none", "bold red")
        table.add_row("", *("" for _ in columns), wrong)
    console = Console()
    anywhere = console.options.update(max_width=WIDE)
    least = Measurement.get(console, anywhere, _whole_words(table)).minimum
    if console.is_terminal and least > console.width:
        del table.columns[-1]  # Its words say what the numbers say as well.
    return table


def render_points(sweep: Sequence[Point], metric: str) -> str:
    """A trade-off, one target a line."""
    return _render(_points(sweep, metric))


def _points(sweep: Sequence[Point], metric: str) -> Table:
    [first, *names], *rows = points(sweep, metric)
    table = _table(first)
    for name in names:
        table.add_column(_text(name), justify="right" if name else "left", no_wrap=bool(name))
    for row, point in zip(rows, sweep, strict=True):
        table.add_row(*map(_text, row), style="dim" if point.failures else "")
    return _whole_words(table)


def render_inspection(facts: Mapping[str, Any]) -> str:
    """What a model is made of."""
    rows, work = facts["layers"], facts["macs"] or 1
    most = max((row["bytes"] or 0 for row in rows), default=0) or 1
    sizes, macs = ([row[key] for row in rows] for key in ("bytes", "macs"))
    columns = [
        _Column("layer", [row["layer"] for row in rows]),
        _Column("type", [row["type"] for row in rows], leaves=3),
        _Column("weight", [times(row["shape"]) for row in rows], leaves=4),
        _Column("KB", [number(size, ",.1f", 1000) for size in sizes], number=True),
        _Column("of file", [number(s, ".1%", facts["file"]) for s in sizes], number=True, leaves=5),
        _Column("", ["█" * round(BAR * (size or 0) / most) for size in sizes], leaves=1),
        _Column("MMACs", [number(count, ",.2f", 1e6) for count in macs], number=True),
        _Column("of all", [number(count, ".1%", work) for count in macs], number=True, leaves=2),
        _Column("compressible by", [_able(row) for row in rows], wraps=True),
    ]
    table = _fitted(columns, ["" if row["methods"] else "dim" for row in rows])
    parts: list[RenderableType] = [table]
    if facts["estimates"]:
        parts.append(_text("estimated SNR without data, in dB, of a file so many times smaller:"))
        parts.append(_estimates(facts["estimates"]))
    return _render(*parts, Text("\n".join(map(printable, _facts(facts)))))


def _able(row: Mapping[str, Any]) -> str:
    """The methods that can compress a layer, and why others cannot."""
    able = ", ".join(row["methods"])
    if not row["reason"]:
        return able
    return f"{able} ({row['reason']})" if able else f"no: {row['reason']}"


def _estimates(estimates: Sequence[Mapping[str, Any]]) -> Table:
    """What each method would give, as far as the weights alone tell: with data it is more."""
    ratios = [*estimates[0]["snr"]]
    columns = [
        _Column("method", [row["method"] for row in estimates]),
        *(
            _Column(
                f"{ratio} x", [number(row["snr"][ratio], ".0f") for row in estimates], number=True
            )
            for ratio in ratios
        ),
        _Column("speed", ["faster" if row["faster"] else "as before" for row in estimates]),
    ]
    return _fitted(columns, [""] * len(estimates))


def _int8(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many layers could compute in int8, and why the others cannot."""
    why = defaultdict[str, list[str]](list)
    for row in rows:
        why[row["float"]].append(row["layer"])
    able = len(why.pop("", ()))
    faster = ", where that is measured to be faster" * bool(able)
    yield f"{able} of {len(rows)} layers can compute in int8 (--compute int8){faster}"
    for reason, names in why.items():
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        yield f"in float: {', '.join(names[:NAMED])}{more}: {reason}"


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    able, work = [row for row in facts["layers"] if row["methods"]], facts["macs"]
    share = sum(row["bytes"] for row in able) / facts["file"]
    yield (
        f"{len(able)} of {len(facts['layers'])} layers can be compressed; they hold "
        f"{share:.1%} of the file"
        + (f" and {sum(row['macs'] or 0 for row in able) / work:.1%} of its MACs" if work else "")
    )
    largest = sorted((row["bytes"] for row in able), reverse=True)
    half = next((n for n in range(len(able)) if 2 * sum(largest[:n]) >= sum(largest)), len(able))
    if len(able) > 1:
        yield f"half of that file share is in {half} {'layer' if half == 1 else 'layers'}"
    yield from _int8(facts["layers"])
    yield (
        f"file {facts['file']:,} bytes, weights {facts['weights']:,} bytes, "
        f"{f'{work:,} MACs' if work else 'MACs unknown'}, {facts['nodes']} nodes, "
        f"opset {facts['opset']}, IR {facts['ir_version']}"
        + ", compressed before"
        * facts["compressed_before"]
    )
    rest = [f"{row['name']} {row['bytes'] / 1000:,.1f} KB" for row in facts["rest"] if row["bytes"]]
    if rest:
        yield "besides: " + ", ".join(rest[-MOST_REST:])
    if facts["made"]:
        yield f"compressed with {facts['made']}"
    if facts["strip"]:
        yield f"--strip drops {facts['strip']:,} bytes that no runtime reads"
    if (saving := facts["simplify"]) and saving["nodes"]:
        count = "1 node" if saving["nodes"] == 1 else f"{saving['nodes']:,} nodes"
        yield f"--simplify saves {count} and {saving['bytes']:,} bytes"
    for way in ("inputs", "outputs"):
        yield from (f"{way[:-1]} {_tensor(tensor)}" for tensor in facts[way])
    yield _next_step(facts, able)


def _next_step(facts: Mapping[str, Any], able: Sequence[Mapping[str, Any]]) -> str:
    """What to do with such a model."""
    if able:
        return (
            "next: onnxcompress IN OUT --ratio 4 --calib SAMPLES; "
            "to be faster, --macs 0.5 or --compute int8"
        )
    reasons = " ".join(row["reason"] for row in facts["layers"])
    for words, advice in ADVICE.items():
        if words in reasons:
            return f"next: {advice}"
    return "next: nothing, it has no weights of a thousand numbers or more"


def _tensor(facts: Mapping[str, Any]) -> str:
    shape = "?" if facts["shape"] is None else ", ".join(str(d or "?") for d in facts["shape"])
    return f"{facts['name']}: {facts['type']} [{shape}]"


def render_methods(summaries: Mapping[str, str]) -> str:
    """All methods, one a line."""
    table = _table("method", "")
    for name, summary in summaries.items():
        table.add_row(name, Text(summary))
    return _render(_whole_words(table))


def render_method(
    name: str, summary: str, settings: Sequence[tuple[str, str, str]], explanation: str
) -> str:
    """One method: how it works, its settings, and how it is asked for."""
    parts: list[RenderableType] = [Text(f"{name}: {summary}"), Text(explanation)]
    if settings:
        parts.append(table := _table("setting", "values", ""))
        for setting in settings:
            table.add_row(*map(Text, setting))
    pairs = ",".join(f"{key}=..." for key, *_ in settings[:2])
    hint = f"--method {name}" + (
        f" or --method {name}:{pairs}; what is not set is open" * bool(pairs)
    )
    return _render(*parts, Text(hint))


@dataclass(frozen=True)
class _Column:
    """A column of a table that has to fit a terminal.

    Attributes:
        leaves: the columns with the least number go first where there is no room; 0 stays.
        longest: letters of a cell on a terminal, whose middle is left out where it has more.
        wraps: at spaces, so that it needs no more than WRAPPED letters.
    """

    title: str
    cells: Sequence[str]
    number: bool = False
    leaves: int = 0
    longest: int = WIDE
    wraps: bool = False

    @property
    def width(self) -> int:
        longest = max((cell_len(shorten(c, self.longest)) for c in self.cells), default=0)
        return max(len(self.title), min(longest, WRAPPED) if self.wraps else longest)


def _fitted(columns: Sequence[_Column], styles: Sequence[str]) -> Table:
    """A table whose first column has names: where it is too wide they are shortened, last."""
    columns = [replace(c, cells=[*map(printable, c.cells)]) for c in columns]
    console, table = Console(), _table()
    if console.is_terminal:
        least = min(columns[0].width, READABLE_NAME) + GAP
        while least + _width(columns[1:]) > console.width and any(c.leaves for c in columns):
            columns.remove(min((c for c in columns if c.leaves), key=lambda c: c.leaves))
        room = console.width - _width(columns[1:]) - GAP
        if room < SHORTEST_NAME:
            widest = max(columns[1:], key=lambda c: 0 if c.number or c.wraps else c.width)
            less = widest.width - (SHORTEST_NAME - room)
            columns[columns.index(widest)] = replace(widest, longest=max(less, SHORTEST_NAME))
        columns[0] = replace(columns[0], longest=max(room, SHORTEST_NAME))
        columns = [replace(c, cells=[shorten(x, c.longest) for x in c.cells]) for c in columns]
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.number else "left",
            no_wrap=not column.wraps,
            overflow="fold",
        )
    for row, style in zip(zip(*(c.cells for c in columns), strict=True), styles, strict=True):
        table.add_row(*map(Text, row), style=style)
    return _whole_words(table)


def _whole_words(table: Table) -> Table:
    """The same with columns wide enough for each of their words, so that none is broken."""
    for column in table.columns:
        if not column.no_wrap:
            words = [w for cell in (column.header, *column.cells) for w in str(cell).split()]
            column.min_width = min(max(map(cell_len, words), default=1), WRAPPED)
    return table


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width + GAP for column in columns) - GAP


def _table(*words: str, **numbers: bool) -> Table:
    """A plain table with columns of words, then of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for word in words:
        table.add_column(word, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
