"""Work spread over threads or processes, with the same result whatever their number.

Every task runs on one thread (BLAS and onnxruntime included) and results come in order, so sums
over them round alike.  A task may cut its work into pieces: threads that wait for nothing else
take some of them.  Threads suit tasks that are in numpy or onnxruntime for most of their time;
others hold Python's lock, and run in processes.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from onnxcompress.core.errors import WorkerError

T = TypeVar("T")
R = TypeVar("R")


class Task(Protocol):
    """What a pool promises, as a Future does."""

    def result(self) -> Any: ...


class Engine(Protocol):
    """Other machines that do tasks.

    Attributes:
        ahead: tasks to give away before the first result is needed.
    """

    ahead: int

    def taking(self, function: Callable[[Any], Any]) -> Callable[[Any], Task]:
        """What gives away a task, by its item."""
        ...


_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("pool", default=None)

_engine: ContextVar[Engine | None] = ContextVar("engine", default=None)


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
    with ThreadPoolExecutor(jobs) as pool:
        inside = copy_context()
        inside.run(_pool.set, pool)
        try:
            yield from _in_order(
                lambda item: pool.submit(inside.copy().run, function, item), items, ahead
            )
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(submit: Callable[[T], Task], items: Iterable[T], ahead: int) -> Iterator[Any]:
    waiting: deque[Task] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def delegated(engine: Engine) -> Iterator[None]:
    """Let this engine do what `apart` is asked for."""
    before = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(before)


def elsewhere() -> bool:
    """Whether there is an engine."""
    return _engine.get() is not None


def apart(
    function: Callable[[T], R], items: Iterable[T], jobs: int, ahead: int | None = None
) -> Iterator[R]:
    """`each` on the engine, or in processes of their own, which take about a second to start.

    Args:
        function: what pickle can name, or cloudpickle can hold; so the items.

    Raises:
        WorkerError: the system ended one of the processes.
    """
    engine = _engine.get()
    if engine is not None:
        yield from _in_order(engine.taking(function), items, engine.ahead)
    elif jobs == 1:
        yield from map(function, items)
    else:
        yield from _processes(function, list(items), jobs, jobs if ahead is None else ahead)


def _processes(
    function: Callable[[T], R], items: Sequence[T], jobs: int, ahead: int
) -> Iterator[R]:
    from loky import BrokenProcessPool, ProcessPoolExecutor  # Its import takes as long as numpy's.

    pool = ProcessPoolExecutor(
        min(jobs, len(items)),
        initializer=_attend,
        initargs=(os.getpid(),),
        env=dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    )
    helpers = 1 + -(-jobs // len(items))
    try:
        yield from _in_order(partial(pool.submit, _alone, function, helpers), items, ahead)
        pool.shutdown()
    except BrokenProcessPool:
        raise WorkerError(
            "the system ended a process that fits layers, most likely for want of memory: "
            "fewer jobs need less"
        ) from None
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It warns where it finds no pgrep.
            pool.shutdown(kill_workers=True)


def _alone(function: Callable[[T], R], helpers: int, item: T) -> R:
    """A task in a process of its own."""
    with one_thread_each(), helped(helpers):
        return function(item)


def _attend(parent: int) -> None:
    """Leave interrupts to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def portable(value: Any) -> bool:
    """Whether another process could be given this."""
    from cloudpickle import dumps

    try:
        dumps(value)
    except Exception:  # An object's own way to be pickled may raise anything.
        return False
    return True


def side_by_side(function: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """``map`` inside a task: by its own thread, and by others once no whole task is left."""
    pool = _pool.get()
    if pool is None or len(pieces) == 1:
        return list(map(function, pieces))
    waiting = [pool.submit(function, piece) for piece in pieces]
    results: list[R] = []
    for piece, task in zip(reversed(pieces), reversed(waiting), strict=True):
        # Other threads begin in front.
        results.append(function(piece) if task.cancel() else task.result())
    return results[::-1]


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
