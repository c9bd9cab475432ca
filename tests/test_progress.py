"""How far a run is: which step, how long it took so far, and what is left of it."""

import logging
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest

from onnxcompress.core.progress import (
    EVERY_SETTING,
    INT8,
    NUMBERS,
    QUICK,
    SAMPLED,
    Course,
    Foreseen,
    Uneven,
)
from onnxcompress.report import progress as shown
from onnxcompress.report.words import duration

# Runs as they were: steps, where None is what lies between two of them, and seconds.
RATIO = [  # eight times smaller, a small network
    ("calibrating", 0.7), (None, 0.8), ("fitting", 6.9), ("measuring sensitivity", 2.1),
    ("fitting further settings", 25.3), ("comparing settings", 2.4), ("looking for the size", 0.4),
    (None, 0.3), ("refitting (25.9 dB expected)", 6.2), ("checking corrections", 1.2),
    ("trying fits without data", 1.1), ("looking for layers that hurt", 0.9),
    ("comparing outputs", 0.1), ("measuring time and memory", 0.5),
]  # fmt: skip
TABLE = [  # six times smaller, a network that is one large table
    ("calibrating", 0.1), ("fitting", 3.4), ("measuring sensitivity", 1.6),
    ("fitting further settings", 5.2), ("comparing settings", 1.2), ("looking for the size", 0.3),
    (None, 3.8), ("refitting (37.4 dB expected)", 0.5), (None, 0.9), ("checking corrections", 0.2),
    ("trying fits without data", 2.0), ("looking for layers that hurt", 0.3),
    ("comparing outputs", 0.1), ("measuring time and memory", 1.3),
]  # fmt: skip
MACS = [  # half the multiplications
    ("calibrating", 0.8), (None, 0.9), ("fitting", 0.6), ("measuring sensitivity", 2.0),
    ("comparing settings", 0.1), ("looking for the size", 0.1),
    ("refitting (13.4 dB expected)", 3.8), ("checking corrections", 1.0),
    ("trying fits without data", 0.5), (None, 0.3), ("looking for layers that hurt", 0.8),
    ("comparing outputs", 0.3), ("measuring time and memory", 0.5),
]  # fmt: skip
QUALITY = [  # as small as has 28 dB
    ("calibrating", 0.8), (None, 0.9), ("fitting", 24.2), ("measuring sensitivity", 1.5),
    ("comparing settings", 2.0), ("searching", 52.0), ("refitting (24.5 dB expected)", 7.5),
    ("checking corrections", 1.1), ("checking the target", 0.1), ("trying fits without data", 0.9),
    ("looking for layers that hurt", 0.8), ("comparing outputs", 0.1),
    ("measuring time and memory", 0.4),
]  # fmt: skip
RUNS = [(RATIO, NUMBERS), (TABLE, NUMBERS), (MACS, QUICK), (QUALITY, EVERY_SETTING)]
BEATS = 20  # It is shown so often while an item is worked on.
ABSENT = {INT8, "timing layers", "training", "evaluating"}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(steps, fitting, items=20):
    """(share of the time that is over, the estimate of the whole as a share of it) of a run."""
    clock, told, whole = Clock(), [], sum(seconds for _, seconds in steps)

    def show(course):
        if course.left is not None:
            told.append((clock.now / whole, (clock.now + course.left) / whole))

    absent = ABSENT | {"searching"} - {what for what, _ in steps}
    course = Course(show, absent, fitting, clock=clock)
    for what, spent in steps:
        if what is None:
            clock.now += spent
            continue
        uneven = what.startswith("fitting")  # The first takes a third, and gives its result late.
        costs = [items / 2, *[1.0] * (items - 1)] if uneven else [1.0] * items
        for cost in course.track(Uneven(costs, costs), what, items):
            for _ in range(BEATS):
                course.show()
                clock.now += cost * spent / sum(costs) / BEATS
    return told


@pytest.mark.parametrize(("steps", "fitting"), RUNS)
@pytest.mark.parametrize("scale", [0.3, 1, 100])
def test_the_time_left_is_told_from_the_first_item_and_near_after_a_tenth(steps, fitting, scale):
    told = run([(what, scale * spent) for what, spent in steps], fitting)
    assert told[0][0] < 0.02
    late = [share for over, share in told if over > 0.1]
    assert min(late) > 0.5 and max(late) < 2


@pytest.mark.parametrize(("steps", "fitting"), RUNS)
def test_a_step_twice_as_long_as_usual_moves_the_estimate_by_less_than_a_factor_of_two(
    steps, fitting
):
    for slow in range(len(steps)):
        longer = [(what, (1 + (i == slow)) * spent) for i, (what, spent) in enumerate(steps)]
        told = [share for over, share in run(longer, fitting) if over > 0.1]
        jumps = [b / a for a, b in pairwise(told)]
        assert min(jumps) > 0.5 and max(jumps) < 2


def test_items_that_workers_share_are_done_when_those_before_them_are():
    assert Uneven("abc", [3, 1, 1], workers=2).ends == [0, 3, 3, 3]
    assert Uneven("abc", [1, 3, 1], workers=2).ends == [0, 1, 3, 3]
    assert Uneven("ab", [1, 2]).ends == [0, 1, 3]


