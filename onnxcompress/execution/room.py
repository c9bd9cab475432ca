"""Memory for runs of models: those that take much of it wait for one another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

ROOM = 1 << 30  # All runs together are to take no more bytes, or there is one alone.
_condition = Condition()
_taken: list[int] = []  # The bytes of the runs that there are.


@contextmanager
def room_for(nbytes: int) -> Iterator[None]:
    """Wait until there is room for so many bytes, or nobody else."""
    with _condition:
        _condition.wait_for(lambda: not _taken or sum(_taken) + nbytes <= ROOM)
        _taken.append(nbytes)
    try:
        yield
    finally:
        with _condition:
            _taken.remove(nbytes)
            _condition.notify_all()


def peak_bytes() -> int:
    """The most memory that this process ever had; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
