"""How a command ends: the exit code, what was written and what is said are one and true."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import outside, value, written
from hostile import small as small_model

from onnxcompress.cli import supervisor
from onnxcompress.cli.commands import main
from onnxcompress.cli.json_schema import FILE, json_schema
from onnxcompress.core.errors import OnnxCompressError
from onnxcompress.core.foreign import contain_errors
from onnxcompress.execution.latency import Latency
from onnxcompress.report import tables
from onnxcompress.report.report import Comparison, Report, Row, Size
from onnxcompress.report.words import small

LINE = "model.onnx out.onnx --method half --jobs 1"
OPEN = [value("x", [None, 32])]  # an input of any number of rows


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model of one layer and samples, in the current folder."""
    written(tmp_path, small_model(inputs=OPEN))
    x = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(40) % 32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """Runs a command line; gives exit code, stdout, stderr without the note on missing data."""

    def run(line):
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        out, err = capsys.readouterr()
        lines = [part for part in err.splitlines() if not part.startswith("NO CALIBRATION")]
        return stop.value.code or 0, out, lines

    return run


def restore():
    """Signals as a terminal has them: a shell ignores some for what it runs in its background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(line, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", *line.split()], text=True, preexec_fn=restore,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip


def ended(child):
    """Exit code, stdout, and the lines of stderr but the note on missing data."""
    out, err = child.communicate(timeout=600)
    lines = [line for line in (err or "").splitlines() if not line.startswith("NO CALIBRATION")]
    return child.returncode, out, lines


# --------------------------------------------------------------------------------- one moment


full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")


@full
@pytest.mark.parametrize("more", ["", "--json"])
def test_an_output_that_cannot_be_printed_is_a_warning_once_the_file_is_written(folder, more):
    with open("/dev/full", "w") as device:
        code, _, err = ended(start(f"{LINE} {more}", stdout=device))
    assert code == 0 and len(err) == 1 and err[0].startswith("Warning: the report could not be")
    onnx.checker.check_model("out.onnx")


@full
def test_an_error_output_that_is_full_changes_nothing(folder):
    with open("/dev/full", "w") as device:
        assert ended(start(LINE, stdout=device, stderr=device))[0] == 0
        assert Path("out.onnx").exists()
        assert ended(start(LINE.replace("half", "halv"), stderr=device))[0] == 2


@full
def test_a_list_that_cannot_be_printed_is_an_error(folder):
    with open("/dev/full", "w") as device:
        code, _, err = ended(start("inspect model.onnx", stdout=device))
    assert code == 2 and len(err) == 1 and "No space left" in err[0]


@pytest.mark.parametrize("option", ["--report page.html", "--report page.html --json"])
def test_a_page_that_cannot_be_written_leaves_the_old_output(run, monkeypatch, option):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxcompress.cli.outcome.Path.write_text", fail)
    Path("out.onnx").write_bytes(b"old")
    code, _, err = run(f"{LINE} {option}")
    assert code == 2 and len(err) == 1 and "page.html cannot be written" in err[0]
    assert Path("out.onnx").read_bytes() == b"old" and not Path("page.html").exists()
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_the_page_is_about_the_files_that_are_written(run):
    code, out, _ = run(f"{LINE} --report page.html --save-as-external-data --json")
    [data] = Path().glob("out.onnx.*.data")
    hashed = json.loads(out)["provenance"]["sha256"]
    assert code == 0 and {*hashed} == {"model.onnx", "out.onnx", data.name}
    page = Path("page.html").read_text("utf-8")
    assert data.name in page
    assert all(digest in page for digest in hashed.values())


def test_a_second_file_is_named_in_the_verdict(run):
    code, out, _ = run(f"{LINE} --save-as-external-data")
    [data] = Path().glob("out.onnx.*.data")
    assert code == 0 and f"; written to out.onnx and {data.name}; SNR " in out
    code, out, _ = run("expand out.onnx dense.onnx --save-as-external-data")
    [data] = Path().glob("dense.onnx.*.data")
    assert code == 0 and out.endswith(f"written to dense.onnx and {data.name}\n")


@pytest.mark.skipif(os.name != "posix", reason="it sends signals")
def test_a_signal_when_the_output_appears_comes_too_late(folder):
    child = start(LINE)
    while child.poll() is None and not Path("out.onnx").exists():
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    code, out, err = ended(child)
    assert code == 0 and "written to out.onnx; SNR " in out and not err


STARTED = "import onnxcompress.cli.entry as entry; print('on', flush=True); entry.main()"


@pytest.mark.skipif(os.name != "posix", reason="it sends signals")
@pytest.mark.parametrize(("delay", "group"), [(0, False), (0, True), (0.2, False), (1, True)])
def test_a_signal_at_any_time_is_one_line_that_is_true(folder, delay, group):
    """To the process that waits, and to both as from a terminal."""
    words = [sys.executable, "-c", STARTED, *LINE.split(), "--json"]
    child = subprocess.Popen(
        words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=restore,
        start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "on\n"
    time.sleep(delay)
    for _ in range(2):
        os.killpg(child.pid, signal.SIGTERM) if group else child.send_signal(signal.SIGINT)
    code, out, err = ended(child)
    if code == 0:
        assert json.loads(out)["exit"] == 0 and Path("out.onnx").exists()
        return
    assert code == 130 and err == ["Error: interrupted; nothing was written"]
    assert json.loads(out)["exit"] == 130 and not Path("out.onnx").exists()
    assert sorted(os.listdir()) == ["data.npz", "model.onnx"]


def test_an_interruption_while_native_code_starts_waits_until_it_has_started(monkeypatch):
    for name, flag in (("_starting", True), ("_interrupted", False), ("_raised", False)):
        monkeypatch.setattr(supervisor, name, flag)
    supervisor._interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        supervisor.start_native()
    supervisor._interrupt(signal.SIGINT, None)  # It was raised once.


# -------------------------------------------------------------------------------- foreign code


ENDS = {
    "a generator that exits": "yield {'x': np.ones((8, 32))}; sys.exit(0)",
    "a generator that raises what is no Exception": "raise Odd; yield",
    "a generator that ends the process": "os._exit(0); yield",
    "a generator that closes the outputs": "sys.stdout.close(); raise Odd; yield",
    "a generator that writes to the output": (
        "os.write(1, b'spoilt\\n'); print('spoilt'); raise Odd; yield"
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_code_of_the_user_that_misbehaves_is_one_line_and_exit_code_2(folder, case):
    Path("own.py").write_text(
        f"import os, sys, numpy as np\nclass Odd(BaseException): pass\ndef f():\n    {ENDS[case]}\n"
    )
    code, out, err = ended(start(f"{LINE} --calib own:f --json"))
    errors = [line for line in err if line.startswith("Error: ")]
    assert code == 2 and len(errors) == 1 and not Path("out.onnx").exists()
    assert json.loads(out).keys() == {"schema_version", "exit", "error"}
    assert len(err) - len(errors) == (2 if "writes" in case else 0)


def test_a_metric_that_exits_is_one_line_and_exit_code_2(run):
    Path("leaving.py").write_text("import sys\ndef f(outputs, labels): sys.exit(0)\n")
    code, out, err = run(f"{LINE} --eval data.npz --metric leaving:f")
    assert code == 2 and not out and len(err) == 1 and "it ends the process" in err[0]


def test_an_interruption_of_foreign_code_is_none_of_its_errors():
    with (
        pytest.raises(KeyboardInterrupt),
        contain_errors("it failed", OnnxCompressError),
    ):
        raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------- JSON


def test_the_schema_that_ships_is_the_one_of_the_types():
    again = "write it again: python -m onnxcompress.cli.json_schema"
    assert json.loads(FILE.read_text("utf-8")) == json_schema(), again


JSON_ENDS = {  # command line -> exit code, and a key of the object
    LINE: (0, "comparison"),
    f"{LINE} --dry-run --calib data.npz --eval data.npz": (0, "comparison"),
    "model.onnx out.onnx --method integer --calib data.npz --min-snr 150": (1, "failures"),
    "sweep model.onnx --method half --calib data.npz --ratio 1.5": (0, "points"),
    "sweep model.onnx --method integer --calib data.npz --ratio 99": (1, "error"),
    "model.onnx out.onnx --method integer --ratio 99 --calib data.npz": (1, "error"),
    "compare model.onnx model.onnx": (0, "snr"),
    "compare model.onnx coarse.onnx --calib data.npz --min-snr 90": (1, "failures"),
    "inspect model.onnx": (0, "layers"),
    "expand coarse.onnx dense.onnx": (0, "deviation"),
    "model.onnx out.onnx --method halv": (2, "error"),
    "model.onnx out.onnx --no-such-option": (2, "error"),
    "absent.onnx out.onnx": (2, "error"),
    "inspect absent.onnx": (2, "error"),
}


@pytest.mark.parametrize("line", JSON_ENDS)
def test_json_is_one_object_that_fits_the_schema_however_a_command_ends(run, line):
    jsonschema = pytest.importorskip("jsonschema")
    if "coarse" in line:
        run("model.onnx coarse.onnx --method integer:bits=4 --jobs 1")
    code, out, _ = run(f"{line} --json")
    shown = json.loads(out)
    jsonschema.validate(shown, json.loads(FILE.read_text("utf-8")))
    assert (code, shown["exit"], shown["schema_version"]) == (JSON_ENDS[line][0], code, 1)
    assert JSON_ENDS[line][1] in shown


def test_an_internal_error_is_one_object_too(run, monkeypatch):
    monkeypatch.setattr("onnxcompress.compression.pipeline.compress", None)
    code, out, err = run(f"{LINE} --json")
    assert code == 3 and json.loads(out)["exit"] == 3 and len(err) == 1
    assert json.loads(out)["error"] == err[0].removeprefix("Error: ")


# ---------------------------------------------------------------------------------------- gate


def test_a_comparison_is_a_gate_where_a_quality_is_asked_for(run):
    run("model.onnx coarse.onnx --method integer:bits=4 --jobs 1")
    line = "compare model.onnx coarse.onnx --calib data.npz --eval data.npz"
    code, out, err = run(f"{line} --min-snr 15 --min-agreement 1% --max-drop 100 --quiet")
    assert code == 0 and not err and out.count("\n") == 1
    for gate, word in [("--min-snr 60", "SNR"), ("--max-drop 0 --metric own:score", "metric")]:
        Path("own.py").write_text(
            "first = []\ndef score(outputs, labels):\n    first.append(outputs)\n"
            "    return -abs(outputs - first[0]).sum(1)\n"
        )
        code, out, err = run(f"{line} {gate} --quiet")
        assert code == 1 and out.count("\n") == 1 and len(err) == 1
        assert err[0].startswith("Error: ") and word in err[0]


def test_a_model_that_is_larger_passes_the_gate(run):
    run("model.onnx coarse.onnx --method integer:bits=4 --jobs 1")
    assert run("compare coarse.onnx model.onnx --calib data.npz --min-snr 15")[0] == 0


@pytest.mark.parametrize(
    ("gate", "more"),
    [
        ("--min-snr 30", "--calib SAMPLES.npz"),
        ("--max-drop 1 --calib data.npz", "--eval LABELLED.npz"),
    ],
)
@pytest.mark.parametrize("command", ["compare model.onnx model.onnx", "model.onnx out.onnx"])
def test_a_gate_without_data_to_judge_by_is_refused_with_the_command(run, command, gate, more):
    code, out, err = run(f"{command} {gate}")
    assert code == 2 and not out and len(err) == 1
    assert err[0].endswith(f": onnxcompress {command} {gate} {more}")


# ------------------------------------------------------------------------------------- samples


def test_samples_that_say_nothing_are_warned_about(run):
    np.savez("same.npz", x=np.ones((40, 32), np.float32))
    code, out, _ = run(f"{LINE} --calib same.npz")
    assert code == 0 and "39 of 40 samples repeat others: only 1 is different" in out
    assert "40 of 40 samples are the same value everywhere" in out


def test_nan_in_a_sample_is_refused_with_its_number(run):
    x = np.ones((40, 32), np.float32)
    x[17, 3] = np.nan
    np.savez("nan.npz", x=x)
    code, out, err = run(f"{LINE} --calib nan.npz")
    assert (code, out) == (2, "")
    assert err == ["Error: nan.npz: sample 17 has NaN in the input 'x'"]


def batch_one(folder):
    """The batch axis is open in the file, and a Reshape has its 1 baked in."""
    nodes = [
        onnx.helper.make_node("Reshape", ["x", "shape"], ["r"], "reshape"),
        onnx.helper.make_node("MatMul", ["r", "w"], ["y"], "layer"),
    ]
    shape = onnx.numpy_helper.from_array(np.array([1, 4, 32]), "shape")
    inputs, outputs = [value("x", ["batch", 4, 32])], [value("y", [1, 4, 32])]
    written(folder, small_model(nodes, [shape], inputs, outputs))


@pytest.mark.parametrize("axes", [(40, 4, 32), (40, 1, 4, 32)])
@pytest.mark.parametrize("more", ["", " --input-shapes x:1,4,32"])
def test_a_model_that_takes_one_sample_at_a_time_gets_one(run, folder, axes, more):
    batch_one(folder)
    x = np.random.default_rng(0).normal(size=axes).astype(np.float32)
    np.savez("data.npz", x=x)
    code, out, err = run(f"{LINE} --calib data.npz{more}")
    assert code == 0 and not err, err
    assert ("takes one sample at a time" in out) == (len(axes) == 3 and not more)
    code, out, _ = run(f"compare model.onnx out.onnx --calib data.npz{more} --json")
    report = json.loads(out)
    assert code == 0 and report["samples"] == 40 and report["snr"]["y"] > 60


# ---------------------------------------------------------------------------------------- text


ESCAPES = "y\x1b]0;owned\x07\x1b[2J\x1b[31mERROR"


@pytest.mark.parametrize("line", ["inspect model.onnx", LINE, "compare model.onnx model.onnx"])
def test_no_name_of_a_model_reaches_the_terminal_as_it_is(run, folder, line):
    proto = small_model(outputs=[value(ESCAPES, [None, "\x1b[8m"])])
    proto.graph.node[0].output[0] = ESCAPES
    proto.graph.node[0].name = ESCAPES
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "\x1b[8m"
    written(folder, proto)
    code, out, err = run(line)
    assert code == 0 and "\x1b" not in out + "".join(err) and "\x07" not in out
    assert r"\x1b" in out


def test_a_name_of_any_length_makes_a_short_line(run, folder):
    proto = small_model()
    proto.graph.node[0].name = "n" * 200_000
    written(folder, proto)
    code, _, err = run(f"{LINE} --skip nothing")
    assert code == 2 and len(err) == 1 and len(err[0]) < 3000 and "no layer matches" in err[0]
    outside(proto.graph.initializer[0], location="d" * 100_000)
    written(folder, proto)
    code, _, err = run(LINE)
    assert code == 2 and len(err) == 1 and len(err[0]) < 3000


# ------------------------------------------------------------------------------------ terminals


def layers_on_a_terminal(monkeypatch, columns):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    name = "model/encoder/layers.11/self_attention/output/dense/MatMul"
    rows = (
        Row(name, "MatMul", (768, 768), "basis:unfolding=filter,rank=16+integer:bits=8",
            (2_359_296, 280_000), (75_497_472, 12_582_912), 0.00001, 31.25),
        Row("head", "Gemm", (10, 768), "", (30_720, 30_720), (7680, 7680)),
    )  # fmt: skip
    text = tables.render_report(Report(rows=rows), "nothing was written", quiet=False)
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_a_table_fits_the_terminal_and_shortens_names_in_the_middle(monkeypatch, columns):
    head, first, second, *_ = layers_on_a_terminal(monkeypatch, columns)
    assert max(map(len, (head, first, second))) <= columns
    assert first.startswith("model") and "…" in first and second.startswith("head")
    assert "SNR dB" in head and "KB" in head and "31.2" in first
    assert ("weight" in head) == (columns > 100)


@pytest.mark.parametrize("columns", [50, 60, 70])
def test_no_table_breaks_a_word_however_narrow_the_terminal(monkeypatch, columns):
    lines = layers_on_a_terminal(monkeypatch, columns)
    table = lines[: lines.index("")]
    assert len(table) == 3 and max(map(len, table)) <= columns
    both = Comparison(Size(10_000, 9000, 9), Size(2000, 900, 9), 8, True, {"y": 9.0}, None, None,
                      Latency(1.0, 1.0, 1.0, 0.9, 1.1))  # fmt: skip
    said = re.sub(r"\x1b\[[0-9;]*m", "", tables.render_comparison(Report(comparison=both), False))
    assert {"multiplications", "inconclusive:"} <= set(said.split()) and "…" not in said


def test_a_wide_terminal_has_every_column_and_small_errors_are_not_zero(monkeypatch):
    head, first, *_ = layers_on_a_terminal(monkeypatch, 400)
    assert "error" in head and "<0.0001" in first
    assert "model/encoder/layers.11/self_attention/output/dense/MatMul" in first
    assert [small(x) for x in (0, 0.00004, 0.00006, 0.5)] == [
        "0.0000",
        "<0.0001",
        "0.0001",
        "0.5000",
    ]
