"""Whatever stops a run: OUTPUT is the old one, the whole new one, or not there."""

import os
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import outside

from models import images, network
from onnxcompress import Integer, Target, compress
from onnxcompress.cli.commands import main
from onnxcompress.core.scratch import scratch_folder, sweep
from onnxcompress.execution.cache import Cache
from onnxcompress.graph import save

LINE = "net.onnx out.onnx --method integer --ratio 3 --calib data.npz --jobs 1 --quiet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A network and samples, in the current folder."""
    rng = np.random.default_rng(0)
    save(network(rng), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=np.concatenate([b["x"] for b in images(rng, 48)]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(line, folder, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", *line.split()], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, **options,
    )  # fmt: skip


def done(child):
    out, err = child.communicate(timeout=120)
    return child.returncode, out, err


def digest(path):
    return sha256(Path(path).read_bytes()).hexdigest()


# Saves two models in turn to one place until it is killed; what is left must be one of them.
SAVING = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from onnx import numpy_helper
from models import network
from onnxcompress.graph import load, save

def models():
    for value in (1, 2):
        model = network(np.random.default_rng(value), 12)
        for tensor in model.graph.initializer:
            full = np.full(tuple(tensor.dims), value, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(full, tensor.name))
        yield model

def saving():
    for _ in range(ROUNDS):
        for model in models():
            save(model, "out.onnx", external=True)

def whole():
    model = load("out.onnx")
    assert len({float(x) for name in model.initializers for x in model.read(name).flat}) == 1
    assert len(model.data_files) == 1
    return model
"""
KILLED = """
random.seed(0)
save(next(models()), "out.onnx", external=True)
for _ in range(40):
    child = os.fork()
    if not child:
        saving()
    time.sleep(random.random() / 20)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    whole()
"""
TOGETHER = """
children = []
for _ in range(3):
    children.append(os.fork())
    if not children[-1]:
        saving()
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
assert sorted(os.listdir()) == sorted({"out.onnx", *(f.name for f in whole().data_files)})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
@pytest.mark.parametrize(("script", "rounds"), [(KILLED, 10**6), (TOGETHER, 30)])
def test_a_model_and_its_data_are_replaced_as_one(tmp_path, script, rounds):
    """By one that is killed at any moment, and by several at once."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", SAVING.replace("ROUNDS", str(rounds)) + script], cwd=tmp_path,
        check=True, env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


KILLED_WHILE_WRITING = """
import os, signal
from pathlib import Path
from onnxcompress.core.scratch import scratch_folder
with scratch_folder(Path("out.onnx")) as scratch:
    (scratch / "half").write_bytes(bytes(9))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is locked")
def test_what_a_killed_run_leaves_is_swept_by_the_next_one_and_nothing_else_is(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING]
    subprocess.run(command, cwd=tmp_path, check=False, env={**os.environ})
    [left] = tmp_path.iterdir()
    others = {".out.onnx.oc-", ".out.onnx.other", ".more.onnx.oc-abcdefgh", "out.onnx.oc-abcdefgh"}
    for name in others:
        (tmp_path / name).mkdir()
    with scratch_folder(tmp_path / "out.onnx") as mine:
        sweep(tmp_path / "out.onnx")  # as another run at the same time does
        assert not left.exists()
        assert {f.name for f in tmp_path.iterdir()} == others | {mine.name}
    assert {f.name for f in tmp_path.iterdir()} == others


def test_what_is_raised_before_a_model_takes_its_place_leaves_the_old_one(tmp_path):
    (tmp_path / "out.onnx").write_text("old")
    seen = []

    def fail(files):
        seen.extend(onnx.load(files[-1]).graph.node)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(network(np.random.default_rng(0)), tmp_path / "out.onnx", ready=fail)
    assert seen and (tmp_path / "out.onnx").read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["out.onnx"]


def test_old_data_goes_with_its_model_and_no_other_file_does(tmp_path):
    model = network(np.random.default_rng(0))
    others = {"out.onnx.data", f"out.onnx.{'0' * 16}.data", f"more.onnx.{'0' * 16}.data"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    first = save(model, tmp_path / "out.onnx", external=True)
    again = save(model, tmp_path / "out.onnx", external=True)
    assert first == again
    assert {file.name for file in tmp_path.iterdir()} == others | {f.name for f in first}
    save(network(np.random.default_rng(0)), tmp_path / "out.onnx")
    assert {file.name for file in tmp_path.iterdir()} == others | {"out.onnx"}


def test_runs_that_are_killed_leave_no_torn_output_and_no_torn_cache(folder):
    assert done(start(LINE, folder))[0] == 0
    new = digest("out.onnx")
    for delay in (0.8, 1.6, 2.4):
        Path("out.onnx").write_text("old")
        old = digest("out.onnx")
        child = start(f"{LINE} --cache kept", folder)
        time.sleep(delay)
        child.kill()
        child.communicate()
        time.sleep(0.2)  # its worker ends with it
        assert digest("out.onnx") in (old, new)
    assert done(start(f"{LINE} --cache kept", folder))[0] == 0
    assert digest("out.onnx") == new


def test_two_runs_at_once_share_output_and_cache(folder):
    both = [start(f"{LINE} --cache kept", folder) for _ in range(2)]
    assert [done(child)[0] for child in both] == [0, 0]
    shared = digest("out.onnx")
    assert done(start(LINE, folder))[0] == 0
    assert digest("out.onnx") == shared
    assert sorted(os.listdir()) == ["data.npz", "kept", "net.onnx", "out.onnx"]


@pytest.mark.skipif(os.name != "posix", reason="it limits the size of files")
def test_a_full_disk_is_one_line_and_leaves_the_old_output(folder):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    Path("out.onnx").write_text("old")
    line = f"{LINE} --save-as-external-data --cache kept"
    code, _, err = done(start(line, folder, preexec_fn=limit))
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("Error: ") and "out.onnx cannot be written" in err
    assert Path("out.onnx").read_text() == "old"
    assert {*os.listdir()} - {"kept"} == {"data.npz", "net.onnx", "out.onnx"}


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxcompress.execution.cache.os.replace", full)
    cache = Cache(tmp_path / "kept")
    cache.store("key", 1)
    assert not os.listdir(tmp_path / "kept") and cache.load("key") is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_is_read_only_is_refused_before_the_work(folder, capsys):
    for name, line in {"out": LINE.replace("out.", "out/out."), "kept": f"{LINE} --cache kept"}:
        Path(name).mkdir(mode=0o500)
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        assert stop.value.code == 2 and "not a writable folder" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["net.onnx", "w.bin", "x.npz"])
def test_an_input_that_vanishes_is_one_line(folder, gone, capsys):
    """While the samples are read."""
    proto = onnx.load("net.onnx")
    for tensor in proto.graph.initializer:
        if tensor.name == "wide.w":
            Path("w.bin").write_bytes(tensor.raw_data)
            outside(tensor, location="w.bin")
    onnx.save(proto, "net.onnx")
    Path("x.npz").write_bytes(Path("data.npz").read_bytes())
    Path("vanish.py").write_text(
        "import os, numpy as np\n"
        "def batches():\n"
        f"    os.unlink({gone!r})\n"
        "    yield {'x': np.load('x.npz')['x']}\n"
    )
    sys.modules.pop("vanish", None)
    with pytest.raises(SystemExit) as stop:
        main(LINE.replace("data.npz", "vanish:batches").split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and err.count("\n") == 1 and gone in err
    assert not Path("out.onnx").exists()


def test_models_in_one_process_do_not_influence_each_other():
    """One after the other, and at the same time."""
    jobs = [
        (network(np.random.default_rng(seed)), images(np.random.default_rng(seed), 16, 4))
        for seed in (1, 2)
    ]

    def result(job):
        model, samples = jobs[job]
        target = Target(ratio=3 + job)
        found, _ = compress(model, methods=[Integer()], target=target, samples=samples, jobs=2)
        return found.proto.SerializeToString(deterministic=True)

    first = [result(0), result(1)]
    assert [result(1), result(0)] == first[::-1]
    found = {}
    threads = [
        threading.Thread(target=lambda job=job: found.update({job: result(job)})) for job in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0], found[1]] == first
