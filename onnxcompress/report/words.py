"""A report in words, for the terminal and for the page alike: sentences and cells of tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxcompress.report.report import Comparison, Point, Refinement, Report, Row

MEGABYTE = 1e6


def reached(report: Report) -> str:
    """What was reached, in one clause."""
    both = report.comparison
    if report.points:
        return _range(report.points)
    if both is None:
        return "no result"
    parts = [f"file {ratio(both.ratio)}"]
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
    elif both.agreement is not None:
        parts.append(f"same top class on {both.agreement:.2%}")
    elif both.real and both.snr:
        parts.append(f"SNR {both.worst_snr:.1f} dB")
    return ", ".join(parts)


def _range(found: Sequence[Point]) -> str:
    """Of a sweep: the ends of what `compress` would write."""
    met = [point for point in found if not point.failures]
    if not met:
        return "no target is met"
    fewer = len({point.macs for point in met}) > 1

    def told(point: Point) -> str:
        work, size = (point.macs or 0) / 1e6, ratio(point.ratio or 1)
        snr = f"SNR {number(point.snr, '.1f')} dB{'' if point.real else ' on RANDOM samples'}"
        quality = snr if point.metric is None else f"{point.metric:.2f} by labels"
        return f"{quality} with {f'{work:,.2f} MMACs' if fewer else f'a file {size}'}"

    parts = [", ".join(map(told, met if len(met) < 2 else (met[0], met[-1])))]
    if met[0].baseline is not None:
        parts.append(f"the original has {met[0].baseline:.2f}")
    if len(met) < len(found):
        parts.append(f"{len(found) - len(met)} of {len(found)} targets refused")
    return "; ".join(parts)


def ratio(value: float) -> str:
    """What became of the file's size."""
    if round(value, 2) == 1:
        return "as large as before"
    return f"{value:.2f} times smaller" if value > 1 else f"{1 / value:.2f} times larger"


def _speed(share: float, verdict: str) -> str:
    """What became of the latency, which is now so many times the original's."""
    if verdict == "inconclusive":
        return "no measurable difference in speed"
    return f"{max(share, 1 / share):.2f} times {verdict}"


@dataclass(frozen=True)
class Fact:
    """One line of two models side by side; ``between`` stands for the model before a refinement."""

    what: str
    before: str
    after: str
    note: str
    between: str = ""


def facts(both: Comparison, which: str = "", refined: Refinement | None = None) -> Iterator[Fact]:
    """Two models side by side.

    Args:
        which: kind of the samples, as "held-out".
    """
    before, after = both.before, both.after

    def pair(what: str, old: int, new: int, note: str) -> Fact:
        return Fact(what, f"{old:,}", f"{new:,}", note, f"{new:,}")

    yield pair("file, bytes", before.nbytes, after.nbytes, ratio(both.ratio))
    share = f"{100 * after.weights / max(before.weights, 1):.2f} % of the original"
    yield pair("weights, bytes", before.weights, after.weights, share)
    if before.macs and after.macs is not None:
        share = f"{100 * after.macs / before.macs:.2f} % of the original"
        yield pair("multiplications", before.macs, after.macs, share)
    if spent := both.latency:
        spread = f"{spent.ratio:.2f} of the time ({spent.low:.2f} to {spent.high:.2f})"
        note = f"{spent.verdict}: {spread}"
        yield Fact("latency, ms", f"{spent.before:.2f}", f"{spent.after:.2f}", note)
    if before.memory is not None and after.memory is not None:
        old, new = (f"{size.memory / MEGABYTE:,.1f}" for size in (before, after) if size.memory)
        yield Fact("memory to load, MB", old, new, "at its peak, in a process of its own")
    if before.metric is not None and after.metric is not None:
        change = f"{after.metric - before.metric:+.2f}"
        was = number(refined and refined.metric, ".2f")
        old, new = f"{before.metric:.2f}", f"{after.metric:.2f}"
        yield Fact(f"{both.metric}, by labels", old, new, change, was)
    told = seen(both, which)
    if both.agreement is not None:
        was = number(refined and refined.agreement, ".2%")
        yield Fact("same top class", "", f"{both.agreement:.2%}", told, was)
    for name, snr in both.snr.items():
        was = number(refined and refined.snr.get(name), ".2f")
        yield Fact(f"SNR of {name}, dB", "", f"{snr:.2f}", told, was)


