"""Work spread over threads, with the same result whatever their number.

Every task runs on one thread (BLAS and onnxruntime included) and results come in order, so sums
over them round alike.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


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
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for task in waiting:
                task.cancel()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS to one thread a task, so that results do not depend on the machine's cores."""
    with threadpool_limits(1):
        yield
