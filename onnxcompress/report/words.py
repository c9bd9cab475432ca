"""A report in words, for the terminal and for the page alike: sentences and cells of tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import compress
from typing import TypeVar

from onnxcompress.report.report import (
    Change,
    Comparison,
    Point,
    Refinement,
    Report,
    Row,
    Share,
)

T = TypeVar("T")
MOST_OUTPUTS = 100  # Of more outputs, those that changed most are listed; the JSON has all.
MEGABYTE = 1e6  # A megabyte has so many bytes.
MOST_AGREE = 0.98  # A result without a target keeps at least this share of decisions.
ALIKE = 1.1  # Up to so many times, memory is alike: from one loading to the next it varies by less.

SAME = {
    "classes": "same class",
    "positions": "same class",
    "ids": "same value",
    "detections": "same detection",
}


def reached(report: Report) -> str:
    """What was reached, in a few clauses, the last of which is the quality."""
    return _joined(gains(report), quality_of(report))


def verdict(report: Report, place: str) -> str:
    """The same with where the result is: the line that a run ends with."""
    return _joined(gains(report), place, quality_of(report))


def _joined(*clauses: str) -> str:
    return "; ".join(filter(None, clauses))


def gains(report: Report) -> str:
    """What was won, and what was measured by labels."""
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
    if both.latency and any(row.method for row in report.rows):
        parts.append(_speed(both.latency.ratio, both.latency.verdict))
    parts += _memory(both)
    if before.metric is not None and after.metric is not None:
        parts.append(f"{both.metric} {before.metric:.2f} → {after.metric:.2f}")
    return ", ".join(parts)


def _memory(both: Comparison) -> Iterator[str]:
    """What became of the memory, where that was measured."""
    peaks = both.before.memory, both.after.memory
    rests = both.before.resting, both.after.resting
    if not all(peaks) or None in rests:
        return
    peak, rest = ((after or 0) / max(before or 0, 1) for before, after in (peaks, rests))
    if peak > ALIKE:
        yield f"{peak:.1f} times the memory to load"
    if rest > ALIKE:
        yield f"{rest:.1f} times the memory once loaded"
    elif peak <= ALIKE:
        yield "memory as the original" if rest > 1 / ALIKE else f"{rest:.0%} of the memory"


def quality_of(report: Report) -> str:
    """How near the outputs are to the original's; "" where nothing was compared."""
    both = report.comparison
    return "" if both is None else quality(both, "held-out" if report.rows else "")


def quality(both: Comparison, which: str = "") -> str:
    """How near the outputs are to the original's, and on what: how a verdict ends.

    Args:
        which: kind of the samples, as "held-out".
    """
    if not both.compared:
        return "QUALITY NOT CHECKED: no output could be compared"
    unchecked = "" if both.real else "QUALITY NOT CHECKED ON YOUR DATA (no samples=...)"
    if both.worst_share is not None:
        reached = agreed(both, *both.worst_share, which)
    else:
        worst = min(both.snr, key=lambda name: both.snr[name], default="")
        of = f" of output {worst}" if len(both.snr) > 1 else ""
        reached = f"SNR {number(both.worst_snr, '.1f')} dB {seen(both, which)}{of}"
    return f"{reached}, {unchecked}" if unchecked else reached


def agreed(both: Comparison, name: str, share: Share, which: str = "") -> str:
    """How many decisions of an output are the same."""
    kind = _kind(both, which)
    counted = f"{share.agreed:,} of {share.total:,}"
    if share.total == both.samples:
        counted = f"on {counted} {kind}samples"
    else:
        what = "positions" if share.kind == "positions" else "decisions"
        counted = f"at {counted} {what} of {both.samples:,} {kind}samples"
    of = f" of output {name}" if len(both.shares) > 1 else ""
    return f"{SAME[share.kind]} {counted}{of} ({interval(share)})"


def interval(share: Share) -> str:
    """A share, and where it may lie."""
    low, high = (100 * end for end in share.interval)
    return f"{100 * share.value:.1f} %, 95 % interval {low:.0f} to {high:.0f}"


