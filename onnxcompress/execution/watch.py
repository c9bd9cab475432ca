"""A run of a model that nobody knows is ended when it takes too long, or too much memory.

A loop may be endless, and keep what each of its turns gives.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from math import inf
from pathlib import Path
from threading import Event, Thread
from time import monotonic

EVERY = 0.1  # It is looked at so often, in seconds.
# It may take this share of the memory that is free when it begins: what comes after needs some.
SHARE = 0.75

PAGE = mmap.PAGESIZE


class Watch:
    """Calls ``end`` once if the block takes more seconds, or too much memory.

    Attributes:
        reason: why it was ended, "" where it was not.
    """

    def __init__(self, seconds: float, end: Callable[[], None]) -> None:
        self._seconds, self._end, self._over = seconds, end, Event()
        self._thread = Thread(target=self._look, daemon=True)
        self.reason = ""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        begun, held, free = monotonic(), held_bytes(), free_bytes()
        while not self._over.wait(min(EVERY, self._seconds)):
            if monotonic() - begun >= self._seconds:
                self.reason = f"more than {self._seconds:.3g} s"
            elif held_bytes() - held > SHARE * free:
                self.reason = f"more than {SHARE * free / 1e9:.1f} GB of memory"
            if self.reason:
                return self._end()


def _pages() -> list[int]:
    """What the system says of the memory of this process; zeros where it does not."""
    try:
        return [*map(int, Path("/proc/self/statm").read_text().split())]
    except OSError:
        return [0] * 7


def held_bytes() -> int:
    """Memory that this process has; 0 where the system does not tell."""
    return PAGE * _pages()[1]


def free_bytes() -> float:
    """Memory that it could have besides, as far as the system tells."""
    try:
        import resource

        words = Path("/proc/meminfo").read_text().split()
        free: float = 1024 * int(words[words.index("MemAvailable:") + 1])
    except (ImportError, OSError, ValueError):
        return inf
    pages = _pages()
    for limit, held in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            free = min(free, most - PAGE * held)
    return free
