"""Which layer gets which setting, so that the model meets a budget.

Every option of a layer has a cost (bytes or multiplications) and an error.  One price for the
whole model picks for each layer the option with the least ``error + price * cost`` (a Lagrange
multiplier: Shoham and Gersho 1988); what the price leaves over is filled greedily.  What several
layers share, such as a table, is paid for once and before all else; shared things are left out one
by one as long as that lowers the error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Self

import numpy as np

from onnxcompress.core.errors import BudgetError
from onnxcompress.core.method import Candidate

# The range of prices is halved so often, to ten digits; that of a second price half as often.
HALVINGS = 40
PRICES = 240  # So many prices are tried for a hull, which is about 7 in each decade.

# Prices, in error per unit of cost, lie between these; at the highest, all is at its cheapest.
LOWEST, HIGHEST = 1e-30, 1e6


@dataclass(frozen=True)
class Option:
    """A point on a layer's rate-distortion curve, in the budget's units."""

    cost: float
    error: float
    candidate: Candidate
    shared: frozenset[tuple[str, int]] = frozenset()  # It needs these besides, at these costs.
    work: float = 0  # This is a second cost, with a limit of its own.


def frontier(options: Iterable[Option]) -> list[Option]:
    """The options that no other one beats in cost and in error, cheapest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error, str(o.candidate.setting))):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best


def leanest(options: Mapping[str, Sequence[Option]]) -> dict[str, Option]:
    """The choice that costs least, what is shared included.

    What is shared may outweigh all else: it is left out one by one, whatever helps most first.
    """
    best = now = {name: min(some, key=lambda o: o.cost) for name, some in options.items()}
    while needed := _shared(now.values()):
        fewer = [_cheapest(options, needed - {one}) for one in sorted(needed)]
        feasible = [choice for choice in fewer if choice is not None]
        if not feasible:
            break
        now = min(feasible, key=spent)
        best = min(best, now, key=spent)
    return best


def _shared(options: Iterable[Option]) -> frozenset[tuple[str, int]]:
    """All that some of the options share."""
    return frozenset[tuple[str, int]]().union(*(option.shared for option in options))


def _cheapest(
    options: Mapping[str, Sequence[Option]], allowed: frozenset[tuple[str, int]]
) -> dict[str, Option] | None:
    """The cheapest options that share nothing but what is allowed; None if a layer has none."""
    some = _only(options, allowed)
    if not all(some.values()):
        return None
    return {name: min(own, key=lambda o: o.cost) for name, own in some.items()}


def _only(
    options: Mapping[str, Sequence[Option]], allowed: frozenset[tuple[str, int]]
) -> dict[str, list[Option]]:
    """The options that share nothing but what is allowed."""
    return {name: [o for o in own if o.shared <= allowed] for name, own in options.items()}


def _cost(shared: Iterable[tuple[str, int]]) -> int:
    return sum(cost for _, cost in shared)


def choose(
    options: Mapping[str, Sequence[Option]], limit: float, work: float = inf
) -> dict[str, Option]:
    """One option for each layer: the least total error within two limits.

    Args:
        limit: of the total cost, what is shared included.
        work: of the total work.

    Raises:
        BudgetError: no choice is found that keeps within the limits.
    """
    floor = leanest(options)
    if spent(floor) > limit:
        raise BudgetError(
            f"the layers need at least {spent(floor):,}, but the budget is {int(limit):,}"
        )
    allowed = _shared(option for own in options.values() for option in own)
    best, error = _with(options, allowed, limit, work)
    while allowed:
        fewer = [allowed - {one} for one in sorted(allowed)]
        results = [_with(options, some, limit, work) for some in fewer]
        index = int(np.argmin([e for _, e in results]))
        if best is not None and results[index][1] > error:
            break
        if results[index][0] is None:  # None fits yet: what helps most is left out.
            cheapest = [_cheapest(options, some) for some in fewer]
            index = int(np.argmin([inf if c is None else spent(c) for c in cheapest]))
        allowed, (best, error) = fewer[index], results[index]
    if best is None and work == inf:  # Only the cheapest of all fits.
        return floor
    if best is None:
        raise BudgetError("no choice of settings keeps within both limits")
    return best


