"""Work spread over threads, with the same result whatever their number.

Every task runs on one thread (BLAS and onnxruntime included) and results come in order, so sums
over them round alike.  A task may cut its work into pieces: threads that wait for nothing else
take some of them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from threading import Lock
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")

_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("pool", default=None)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(
    function: Callable[[T], R], items: Iterable[T], jobs: int, ahead: int | None = None
) -> Iterator[R]:
    """``map`` over threads: lazy, in order.

    Args:
        ahead: results that may wait while an earlier one is computed; by default as many as
            threads.  More where results are small and the work of the items differs.
    """
    if jobs == 1:
        return map(function, items)
    return _spread(function, items, jobs, jobs if ahead is None else ahead)


def _spread(function: Callable[[T], R], items: Iterable[T], jobs: int, ahead: int) -> Iterator[R]:
    """What `each` does.  Whoever stops early waits for the tasks that run, and for no other."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        inside = copy_context()
        inside.run(_pool.set, pool)
        try:
            for item in items:
                waiting.append(pool.submit(inside.copy().run, function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()


def side_by_side(function: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """``map`` inside a task: by its own thread, and by others once no whole task is left."""
    pool = _pool.get()
    if pool is None or len(pieces) == 1:
        return list(map(function, pieces))
    waiting = [pool.submit(function, piece) for piece in pieces]
    found: list[R] = []
    for piece, task in zip(reversed(pieces), reversed(waiting), strict=True):
        found.append(function(piece) if task.cancel() else task.result())  # others begin in front
    return found[::-1]


@contextmanager
def helped(jobs: int) -> Iterator[None]:
    """Threads for the pieces of tasks that run one after the other."""
    if jobs == 1:
        yield
        return
    with ThreadPoolExecutor(jobs - 1) as pool:
        before = _pool.set(pool)
        try:
            yield
        finally:
            _pool.reset(before)


class _Limit:
    """BLAS on one thread for as long as anybody needs it: runs in several threads may overlap."""

    def __init__(self) -> None:
        self._lock, self._users, self._limits = Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            self._limits = self._limits or threadpool_limits(1)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._limits:
                self._limits.restore_original_limits()
                self._limits = None


_limit = _Limit()


def one_thread_each() -> AbstractContextManager[None]:
    """Keep BLAS to one thread a task, so that results do not depend on the machine's cores."""
    return _limit
