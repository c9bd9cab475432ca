"""Whatever a file holds: a result or one line that says what is wrong, and nothing half done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz import campaign
from hostile import HOSTILE, calibrated, calling, endless_loop, function, small, written
from onnx import numpy_helper

from onnxcompress.cli import supervisor
from onnxcompress.cli.commands import main
from onnxcompress.execution import watch
from onnxcompress.graph import Model, ModelError, detached, load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    monkeypatch.setattr("onnxcompress.compression.measure.shapes.FIRST_RUN", 1.0)
    return inner


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_line_and_exit_code_2_or_does_no_harm(case, folder, capsys):
    write, word = HOSTILE[case]
    words = write(folder).split()
    before = {path: path.lstat().st_size for path in folder.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        main(words)
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if not line.startswith("NO CALIBRATION")]
    assert "\x1b" not in out + err and "\u202e" not in out + err
    if word is None:
        assert not stop.value.code and not errors, errors
        return
    assert stop.value.code == 2 and len(errors) == 1 and word in errors[0], err
    assert {path: path.lstat().st_size for path in folder.rglob("*")} == before and not out


@pytest.mark.parametrize("command", ["inspect model.onnx", "model.onnx out.onnx --ratio 4"])
@pytest.mark.parametrize(
    ("keeps", "says"), [(True, "0.3 GB of memory"), (False, "more than 1.5 s")]
)
def test_an_endless_loop_has_less_time_and_not_all_memory(
    command, keeps, says, folder, monkeypatch, capsys
):
    endless_loop(folder, keeps)
    monkeypatch.setattr("onnxcompress.compression.measure.shapes.FIRST_RUN", 600.0)
    monkeypatch.setattr(
        "onnxcompress.compression.measure.shapes.LOOPED_RUN", 30.0 if keeps else 1.5
    )
    monkeypatch.setattr("onnxcompress.execution.watch.free_bytes", lambda: 4e8)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    [line] = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("NO CALIB")]
    assert stop.value.code == (0 if "inspect" in command else 2)
    assert f"one run of the model takes more than {says.removeprefix('more than ')}" in line


def test_memory_that_a_process_may_have_is_what_it_is_allowed(monkeypatch):
    resource = pytest.importorskip("resource")
    held = watch.PAGE * watch._pages()[0]
    limits = {resource.RLIMIT_AS: held + (1 << 20)}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2
    )
    assert not sys.platform.startswith("linux") or watch.free_bytes() <= 1 << 21


def test_a_name_is_shown_with_what_a_terminal_would_obey_spelled_out(folder, capsys):
    proto = small()
    proto.graph.node[0].name = "a\x1b[2J\nb"
    written(folder, proto)
    with pytest.raises(SystemExit):
        main(["inspect", "model.onnx"])
    assert r"a\x1b[2J\nb" in capsys.readouterr().out


def test_external_data_may_lie_in_a_folder_below(folder):
    (folder / "sub").mkdir()
    weight = np.arange(1024, dtype=np.float32)
    (folder / "sub" / "w.bin").write_bytes(b"\0" * 64 + weight.tobytes())
    for location in ("sub/w.bin", "./sub/w.bin"):
        proto = small()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, entry in {"location": location, "offset": "64", "length": "4096"}.items():
            tensor.external_data.add(key=key, value=entry)
        written(folder, proto)
        np.testing.assert_array_equal(load("model.onnx").read("w"), weight.reshape(32, 32))


def test_types_of_less_than_a_byte_have_the_bytes_that_they_need(folder):
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "FLOAT8E4M3FN", "FLOAT6E2M3"):
        kind = getattr(onnx.TensorProto, name, None)
        if kind is None:
            continue  # not in this onnx
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        tensor = numpy_helper.from_array(np.zeros((3, 5), dtype), "t")
        proto = small(tensors=[tensor])
        written(folder, proto)
        load("model.onnx")
        proto.graph.initializer[1].raw_data += b"\0"
        written(folder, proto)
        with pytest.raises(ModelError, match="bytes instead of"):
            load("model.onnx")


@pytest.mark.parametrize(("doublings", "written"), [(14, True), (3, False)])
def test_functions_that_call_each_other_often_are_written_out_for_the_runtime(doublings, written):
    functions = [function(f"F{i}", [f"F{i + 1}"] * 2) for i in range(doublings)]
    proto = calling([*functions, function(f"F{doublings}", ["Relu"])])
    data, _ = detached(Model(proto))
    assert bool(onnx.ModelProto.FromString(data).functions) != written


def test_damaged_inputs_end_in_a_result_or_in_one_line():
    """A short version of `python tests/fuzz.py 20000`."""
    found, codes, _ = campaign(0, 200)
    assert not found and sum(codes.values()) == 200
    assert {"0", "2"} <= {*codes}


# ------------------------------------------------------------------ the process that does the work


def started(folder, body, **options):
    """A process that calibrates with a function of this body."""
    (folder / "own.py").write_text(
        "import os, signal, sys, time\ndef batches():\n" + f"    {body}\n    yield {{}}\n"
    )
    words = calibrated(folder, "own:batches").split()
    return subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", *words], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, **options,
    )  # fmt: skip


ANNOUNCED = "print('pid', os.getpid(), file=sys.stderr, flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("crash", "says"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed: SIGSEGV"),
        ("os.abort()", "crashed: SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "for want of memory"),
    ],
)
def test_a_crash_of_native_code_is_one_line(folder, crash, says):
    out, err = (child := started(folder, crash)).communicate(timeout=60)
    assert (child.returncode, out) == (2, "")
    assert err.startswith("Error: ") and err.count("\n") == 1 and says in err
    assert sorted(os.listdir(folder)) == ["model.onnx", "own.py"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others do not limit memory so")
def test_more_memory_than_the_machine_has_is_one_line(folder):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    body = f"import numpy; held = [numpy.empty(1 << 30, 'u1') for _ in range({memory >> 30} + 1)]"
    out, err = (child := started(folder, body)).communicate(timeout=60)
    assert (child.returncode, out) == (2, "") and err.count("\n") == 1 and "allocate" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_tells_it_to_stop_stops_both_processes(folder, number):
    def restore():  # what a shell ignores in its background
        for each in (signal.SIGINT, number):
            signal.signal(each, signal.SIG_DFL)

    child = started(folder, ANNOUNCED, preexec_fn=restore)
    worker = int(child.stderr.readline().split()[1])
    child.send_signal(number)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130 and err.strip() == "Error: interrupted; nothing was written"
    assert not running(worker)


def test_one_that_does_not_listen_is_ended_at_the_second_time(folder):
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); " + ANNOUNCED
    child = started(folder, deaf)
    worker = int(child.stderr.readline().split()[1])
    for _ in range(2):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130 and err == "Error: interrupted; nothing was written\n"
    assert not running(worker)


def test_the_worker_ends_with_the_process_that_waits_for_it(folder):
    child = started(folder, ANNOUNCED)
    worker = int(child.stderr.readline().split()[1])
    child.kill()
    child.communicate(timeout=30)
    for _ in range(100):
        if not running(worker):
            return
        time.sleep(0.1)
    pytest.fail("it goes on")


def running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_where_nothing_forks_there_is_one_process(monkeypatch, capsys):
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(sys, "argv", ["onnxcompress", "methods", "half"])
    with pytest.raises(SystemExit) as stop:
        supervisor.main()
    assert not stop.value.code and "16" in capsys.readouterr().out
