"""The command line, through real processes where the process matters, else through `main`."""

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxcompress.cli import main

SIZE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network that is not random noise to its data, samples and labels."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    nodes, weights, x, inputs = [], [], "x", 3
    for index, out in enumerate((16, 24, 32)):
        value = rng.normal(size=(out, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        weights.append(numpy_helper.from_array(value.astype(np.float32), f"w{index}"))
        attributes = {"pads": [1] * 4, "strides": [1 + index % 2] * 2}
        nodes.append(
            helper.make_node("Conv", [x, f"w{index}"], [f"c{index}"], f"conv{index}", **attributes)
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], f"relu{index}"))
        x, inputs = f"r{index}", out
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"], "flat"))
    weights.append(numpy_helper.from_array(rng.normal(size=(32, 10)).astype(np.float32), "w"))
    nodes.append(helper.make_node("Gemm", ["f", "w"], ["y"], "head"))
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    images = rng.normal(size=(96, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(folder / "data.npz", x=images)
    np.savez(folder / "labelled.npz", x=images[:40], y=rng.integers(0, 10, 40))
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        words = [word.format(data=folder) for word in line.split()]
        with pytest.raises(SystemExit) as stop:
            main(words)
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run


def process(words, cwd, **options):
    command = [sys.executable, "-m", "onnxcompress", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


GOOD = "{data}/net.onnx out.onnx --method basis --calib {data}/data.npz"


def test_a_run_prints_tables_writes_the_model_and_leaves_the_input_alone(folder, tmp_path):
    before = sha256((folder / "net.onnx").read_bytes()).digest()
    words = GOOD.format(data=folder).split()
    done = process([*words, "--macs", "0.6", "--eval", folder / "labelled.npz"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "conv1" in done.stdout and "top1" in done.stdout
    assert "written to out.onnx" in done.stdout.splitlines()[-1]
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert sha256((folder / "net.onnx").read_bytes()).digest() == before
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_the_bytes_do_not_depend_on_jobs_or_folder(folder, tmp_path):
    files = []
    for jobs in "12":
        (tmp_path / jobs).mkdir()
        words = [*GOOD.format(data=folder).split(), "--macs", "0.6", "--jobs", jobs, "--quiet"]
        assert process(words, tmp_path / jobs).returncode == 0
        files.append((tmp_path / jobs / "out.onnx").read_bytes())
    assert files[0] == files[1]


def test_json_is_all_that_is_printed(run):
    code, out, _ = run(f"{GOOD} --macs 0.6 --json")
    report = json.loads(out)
    assert (code, report["exit_code"], report["output"]) == (0, 0, "out.onnx")
    assert report["comparison"]["after"]["macs"] <= 0.6 * report["comparison"]["before"]["macs"]


def test_the_result_records_how_it_was_made(run):
    assert run(f"{GOOD} --macs 0.6 --quiet")[0] == 0
    entries = {e.key: e.value for e in onnx.load("out.onnx").metadata_props}
    assert json.loads(entries["onnxcompress.config"])["methods"] == ["basis"]
    assert len(entries["onnxcompress.source_sha256"]) == 64
    assert "compressed before" in run("out.onnx more.onnx --calib {data}/data.npz --macs 0.9")[2]


def test_a_missed_target_writes_nothing_unless_forced(run):
    line = f"{GOOD} --macs 0.3 --min-snr 90"
    Path("out.onnx").write_text("old")
    code, out, err = run(line)
    assert code == 1 and "nothing was written" in out and "SNR" in err
    assert Path("out.onnx").read_text() == "old"
    assert run(f"{line} --force")[0] == 0
    entries = {e.key: e.value for e in onnx.load("out.onnx").metadata_props}
    assert "SNR" in entries["onnxcompress.forced"]


def test_a_dry_run_writes_nothing(run):
    code, out, _ = run(f"{GOOD} --macs 0.6 --dry-run")
    assert code == 0 and "nothing was written" in out
    assert not Path("out.onnx").exists()


def test_only_and_skip_choose_layers(run):
    report = json.loads(run(f"{GOOD} --macs 0.9 --only conv* --skip conv2 --json")[1])
    changed = {row["layer"] for row in report["rows"] if row["method"]}
    assert changed and changed <= {"conv0", "conv1"}
    assert set(report["skipped"]) == {"conv2", "head"}


def test_without_data_it_says_so_loudly_and_size_targets_work(run):
    code, _, err = run("{data}/net.onnx out.onnx --method basis --ratio 1.3")
    assert code == 0 and "NO CALIBRATION DATA" in err


def test_the_rule_of_the_paper_needs_no_target(run):
    code, out, _ = run(f"{GOOD} --energy 60% --json")
    methods = [row["method"] for row in json.loads(out)["rows"] if row["method"]]
    assert code == 0 and methods and all("unfolding=filter" in method for method in methods)


def test_inspect_compare_and_methods_print_what_they_know(run):
    code, out, _ = run("inspect {data}/net.onnx")
    assert code == 0 and "conv2" in out and "basis" in out
    assert json.loads(run("inspect {data}/net.onnx --json")[1])["layers"][0]["layer"] == "conv0"
    code, out, _ = run("compare {data}/net.onnx {data}/net.onnx --calib {data}/data.npz")
    assert code == 0 and "100.00%" in out
    assert "rank" in run("methods basis")[1] and run("methods")[0] == 0


def bad_inputs(folder):
    """Command line -> a word of its one-line error; every file it needs is made here."""
    good = (folder / "net.onnx").read_bytes()
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "cut.onnx").write_bytes(good[: len(good) // 2])
    (folder / "text.onnx").write_text("hello, world")
    broken = onnx.load_from_string(good)
    broken.graph.node[0].op_type = "Convolve"
    (folder / "invalid.onnx").write_bytes(broken.SerializeToString())
    lost = onnx.load_from_string(good)
    tensor = lost.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="gone.bin")
    (folder / "lost.onnx").write_bytes(lost.SerializeToString())
    np.savez(folder / "names.npz", a=np.zeros((4, 3, SIZE, SIZE), np.float32), b=np.zeros(4))
    np.savez(folder / "shapes.npz", x=np.zeros((4, 3, SIZE, 7), np.float32))
    np.savez(folder / "types.npz", x=np.zeros((4, 3, SIZE, SIZE), np.complex64))
    np.savez(folder / "pickle.npz", x=np.array([{}] * 4, object))
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.png").write_bytes(b"no image")
    (folder / "blank").mkdir(exist_ok=True)
    Image.new("RGB", (SIZE, SIZE)).save(folder / "one.png")
    with_data = "{data}/net.onnx out.onnx --macs 0.5 --calib {data}/"
    without = " out.onnx --macs 0.5"
    return {
        "{data}/missing.onnx" + without: "No such file",
        "{data}" + without: "folder",
        "{data}/empty.onnx" + without: "empty",
        "{data}/cut.onnx" + without: "truncated",
        "{data}/text.onnx" + without: "not an ONNX model",
        "{data}/invalid.onnx" + without: "valid",
        "{data}/lost.onnx" + without: "gone.bin",
        with_data + "names.npz": "x",
        with_data + "shapes.npz": "shape",
        with_data + "types.npz": "complex64",
        with_data + "pickle.npz": "pickle",
        with_data + "nothing.npz": "no such file",
        with_data + "images --preprocess unit": "a.png",
        with_data + "blank --preprocess unit": "image",
        with_data + "data.npz --method bassi": "basis",
        with_data + "data.npz --method basis:rnk=3": "rank",
        with_data + "data.npz --method basis:rank=x": "whole number",
        with_data + "data.npz --method basis:rank=0": "at least 1",
        with_data + "data.npz --skip cnv1": "conv1",
        with_data + "data.npz --metric topp --eval {data}/labelled.npz": "metric",
        with_data + "data.npz --eval {data}/data.npz": "labels",
        with_data + "data.npz --macz 0.5": "--macs",
        "{data}/net.onnx out.onnx --macs 0.001 --calib {data}/data.npz": "out of reach",
        "{data}/net.onnx out.onnx --ratio 1000": "out of reach",
        "{data}/net.onnx out.onnx --ratio 0.5": "ratio",
        "{data}/net.onnx out.onnx --min-agreement 98%": "--calib",
        "{data}/net.onnx out.onnx --max-drop 1 --calib {data}/data.npz": "--eval",
        "{data}/net.onnx out.onnx": "--calib",
        "{data}/net.onnx {data}/net.onnx --macs 0.5": "--force",
        "{data}/net.onnx {data} --macs 0.5": "folder",
        "{data}/net.onnx": "OUTPUT",
        "inspct {data}/net.onnx": "inspect",
        "methods bassi": "basis",
    }


def test_every_bad_input_is_one_line_exit_code_2_and_nothing_written(run, folder):
    for line, word in bad_inputs(folder).items():
        code, out, err = run(line)
        errors = [e for e in err.splitlines() if not e.startswith("NO CALIBRATION")]
        assert code == 2, f"{line}: {code} {err}"
        assert len(errors) == 1 and word in errors[0], f"{line}: {err}"
        assert not out and not os.listdir("."), line


def test_a_bad_input_has_no_traceback_in_a_real_process(folder, tmp_path):
    done = process([folder / "missing.onnx", "out.onnx"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_ctrl_c_leaves_nothing_behind_and_exits_with_130(folder, tmp_path):
    (tmp_path / "slow.py").write_text(
        "import numpy as np, sys, time\n"
        "def batches():\n"
        "    print('started', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        f"    yield {{'x': np.zeros((1, 3, {SIZE}, {SIZE}), np.float32)}}\n"
    )
    command = [sys.executable, "-m", "onnxcompress", folder / "net.onnx", "out.onnx"]
    child = subprocess.Popen(
        [*command, "--calib", "slow:batches"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert child.stderr is not None and child.stderr.readline() == "started\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130 and "interrupted" in err
    assert os.listdir(tmp_path) == ["slow.py"]
