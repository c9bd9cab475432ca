"""What a size target leaves for the layers, by building and measuring the model as it would be.

A file is larger than its weights, and a model takes longer than its layers: so the limit of the
layers is moved until the whole model keeps the target.  Weights may have any values for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

import numpy as np

from onnxcompress.compression.job import Job, Settings
from onnxcompress.compression.measure.timing import PROVIDERS
from onnxcompress.compression.prepare import find_compressible, usable
from onnxcompress.compression.search.trade_off import Curves, Limits
from onnxcompress.compression.target import Target
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.layer import Layer, Unread
from onnxcompress.core.method import Candidate, CompressedWeight, Method
from onnxcompress.core.parallel import each
from onnxcompress.execution.latency import Latency, latency
from onnxcompress.execution.runnable import runnable
from onnxcompress.graph import Model, annotate

# At most so many limits for the layers are tried until the whole model keeps the target.
LATENCY_TRIALS = 5
LEAST_USED = 0.95  # A model that takes less than this share of its limit is given more time.
# A model counts as saving at least this share of what its layers save alone, which bounds steps.
LEAST_KEPT = 0.25
# After the first trial, a limit falls by so many bytes more than needed; after each that follows,
# by twice as many.
SPARE = 64
SLACK = 128  # The real file may have so many bytes more: what is equal is stored once, or is not.
# In a large file there is room for a table too, which whole numbers that turn out better than
# vectors bring along: another build would take longer than this share of the bytes is worth.
TABLE, TABLE_SHARE = 640, 0.0025
# Sizes alone put a ratio out of reach if this share of the least bytes is too much for it: fits may
# find forms that take a little less.
SURELY = 0.8
# At most so many files are built, without data, to find what graph overhead leaves of a ratio.
BYTE_TRIALS = 10


def size_limit(job: Job, curves: Curves) -> Limits:
    """The most that the layers may cost, in the units of ``curves``, under the size target.

    Raises:
        BudgetError: the target is out of reach; the message names what can be attained.
    """
    target, work = job.target, inf
    if curves.second == "macs":
        work = work_limit(job, curves, target.macs or 1)
    if target.latency is not None:
        return _latency_limit(job, curves, target.latency, work)
    if target.ratio is not None:
        return Limits(_byte_limit(job, curves, target.ratio, work), work)
    if target.macs is not None:
        return Limits(work_limit(job, curves, target.macs))
    return Limits(curves.bounds[1])


def reachable(original: Model, settings: Settings, samples: object) -> Model:
    """The same model, unless `check_ratio` would refuse it, where samples are yet to be made up.

    That takes long, with pictures at several ranges of values.

    Raises:
        BudgetError: the ratio is out of reach.
    """
    known = samples is not None or original.large  # For large models none are made up.
    if not known and settings.target is not None and settings.target.ratio is not None:
        offer = usable(settings.methods, original.opset)
        layers, _ = find_compressible(original, offer, settings.only)
        leaders = {name: layer for name, layer in layers.items() if layer.shared == name}
        _check_sizes(settings.target, original, original.nbytes, leaders, offer)
    return original


def check_ratio(job: Job) -> Job:
    """The same job, unless sizes alone say, before anything is fitted, that its ratio is too much.

    Raises:
        BudgetError: it is; the message names what can be attained.
    """
    offer = job.settings.methods
    assert callable(offer)
    _check_sizes(job.target, job.original, job.model.nbytes, job.leaders, offer)
    return job


def _check_sizes(
    target: Target,
    original: Model,
    nbytes: int,
    leaders: Mapping[str, Layer],
    offer: Callable[[Layer], Sequence[Method]],
) -> None:
    """Refuse a ratio that the layers, one for every weight of a model of so many bytes, forbid."""
    unread = any(isinstance(layer.weight, Unread) for layer in leaders.values())
    if target.ratio is None or (target.macs, target.latency) != (None, None) or unread:
        return
    saved = 0
    for layer in leaders.values():
        # The settings of a method come smallest first.
        smallest = [settings[0] for m in offer(layer) if (settings := m.settings(layer))]
        saved += max([0, *(layer.nbytes - setting.nbytes(layer) for setting in smallest)])
    if saved and SURELY * (nbytes - saved) > original.nbytes / target.ratio:
        raise BudgetError(
            f"a ratio of {target.ratio:g} is out of reach; the most that sizes alone allow is "
            f"{original.nbytes / (nbytes - saved):.2f}"
        )


def work_limit(job: Job, curves: Curves, share: float) -> float:
    """The multiplications of the layers with which the model has this share of them.

    Raises:
        BudgetError: the layers do not allow so few.
    """
    total = sum(job.macs.values())
    least = curves.bounds[0] if curves.cost == "macs" else curves.works[0]
    if share * total < least + curves.outside:
        raise BudgetError(
            f"{share:g} of the multiplications is out of reach; "
            f"the least that the layers allow is {(least + curves.outside) / total:.3f}"
        )
    return share * total - curves.outside


def _latency_limit(job: Job, curves: Curves, share: float, work: float) -> Limits:
    """The limits at which the whole model takes its share of the time, by measurement.

    Where the layers are priced by bytes, time is the second unit.

    Args:
        work: the limit of a second unit that is not time.
    """
    timed = curves.cost == "latency"
    smallest, most = curves.bounds if timed else curves.works
    measured = _attempt(job, curves, most, work)[1]
    # The limits `best` keep the share; the time `high` does not.
    best, high, least = None, most, measured.ratio
    time = most - (1 - share) * measured.before
    for trial in range(LATENCY_TRIALS):
        last = trial == LATENCY_TRIALS - 1 and best is None
        time = smallest if last else max(time, smallest)
        try:
            limits, measured = _attempt(job, curves, time, work)
        except BudgetError:
            break
        least = min(least, measured.ratio)
        if measured.ratio <= share:
            best = limits if timed else limits._replace(work=time)
            if measured.ratio > LEAST_USED * share:
                break
        elif time == smallest:
            break
        else:
            high = time
        if best is not None:
            time = ((best.cost if timed else best.work) + high) / 2
        else:
            time -= min(_step(measured, share, most - time), (time - smallest) / 2)
    if best is not None:
        return best
    beside = "" if timed else f" in a file {job.target.ratio:g} times smaller"
    raise BudgetError(
        f"{share:g} of the time is out of reach{beside}; the least that was measured is {least:.3f}"
    )


def _attempt(job: Job, curves: Curves, time: float, work: float) -> tuple[Limits, Latency]:
    """Limits under which the layers take so long, and how long the model takes then."""
    limits = Limits(time, work)
    if curves.cost != "latency":
        time = time if time < curves.works[1] else inf
        limits = Limits(_byte_limit(job, curves, job.target.ratio or 1.0, time), time)
    rough = job.rewritten(job.runnable, _blanks(job, curves.at(*limits)), {}, {})
    one = next(iter((job.held_out or job.random).batches(1)))
    before = runnable(job.original) if job.changes else job.runnable
    return limits, latency(before, rough, one, PROVIDERS)


def _step(measured: Latency, share: float, saved: float) -> float:
    """How much less time the layers should take, as the model saves a part of what they save."""
    kept = (1 - measured.ratio) * measured.before / max(saved, 1e-9)
    return 1.1 * (measured.ratio - share) * measured.before / max(kept, LEAST_KEPT)


def _byte_limit(job: Job, curves: Curves, ratio: float, work: float) -> float:
    """The layer bytes that make the file, graph overhead included, so many times smaller."""
    least, most = curves.bounds
    before = job.original.nbytes
    slack = min(SLACK, before / ratio / 1000)
    slack = TABLE if TABLE_SHARE * before / ratio > TABLE else slack
    goal = before / ratio - slack * (ratio > 1)
    limit, best = goal - (before - most), None
    for trial in range(BYTE_TRIALS):
        limit = float(np.clip(limit, least, most))
        try:
            chosen = curves.at(limit, work)
        except BudgetError:  # The two limits cannot be kept together.
            break
        size = _file_bytes(job, chosen)
        if size <= goal:
            best = limit if best is None else max(best, limit)
            if size > 0.99 * goal or limit >= most:
                break
            limit += 0.999 * goal - size
        elif limit <= least:
            break
        else:
            # It falls from what was spent: the next settings may be far below the limit.
            limit = min(limit, curves.spent(chosen)) - 1.001 * (size - goal) - SPARE * 2**trial
    if best is not None:
        return best
    least = _least_limit(curves, work)
    size = _file_bytes(job, curves.at(least, work))
    if size > goal:
        beside = {"macs": " with so few multiplications", "latency": " in so little time"}
        raise BudgetError(
            f"a ratio of {ratio:g} is out of reach{beside.get(curves.second, '')}; "
            f"the most that the layers allow is {before / size:.2f}"
        )
    return least


def _least_limit(curves: Curves, work: float) -> float:
    """The least that the layers can cost within the limit of their work, by bisection."""
    low, high = curves.bounds
    if work == inf:
        return low
    for _ in range(BYTE_TRIALS):
        middle = (low + high) / 2
        try:
            curves.at(middle, work)
        except BudgetError:
            low = middle
        else:
            high = middle
    return high


def _file_bytes(job: Job, chosen: Mapping[str, Candidate]) -> int:
    """Bytes of the file with these settings."""
    every = _blanks(job, chosen)
    biases = {  # They all differ, as equal ones would be stored once.
        name: index + np.arange(len(job.layers[name].weight)) / 7
        for index, name in enumerate(every)
        if job.fit is not None and job.layers[name].correctable
    }
    made = job.rewritten(job.model, every, biases, {})
    return annotate(made, job.entries(changed=bool(every))).nbytes


def _blanks(job: Job, chosen: Mapping[str, Candidate]) -> dict[str, CompressedWeight]:
    """Weights of these settings for every layer that reads them, with any values."""

    def blank(item: tuple[str, Candidate]) -> CompressedWeight:
        name, candidate = item
        assert candidate.setting is not None
        made = candidate.weight or candidate.setting.blank(job.layers[name])
        return made.mapped(job.model.keep)

    picked = [(name, c) for name, c in chosen.items() if c.setting is not None]
    made = zip(picked, each(blank, picked, job.settings.jobs), strict=True)
    return {reader: weight for (name, _), weight in made for reader in job.readers(name)}
