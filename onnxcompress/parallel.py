"""Work spread over threads, with the same result whatever their number.

Every task runs on one thread (BLAS and onnxruntime included) and results come in order, so sums
over them round alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function: Callable[[T], R], items: Iterable[T], jobs: int) -> Iterator[R]:
    """``map`` over threads: lazy, in order, at most a few results ahead."""
    if jobs == 1:
        return map(function, items)
    pool: Any = Parallel(
        n_jobs=jobs, backend="threading", return_as="generator", pre_dispatch=str(jobs)
    )
    return pool(delayed(function)(item) for item in items)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep BLAS to one thread a task, so that results do not depend on the machine's cores."""
    with threadpool_limits(1):
        yield
