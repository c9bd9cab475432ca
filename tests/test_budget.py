"""The choice under a budget."""

from itertools import pairwise, product

import numpy as np
import pytest

from onnxcompress.compression.search.knapsack import Option, choose, frontier, leanest, spent
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.method import Candidate

NOTHING = Candidate(None, 0, (), 0.0)


@pytest.fixture(params=range(8))
def options(request):
    """Four layers with six random points each."""
    rng = np.random.default_rng(request.param)
    costs, errors = rng.integers(1, 500, (4, 6)), rng.random((4, 6))
    return {
        name: [Option(int(c), float(e), NOTHING) for c, e in zip(cs, es, strict=True)]
        for name, cs, es in zip("abcd", costs, errors, strict=True)
    }


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_choice_fits_and_is_within_one_step_of_the_best(options, share):
    least = sum(min(o.cost for o in points) for points in options.values())
    most = sum(max(o.cost for o in points) for points in options.values())
    limit = least + share * (most - least)
    chosen = choose(options, limit).values()
    assert sum(o.cost for o in chosen) <= limit
    fits = [c for c in product(*options.values()) if sum(o.cost for o in c) <= limit]
    best = min(sum(o.error for o in c) for c in fits)
    fronts = [frontier(points) for points in options.values()]
    step = max(a.error - b.error for f in fronts for a, b in pairwise(f))
    assert sum(o.error for o in chosen) <= best + step


def test_a_dominated_option_is_never_on_the_frontier(options):
    for points in options.values():
        front = frontier(points)
        assert [o.cost for o in front] == sorted(o.cost for o in front)
        for option in points:
            assert any(o.cost <= option.cost and o.error <= option.error for o in front)


def test_an_impossible_limit_names_the_least(options):
    least = sum(min(o.cost for o in points) for points in options.values())
    choose(options, least)
    with pytest.raises(BudgetError, match=f"{least:,}"):
        choose(options, least - 1)


def _with_tables(rng):
    """Layers that may share a large table, a small one, or none; the others err less."""
    tables = [frozenset[tuple[str, int]](), frozenset({("a", 300)}), frozenset({("b", 2000)})]
    return {
        name: [
            Option(int(cost), float(error), NOTHING, shared)
            for shared, base in zip(tables, (900, 700, 100), strict=True)
            for cost, error in zip(base + rng.integers(0, 300, 3), rng.random(3), strict=True)
        ]
        for name in "abcd"
    }


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_costs_less_than_the_leanest_with_what_is_shared(seed):
    options = _with_tables(np.random.default_rng(seed))
    every = (dict(zip(options, c, strict=True)) for c in product(*options.values()))
    least = min(map(spent, every))
    assert spent(leanest(options)) == least
    choose(options, least)
    with pytest.raises(BudgetError, match=f"{least:,}"):
        choose(options, least - 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("more", [1.0, 1.1, 1.5])
def test_what_is_shared_is_never_worse_to_have_than_not(seed, more):
    options = _with_tables(np.random.default_rng(seed))
    without = {name: [o for o in found if not o.shared] for name, found in options.items()}
    limit = more * spent(leanest(without))
    found, other = choose(options, limit), choose(without, limit)
    assert spent(found) <= limit
    assert sum(o.error for o in found.values()) <= sum(o.error for o in other.values())
