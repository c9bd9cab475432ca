"""What the command line prints.  The only file that imports rich."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from onnxcompress.report import Comparison, Point, Refinement, Report, Row

WIDE = 1000  # columns where the output is no terminal: nothing is cut off or broken
CURVE = (0.95, 0.9, 0.75, 0.5, 0.25)  # shares of a layer's cost at which its error is shown
NAMED = 4  # layers that are listed where many were skipped for one reason


# -------------------------------------------------------------------------------- stdout and stderr


class _Console(Console):
    """The standard output.  Whoever reads it may leave at any time."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """Text in which whatever a terminal would obey, or not show, is spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _text(text: str, style: str = "") -> Text:
    """A line or a cell; names in it come from the model."""
    return Text(printable(text), style)


def write(text: str) -> None:
    """Print text to the standard output as it is."""
    _Console().out(text, highlight=False)


def _print(*parts: RenderableType) -> None:
    """Print some things, each with an empty line before it, but the first."""
    console = _Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    with console.capture() as captured:
        for index, part in enumerate(parts):
            console.print(Padding(part, (int(index > 0), 0, 0, 0), expand=False))
    write("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextmanager
def progress(shown: bool) -> Iterator[Callable[[Iterable[Any], str, int], Iterable[Any]]]:
    """A ``track`` for `compress`, with bars on stderr while they are of use."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )

    def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        task = bars.add_task(what, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)

    with bars:
        yield track


# ----------------------------------------------------------------------------------------- compress


def show_report(report: Report, place: str, quiet: bool) -> None:
    """The layers, the model before and after, what else is to be known, and the verdict."""
    parts: list[RenderableType] = []
    if not quiet:
        parts.append(_layers(report.rows))
        if report.worse and report.curves:
            parts.append(_curves(report.curves))
        if report.comparison:
            parts.append(_comparison(report.comparison, "held-out", report.refined))
            if report.refined:
                parts.append(_text(_training(report.comparison, report.refined)))
        if notes := _notes(report):
            parts.append(notes)
    _print(*parts, _text(_verdict(report, place), "bold red" if report.worse else "bold green"))


def _layers(rows: Sequence[Row]) -> Table:
    table = _table("layer", "type", "weight", "method", KB=True, MMACs=True, error=True)
    table.add_column("SNR dB", justify="right")
    for row in rows:
        table.add_row(
            _text(row.layer),
            row.op_type,
            _times(row.shape),
            Text(row.method or "kept"),
            _pair(row.nbytes, 1000, 1),
            _pair(row.macs, 1_000_000, 2),
            f"{row.error:.4f}" if row.method else "",
            "" if row.snr is None else f"{row.snr:.1f}",
            style="" if row.method else "dim",
        )
    return table


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    """The error of every layer at some shares of its cost: why the target is out of reach."""
    table = _table("least error at this share of a layer's cost")
    for share in CURVE:
        table.add_column(f"{share:.0%}", justify="right")
    for name, points in curves.items():
        least = [min((e for cost, e in points if cost <= share), default=None) for share in CURVE]
        table.add_row(_text(name), *("-" if e is None else f"{e:.4f}" for e in least))
    return table


def _notes(report: Report) -> Text | None:
    """Warnings, and why layers are as they were: those with the same reason in one line."""
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in report.rows:
        if row.note and row.layer not in report.skipped:
            reasons["note" if row.method else "kept", row.note.removeprefix("kept: ")] += [
                row.layer
            ]
    for name, reason in report.skipped.items():
        reasons["skipped", reason].append(name)
    lines = [_text(f"warning: {warning}", "yellow") for warning in report.warnings]
    for (what, reason), names in reasons.items():
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        lines.append(_text(f"{what}: {', '.join(names[:NAMED])}{more}: {reason}", "dim"))
    return Text("\n").join(lines) if lines else None


def _verdict(report: Report, place: str) -> str:
    """The result in one sentence."""
    both = report.comparison
    if both is None:
        return f"no result; {place}"
    parts = [f"file {_ratio(both.ratio)}"]
    before, after = both.before, both.after
    if before.macs and after.macs is not None and after.macs != before.macs:
        share = after.macs / before.macs
        parts.append(f"{abs(1 - share):.0%} {'fewer' if share < 1 else 'more'} multiplications")
        if both.latency:
            parts.append(_speed(both.latency.ratio, both.latency.verdict))
    elif any(row.method for row in report.rows):
        parts.append("speed and memory as the original")
    if before.metric is not None and after.metric is not None:
        parts.append(f"{both.metric} {before.metric:.2f} → {after.metric:.2f}")
    return f"{', '.join(parts)}; {place}"


def _ratio(ratio: float) -> str:
    """What became of the file's size."""
    if round(ratio, 2) == 1:
        return "as large as before"
    return f"{ratio:.2f} times smaller" if ratio > 1 else f"{1 / ratio:.2f} times larger"


def _speed(ratio: float, verdict: str) -> str:
    """What became of the latency, which is now so many times the original's."""
    if verdict == "inconclusive":
        return "no measurable difference in speed"
    return f"{max(ratio, 1 / ratio):.2f} times {verdict}"


# ----------------------------------------------------------------------------------- other commands


def show_comparison(comparison: Comparison) -> None:
    """Two models side by side."""
    _print(_comparison(comparison, ""))


def _comparison(comparison: Comparison, which: str, refined: Refinement | None = None) -> Table:
    """Two models; where the second was refined, what it was before stands between them."""
    before, after = comparison.before, comparison.after
    columns = ("before", "after") if refined is None else ("original", "compressed", "refined")
    table = _table("", **dict.fromkeys(columns, True))
    table.add_column("", overflow="fold")

    def add(what: str, first: str, last: str, note: str, between: str | None = None) -> None:
        middle = [] if refined is None else [last if between is None else between]
        table.add_row(_text(what), first, *middle, last, note)

    add("file, bytes", f"{before.nbytes:,}", f"{after.nbytes:,}", _ratio(comparison.ratio))
    share = f"{after.weights / max(before.weights, 1):.2%} left"
    add("weights, bytes", f"{before.weights:,}", f"{after.weights:,}", share)
    if before.macs and after.macs is not None:
        share = f"{after.macs / before.macs:.2%} left"
        add("multiplications", f"{before.macs:,}", f"{after.macs:,}", share)
    if spent := comparison.latency:
        spread = (
            f"{spent.verdict}: {spent.ratio:.2f} of the time ({spent.low:.2f} to {spent.high:.2f})"
        )
        add("latency, ms", f"{spent.before:.2f}", f"{spent.after:.2f}", spread, "")
    if before.metric is not None and after.metric is not None:
        change = f"{after.metric - before.metric:+.2f}"
        metric = f"{comparison.metric}, by labels"
        was = _number(refined and refined.metric, ".2f")
        add(metric, f"{before.metric:.2f}", f"{after.metric:.2f}", change, was)
    kind = which if comparison.real else "RANDOM"
    seen = f"on {comparison.samples} {kind} samples".replace("  ", " ")
    if comparison.agreement is not None:
        was = _number(refined and refined.agreement, ".2%")
        add("same top class", "", f"{comparison.agreement:.2%}", seen, was)
    for name, snr in comparison.snr.items():
        was = _number(refined and refined.snr.get(name), ".2f")
        add(f"SNR of {name}, dB", "", f"{snr:.2f}", seen, was)
    if not comparison.finite:
        wrong = Text("the outputs differ in shape, or hold NaN", "bold red")
        table.add_row("", *("" for _ in columns), wrong)
    return table


def _training(comparison: Comparison, refined: Refinement) -> str:
    """What a refinement took and gave, in one line."""
    count, best = len(refined.epochs) - 1, refined.best
    minutes = sum(epoch.seconds for epoch in refined.epochs) / 60
    spent = f"refined: {count} {'epoch' if count == 1 else 'epochs'} in {minutes:.1f} minutes"
    if not best.epoch:
        return f"{spent}, none better than the compressed model, which stays as it was"
    gains = [f"SNR {comparison.worst_snr - refined.worst_snr:+.2f} dB"]
    if comparison.agreement is not None and refined.agreement is not None:
        gains.append(
            f"same top class {100 * (comparison.agreement - refined.agreement):+.2f} points"
        )
    if comparison.after.metric is not None and refined.metric is not None:
        gains.append(f"{comparison.metric} {comparison.after.metric - refined.metric:+.2f}")
    return f"{spent}, the best is number {best.epoch}: {', '.join(gains)}"


def show_points(points: Sequence[Point], metric: str) -> None:
    """A trade-off, one target a line."""
    table = _table("target")
    for name in ("ratio", "MMACs", "SNR dB", "agreement", metric):
        table.add_column(_text(name), justify="right")
    for point in points:
        table.add_row(
            point.target,
            f"{point.ratio:.2f}",
            f"{point.macs / 1e6:,.2f}",
            f"{point.snr:.2f}",
            "" if point.agreement is None else f"{point.agreement:.2%}",
            "" if point.metric is None else f"{point.metric:.2f}",
        )
    _print(table)


def show_inspection(facts: Mapping[str, Any]) -> None:
    """What a model is made of."""
    table = _table("layer", "type", "weight", KB=True)
    for name in ("of file", "MMACs", "of all"):
        table.add_column(name, justify="right")
    table.add_column("compressible by", overflow="fold")
    work = facts["macs"]
    for row in facts["layers"]:
        size, macs = row["bytes"], row["macs"]
        able = ", ".join(row["methods"])
        reason = row["reason"] and (f"{able} ({row['reason']})" if able else f"no: {row['reason']}")
        table.add_row(
            _text(row["layer"]),
            row["type"],
            _times(row["shape"]),
            "" if size is None else f"{size / 1000:,.1f}",
            "" if size is None else f"{size / facts['file']:.1%}",
            "" if macs is None else f"{macs / 1e6:,.2f}",
            "" if macs is None else f"{macs / (work or 1):.1%}",
            _text(reason or able),
            style="" if able else "dim",
        )
    able = [row for row in facts["layers"] if row["methods"]]
    lines = [
        f"{len(able)} of {len(facts['layers'])} layers can be compressed; they hold "
        f"{sum(row['bytes'] for row in able) / facts['file']:.1%} of the file"
        + (f" and {sum(row['macs'] or 0 for row in able) / work:.1%} of its MACs" if work else ""),
        f"file {facts['file']:,} bytes, weights {facts['weights']:,} bytes, "
        f"{f'{work:,} MACs' if work else 'MACs unknown'}, {facts['nodes']} nodes, "
        f"opset {facts['opset']}, IR {facts['ir_version']}"
        + ", compressed before"
        * facts["compressed_before"],
        *(
            f"{way[:-1]} {_tensor(tensor)}"
            for way in ("inputs", "outputs")
            for tensor in facts[way]
        ),
    ]
    _print(table, Text("\n".join(map(printable, lines))))


def _tensor(facts: Mapping[str, Any]) -> str:
    shape = "?" if facts["shape"] is None else ", ".join(str(d or "?") for d in facts["shape"])
    return f"{facts['name']}: {facts['type']} [{shape}]"


def show_methods(summaries: Mapping[str, str]) -> None:
    """All methods, one a line."""
    table = _table("method", "")
    for name, summary in summaries.items():
        table.add_row(name, Text(summary))
    _print(table)


def show_method(name: str, summary: str, settings: Sequence[tuple[str, str, str]]) -> None:
    """One method with its settings."""
    table = _table("setting", "values", "")
    for setting in settings:
        table.add_row(*map(Text, setting))
    pairs = ",".join(f"{key}=..." for key, *_ in settings[:2])
    hint = f"--method {name}" + (
        f" or --method {name}:{pairs}; what is not set is open" * bool(pairs)
    )
    _print(Text(f"{name}: {summary}"), table, Text(hint))


# -------------------------------------------------------------------------------------------- cells


def _table(*words: str, **numbers: bool) -> Table:
    """A plain table with columns of words, then of numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for word in words:
        table.add_column(word, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _pair(values: tuple[int, int], unit: int, digits: int) -> str:
    """Before and after."""
    before, after = (f"{value / unit:,.{digits}f}" for value in values)
    return before if values[0] == values[1] else f"{before} → {after}"