def seen(both: Comparison | Point, which: str = "") -> str:
    """What outputs were compared on, of samples of this kind."""
    kind = which if both.real else "RANDOM"
    told = f"on {both.samples} {kind} samples".replace("  ", " ")
    return told if both.samples else "by itself, on RANDOM inputs"


def guessed(found: Sequence[Point]) -> str:
    """What the outputs of a sweep were compared on if that says little, else ""."""
    return next((f" {seen(point)}" for point in found if not point.real), "")


def training(both: Comparison, refined: Refinement) -> str:
    """What a refinement took and gave, in one line."""
    count, best = len(refined.epochs) - 1, refined.best
    minutes = sum(epoch.seconds for epoch in refined.epochs) / 60
    spent = f"refined: {count} {'epoch' if count == 1 else 'epochs'} in {minutes:.1f} minutes"
    if not best.epoch:
        return f"{spent}, none better than the compressed model, which stays as it was"
    gains = [f"SNR {both.worst_snr - refined.worst_snr:+.2f} dB"]
    if both.agreement is not None and refined.agreement is not None:
        gains.append(f"same top class {100 * (both.agreement - refined.agreement):+.2f} points")
    if both.after.metric is not None and refined.metric is not None:
        gains.append(f"{both.metric} {both.after.metric - refined.metric:+.2f}")
    return f"{spent}, the best is number {best.epoch}: {', '.join(gains)}"


def points(found: Sequence[Point], metric: str) -> list[tuple[str, ...]]:
    """A trade-off as a table: a line of names, then one for each target."""
    rows = [
        (
            point.target,
            number(point.ratio, ".2f"),
            number(point.macs and point.macs / 1e6, ",.2f"),
            number(point.snr, ".2f"),
            number(point.agreement, ".2%"),
            number(point.metric, ".2f"),
            refusal(point),
        )
        for point in found
    ]
    snr = f"SNR dB{guessed(found)}"
    table = [("target", "ratio", "MMACs", snr, "agreement", metric, ""), *rows]
    return table if any(point.failures for point in found) else [row[:-1] for row in table]


def refusal(point: Point) -> str:
    """Why `compress` would not write it; "" where it would."""
    return f"refused: {'; '.join(point.failures)}" if point.failures else ""


def reasons(report: Report) -> dict[tuple[str, str], list[str]]:
    """("not compressed", "note" or "skipped", why) -> the layers of which that is true."""
    result: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in report.rows:
        if row.note and row.layer not in report.skipped:
            kind = "note" if row.method else "not compressed"
            result[kind, row.note.removeprefix("not compressed: ")].append(row.layer)
    for name, reason in report.skipped.items():
        result["skipped", reason].append(name)
    return dict(result)


def layer(row: Row) -> str:
    """One layer in one line."""
    parts = [row.layer, row.method or "kept", f"{change(row.nbytes, 1000, 1)} KB"]
    if any(row.macs):
        parts.append(f"{change(row.macs, 1_000_000, 2)} MMACs")
    if row.method:
        parts.append(f"error {row.error:.4f}")
    return " · ".join(parts)


def number(value: float | None, form: str) -> str:
    """A number, or an empty cell."""
    return "" if value is None else format(value, form)


def times(shape: Sequence[int]) -> str:
    """A shape."""
    return "x".join(map(str, shape))


def change(values: tuple[int, int], unit: int, digits: int) -> str:
    """Before and after."""
    before, after = (f"{value / unit:,.{digits}f}" for value in values)
    return before if values[0] == values[1] else f"{before} → {after}"
