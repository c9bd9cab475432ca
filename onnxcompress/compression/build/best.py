"""The best model within a limit, without what its data or one of its layers makes worse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxcompress.compression.build.builder import Builder, Built, in_groups
from onnxcompress.compression.search.bisect import Plan, methods_close_to, worth_trying_alone
from onnxcompress.compression.search.size_limit import SPARE, size_limit
from onnxcompress.compression.search.trade_off import Curves, Limits
from onnxcompress.compression.validate.blame import find_hurting
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.progress import doing

# A model is built again at most so often where the file is larger than was foreseen.
SIZE_TRIALS = 3
CLEARLY = 0.8  # An error below this share of another is less by more than chance.
# A layer that causes more than this share of the outputs' error is tried as it was.
FALLS_BACK = 0.5


@dataclass(frozen=True, eq=False)
class Compressed:
    """The model that is to be judged.

    Attributes:
        hurting: layer -> the share of the outputs' error that it alone causes, where that is much.
        left_out: layer -> why it was left as it was after all.
    """

    built: Built
    hurting: Mapping[str, float]
    left_out: Mapping[str, str] = field(default_factory=dict)


def build(builder: Builder, curves: Curves, plan: Plan) -> Compressed:
    """The best model within the limits, without the layer that hurts most if that is better."""
    built = _best(builder, curves, plan)
    if builder.job.target.faithful:
        with doing(builder.job.settings.track, "checking the target"):
            if not builder.job.holds(built.model):
                built = builder.build(built.chosen)  # The search tried it like this.
    built = _without_data_where_better(builder, built)
    hurting = find_hurting(builder, curves, built)
    free = {name: share for name, share in hurting.items() if name not in builder.job.pinned}
    if free and max(free.values()) > FALLS_BACK:
        worst = max(free, key=lambda name: free[name])
        other = _without(builder, curves, worst, built)
        if other is not None:
            reason = (
                f"it caused {free[worst]:.0%} of the output's error; "
                f"{builder.job.skip_hint(worst)} leaves it out from the start"
            )
            left_out = dict.fromkeys(builder.job.readers(worst), reason)
            return Compressed(other, find_hurting(builder, curves, other), left_out)
    return Compressed(built, hurting)


def _best(builder: Builder, curves: Curves, plan: Plan) -> Built:
    """The model predicted to be best, or one by a single method that turns out better.

    Predictions are off by some decibels where few samples tell what layers read, and more so
    where methods are mixed.
    """
    best = _within(builder, curves, plan)
    tried = plan.method is None and builder.job.target.sized
    if not tried or not worth_trying_alone(builder, curves):
        return best
    close = [*methods_close_to(curves, plan.limits, best.chosen)]
    loss = builder.loss_of(best) if close else 0.0
    for method in close:
        other = _within(builder, curves, plan._replace(method=method))
        error = builder.loss_of(other)
        if error < loss and builder.job.fits(other.model):
            best, loss = other, error
    return best


def _within(builder: Builder, curves: Curves, plan: Plan) -> Built:
    """The model within the limits, or with less where its file is larger than was foreseen.

    The size was found without data: scales that float16 does not hold take twice as much.
    """
    (limit, work), method = plan
    built = _build(builder, curves, Limits(limit, work), method)
    for _ in range(SIZE_TRIALS):
        excess = built.model.nbytes - builder.job.largest_file
        if excess <= 0:
            break
        less = curves.spent(built.chosen) - excess - SPARE
        try:
            built = _build(builder, curves, Limits(less, work), method)
        except BudgetError:
            break
    return built


def _build(builder: Builder, curves: Curves, limits: Limits, method: str | None) -> Built:
    """The model within these limits, with all that may help it."""
    chosen = curves.at(*limits, method)
    words = "refitting"
    if builder.job.has_choice:
        words += f" ({curves.snr(chosen):.1f} dB expected)"
    return builder.build(chosen, words)


def _without_data_where_better(builder: Builder, built: Built) -> Built:
    """The same with weights fitted without data, where that is clearly better on held-out samples.

    A fit looks at the mean over all samples, where loud ones count most, and may ruin quiet ones.
    """
    job = builder.job
    if not job.telling or job.model.large or not built.fitted:
        return built
    with doing(job.settings.track, "trying fits without data"):
        blind = builder.without_data(built)
        weights = {**built.fitted, **blind}
        error = builder.loss(weights)
        least = CLEARLY * builder.loss_of(built)
    if error >= least:
        return built
    seeing = in_groups({name: built.fitted[name] for name in blind})
    other = builder.with_weights(built, *builder.improved(weights, error, seeing))
    return other if job.fits(other.model) else built


def _without(builder: Builder, curves: Curves, worst: str, built: Built) -> Built | None:
    """The same with this layer as it was, if that is better at the same cost."""
    job, fewer = builder.job, curves.without(worst)
    if not fewer.options[worst]:  # One in int8 has whole numbers in any case.
        return None
    try:
        limits = size_limit(job, fewer) if job.target.sized else Limits(curves.spent(built.chosen))
        other = _within(builder, fewer, Plan(limits))
    except BudgetError:
        return None
    better = builder.loss_of(other) < builder.loss_of(built)
    if not better or (job.target.faithful and not job.holds(other.model)):
        return None
    return other
