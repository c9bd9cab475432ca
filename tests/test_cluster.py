"""A real dask scheduler and workers on loopback: the same bytes as here, errors of one line."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

import onnxcompress as oc
from models import images, network
from onnxcompress.cli.commands import main
from onnxcompress.core.errors import WorkerError
from onnxcompress.core.parallel import apart
from onnxcompress.execution.dask import engine

distributed = pytest.importorskip("distributed", reason="the extra distributed is not there")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")


@contextmanager
def started(*words, failures=3):
    """One of dask's commands, in a process that is gone at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *words, "--no-dashboard"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(failures),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def cluster(workers, failures=3):
    """A scheduler and so many workers: where it is, and the workers' processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{found.getsockname()[1]}"
    words = [f"tcp://{place}", "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
    with started("scheduler", "--host", f"tcp://{place}", failures=failures) as scheduler:
        running = [started("worker", *words, "--name", str(i)) for i in range(workers)]
        processes = [one.__enter__() for one in running]
        try:
            with distributed.Client(f"tcp://{place}", timeout=120, set_as_default=False) as client:
                if workers:
                    client.wait_for_workers(workers, timeout=120)
            yield f"dask://{place}", [*processes, scheduler]
        finally:
            for one in running:
                one.__exit__(None, None, None)


@pytest.fixture(scope="module")
def two():
    with cluster(2) as (address, _):
        yield address


def compressed(**given):
    rng = np.random.default_rng(0)
    model, samples = network(rng), images(rng, 96)
    methods = [oc.Integer(bits=4), Doubled(bits=3)]
    smaller, _ = oc.compress(model, methods=methods, samples=samples, jobs=1, **given)
    return smaller.proto.SerializeToString(deterministic=True)


@dataclass(frozen=True)
class Doubled(oc.Integer):
    """A method that no package has."""


def test_a_cluster_gives_the_same_bytes(two):
    assert compressed(engine=two) == compressed()


def test_calibration_and_fits_are_done_by_the_workers(two, monkeypatch):
    rng = np.random.default_rng(0)
    model, samples = network(rng), images(rng, 64)
    layers, _ = oc.find_layers(model)
    here = oc.calibrate(model, layers, samples)
    monkeypatch.setattr("onnxcompress.compression.measure.calibrate.each", None)
    monkeypatch.setattr("onnxcompress.compression.search.candidates.each", None)
    with engine(two):
        there = oc.calibrate(model, layers, samples)
        swept = oc.sweep(layers, there, [oc.Integer(bits=4)])
    assert swept.keys() == layers.keys()
    for name in layers:
        assert np.array_equal(here[name].moment, there[name].moment)


def stuck(item):
    index, doomed, folder = item
    (Path(folder) / str(os.getpid())).touch()
    while os.getpid() == doomed:
        time.sleep(0.1)
    return index * index


def killed(process, when):
    """Kill a process as soon as there is this file."""

    def kill():
        while not when.exists():
            time.sleep(0.1)
        process.kill()

    Thread(target=kill, daemon=True).start()


def test_a_worker_that_is_killed_costs_no_result(tmp_path):
    with cluster(2) as (address, [doomed, *_]), engine(address):
        killed(doomed, when=tmp_path / str(doomed.pid))
        items = [(index, doomed.pid, str(tmp_path)) for index in range(12)]
        assert list(apart(stuck, items, 1)) == [index * index for index in range(12)]
        assert doomed.wait() == -signal.SIGKILL


def dying(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_ends_every_worker_is_one_line():
    told = pytest.raises(WorkerError, match="ended each of the 2 workers that tried it")
    with cluster(2, failures=1) as (address, _), engine(address), told:
        list(apart(dying, [1], 1))


def test_a_cluster_whose_workers_are_all_gone_is_one_line(monkeypatch):
    monkeypatch.setattr("onnxcompress.execution.dask.PATIENCE", 1)
    monkeypatch.setattr("onnxcompress.execution.dask.LOOK", 0.5)
    told = pytest.raises(WorkerError, match="no workers for 1 s")
    with cluster(1) as (address, _), engine(address), told:
        list(apart(dying, [1], 1))


def test_a_scheduler_that_is_gone_is_one_line(tmp_path):
    told = pytest.raises(WorkerError, match="scheduler is gone")
    with cluster(1) as (address, [worker, scheduler]), engine(address), told:
        killed(scheduler, when=tmp_path / str(worker.pid))
        list(apart(stuck, [(0, worker.pid, str(tmp_path))], 1))


def failing(_):
    raise oc.ModelError("no such thing")


def test_an_error_of_a_task_arrives_as_it_was(two):
    with engine(two), pytest.raises(oc.ModelError, match="no such thing"):
        list(apart(failing, [1, 2], 1))


def said(capsys, tmp_path, address, monkeypatch):
    monkeypatch.chdir(tmp_path)
    oc.save(network(np.random.default_rng(0)), "net.onnx")
    with pytest.raises(SystemExit) as ended:
        main(["net.onnx", "out.onnx", "--method", "half", "--engine", address])
    return ended.value.code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("address", ["dask://localhost", "ray://localhost:1", "dask://a@b:1"])
def test_an_engine_that_is_none_is_told(address, tmp_path, capsys, monkeypatch):
    code, line = said(capsys, tmp_path, address, monkeypatch)
    assert code == 2
    assert "write local or dask://HOST:PORT" in line


def test_a_scheduler_that_is_not_there_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("onnxcompress.execution.dask.REACHED", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"dask://127.0.0.1:{silent.getsockname()[1]}"
        code, line = said(capsys, tmp_path, address, monkeypatch)
    assert code == 2
    assert line.startswith("Error: no dask scheduler answers at 127.0.0.1")


def test_a_cluster_without_workers_is_told(tmp_path, capsys, monkeypatch):
    with cluster(0) as (address, _):
        code, line = said(capsys, tmp_path, address, monkeypatch)
    assert code == 2
    assert "has no workers" in line


@pytest.mark.parametrize("name", ["onnxcompress", "numpy", "onnxruntime", "python"])
def test_workers_with_other_versions_are_refused(name, two, tmp_path, capsys, monkeypatch):
    asked = distributed.Client.get_versions

    def older(*words, **given):
        found = asked(*words, **given)
        for worker in found["workers"].values():
            worker["packages"][name] = "0.0.1"
        return found

    monkeypatch.setattr(distributed.Client, "get_versions", older)
    code, line = said(capsys, tmp_path, two, monkeypatch)
    assert code == 2
    assert "0.0" in line
    assert "here it is" in line


def test_a_missing_extra_is_told_with_its_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, line = said(capsys, tmp_path, "dask://127.0.0.1:1", monkeypatch)
    assert code == 2
    assert "pip install 'onnxcompress[distributed]'" in line