def _range(sweep: Sequence[Point]) -> str:
    """Of a sweep: the ends of what `compress` would write."""
    met = [point for point in sweep if not point.failures]
    if not met:
        return "no target is met"
    fewer = len({point.macs for point in met}) > 1

    def result(point: Point) -> str:
        work, size = (point.macs or 0) / 1e6, ratio(point.ratio or 1)
        snr = f"SNR {number(point.snr, '.1f')} dB"
        snr += "" if point.real else f" on {_kind(point)}samples"
        quality = snr if point.metric is None else f"{point.metric:.2f} by labels"
        return f"{quality} with {f'{work:,.2f} MMACs' if fewer else f'a file {size}'}"

    parts = [", ".join(map(result, met if len(met) < 2 else (met[0], met[-1])))]
    if met[0].baseline is not None:
        parts.append(f"the original has {met[0].baseline:.2f}")
    if len(met) < len(sweep):
        parts.append(f"{len(sweep) - len(met)} of {len(sweep)} targets refused")
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
    """One line of two models side by side.

    Attributes:
        between: of the model before a refinement.
        bad: whether surely more has changed than a result without a target may change.
    """

    what: str
    before: str
    after: str
    note: str
    between: str = ""
    bad: bool = False


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
        old, new = (f"{(size.memory or 0) / MEGABYTE:,.1f}" for size in (before, after))
        yield Fact("memory to load, MB", old, new, "at its peak, in a process of its own")
    if before.resting is not None and after.resting is not None:
        old, new = (f"{(size.resting or 0) / MEGABYTE:,.1f}" for size in (before, after))
        yield Fact("memory once loaded, MB", old, new, "in the same process, before the first run")
    if before.metric is not None and after.metric is not None:
        change = f"{after.metric - before.metric:+.2f}"
        was = number(refined and refined.metric, ".2f")
        old, new = f"{before.metric:.2f}", f"{after.metric:.2f}"
        yield Fact(f"{both.metric}, by labels", old, new, change, was)
    yield from _closeness(both, which, refined)


def _closeness(both: Comparison, which: str, refined: Refinement | None) -> Iterator[Fact]:
    """How near each output is to the original's."""
    samples = seen(both, which)
    worst = both.worst_share
    for name, share in _worst(both.shares, lambda share: share.value).items():
        trained = refined is not None and worst is not None and name == worst[0]
        was = number(refined.agreement if refined and trained else None, ".1%")
        note = f"{interval(share)}, {samples}"
        yield Fact(
            f"{SAME[share.kind]}, {name}", "", f"{share.agreed:,} of {share.total:,}", note, was,
            share.interval[1] < MOST_AGREE,
        )  # fmt: skip
    for name, share in both.detections.items():
        yield Fact(f"same detection, {name}", "", f"{share.agreed:,} of {share.total:,}",
                   f"{interval(share)}, boxes that overlap by half, {samples}")  # fmt: skip
    listed = _worst(both.snr, float)
    for name, snr in listed.items():
        was = number(refined and refined.snr.get(name), ".2f")
        yield Fact(f"SNR of {name}, dB", "", f"{snr:.2f}", samples, was)
    if others := both.snr.keys() - listed.keys():
        least = min(both.snr[name] for name in others)
        yield Fact(f"SNR of {len(others):,} others, dB", "", f"{least:.2f} or more", samples)


def _worst(values: Mapping[str, T], rank: Callable[[T], float]) -> Mapping[str, T]:
    """Those of the outputs that changed most, in their order, where there are very many."""
    if len(values) <= MOST_OUTPUTS:
        return values
    listed = {*nsmallest(MOST_OUTPUTS, values, lambda name: rank(values[name]))}
    return {name: value for name, value in values.items() if name in listed}


def seen(both: Comparison | Point, which: str = "") -> str:
    """What outputs were compared on, of samples of this kind."""
    samples = f"on {both.samples:,} {_kind(both, which)}samples"
    return samples if both.samples else "by itself, on RANDOM inputs"


