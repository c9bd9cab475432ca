"""How far a run is, as bars in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(shown: bool) -> Iterator[Callable[[Iterable[Any], str, int], Iterable[Any]]]:
    """A ``track`` for `compress`, with bars on stderr while they are of use."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )

    def track(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
        task = bars.add_task(what, total=total)
        try:
            for item in items:
                yield item
                bars.advance(task)
        finally:
            bars.remove_task(task)

    with bars:
        yield track
