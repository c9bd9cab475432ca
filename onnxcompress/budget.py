"""Which layer gets which setting, so that the model meets a budget.

Every option of a layer has a cost (bytes or multiplications) and an error.  One price for the
whole model picks for each layer the option with the least ``error + price * cost`` (a Lagrange
multiplier: Shoham and Gersho 1988); what the price leaves over is filled greedily.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxcompress.core import Candidate


class BudgetError(ValueError):
    """No choice of options is cheap enough; the message names what can be attained."""


@dataclass(frozen=True)
class Option:
    """A point on a layer's rate-distortion curve, in the budget's units."""

    cost: int
    error: float
    candidate: Candidate


def frontier(options: Iterable[Option]) -> list[Option]:
    """The options that no other one beats in cost and in error, cheapest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error, str(o.candidate.setting))):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best


def choose(options: Mapping[str, Sequence[Option]], limit: float) -> dict[str, Option]:
    """One option for each layer: the least total error that costs at most ``limit``.

    Raises:
        BudgetError: the cheapest options together cost more.
    """
    fronts = {name: frontier(points) for name, points in options.items()}
    least = sum(front[0].cost for front in fronts.values())
    if least > limit:
        raise BudgetError(f"the layers need at least {least:,}, but the budget is {int(limit):,}")

    def at(price: float) -> dict[str, Option]:
        return {
            name: min(front, key=lambda o: (o.error + price * o.cost, o.cost))
            for name, front in fronts.items()
        }

    low, high = 1e-30, 1e6  # prices; at the higher one everything is at its cheapest
    for _ in range(120):
        middle = (low * high) ** 0.5
        if _total(at(middle)) > limit:
            low = middle
        else:
            high = middle
    return _filled(at(high), fronts, limit)


def _total(chosen: Mapping[str, Option]) -> int:
    return sum(option.cost for option in chosen.values())


def _filled(
    chosen: dict[str, Option], fronts: Mapping[str, Sequence[Option]], limit: float
) -> dict[str, Option]:
    """Spend what is left on the steps that lower the error most for their cost."""
    left = limit - _total(chosen)
    while True:
        steps = [
            ((chosen[name].error - option.error) / (option.cost - chosen[name].cost), name, option)
            for name, front in fronts.items()
            for option in front
            if 0 < option.cost - chosen[name].cost <= left
        ]
        if not steps:
            return chosen
        _, name, option = max(steps, key=lambda step: (step[0], step[1]))
        left -= option.cost - chosen[name].cost
        chosen[name] = option