def _with(
    options: Mapping[str, Sequence[Option]],
    allowed: frozenset[tuple[str, int]],
    limit: float,
    work: float,
) -> tuple[dict[str, Option] | None, float]:
    """The choice among options that share nothing but what is allowed, and its error."""
    points = _only(options, allowed)
    if not all(points.values()):
        return None, inf
    table = _Table.of(points)
    left = limit - _cost(allowed)
    picked = table.priced(left, work)
    if picked is None:
        return None, inf
    chosen = {name: own[i] for (name, own), i in zip(points.items(), picked, strict=True)}
    chosen = _filled(chosen, points, left, work)
    return chosen, sum(option.error for option in chosen.values())


def hull(options: Mapping[str, Sequence[Option]]) -> list[dict[str, Option]]:
    """The choices that some price makes best, whatever is shared."""
    table = _Table.of(options)
    picked = {
        tuple((table.errors + price * table.costs).argmin(1))
        for price in np.geomspace(LOWEST, HIGHEST, PRICES)
    }
    return [
        {name: own[i] for (name, own), i in zip(options.items(), picks, strict=True)}
        for picks in picked
    ]


def byte_price(options: Mapping[str, Sequence[Option]], limit: float) -> float | None:
    """The least price of a byte at which the options keep the limit; None where none do."""
    table = _Table.of(options)
    return table.price(table.errors, table.costs, limit)


def spent(chosen: Mapping[str, Option]) -> float:
    """What a choice costs, what is shared included."""
    return sum(option.cost for option in chosen.values()) + _cost(_shared(chosen.values()))


@dataclass(frozen=True, eq=False)
class _Table:
    """The options of all layers as arrays ``(layers, options)``; what is missing is infinite."""

    costs: np.ndarray
    works: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, points: Mapping[str, Sequence[Option]]) -> Self:
        longest = max(map(len, points.values()), default=0)
        arrays = np.full((3, len(points), longest), inf)
        for row, own in enumerate(points.values()):
            arrays[:, row, : len(own)] = np.array([(o.cost, o.work, o.error) for o in own]).T
        return cls(*arrays)

    def priced(self, limit: float, work: float) -> np.ndarray | None:
        """The best option of every layer under the least prices that keep the limits."""
        if work == inf:
            return self._at(self.price(self.errors, self.costs, limit), self.errors, self.costs)
        best, error = None, inf
        low, high = LOWEST, HIGHEST  # The price of work lies between these.
        for _ in range(HALVINGS // 2):
            middle = (low * high) ** 0.5
            errors = self.errors + middle * np.nan_to_num(self.works, posinf=0)
            picked = self._at(self.price(errors, self.costs, limit), errors, self.costs)
            if picked is not None and self._sum(self.works, picked) <= work:
                high, total = middle, self._sum(self.errors, picked)
                if total < error:
                    best, error = picked, total
            else:
                low = middle
        return best

    def price(self, errors: np.ndarray, costs: np.ndarray, limit: float) -> float | None:
        """The least price at which the costs keep the limit."""
        low, high = LOWEST, HIGHEST
        if self._sum(costs, (errors + high * costs).argmin(1)) > limit:
            return None
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            if self._sum(costs, (errors + middle * costs).argmin(1)) > limit:
                low = middle
            else:
                high = middle
        return high

    @staticmethod
    def _at(price: float | None, errors: np.ndarray, costs: np.ndarray) -> np.ndarray | None:
        return None if price is None else (errors + price * costs).argmin(1)

    @staticmethod
    def _sum(values: np.ndarray, picked: np.ndarray) -> float:
        return float(values[np.arange(len(values)), picked].sum())


def _filled(
    chosen: dict[str, Option],
    points: Mapping[str, Sequence[Option]],
    limit: float,
    work: float,
) -> dict[str, Option]:
    """Spend what is left on the steps that lower the error most for their cost."""
    left = limit - sum(option.cost for option in chosen.values())
    spare = work - sum(option.work for option in chosen.values())
    while True:
        steps = [
            ((now.error - option.error) / max(option.cost - now.cost, 1e-9), name, option)
            for name, own in points.items()
            for now in (chosen[name],)
            for option in own
            if option.error < now.error
            and option.cost - now.cost <= left
            and option.work - now.work <= spare
        ]
        if not steps:
            return chosen
        _, name, option = max(steps, key=lambda step: (step[0], step[1]))
        left -= option.cost - chosen[name].cost
        spare -= option.work - chosen[name].work
        chosen[name] = option
