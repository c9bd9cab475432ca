"""How far a run is: which step, how long it took so far, and what is left of it."""

import logging
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest

from onnxcompress.core.progress import TIMED, Course
from onnxcompress.report import progress as shown
from onnxcompress.report.words import duration

RATIO = [  # seconds, as of a small network to which a ratio was asked, and multiplications
    ("calibrating", 3), ("fitting", 258), ("measuring sensitivity", 18),
    ("estimating errors on held-out samples", 1), ("refitting (27.9 dB expected)", 13),
    ("checking corrections", 4), ("refitting (27.0 dB expected)", 41),
    ("checking corrections", 6), ("looking for layers that hurt", 2), ("comparing outputs", 1),
]  # fmt: skip
MACS = [
    ("calibrating", 17), ("fitting", 28), ("measuring sensitivity", 5),
    ("estimating errors on held-out samples", 1), ("refitting (13.9 dB expected)", 14),
    ("checking corrections", 2), ("looking for layers that hurt", 2), ("comparing outputs", 1),
]  # fmt: skip
ABSENT = {"timing layers", "searching", "trying rates", "refining", "evaluating"}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(steps, quick=False, items=20):
    """(share of the time that is over, what is left as a share of what is really left) of a run."""
    clock, told, whole = Clock(), [], sum(seconds for _, seconds in steps) + TIMED

    def show(course):
        if course.left is not None and clock.now < whole:
            told.append((clock.now / whole, course.left / (whole - clock.now)))

    course = Course(show, ABSENT, quick, clock=clock)
    for what, spent in steps:
        for i in course.track(range(items), what, items):
            share = 2 * (items - i - 0.5) / items if what == "fitting" else 1  # largest first
            clock.now += share * spent / items
    return told


@pytest.mark.parametrize(("steps", "quick"), [(RATIO, False), (MACS, True)])
@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_the_time_left_is_told_from_the_first_item_and_near_after_a_tenth(steps, quick, scale):
    told = run([(what, scale * spent) for what, spent in steps], quick)
    assert told[0][0] < 0.02
    late = [share for over, share in told if 0.1 < over < 0.8]
    assert min(late) > 0.5 and max(late) < 2


@pytest.mark.parametrize("slow", range(len(RATIO)))
def test_a_step_twice_as_long_as_usual_moves_the_estimate_by_less_than_a_factor_of_two(slow):
    steps = [(what, (1 + (i == slow)) * spent) for i, (what, spent) in enumerate(RATIO)]
    told = [share for over, share in run(steps) if 0.1 < over < 0.8]
    jumps = [b / a for a, b in pairwise(told)]
    assert min(jumps) > 0.5 and max(jumps) < 2


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
    course = Course(lambda course: left.append(course.left), ABSENT, True, clock=clock)
    for what in ("refitting (30.0 dB expected)", "checking corrections"):
        for _ in course.track(range(4), what, 4):
            clock.now += 1
    assert left[0] is None and None not in left[1:]


def test_what_several_results_need_each_is_still_to_come():
    clock = Clock()
    one, many = (Course(lambda _: None, ABSENT, False, results, clock) for results in (1, 8))
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
    assert caplog.messages[-1].startswith("fitting 2 of 2, 0 s so far, about 2 s left")
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