def test_a_step_that_there_will_not_be_is_not_waited_for():
    clock = Clock()
    sampled, blind = (Course(lambda _: None, ABSENT, NUMBERS, clock=clock) for _ in range(2))
    for step in SAMPLED:
        assert [*blind.track((), step, 0)] == []
    for course in (sampled, blind):
        for _ in course.track(range(4), "fitting", 4):
            clock.now += 1
    assert 0 < blind.left < sampled.left


@pytest.mark.parametrize("training", [3, 300])
def test_a_training_is_foreseen_and_says_nothing_of_other_steps(training):
    clock, told = Clock(), []
    steps = [("fitting", 10), ("measuring sensitivity", 5), ("training", training)]
    steps.append(("comparing outputs", 1))
    whole = sum(seconds for _, seconds in steps)
    course = Course(lambda c: told.append(c.left + clock.now if c.left else 0), clock=clock)
    assert [*course.track(Foreseen(0.9 * training), "training", 0)] == []
    for what, seconds in steps:
        for _ in course.track(range(10), what, 10):
            clock.now += seconds / 10
    assert abs(told[15] - told[20]) < 3 and 0.9 < told[-15] / whole < 1.5
    assert course.left < 5


def test_costs_in_the_unit_of_a_step_before_tell_how_long_a_step_takes():
    clock = Clock()
    course = Course(lambda _: None, ABSENT, NUMBERS, clock=clock)
    for _ in course.track(Uneven("ab", [1, 1], unit="fits"), "fitting", 2):
        clock.now += 1
    [*course.track("a", "measuring sensitivity", 1)]
    before = course.left
    step = iter(course.track(Uneven("a", [100], unit="fits"), "fitting further settings", 1))
    next(step)
    assert course.left > before + 90


def test_a_line_is_written_also_while_nothing_comes_to_an_end(monkeypatch, caplog):
    monkeypatch.setattr(shown, "EVERY", 0.0)
    monkeypatch.setattr(shown, "BEAT", 0.001)
    monkeypatch.setattr(shown.LOG, "propagate", True)
    caplog.set_level(logging.INFO, "onnxcompress")
    with shown.progress() as track:
        while "preparing, 0 s so far" not in caplog.messages:
            time.sleep(0.001)
        for _ in track("a", "fitting", 1):
            caplog.clear()
            while "fitting, 0 s so far" not in caplog.messages:
                time.sleep(0.001)


def test_a_step_without_items_is_not_shown_and_of_steps_in_each_other_the_inner_one():
    seen = []
    course = Course(lambda c: seen.append((c.now.what, c.now.done, c.now.total)))
    assert [*course.track([], "fitting", 0)] == []
    for _ in course.track([1], "searching", 1):
        assert [*course.track("ab", "comparing outputs", 2)] == ["a", "b"]
    assert seen == [
        ("searching", 0, 1),
        *(("comparing outputs", done, 2) for done in range(3)),
        ("searching", 1, 1),
    ]
    assert course.now is None


def test_what_follows_a_fit_of_fixed_settings_is_foreseen():
    clock, left = Clock(), []
    course = Course(lambda course: left.append(course.left), ABSENT, QUICK, clock=clock)
    for what in ("refitting (30.0 dB expected)", "checking corrections"):
        for _ in course.track(range(4), what, 4):
            clock.now += 1
    assert left[0] is None and None not in left[1:]


def test_what_several_results_need_each_is_still_to_come():
    clock = Clock()
    one, many = (Course(lambda _: None, ABSENT, NUMBERS, results, clock) for results in (1, 8))
    for course in (one, many):
        for _ in course.track(range(4), "fitting", 4):
            clock.now += 1
    assert many.left > 1.5 * one.left > 0


def test_without_a_terminal_lines_go_to_the_log_of_python(monkeypatch, caplog):
    monkeypatch.setattr(shown, "EVERY", 0.0)
    monkeypatch.setattr(shown.LOG, "propagate", True)
    caplog.set_level(logging.INFO, "onnxcompress")
    with shown.progress() as track:
        assert [*track("ab", "fitting", 2)] == ["a", "b"]
    assert caplog.messages[0] == "fitting 1 of 2, 0 s so far"
    assert caplog.messages[-1].startswith("fitting 2 of 2, 0 s so far, about 1 s left")
    caplog.clear()
    with shown.progress(False) as track:
        assert [*track("ab", "fitting", 2)] == ["a", "b"]
    assert not caplog.messages


def test_a_terminal_has_one_bar_and_its_label_once(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with shown.progress() as track:
        for _ in track("ab", "searching", 2):
            assert [*track([], "evaluating", 0)] == []
    err = capsys.readouterr().err
    assert "searching" in err and "0/0" not in err and "evaluating" not in err


def test_a_notebook_has_one_line_that_changes(monkeypatch):
    lines = []
    place = SimpleNamespace(update=lambda line: lines.append(str(line)))
    interactive = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", interactive)
    monkeypatch.setitem(
        sys.modules, "IPython.display", SimpleNamespace(display=lambda *_, **__: place)
    )
    monkeypatch.setattr(shown, "OFTEN", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as kernels have it, for what writes to their output
    with shown.progress() as track:
        assert [*track("ab", "fitting", 2)] == ["a", "b"]
    assert lines[0] == "fitting 1 of 2, 0 s so far" and lines[-1] == ""


def test_a_function_of_ones_own_is_told_instead():
    def track(items, what, total):
        return items

    with shown.progress(track) as used:
        assert used is track


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (59.7, "1 min 0 s")],
)
def test_a_time_is_told_in_its_two_largest_units(seconds, words):
    assert duration(seconds) == words
