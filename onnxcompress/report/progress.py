"""How far a run is: a bar in a terminal, a line in a notebook, else lines of a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from onnxcompress.core.progress import Course, Track, untracked
from onnxcompress.report.words import duration

LOG = logging.getLogger("onnxcompress")
EVERY = 5.0  # At least so many seconds lie between two lines of a log.
OFTEN = 0.5  # What a notebook shows changes at most once in so many seconds.
BAR = 20  # The bar in a terminal has so many columns.


@contextmanager
def progress(
    shown: bool | Track[Any] = True,
    without: Collection[str] = (),
    quick: bool = False,
    results: int = 1,
) -> Iterator[Track[Any]]:
    """What wraps the steps of a run, so that it is seen how far it is.

    Args:
        shown: False for nothing; a function for something of one's own.
        without, quick, results: see `Course`.
    """
    if not isinstance(shown, bool):
        yield shown
    elif not shown:
        yield untracked
    elif handle := _notebook():  # A kernel claims to be a terminal, so this comes first.
        write = _seldom(lambda line: handle.update(_Line(line)), OFTEN)
        yield Course(write, without, quick, results).track
        handle.update(_Line(""))
    elif (console := Console(stderr=True, force_jupyter=False)).is_terminal:
        with _bar(console) as show:
            yield Course(show, without, quick, results).track
    else:
        yield Course(_seldom(LOG.info, EVERY), without, quick, results).track


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
    return f"{step.what} {min(step.done + 1, step.total)} of {step.total}" if step else ""


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
