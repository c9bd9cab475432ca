"""How many values every band of a block gets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.methods.hashed_forms.least_squares import Problem
from onnxcompress.methods.hashed_forms.tile import DROPPED, EXACT

LEAST_VALUES = 8  # Hashed bands have at least so many values on average.
ALPHA, BETA = 0.25, 2.5  # The paper's allocation has the beta density of these.


def allocations(problem: Problem, share: float, rule: str) -> Iterator[tuple[int, ...]]:
    """Values for every band of a block, so that together there is one for ``share`` weights."""
    sizes = np.bincount(problem.tile.bands) * problem.tile.filters
    budget = max(1, int(sizes.sum() / share))
    if rule == "beta" and len(sizes) > 1:
        yield _beta(sizes, budget)
    elif rule == "uniform" or len(sizes) == 1:
        yield tuple(int(max(1, n // share)) for n in sizes)
    else:
        orders = [np.argsort(-density, kind="stable") for density in problem.densities()]
        graded = [buckets for order in orders for buckets in _graded(order, sizes, budget)]
        yield from graded or [_smallest(sizes, budget)]


def _graded(order: Array, sizes: Array, budget: int) -> Iterator[tuple[int, ...]]:
    """The first bands of the order exact, the next ones hashed, the others dropped."""
    for count, more in product(range(len(sizes) + 1), repeat=2):
        exact, hashed = order[:count], order[count : count + more]
        left = budget - int(sizes[exact].sum())
        enough = LEAST_VALUES * more <= left < sizes[hashed].sum()
        if left < 0 or len(hashed) < more or not (enough if more else count):
            continue
        buckets = np.full(len(sizes), DROPPED)
        buckets[exact] = EXACT
        buckets[hashed] = sizes[hashed] * left // max(sizes[hashed].sum(), 1)
        yield tuple(int(b) for b in buckets)


def _smallest(sizes: Array, budget: int) -> tuple[int, ...]:
    """The smallest band alone, where the budget is enough for no other choice."""
    buckets = [DROPPED] * len(sizes)
    least = int(np.argmin(sizes))
    buckets[least] = EXACT if sizes[least] <= budget else budget
    return tuple(buckets)


def _beta(sizes: Array, budget: int) -> tuple[int, ...]:
    """The paper's rule: shares like a beta density; what a band cannot use goes to the next."""
    x = (np.arange(len(sizes)) + 1) / len(sizes)
    density = x ** (ALPHA - 1) * (1 - x + 0.5 / len(sizes)) ** (BETA - 1)
    buckets, left = [], float(budget)
    for band, size in enumerate(sizes):
        share = left * density[band] * size / (density[band:] * sizes[band:]).sum()
        count = int(min(size, share))
        left -= count
        buckets.append(EXACT if count == size else max(count, DROPPED))
    return tuple(buckets)
