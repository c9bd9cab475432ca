"""Latency is compared in pairs that take turns, on a clock that the test moves."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from onnxcompress.execution import latency as module
from onnxcompress.execution.latency import latency


class Machine:
    """Runs models for the time that ``cost`` says, given the model and how many runs came before.

    The models are strings, and time passes in runs alone.
    """

    def __init__(self, cost):
        self.cost, self.now, self.runs = cost, 0.0, []

    def session(self, model, *_):
        def run(sample):
            self.now += self.cost(model, len(self.runs))
            self.runs.append(model)

        return SimpleNamespace(run=run)


@pytest.fixture
def measured(monkeypatch):
    """The latency of models "A" and "B" on a machine, and the order in which they ran."""

    def measure(cost, **options):
        machine = Machine(cost)
        monkeypatch.setattr(module, "session_of", machine.session)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: machine.now))
        return latency("A", "B", {}, ["CPUExecutionProvider"], **options), machine.runs

    return measure


def test_pairs_take_turns_in_who_goes_first(measured):
    _, runs = measured(lambda model, before: 0.1)
    assert sorted(runs[:2]) == ["A", "B"]  # they warm up
    pairs = ["".join(pair) for pair in zip(runs[2::2], runs[3::2], strict=True)]
    assert len(pairs) >= 7
    assert set(pairs) == {"AB", "BA"}
    assert all(one != other for one, other in pairwise(pairs))


def test_equal_models_are_equal_on_a_machine_that_slows_down(measured):
    result, _ = measured(lambda model, before: 0.001 * 1.05**before, seconds=1)
    assert result.verdict == "inconclusive"
    assert result.low < 1 < result.high
    assert result.ratio == pytest.approx(1, abs=0.06)  # one run is 5 % slower than the one before


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_the_ratio_is_of_the_second_model_to_the_first(share, measured):
    result, _ = measured(lambda model, before: 0.01 * (share if model == "B" else 1))
    assert result.ratio == pytest.approx(share)
    assert (result.before, result.after) == pytest.approx((10, 10 * share))
    assert result.verdict == ("faster" if share < 1 else "slower")


def test_a_few_slow_runs_do_not_change_the_verdict(measured):
    slow = set(np.random.default_rng(0).choice(400, 40, replace=False))

    def cost(model, before):
        return (0.8 if model == "B" else 1) * (0.2 if before in slow else 0.01)

    result, _ = measured(cost, seconds=10)
    assert result.verdict == "faster" and result.ratio == pytest.approx(0.8)
