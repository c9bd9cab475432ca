"""The least cost at which a fidelity target holds, by bisection with real models.

Every step builds the model and compares its outputs, tens of times at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import inf
from typing import NamedTuple

from onnxcompress.compression.build.builder import Builder
from onnxcompress.compression.search.size_limit import size_limit
from onnxcompress.compression.search.trade_off import Curves, Limits
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.method import Candidate
from onnxcompress.core.progress import doing

# A bisection builds at most so many models: so many halvings leave less than 1 % of the range.
TRIALS = 7
PRECISION = 0.01  # A bisection ends where the least cost is known to this share of it.
LESS = 0.98  # A single method is searched on if it holds at this share of the least cost so far.
# Single methods are tried if their predicted SNR is at most so many dB below that of the mix.
CLOSE = 2.0
# They are tried for models of no more bytes: others have layers enough for errors of predictions to
# cancel out, and take long.
SINGLE_BYTES = 1 << 20


class Plan(NamedTuple):
    """What the layers may cost, and the only method that may be used; None for all."""

    limits: Limits
    method: str | None = None


def search(builder: Builder, curves: Curves) -> Plan:
    """What the target leaves for the layers.

    Raises:
        BudgetError: a size target is out of reach; the message names what can be attained.
    """
    job = builder.job
    if not job.target.sized and not job.target.faithful:
        return Plan(Limits(curves.bounds[0] if job.all_pinned else inf))
    with doing(job.settings.track, "looking for the size"):
        limits = size_limit(job, curves)
    highest = min(limits.cost, float(curves.bounds[1]))
    if not job.target.faithful:
        return Plan(limits)
    if job.target.sized:  # The size target decides; fidelity is judged at the end.
        return Plan(limits._replace(cost=highest))
    return _least(builder, curves, limits._replace(cost=highest))


def _least(builder: Builder, curves: Curves, limits: Limits) -> Plan:
    """The least cost up to the limit, with all methods or with a single one that needs less."""
    low = float(curves.bounds[0])
    best = _bisect(builder, curves, low, Plan(limits))
    less = best.limits._replace(cost=LESS * best.limits.cost)
    if not worth_trying_alone(builder, curves) or less.cost <= low:
        return best
    for method in methods_close_to(curves, less, curves.at(*less)):
        plan = Plan(less, method)
        if _reaches(builder, curves, plan):
            best = _bisect(builder, curves, low, plan)
            less = less._replace(cost=LESS * best.limits.cost)
    return best


def _bisect(builder: Builder, curves: Curves, low: float, highest: Plan) -> Plan:
    """The plan with the least cost in this range that holds; the greatest is not tried."""
    best, high, tries = highest, highest.limits.cost, range(TRIALS)
    for _ in builder.job.settings.track(tries, "searching", len(tries)):
        if high - low <= PRECISION * high:
            break
        middle = (low + high) / 2
        plan = highest._replace(limits=highest.limits._replace(cost=middle))
        if _reaches(builder, curves, plan):
            best, high = plan, middle
        else:
            low = middle
    return best


def _reaches(builder: Builder, curves: Curves, plan: Plan) -> bool:
    """Whether the fidelity target holds with layers of this cost."""
    try:
        chosen = curves.at(*plan.limits, plan.method)
    except BudgetError:
        return False
    return builder.job.holds(builder.build(chosen).model)


def worth_trying_alone(builder: Builder, curves: Curves) -> bool:
    """Whether single methods are worth trying beside the mix."""
    job = builder.job
    several = len(curves.methods) > 1 and not job.target.latency
    return several and job.held_out is not None and job.original.nbytes <= SINGLE_BYTES


def methods_close_to(
    curves: Curves, limits: Limits, mixed: Mapping[str, Candidate]
) -> Iterator[str]:
    """The methods that alone are predicted to do nearly as well as the mix."""
    least = curves.snr(mixed) - CLOSE
    for method in curves.methods:
        with suppress(BudgetError):
            chosen = curves.at(*limits, method)
            if chosen != mixed and curves.snr(chosen) >= least:
                yield method
