"""What the command line prints.  The only file that imports rich."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from onnxcompress.report import Comparison, Point, Refinement, Report, Row
from onnxcompress.wording import change, facts, points, reached, reasons, times, training

WIDE = 1000  # columns where the output is no terminal: nothing is cut off or broken
CURVE = (0.95, 0.9, 0.75, 0.5, 0.25)  # shares of a layer's cost at which its error is shown
NAMED = 4  # layers that are listed where many were skipped for one reason


# -------------------------------------------------------------------------------- stdout and stderr


class _Console(Console):
    """The standard output.  Whoever reads it may leave at any time."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
                parts.append(Text(training(report.comparison, report.refined)))
        if notes := _notes(report):
            parts.append(notes)
    verdict = f"{reached(report)}; {place}"
    _print(*parts, Text(verdict, "bold red" if report.worse else "bold green"))


def _layers(rows: Sequence[Row]) -> Table:
    table = _table("layer", "type", "weight", "method", KB=True, MMACs=True, error=True)
    table.add_column("SNR dB", justify="right")
    for row in rows:
        table.add_row(
            Text(row.layer),
            row.op_type,
            times(row.shape),
            Text(row.method or "kept"),
            change(row.nbytes, 1000, 1),
            change(row.macs, 1_000_000, 2),
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
    for name, curve in curves.items():
        least = [min((e for cost, e in curve if cost <= share), default=None) for share in CURVE]
        table.add_row(Text(name), *("-" if e is None else f"{e:.4f}" for e in least))
    return table


def _notes(report: Report) -> Text | None:
    """Warnings, and why layers are as they were: those with the same reason in one line."""
    lines = [Text(f"warning: {warning}", "yellow") for warning in report.warnings]
    for (what, reason), names in reasons(report).items():
        more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
        lines.append(Text(f"{what}: {', '.join(names[:NAMED])}{more}: {reason}", "dim"))
    return Text("\n").join(lines) if lines else None


# ----------------------------------------------------------------------------------- other commands


def show_comparison(comparison: Comparison) -> None:
    """Two models side by side."""
    _print(_comparison(comparison, ""))


def _comparison(comparison: Comparison, which: str, refined: Refinement | None = None) -> Table:
    """Two models; where the second was refined, what it was before stands between them."""
    columns = ("before", "after") if refined is None else ("original", "compressed", "refined")
    table = _table("", **dict.fromkeys(columns, True))
    table.add_column("", overflow="fold")
    for fact in facts(comparison, which, refined):
        middle = [] if refined is None else [fact.between]
        table.add_row(Text(fact.what), fact.before, *middle, fact.after, fact.note)
    if not comparison.finite:
        wrong = Text("the outputs differ in shape, or hold NaN", "bold red")
        table.add_row("", *("" for _ in columns), wrong)
    return table


def show_points(found: Sequence[Point], metric: str) -> None:
    """A trade-off, one target a line."""
    [first, *names], *rows = points(found, metric)
    table = _table(first)
    for name in names:
        table.add_column(Text(name), justify="right")
    for row in rows:
        table.add_row(*row)
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
            Text(row["layer"]),
            row["type"],
            times(row["shape"]),
            "" if size is None else f"{size / 1000:,.1f}",
            "" if size is None else f"{size / facts['file']:.1%}",
            "" if macs is None else f"{macs / 1e6:,.2f}",
            "" if macs is None else f"{macs / (work or 1):.1%}",
            Text(reason or able),
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
    _print(table, Text("\n".join(lines)))


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
