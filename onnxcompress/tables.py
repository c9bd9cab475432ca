"""What the command line prints.  The only file that imports rich."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from onnxcompress.report import Comparison, Report, Row, Size

WIDTH = 160  # where the output is no terminal, so that nothing is cut off


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


@contextmanager
def progress(shown: bool) -> Iterator[Callable[[Iterable[Any], str, int], Iterable[Any]]]:
    """A ``track`` for `compress`, with bars on stderr while they are of use."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )

    def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        task = bars.add_task(what, total=total)
        for item in items:
            yield item
            bars.advance(task)
        bars.remove_task(task)

    with bars:
        yield track


def show_report(report: Report, written: str | None, quiet: bool) -> None:
    """The layers, the model before and after, and the verdict."""
    console = _console()
    if not quiet:
        console.print(_layers(report.rows))
        if report.worse and report.curves:
            console.print(_curves(report.curves))
        if report.comparison:
            show_comparison(report.comparison)
        for reason, names in _by_reason(report.skipped).items():
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
            console.print(f"[dim]skipped: {escape(shown)}: {escape(reason)}")
        for warning in report.warnings:
            console.print(f"[yellow]warning: {escape(warning)}")
    console.print(_verdict(report, written), soft_wrap=True)


def _by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in skipped.items():
        reasons[reason].append(name)
    return reasons


def _layers(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    table.add_column("weight")
    table.add_column("method")
    for name in ("KB", "MMACs", "error", "SNR dB"):
        table.add_column(name, justify="right")
    for row in rows:
        kept = not row.method
        table.add_row(
            escape(row.layer),
            row.op_type,
            "x".join(map(str, row.shape)),
            escape(row.method) if not kept else f"[dim]{escape(row.note)}",
            _pair(row.nbytes, 1000, 1),
            _pair(row.macs, 1_000_000, 2),
            "" if kept else f"{row.error:.4f}",
            "" if row.snr is None else f"{row.snr:.1f}",
            style="dim" if kept else "",
        )
    return table


def _pair(values: tuple[int, int], unit: int, digits: int) -> str:
    before, after = (f"{value / unit:,.{digits}f}" for value in values)
    return before if values[0] == values[1] else f"{before} → {after}"


def _curves(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Table:
    """The error of every layer at some shares of its cost: why the target is out of reach."""
    shares = (0.95, 0.9, 0.75, 0.5, 0.25)
    table = Table(box=None, pad_edge=False, title="least error at this share of the layer's cost")
    table.add_column("layer", overflow="fold")
    for share in shares:
        table.add_column(f"{share:.0%}", justify="right")
    for name, points in curves.items():
        found = [min((e for cost, e in points if cost <= share), default=None) for share in shares]
        table.add_row(escape(name), *("-" if e is None else f"{e:.4f}" for e in found))
    return table


def show_comparison(comparison: Comparison) -> None:
    """Two models side by side."""
    before, after = comparison.before, comparison.after
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("")
    ratio = f"{comparison.ratio:.2f} times smaller" if comparison.ratio >= 1 else "larger"
    table.add_row("file, bytes", f"{before.nbytes:,}", f"{after.nbytes:,}", ratio)
    table.add_row("weights, bytes", f"{before.weights:,}", f"{after.weights:,}", "")
    if before.macs and after.macs is not None:
        share = f"{after.macs / before.macs:.4f} of them"
        table.add_row("multiplications", f"{before.macs:,}", f"{after.macs:,}", share)
    if spent := comparison.latency:
        spread = (
            f"{spent.ratio:.2f} of the time ({spent.low:.2f} to {spent.high:.2f}): {spent.verdict}"
        )
        table.add_row("latency, ms", f"{spent.before:.2f}", f"{spent.after:.2f}", spread)
    if comparison.metric is not None:
        table.add_row(f"{comparison.metric} (labels)", *_metrics(before, after))
    seen = f"on {comparison.samples} {'held-out' if comparison.real else 'RANDOM'} samples"
    if comparison.agreement is not None:
        table.add_row("same top class", "", f"{comparison.agreement:.2%}", seen)
    for name, snr in comparison.snr.items():
        table.add_row("output SNR, dB", "", f"{snr:.2f}", f"{escape(name)}, {seen}")
    _console().print(table)


def _metrics(before: Size, after: Size) -> tuple[str, str, str]:
    old, new = before.metric or 0.0, after.metric or 0.0
    return f"{old:.2f}", f"{new:.2f}", f"{new - old:+.2f}"


def _verdict(report: Report, written: str | None) -> str:
    both = report.comparison
    if both is None:
        return "[red]no result"
    size = f"{both.ratio:.2f} times smaller file"
    work = ""
    if both.before.macs and both.after.macs is not None:
        work = f", {1 - both.after.macs / both.before.macs:.0%} fewer multiplications"
    speed = ""
    if both.latency and both.latency.verdict != "inconclusive":
        speed = f", {1 / both.latency.ratio:.2f} times as fast"
    good = "[bold green]" if not report.worse else "[bold red]"
    place = f"written to {escape(written)}" if written else "nothing was written"
    if report.worse:
        place = f"not as asked ({escape('; '.join(report.failures))}); {place}"
    return f"{good}{size}{work}{speed}; {place}"


def show_inspection(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """What a model is made of."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("layer", "type", "weight"):
        table.add_column(name, overflow="fold")
    for name in ("KB", "of file", "MMACs", "of all"):
        table.add_column(name, justify="right")
    table.add_column("compressible by", overflow="fold")
    for row in rows:
        size, macs = row["bytes"], row["macs"]
        total = facts["macs"] or 1
        table.add_row(
            escape(row["layer"]),
            row["type"],
            "x".join(map(str, row["shape"])),
            "" if size is None else f"{size / 1000:,.1f}",
            "" if size is None else f"{size / facts['file']:.1%}",
            "" if macs is None else f"{macs / 1e6:,.2f}",
            "" if macs is None else f"{macs / total:.1%}",
            ", ".join(row["methods"]) or f"[dim]no: {escape(row['skipped'])}",
        )
    console = _console()
    console.print(table)
    console.print(
        f"file {facts['file']:,} bytes, weights {facts['weights']:,}, opset {facts['opset']}, "
        f"IR {facts['ir_version']}, {(facts['macs'] or 0) / 1e6:,.1f} million multiplications"
    )
    console.print(escape("inputs: " + "; ".join(facts["inputs"])))
