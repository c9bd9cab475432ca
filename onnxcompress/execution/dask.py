"""Work given to a dask cluster.  The only file that imports dask.

A task travels with all that it needs, pickled, by way of the scheduler, which gives it to another
worker where one dies.  What dask scatters would be lost with the worker that holds it, so the
function of the tasks, with the model in it, is the result of a task too: workers fetch it from
each other, once each.  For the same reason this is not joblib's dask backend, which scatters every
large argument.

A worker runs whatever code it is sent: only where everyone on the network may do that.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cloudpickle import dumps, loads

from onnxcompress.core.errors import WorkerError
from onnxcompress.core.parallel import delegated, one_thread_each


async def _answered(place: str) -> None:
    """Raise an OSError unless a scheduler answers in time; a Client waits forever for some."""
    from distributed.comm.core import connect

    comm = await asyncio.wait_for(connect(place), REACHED)
    comm.abort()


# Every worker needs the same versions of these packages as this process.
SAME = ("onnxcompress", "numpy", "onnx", "onnxruntime")
REACHED = 10.0  # A scheduler has to answer within so many seconds.
PATIENCE = 60.0  # Work is given up after so many seconds without any worker.
LOOK = 5.0  # The workers are counted every so many seconds.
GONE = "the dask scheduler is gone"


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Give tasks that may run elsewhere to a cluster.

    Args:
        name: ``dask://HOST:PORT`` of the scheduler; ``local`` for this machine alone.

    Raises:
        WorkerError: dask is missing, nobody answers, or the workers are not as this process is.
    """
    if name == "local":
        yield
        return
    address = re.fullmatch(r"dask://([^/@\s]+:\d{1,5})", name)
    if not address:
        raise WorkerError(f"{name!r} is no engine; write local or dask://HOST:PORT")
    try:
        import dask.config
        import distributed
    except ImportError:
        raise WorkerError(
            "an engine of dask:// needs dask: pip install 'onnxcompress[distributed]'"
        ) from None
    log = logging.getLogger("distributed")
    level = log.level
    log.setLevel(logging.CRITICAL)  # What matters of it is an error here.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
        place = f"tcp://{address[1]}"
        try:
            with ThreadPoolExecutor(1) as thread:  # A thread has no event loop, as a notebook has.
                thread.submit(asyncio.run, _answered(place)).result()
            client = distributed.Client(place, timeout=REACHED, set_as_default=False)
        except (OSError, ValueError):
            log.setLevel(level)
            raise WorkerError(
                f"no dask scheduler answers at {address[1]}; dask scheduler starts one"
            ) from None
        try:
            _check_alike(client)
            with delegated(_Cluster(client)):
                yield
        finally:
            client.close()
            log.setLevel(level)


def _check_alike(client: Any) -> None:
    """Raise a WorkerError unless there are workers, and all have what this process has."""
    versions = client.get_versions(packages=SAME)
    if not versions["workers"]:
        raise WorkerError("the dask cluster has no workers; dask worker HOST:PORT starts one")
    ours = versions["client"]["packages"]
    for address, worker in versions["workers"].items():
        theirs = worker["packages"]
        for name in SAME:
            if theirs[name] != ours[name]:
                has = f"{name} {theirs[name]}" if theirs[name] else f"no {name}"
                raise WorkerError(f"the worker at {address} has {has}; here it is {ours[name]}")
        if _minor(theirs["python"]) != _minor(ours["python"]):
            raise WorkerError(
                f"the worker at {address} has Python {_minor(theirs['python'])}; "
                f"here it is {_minor(ours['python'])}"
            )


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


class _Cluster:
    """The workers of a cluster, as `parallel.Engine`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.ahead = 2 * sum(client.nthreads().values())

    def taking(self, function: Callable[[Any], Any]) -> Callable[[Any], _Promise]:
        held = self._client.submit(loads, dumps(function), pure=False)

        def submit(item: Any) -> _Promise:
            task = self._client.submit(_apply, held, dumps(item), pure=False)
            return _Promise(self._client, task)

        return submit


def _apply(function: Callable[[Any], Any], item: bytes) -> Any:
    """A task, in a worker."""
    with one_thread_each():
        return function(loads(item))


@dataclass(frozen=True)
class _Promise:
    """A result that a worker is to give."""

    client: Any
    task: Any

    def result(self) -> Any:
        from distributed import KilledWorker

        try:
            self._wait()
            return self.task.result()
        except KilledWorker as error:
            raise WorkerError(
                f"a task ended each of the {error.allowed_failures + 1} workers that tried it, "
                "most likely for want of memory: workers of fewer threads need less"
            ) from None
        except CancelledError:
            raise WorkerError(GONE) from None

    def _wait(self) -> None:
        """Return as soon as the task is done.

        Raises:
            WorkerError: nobody is there to do it.
        """
        alone = 0.0
        while not self.task.done():
            try:
                self.task.result(timeout=LOOK)
            except TimeoutError:
                if self.client.status != "running":  # What it was to give is lost.
                    raise WorkerError(GONE) from None
                alone = 0.0 if self.client.nthreads() else alone + LOOK
            if alone >= PATIENCE:
                raise WorkerError(f"the dask cluster has had no workers for {PATIENCE:g} s")
