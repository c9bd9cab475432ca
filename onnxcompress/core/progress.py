"""How long steps say how far they are: a function wraps what they go through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

Track = Callable[[Iterable[T], str, int], Iterable[T]]  # (items, what is being done, how many)


def untracked(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """No progress is shown."""
    return items
