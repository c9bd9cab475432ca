"""Threads and processes: results do not depend on how many there are, nor on what else runs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import onnxcompress as oc
from onnxcompress.core.errors import WorkerError
from onnxcompress.core.layer import Layer
from onnxcompress.core.parallel import apart, each, one_thread_each, portable
from onnxcompress.core.statistics import Statistics

SLEEPER = """
import os, signal, sys, time
from onnxcompress.core.parallel import apart

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored

def task(index):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)

list(apart(task, [0, 1], 2))
"""


def test_blas_keeps_to_one_thread_until_the_last_of_overlapping_runs_ends():
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(one_thread_each())
        second.enter_context(one_thread_each())
        first.close()
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}


def layers_of(rng, count=3):
    made = {str(i): Layer(str(i), "Gemm", rng.normal(size=(24, 16))) for i in range(count)}
    patches = {name: rng.normal(size=(1, 200, 16)) for name in made}
    return made, {name: Statistics.of(seen) for name, seen in patches.items()}


def found(candidates):
    return [
        (name, str(c.setting), c.nbytes, c.error, c.weight and c.weight.decode().tobytes())
        for name, every in candidates.items()
        for c in every
    ]


@pytest.mark.parametrize("heavy", [0, float("inf")], ids=["processes", "threads"])
def test_candidates_are_the_same_wherever_they_are_fitted(heavy, rng, monkeypatch):
    layers, statistics = layers_of(rng)
    methods = [oc.Integer(), oc.Codebook(vector=4)]
    alone = oc.sweep(layers, statistics, methods)
    monkeypatch.setattr("onnxcompress.compression.search.candidates.HEAVY", heavy)
    assert found(oc.sweep(layers, statistics, methods, jobs=2)) == found(alone)


def test_heavy_fits_are_done_by_other_processes(rng, monkeypatch):
    @dataclass(frozen=True)
    class Telling(oc.Half):
        quick = False

        @property
        def fixed(self):
            return True

        def fit(self, layer, statistics):
            told = super().fit(layer, statistics)
            return type(told)(np.full(layer.weight.shape, os.getpid() % 2000, np.float16), float)

    monkeypatch.setattr("onnxcompress.compression.search.candidates.HEAVY", 0)
    layers, statistics = layers_of(rng)
    swept = oc.sweep(layers, statistics, [Telling()], jobs=2)  # a class that no module has
    told = {c.weight.decode().max() for every in swept.values() for c in every}
    assert os.getpid() % 2000 not in told
    assert {type(c.setting) for every in swept.values() for c in every} == {Telling}


def test_a_method_that_cannot_be_pickled_is_fitted_on_threads(rng, monkeypatch):
    @dataclass(frozen=True)
    class Locked(oc.Integer):
        lock: Lock = field(default_factory=Lock, compare=False, repr=False)

    method = Locked(bits=4)
    assert not portable(method)
    monkeypatch.setattr("onnxcompress.compression.search.candidates.HEAVY", 0)
    layers, statistics = layers_of(rng)
    swept = oc.sweep(layers, statistics, [method], jobs=2)
    plain = oc.sweep(layers, statistics, [oc.Integer(bits=4)])
    assert [c.error for e in swept.values() for c in e] == [
        c.error for e in plain.values() for c in e
    ]


def test_quick_methods_and_small_models_start_no_process(rng, monkeypatch):
    monkeypatch.setattr("onnxcompress.compression.search.candidates.apart", None)
    layers, statistics = layers_of(rng)
    oc.sweep(layers, statistics, [oc.Integer()], jobs=2)
    monkeypatch.setattr("onnxcompress.compression.search.candidates.HEAVY", 0)
    oc.sweep(layers, statistics, [oc.Basis(), oc.Half()], jobs=2)


def square(x):
    return x * x


@pytest.mark.parametrize("spread", [each, apart])
@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(spread, jobs):
    assert list(spread(square, range(7), jobs)) == [x * x for x in range(7)]


def failing(x):
    raise oc.ModelError("no such thing")


def test_an_error_of_a_task_arrives_as_it_was():
    with pytest.raises(oc.ModelError, match="no such thing"):
        list(apart(failing, [1, 2], 2))


def dying(x):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_the_system_ends_is_one_line():
    with pytest.raises(WorkerError, match="fewer jobs"):
        list(apart(dying, [1, 2], 2))


def gone(pid):
    """Whether a process has ended, waiting for it."""
    for _ in range(300):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_and_no_file_outlives_one_that_is_ended(number, tmp_path):
    shared = set(os.listdir("/dev/shm"))
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
    )
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(number)
    told = parent.communicate(timeout=60)[1]
    assert "Exception in" not in told
    assert told.endswith("KeyboardInterrupt\n") or number != signal.SIGINT
    assert all(map(gone, workers))
    assert not list(temporary.iterdir())
    for _ in range(100):
        left = {name for name in os.listdir("/dev/shm") if name.startswith("sem.loky")} - shared
        if not left:
            break
        time.sleep(0.1)
    assert not left
