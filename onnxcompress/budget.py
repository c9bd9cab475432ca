"""Which layer gets which setting, so that the model meets a budget.

Every option of a layer has a cost (bytes or multiplications) and an error.  One price for the
whole model picks for each layer the option with the least ``error + price * cost`` (a Lagrange
multiplier: Shoham and Gersho 1988); what the price leaves over is filled greedily.  What several
layers share is paid once, before: such things are left out one by one while that lowers the error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.core import Candidate


class BudgetError(ValueError):
    """No choice of options is cheap enough; the message names what can be attained."""


@dataclass(frozen=True)
class Option:
    """A point on a layer's rate-distortion curve, in the budget's units."""

    cost: int
    error: float
    candidate: Candidate
    shared: frozenset[tuple[str, int]] = frozenset()  # what it needs besides, with its cost


def frontier(options: Iterable[Option]) -> list[Option]:
    """The options that no other one beats in cost and in error, cheapest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error, str(o.candidate.setting))):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best


def least(options: Mapping[str, Sequence[Option]]) -> int:
    """What the cheapest options cost together."""
    cheapest = [min(points, key=lambda o: o.cost) for points in options.values()]
    shared = frozenset[tuple[str, int]]().union(*(o.shared for o in cheapest))
    return sum(o.cost for o in cheapest) + _cost(shared)


def _cost(shared: Iterable[tuple[str, int]]) -> int:
    return sum(cost for _, cost in shared)


def choose(options: Mapping[str, Sequence[Option]], limit: float) -> dict[str, Option]:
    """One option for each layer: the least total error that costs at most ``limit``.

    Raises:
        BudgetError: the cheapest options together cost more.
    """
    if least(options) > limit:
        raise BudgetError(
            f"the layers need at least {least(options):,}, but the budget is {int(limit):,}"
        )
    allowed = frozenset[tuple[str, int]]().union(*(o.shared for p in options.values() for o in p))
    best, error = _with(options, allowed, limit)
    while allowed:
        fewer = [allowed - {one} for one in sorted(allowed)]
        found = [_with(options, some, limit) for some in fewer]
        index = int(np.argmin([e for _, e in found]))
        if best is not None and found[index][1] > error:
            break
        allowed, (best, error) = fewer[index], found[index]
    if best is None:  # only the cheapest of all fits
        return {name: min(points, key=lambda o: o.cost) for name, points in options.items()}
    return best


def _with(
    options: Mapping[str, Sequence[Option]], allowed: frozenset[tuple[str, int]], limit: float
) -> tuple[dict[str, Option] | None, float]:
    """The choice among options that share nothing but what is allowed, and its error."""
    left = limit - _cost(allowed)
    fronts = {
        n: frontier(o for o in points if o.shared <= allowed) for n, points in options.items()
    }
    if not all(fronts.values()) or sum(front[0].cost for front in fronts.values()) > left:
        return None, float("inf")
    longest = max(map(len, fronts.values()), default=0)
    costs, errors = (
        np.array(
            [
                [value(o) for o in front] + [np.inf] * (longest - len(front))
                for front in fronts.values()
            ]
        )
        for value in (lambda o: float(o.cost), lambda o: o.error)
    )

    def at(price: float) -> np.ndarray:
        return (errors + price * costs).argmin(1)

    rows = np.arange(len(fronts))
    low, high = 1e-30, 1e6  # prices; at the higher one everything is at its cheapest
    for _ in range(120):
        middle = (low * high) ** 0.5
        if costs[rows, at(middle)].sum() > left:
            low = middle
        else:
            high = middle
    picked = at(high)
    chosen = {name: front[i] for (name, front), i in zip(fronts.items(), picked, strict=True)}
    chosen = _filled(chosen, fronts, left)
    return chosen, sum(option.error for option in chosen.values())


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