def _kind(both: Comparison | Point, which: str = "") -> str:
    """What samples are, before that word."""
    kind = which if both.real else "STAND-IN" if both.pictures else "RANDOM"
    return f"{kind} " if kind else ""


def guessed(sweep: Sequence[Point]) -> str:
    """What the outputs of a sweep were compared on if that says little, else ""."""
    return next((f" {seen(point)}" for point in sweep if not point.real), "")


def training(both: Comparison, refined: Refinement) -> str:
    """What a refinement took and gave, in one line."""
    count, best = len(refined.epochs) - 1, refined.best
    minutes = sum(epoch.seconds for epoch in refined.epochs) / 60
    spent = f"refined: {count} {'epoch' if count == 1 else 'epochs'} in {minutes:.1f} minutes"
    if not best.epoch:
        return f"{spent}, none better than the compressed model, which stays as it was"
    gains = []
    if both.worst_snr is not None and refined.worst_snr is not None:
        gains.append(f"SNR {both.worst_snr - refined.worst_snr:+.2f} dB")
    if both.agreement is not None and refined.agreement is not None:
        gains.append(f"same class {100 * (both.agreement - refined.agreement):+.2f} points")
    if both.after.metric is not None and refined.metric is not None:
        gains.append(f"{both.metric} {both.after.metric - refined.metric:+.2f}")
    return f"{spent}, the best is number {best.epoch}: {', '.join(gains)}"


def points(sweep: Sequence[Point], metric: str) -> list[tuple[str, ...]]:
    """A trade-off as a table: a line of names, then one for each target."""
    rows = [
        (
            point.target,
            number(point.ratio, ".2f"),
            number(point.macs and point.macs / 1e6, ",.2f"),
            number(point.snr, ".2f"),
            "" if point.share is None else f"{point.share.agreed:,} of {point.share.total:,}",
            number(point.metric, ".2f"),
            refusal(point),
        )
        for point in sweep
    ]
    snr = f"SNR dB{guessed(sweep)}"
    names = ("target", "ratio", "MMACs", snr, "same class", metric, "")
    known = [any(column) for column in zip(*rows, strict=True)]
    return [tuple(compress(row, known)) for row in (names, *rows)]


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


def skips(report: Report) -> str:
    """What leaves all layers that hurt as they are: options, or one argument with all names."""
    return " ".join(report.skips.values()).replace("] skip=[", ", ")


def computes(report: Report) -> str:
    """How many layers compute in int8; "" where none does."""
    some = [row for row in report.rows if row.arithmetic != "float"]
    count = f"{len(some)} of {len(report.rows)} layers"
    return f"{count} compute in int8, where that was measured to be faster" if some else ""


def saved(change: Change) -> str:
    """What a lossless step has done."""
    count = (
        f"{change.nodes} {'node' if change.nodes == 1 else 'nodes'} and " if change.nodes else ""
    )
    return f"simplified: {change.what}: {count}{change.nbytes:,} bytes less"


def layer(row: Row) -> str:
    """One layer in one line."""
    parts = [row.layer, row.method or "kept", f"{change(row.nbytes, 1000, 1)} KB"]
    if any(row.macs):
        parts.append(f"{change(row.macs, 1_000_000, 2)} MMACs")
    if row.method:
        parts.append(f"error {small(row.error)}")
    return " · ".join(parts)


def number(value: float | None, form: str, unit: float = 1) -> str:
    """A number in this unit, or an empty cell."""
    return "" if value is None else format(value / unit, form)


def duration(seconds: float) -> str:
    """A time."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def small(value: float) -> str:
    """A relative error; one that is not 0 is not shown as 0."""
    return f"{value:.4f}" if value == 0 or value >= 0.00005 else "<0.0001"


def times(shape: Sequence[int]) -> str:
    """A shape."""
    return "x".join(map(str, shape))


def change(values: tuple[int, int], unit: float, digits: int) -> str:
    """Before and after."""
    before, after = (f"{value / unit:,.{digits}f}" for value in values)
    return before if values[0] == values[1] else f"{before} → {after}"


def megabytes(nbytes: int) -> str:
    """Memory."""
    return f"{nbytes / MEGABYTE:,.0f} MB"
