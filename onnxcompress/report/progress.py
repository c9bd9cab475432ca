"""How far a run is: a bar in a terminal, a line in a notebook, else lines of a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from onnxcompress.core.progress import EVERY_SETTING, Course, Track, untracked
from onnxcompress.report.words import duration

LOG = logging.getLogger("onnxcompress")
EVERY = 5.0  # So many seconds lie between two lines of a log, and a little more.
OFTEN = 0.5  # What a notebook shows changes at most once in so many seconds.
BEAT = 1.0  # What is shown is at most so many seconds old, however long an item takes.
BAR = 20  # The bar in a terminal has so many columns.


@contextmanager
def progress(
    shown: bool | Track[Any] = True,
    without: Collection[str] = (),
    fitting: float = EVERY_SETTING,
    results: int = 1,
) -> Iterator[Track[Any]]:
    """What wraps the steps of a run, so that it is seen how far it is.

    Args:
        shown: False for nothing; a function for something of one's own.
        without, fitting, results: see `Course`.
    """
    if not isinstance(shown, bool):
        yield shown
    elif not shown:
        yield untracked
    elif handle := _notebook():  # A kernel claims to be a terminal, so this comes first.
        write = _seldom(lambda line: handle.update(_Line(line)), OFTEN)
        with _beating(Course(write, without, fitting, results)) as track:
            yield track
        handle.update(_Line(""))
    elif (console := Console(stderr=True, force_jupyter=False)).is_terminal:
        with _bar(console) as show, _beating(Course(show, without, fitting, results)) as track:
            yield track
    else:
        course = Course(_seldom(LOG.info, EVERY), without, fitting, results)
        with _beating(course) as track:
            yield track


@contextmanager
def _beating(course: Course) -> Iterator[Track[Any]]:
    """Shows a course also while no item of its steps comes to an end."""
    over = Event()

    def beat() -> None:
        while not over.wait(BEAT):
            course.show()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield course.track
    finally:
        over.set()
        thread.join()


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Course], None]]:
    """One bar for the whole run, with the step that is being done."""
    columns = TextColumn("{task.description}"), BarColumn(BAR), TextColumn("{task.fields[times]}")
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None, times="")

        def show(course: Course) -> None:
            left, spent = course.left, course.elapsed
            total = None if left is None else spent + left
            bars.update(
                task, description=_step(course), total=total, completed=spent, times=_times(course)
            )

        yield show


def _seldom(write: Callable[[str], Any], pause: float) -> Callable[[Course], None]:
    """Writes a line where the last one is so many seconds old."""
    last = time.perf_counter()

    def show(course: Course) -> None:
        nonlocal last
        if time.perf_counter() - last >= pause:
            last = time.perf_counter()
            write(f"{_step(course)}, {_times(course)}")

    return show


def _step(course: Course) -> str:
    step = course.now
    if step is None:
        return "preparing"
    many = f" {min(step.done + 1, step.total)} of {step.total}" if step.total > 1 else ""
    return f"{step.what}{many}"


def _times(course: Course) -> str:
    left = course.left
    spent = f"{duration(course.elapsed)} so far"
    return spent if left is None else f"{spent}, about {duration(left)} left"


class _Line:
    """Text that a notebook shows as it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _notebook() -> Any:
    """A place for text in the notebook in which this runs; None elsewhere."""
    interactive = sys.modules.get("IPython")
    shell = interactive and interactive.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    return display(_Line("starting"), display_id=True)
