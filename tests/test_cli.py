"""The command line, through real processes where the process matters, else through `main`."""

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import onnxcompress as oc
from onnxcompress.cli.commands import main
from onnxcompress.cli.wording import in_options
from onnxcompress.compression import prepare
from onnxcompress.compression.validate.validation import Validation
from onnxcompress.execution.latency import Latency
from onnxcompress.graph import save
from onnxcompress.methods import METHODS

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


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


GOOD = "{data}/net.onnx out.onnx --method basis --calib {data}/data.npz"


def test_a_run_prints_tables_writes_the_model_and_leaves_the_input_alone(folder, tmp_path):
    before = sha256((folder / "net.onnx").read_bytes()).digest()
    words = GOOD.format(data=folder).split()
    (tmp_path / "out.onnx").write_text("old")
    done = process([*words, "--ratio", "1.3", "--eval", folder / "labelled.npz"], tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert "conv1" in done.stdout and "top1, by labels" in done.stdout
    assert "\x1b" not in done.stdout  # no colours where there is no terminal
    assert done.stdout.splitlines()[-1].count("; written to out.onnx; same class on ") == 1
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)
    assert sha256((folder / "net.onnx").read_bytes()).digest() == before
    assert os.listdir(tmp_path) == ["out.onnx"]


ELSEWHERE = {  # what else may differ between two runs
    "OMP_NUM_THREADS": "3",
    "OPENBLAS_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "PYTHONHASHSEED": "7",
    "TZ": "Asia/Tokyo",
    "LC_ALL": "C",
    "COLUMNS": "40",
}


def test_the_bytes_do_not_depend_on_jobs_folder_threads_or_hashes(folder, tmp_path):
    files = []
    plain = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    for jobs, data, names in (
        ("1", folder, plain),
        ("2", os.path.relpath(folder, tmp_path / "2"), ELSEWHERE),
    ):
        (tmp_path / jobs).mkdir()
        words = f"{GOOD} --method integer".format(data=data).split()
        words += ["--ratio", "1.3", "--jobs", jobs, "--quiet"]
        printed = process(words, tmp_path / jobs, env={**os.environ, **names})
        assert printed.stdout.count("\n") == 1, printed.stderr
        files.append((tmp_path / jobs / "out.onnx").read_bytes())
    assert files[0] == files[1]


def test_json_is_all_that_is_printed(run, folder):
    Path("noisy.py").write_text(
        f"import numpy as np\ndef batches():\n    print('hello')\n"
        f"    yield {{'x': np.load(r'{folder / 'data.npz'}')['x']}}\n"
    )
    code, out, err = run("{data}/net.onnx out.onnx --calib noisy:batches --macs 0.6 --json")
    report = json.loads(out)
    assert (code, report["exit_code"], report["output"]) == (0, 0, "out.onnx")
    assert report["comparison"]["after"]["macs"] <= 0.6 * report["comparison"]["before"]["macs"]
    assert "hello" in err


def test_the_result_records_how_it_was_made(run):
    assert run(f"{GOOD} --macs 0.6 --seed 1 --quiet")[0] == 0
    entries = metadata("out.onnx")
    config = json.loads(entries["onnxcompress.config"])
    assert config.keys() == {"methods", "target", "seed", "samples", "correct"}
    assert (config["methods"], config["target"]) == (["basis"], {"macs": 0.6})
    assert config["samples"][0] == 96 and len(config["samples"][1]) == 64
    assert len(entries["onnxcompress.source_sha256"]) == 64
    assert "compressed before" in run("out.onnx more.onnx --calib {data}/data.npz --macs 0.9")[2]


@pytest.mark.parametrize(
    ("words", "keywords"),
    [
        ("--method basis --macs 0.6", {"methods": "basis", "target": oc.Target(macs=0.6)}),
        (
            "--method integer:bits=4 --classes none --no-correct --seed 3",
            {"methods": ["integer:bits=4"], "classes": {}, "correct": False, "seed": 3},
        ),
        (
            "--method integer:bits=4 --only conv* --only head --skip conv2",
            {"methods": "integer:bits=4", "only": ["conv*", "head"], "skip": "conv2"},
        ),
        (
            "--ratio 1.5 --strip --simplify --method integer",
            {"methods": "integer", "target": oc.Target(ratio=1.5), "strip": True, "simplify": True},
        ),
    ],
)
def test_python_writes_the_same_bytes_as_the_command_line(words, keywords, run, folder):
    assert run(f"{{data}}/net.onnx out.onnx --calib {{data}}/data.npz --quiet {words}")[0] == 0
    images = np.load(folder / "data.npz")["x"]
    for index, model in enumerate((folder / "net.onnx", (folder / "net.onnx").read_bytes())):
        place = Path(f"{index}.onnx")
        result, _ = oc.compress(model, samples=images, output=place, progress=False, **keywords)
        assert place.read_bytes() == Path("out.onnx").read_bytes()
        assert oc.load(place).proto == result.proto
    returned, _ = oc.compress(model, samples=images, progress=False, **keywords)
    assert returned.proto == result.proto


def test_a_report_names_options_here_and_arguments_in_python(run, folder):
    words = "--method integer:bits=2 --only conv1 --only conv2 --quiet --force"
    whole = f"{{data}}/net.onnx out.onnx --calib {{data}}/data.npz {words} --report page.html"
    assert json.loads(run(f"{whole} --json")[1])["skips"]["conv1"] == "--skip conv1"
    shown = run(whole.replace("--quiet ", ""))[1] + Path("page.html").read_text()
    assert "--skip conv1 leaves it as it is" in shown and "skip=[" not in shown
    net, images = folder / "net.onnx", np.load(folder / "data.npz")["x"]
    _, report = oc.compress(net, methods="integer:bits=2", only="conv[12]", samples=images)
    assert report.skips["conv1"] == "skip=['conv1']"
    for text in (str(report), report._repr_html_()):
        assert "skip=[" in text and "--skip " not in text


def test_an_empty_list_of_layers_lets_none_be_changed(folder):
    with pytest.raises(oc.BudgetError, match="no layer can be compressed"):
        oc.compress(folder / "net.onnx", methods="half", only=[])
    with pytest.raises(oc.OnnxCompressError, match="no layer matches 'cnv1'; did you mean conv1"):
        oc.compress(folder / "net.onnx", methods="half", skip="cnv1")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("give samples=... or evaluation=...", "give --calib or --eval"),
        ("use Target(min_snr=...)", "use --min-snr"),
        ("Target(min_agreement=0) accepts it", "--min-agreement 0 accepts it"),
        ("shapes={'x y': (1, 3, 8)}", "--input-shapes x y:1,3,8"),
        ("use preprocess='none', or", "use --preprocess none, or"),
        ("as preprocess=&#39;unit&#39; has it", "as --preprocess unit has it"),
        ("force=True allows that", "--force allows that"),
        ("skip=['a/b', 'c d'] leaves it", "--skip a/b --skip 'c d' leaves it"),
        ("skip=[\"it's\", '\"'] too", "--skip 'it'\"'\"'s' --skip '\"' too"),
        (r"a layer called skip=['\x']", r"a layer called skip=['\x']"),
        ("basis:rank=6,first=1 only=3", "basis:rank=6,first=1 only=3"),
    ],
)
def test_arguments_are_named_by_their_options(text, words):
    assert in_options(text) == words


@pytest.mark.parametrize("drop", ["0", "5"])
def test_a_result_that_is_judged_by_labels_records_them_whatever_may_be_lost(drop, run):
    run(f"{GOOD} --macs 0.6 --max-drop {drop} --eval {{data}}/labelled.npz --force")
    config = json.loads(metadata("out.onnx")["onnxcompress.config"])
    assert config["target"]["max_drop"] == float(drop)
    assert config["metric"] == "top1" and config["evaluation"][0] == 40


def test_a_missed_target_writes_nothing_unless_forced(run):
    line = f"{GOOD} --macs 0.3 --min-snr 90"
    Path("out.onnx").write_text("old")
    code, out, err = run(line)
    assert code == 1 and "; nothing was written; same class on " in out.splitlines()[-1]
    assert err.startswith("Error: the output SNR is ") and err.count("\n") == 1
    assert Path("out.onnx").read_text() == "old" and os.listdir() == ["out.onnx"]
    assert json.loads(run(f"{line} --json")[1])["exit_code"] == 1
    assert run(f"{line} --force --dry-run")[0] == 1
    code, out, err = run(f"{line} --force")
    assert code == 0 and "written to out.onnx" in out and err.startswith("Warning: the output SNR")
    assert "SNR" in metadata("out.onnx")["onnxcompress.forced"]


def test_a_dry_run_writes_nothing(run):
    code, out, _ = run(f"{GOOD} --macs 0.6 --dry-run")
    assert code == 0 and "nothing was written" in out
    assert not os.listdir()


def test_the_input_is_overwritten_by_force_alone(run, folder):
    Path("net.onnx").write_bytes((folder / "net.onnx").read_bytes())
    Path("linked.onnx").hardlink_to("net.onnx")
    Path("pointer.onnx").symlink_to("net.onnx")
    before = Path("net.onnx").read_bytes()
    for output in ("net.onnx", "linked.onnx", "pointer.onnx", "./net.onnx"):
        code, out, err = run(f"net.onnx {output} --macs 0.6")
        assert (code, out) == (2, "") and err.startswith(f"Error: {Path(output)} is an input; --f")
    assert Path("net.onnx").read_bytes() == before
    assert run("net.onnx pointer.onnx --macs 0.6 --force")[0] == 0
    assert Path("pointer.onnx").is_symlink() and Path("net.onnx").read_bytes() != before
    assert Path("linked.onnx").read_bytes() == before


def test_samples_that_are_read_are_not_replaced(run, folder):
    Path("data.npz").write_bytes((folder / "data.npz").read_bytes())
    before = Path("data.npz").read_bytes()
    for option in ("--calib data.npz", "--eval ./data.npz --calib {data}/data.npz"):
        code, _, err = run("{data}/net.onnx data.npz --method half " + option)
        assert (code, err.splitlines()[-1][:25]) == (2, "Error: data.npz is an inp")
        code, _, err = run("{data}/net.onnx out.onnx --method half --report data.npz " + option)
        assert code == 2 and "would replace a model or its samples" in err
    assert run("compare {data}/net.onnx {data}/net.onnx --calib data.npz --report data.npz")[0] == 2
    assert Path("data.npz").read_bytes() == before and os.listdir() == ["data.npz"]


def test_neither_a_configuration_nor_a_file_in_a_folder_of_samples_is_replaced(run):
    Path("rules.yaml").write_text("method: half")
    Path("images/cats").mkdir(parents=True)
    image = Image.new("RGB", (12, 12))
    for name in ("a.png", "cats/b.png"):
        image.save(Path("images", name))
    Path("link.png").symlink_to("images/cats/b.png")
    before = {path: path.read_bytes() for path in map(Path, ("rules.yaml", "images/a.png"))}
    for read in ("--config rules.yaml", "--config rules.yaml --calib images", "--eval images"):
        kept = ["rules.yaml"] * ("--config" in read)
        kept += ["images/a.png", "images/cats/b.png", "link.png"] * ("images" in read)
        for target in kept:
            code, _, err = run(f"{{data}}/net.onnx {target} --method half {read}")
            assert code == 2 and f"{target} is an input; --force" in err
            code, _, err = run(f"{{data}}/net.onnx o.onnx --method half {read} --report {target}")
            assert code == 2 and "would replace a model or its samples" in err
    compared = "compare {data}/net.onnx {data}/net.onnx --calib images --report images/a.png"
    assert "would replace" in run(compared)[2]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_weights_go_beside_the_model_and_are_no_output(run):
    assert run("{data}/net.onnx new/out.onnx --ratio 1.2 --save-as-external-data")[0] == 0
    [data] = Path("new").glob("out.onnx.*.data")
    assert sorted(os.listdir("new")) == ["out.onnx", data.name]
    assert run("compare {data}/net.onnx new/out.onnx")[0] == 0
    assert "is an input" in run(f"new/out.onnx {data} --macs 0.9")[2]


def test_only_and_skip_choose_layers(run):
    report = json.loads(run(f"{GOOD} --macs 0.9 --only conv* --skip conv2 --json")[1])
    changed = {row["layer"] for row in report["rows"] if row["method"]}
    assert changed and changed <= {"conv0", "conv1"}
    assert set(report["skipped"]) == {"conv2", "head"}


def test_without_data_photographs_stand_in_and_every_word_on_quality_says_so(run):
    code, _, err = run("--ratio 130% {data}/net.onnx out.onnx")
    assert code == 2 and "--ratio" in err
    line = "--ratio 1.3 {data}/net.onnx out.onnx --method basis --force"
    code, out, err = run(line)
    assert code == 0 and err.startswith("NO CALIBRATION DATA") and "STAND-IN samples" in out
    assert "photographs that ship with onnxcompress" in out + err
    assert out.rstrip().endswith("QUALITY NOT CHECKED ON YOUR DATA (no --calib)")


@pytest.mark.parametrize("method", ["basis", "hashed", "binary", "auto"])
def test_a_method_and_nothing_else_ends_with_a_file_or_with_the_reason(run, method):
    code, out, err = run(f"{{data}}/net.onnx out.onnx --method {method}")
    assert code in (0, 1) and Path("out.onnx").exists() == (code == 0)
    assert code == 0 or "Error: " in err
    assert "NOT CHECKED ON YOUR DATA" in out or code == 1


def test_a_fidelity_target_without_data_is_refused_with_the_command_to_paste(run):
    code, _, err = run("{data}/net.onnx out.onnx --min-snr 30")
    assert code == 2 and err.rstrip().endswith("out.onnx --min-snr 30 --calib SAMPLES.npz")


def test_the_rule_of_the_paper_needs_no_target(run):
    code, out, _ = run(f"{GOOD} --energy 60% --json")
    methods = [row["method"] for row in json.loads(out)["rows"] if row["method"]]
    assert code == 0 and methods and all("unfolding=filter" in method for method in methods)


def test_long_names_are_not_cut_where_there_is_no_terminal(run, folder):
    model = onnx.load(folder / "net.onnx")
    model.graph.node[0].name = name = "/".join(["a_long_scope"] * 20)
    onnx.save(model, "long.onnx")
    assert name in run("inspect long.onnx")[1]
    assert name in run("long.onnx out.onnx --macs 0.6")[1]


def test_a_cache_that_is_a_file_is_refused_before_any_work(run, no_work):
    Path("kept").write_text("mine")
    code, out, err = run(f"{GOOD} --macs 0.6 --cache kept")
    assert code == 2 and not out and err.count("\n") == 1 and "kept" in err
    assert Path("kept").read_text() == "mine" and os.listdir() == ["kept"]


def test_the_folder_of_a_plot_is_made(run):
    line = "sweep {data}/net.onnx --ratio 1.5 --calib {data}/data.npz --method integer"
    assert run(f"{line} --plot new/curve.svg")[0] == 0
    assert Path("new/curve.svg").read_text().startswith("<svg")


def test_inspect_lists_layers_and_facts(run):
    code, out, err = run("inspect {data}/net.onnx")
    assert code == 0 and not err
    assert "4 of 4 layers can be compressed" in out and "input x: float32 [n, 3, 12, 12]" in out
    facts = json.loads(run("inspect {data}/net.onnx --json --input-shapes x:2,3,12,12")[1])
    assert [layer["layer"] for layer in facts["layers"]] == ["conv0", "conv1", "conv2", "head"]
    assert facts["layers"][0]["macs"] == 2 * 16 * 27 * SIZE * SIZE
    assert {"basis", "binary"} <= {*facts["layers"][0]["methods"]}


def test_inspect_estimates_what_each_method_would_give(run):
    found = json.loads(run("inspect {data}/net.onnx --json")[1])["estimates"]
    estimates = {row["method"]: row for row in found}
    assert {name for name, method in METHODS.items() if not method.sampled} == set(estimates)
    assert estimates["basis"]["faster"] and not estimates["integer"]["faster"]
    assert estimates["half"]["snr"]["2"] > 60 and estimates["half"]["snr"]["4"] is None
    for row in found:
        reached = [snr for snr in row["snr"].values() if snr is not None]
        assert reached == sorted(reached, reverse=True)
    out = run("inspect {data}/net.onnx")[1]
    assert "estimated SNR without data, in dB" in out and "next: onnxcompress IN OUT" in out


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("insp", ["plain,inspect"]),
        ("models/c", ["file,models/c"]),
        ("compare a.o", ["file,a.o"]),
        ("in.onnx out.onnx --mac", ["plain,--macs"]),
        ("in.onnx out.onnx --calib im", ["file,im"]),
        ("inspct in.onnx --de", ["plain,--device"]),
    ],
)
def test_the_shell_completes_commands_options_and_files(line, completed, tmp_path):
    words = f"onnxcompress {line}"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    env = {**os.environ, **asked, "_ONNXCOMPRESS_COMPLETE": "bash_complete"}
    assert process([], tmp_path, env=env).stdout.splitlines() == completed


def test_compare_measures_two_models(run):
    data = "--calib {data}/data.npz --eval {data}/labelled.npz"
    code, out, _ = run(f"compare {{data}}/net.onnx {{data}}/net.onnx {data}")
    assert code == 0 and "96 of 96" in out
    found = json.loads(run("compare {data}/net.onnx {data}/net.onnx --json")[1])
    assert (found["ratio"], found["real"], found["snr"]) == (1, False, {"y": 200})


def test_methods_are_explained(run):
    assert "basis  " in run("methods")[1]
    code, out, _ = run("methods basis")
    assert code == 0 and "filter, spatial, tucker" in out and "input_rank" in out
    assert "coefficients @ basis" in out and "arxiv.org/abs/2105.10436" in out
    code, out, _ = run("methods half")
    assert code == 0 and "setting" not in out and "--method half" in out


def test_help_comes_at_once(run):
    assert "Commands:" in run("")[1]
    look = "sys.exit('numpy' in sys.modules or 'onnx' in sys.modules)"
    heavy = f"import sys, onnxcompress.cli.commands; {look}"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0


def test_the_reader_of_the_output_may_leave(folder, tmp_path):
    command = f"{sys.executable} -m onnxcompress inspect {folder}/net.onnx"
    for line in (f"{command} | true", f"{command} --json | true"):
        pipe = subprocess.run(
            ["bash", "-c", f"{line}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert (pipe.stdout, pipe.stderr) == ("0\n", "")


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
    samples = np.zeros((8, 3, SIZE, SIZE), np.float32)
    samples[0, 0, 0, 0] = np.nan
    np.savez(folder / "nan.npz", x=samples)
    samples[0, 0, 0, 0] = 1e25
    np.savez(folder / "huge.npz", x=samples)
    np.savez(folder / "pickle.npz", x=np.array([{}] * 4, object))
    np.savez(folder / "onehot.npz", x=np.zeros((4, 3, SIZE, SIZE), np.float32), y=np.zeros((4, 10)))
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.png").write_bytes(b"no image")
    (folder / "blank").mkdir(exist_ok=True)
    other = onnx.load_from_string(good)
    other.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 24
    other.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 24
    onnx.save(other, folder / "other.onnx")
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
        with_data + "nan.npz": "sample 0 has NaN in the input 'x'",
        with_data + "huge.npz": "too large to be squared",
        with_data + "nothing.npz": "no such file",
        with_data + "images --preprocess unit": "a.png",
        with_data + "blank --preprocess unit": "image",
        with_data + "data.npz --method bassi": "did you mean 'basis'?",
        with_data + "data.npz --method basis:rnk=3": "did you mean 'rank'?",
        with_data + "data.npz --method basis:rank=x": "a whole number",
        with_data + "data.npz --method basis:rank=0": "at least 1",
        with_data + "data.npz --method basis:unfolding=filtre": "did you mean 'filter'?",
        with_data + "data.npz --skip cnv1": "did you mean conv1",
        with_data + "data.npz --only stem": "there are conv0, conv1, conv2, head",
        with_data + "data.npz --metric topp --eval {data}/labelled.npz": "metric",
        with_data + "data.npz --metric os:nothing --eval {data}/labelled.npz": "os:nothing",
        with_data + "data.npz --metric math:sin --eval {data}/labelled.npz": "math:sin",
        with_data + "data.npz --eval {data}/data.npz": "labels",
        with_data + "data.npz --eval {data}/onehot.npz": "class number",
        with_data + "data.npz --macz 0.5": "--macs",
        with_data + "data.npz --macs 50": "a share from 0 to 1 or a percentage, such as 0.5 or 50%",
        with_data + "data.npz --providers CPU": "CPUExecutionProvider",
        with_data + "data.npz --samples 0": "--samples",
        with_data + "data.npz --input-shapes 1,3": "x:1,3,224,224",
        with_data + "data.npz --input-shapes z:1,3": "'z'",
        with_data + "data.npz --min-snr nan": "min_snr",
        with_data + "data.npz --refine 0": "--refine",
        with_data + "data.npz --refine 1 --device abacus": "--device",
        with_data + "data.npz --device cpu": "--refine",
        with_data + "data.npz --augment flip": "--refine",
        with_data + "data.npz --train {data}/labelled.npz": "--refine",
        "{data}/net.onnx out.onnx --ratio 0.5": "ratio",
        "{data}/net.onnx out.onnx --min-agreement 98%": "--calib",
        with_data + "data.npz --ratio 1.3 --classes scores:x": "--classes",
        with_data + "data.npz --ratio 1.3 --classes none --state y": "--state",
        "{data}/net.onnx out.onnx --max-drop 1 --calib {data}/data.npz": "--eval",
        "{data}/net.onnx {data} --macs 0.5": "folder",
        "{data}/net.onnx {data}/net.onnx/out.onnx --macs 0.5": "not a writable folder",
        "{data}/net.onnx /dev/null --macs 0.5": "--dry-run",
        "{data}/net.onnx": "OUTPUT",
        "inspct {data}/net.onnx": "did you mean inspect?",
        "--json inspect {data}/net.onnx": "a command comes first",
        "inspect {data}/net.onnx --input-shapes x:1,3": "x",
        "methods bassi": "did you mean 'basis'?",
        "compare {data}/net.onnx {data}/missing.onnx": "No such file",
        "compare {data}/net.onnx {data}/other.onnx": "different inputs",
    }


def test_every_bad_input_is_one_line_exit_code_2_and_nothing_written(run, folder):
    for line, word in bad_inputs(folder).items():
        code, out, err = run(line)
        errors = [e for e in err.splitlines() if not e.startswith("NO CALIBRATION")]
        assert code == 2, f"{line}: {code} {err}"
        assert len(errors) == 1 and word in errors[0], f"{line}: {err}"
        assert ("--json" in line or not out) and not os.listdir("."), line


@pytest.mark.parametrize(
    ("asked", "word"),
    [("--macs 0.001 --calib {data}/data.npz", "the least that"), ("--ratio 1000", "the most that")],
)
def test_a_target_out_of_reach_is_one_line_and_exit_code_1(run, folder, asked, word):
    code, out, err = run("{data}/net.onnx out.onnx " + asked)
    assert code == 1 and not out and not os.path.exists("out.onnx")
    assert word in err.splitlines()[-1]


@pytest.mark.parametrize(
    "line",
    [
        "{data}/missing.onnx out.onnx",
        "{data}/net.onnx out.onnx --macs 7 --calib {data}/data.npz",
        "{data}/net.onnx out.onnx --macs 0.5 --calib {data}/pickle.npz",
        "compress {data}/net.onnx out.onnx --macs",
    ],
)
def test_a_bad_input_has_no_traceback_in_a_real_process(line, folder, tmp_path):
    bad_inputs(folder)
    done = process(line.format(data=folder).split(), tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


def test_what_nobody_foresaw_is_one_line_too(run, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("a bug\nwith two lines")

    monkeypatch.setattr("onnxcompress.compression.pipeline.compress", fail)
    code, _, err = run(GOOD)
    assert code == 3 and err.count("\n") == 1 and "--verbose" in err and "a bug" in err
    assert "Traceback" in run(f"{GOOD} --verbose")[2]


SCORES = """
import numpy as np
known = {}
def mean(outputs, labels): return np.mean(outputs.argmax(1) == labels.ravel())
def table(outputs, labels): return outputs == outputs.max(1, keepdims=True)
def words(outputs, labels): return ["good"] * len(outputs)
def never(outputs, labels): return np.full(len(outputs), np.nan)
def original(outputs, labels):
    same = (outputs == known.setdefault(labels.tobytes(), outputs)).all(1)
    return np.where(same, 1, np.nan)
"""


@pytest.mark.parametrize("metric", ["mean", "table", "words", "never"])
def test_a_metric_without_a_number_for_every_sample_is_refused_before_the_work(
    metric, run, monkeypatch, tmp_path
):
    (tmp_path / "scored.py").write_text(SCORES)
    monkeypatch.setattr("onnxcompress.compression.search.candidates.find_candidates", None)
    code, _, err = run(f"{GOOD} --macs 0.6 --eval {{data}}/labelled.npz --metric scored:{metric}")
    assert code == 2 and err.count("\n") == 1
    assert f"the metric 'scored:{metric}'" in err and ("shape" in err or "nan" in err)


NO_NUMBER = {
    "--macs 0.6": "its metric is not finite",
    "--macs 0.6 --max-drop 1": "its metric is not finite",
    "--max-drop 1": "not worth it",  # the search keeps to the original
}


@pytest.mark.parametrize("target", NO_NUMBER)
def test_a_result_whose_metric_is_no_number_is_worse(target, run, tmp_path):
    (tmp_path / "scored.py").write_text(SCORES)
    sys.modules.pop("scored", None)
    code, _, err = run(f"{GOOD} {target} --eval {{data}}/labelled.npz --metric scored:original")
    assert code == 1 and NO_NUMBER[target] in err
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("options", ["--calib slow:batches", "--metric slow:metric"])
def test_ctrl_c_leaves_nothing_behind_and_exits_with_130(options, folder, tmp_path):
    """While samples are read, and while results are measured."""
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    (work / "slow.py").write_text(
        "import sys, time\n"
        "def batches():\n"
        "    print('started', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "    yield {}\n"
        "metric = lambda outputs, labels: next(batches())\n"
    )
    line = f"{GOOD} --macs 0.6 --eval {{data}}/labelled.npz {options}".format(data=folder)
    child = subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", *line.split()], cwd=work, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(scratch)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
    )  # fmt: skip
    assert child.stderr is not None and child.stderr.readline() == "started\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, "", "Error: interrupted; nothing was written\n")
    assert os.listdir(work) == ["slow.py"] and not os.listdir(scratch)


def test_ctrl_c_before_the_file_is_in_its_place_leaves_nothing(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxcompress.cli.provenance.describe_run", interrupted)
    code, out, err = run(f"{GOOD} --macs 0.6 --eval {{data}}/labelled.npz --report page.html")
    assert (code, out, err) == (130, "", "Error: interrupted; nothing was written\n")
    assert not os.listdir()


def test_a_page_is_written_of_a_run_that_succeeds_and_of_one_that_does_not(run):
    line = f"{GOOD} --macs 0.6 --eval {{data}}/labelled.npz --report new/page.html --json"
    code, out, _ = run(line)
    report, page = json.loads(out), Path("new/page.html").read_text("utf-8")
    assert code == 0 and "<h1>Asked: 0.6 of the multiplications. " in page
    assert report["trade_off"]["cost"] == "macs" and len(report["trade_off"]["points"]) > 3
    cost, snr = report["trade_off"]["chosen"]
    assert cost == report["comparison"]["after"]["macs"] and snr > 0
    made = report["provenance"]
    assert made["sha256"]["out.onnx"] == sha256(Path("out.onnx").read_bytes()).hexdigest()
    assert made["command"][-3:] == ["--report", "new/page.html", "--json"]
    assert all(hashed in page for hashed in made["sha256"].values())
    assert run(f"{GOOD} --macs 0.3 --min-snr 90 --report page.html")[0] == 1
    page = Path("page.html").read_text("utf-8")
    assert "Missed: the output SNR is " in page and "Nothing was written." in page


def test_a_page_is_written_of_a_comparison_and_of_a_sweep(run, folder):
    data = "--calib {data}/data.npz --report page.html"
    assert run(f"compare {{data}}/net.onnx {{data}}/net.onnx {data}")[0] == 0
    page = Path("page.html").read_text("utf-8")
    assert "net.onnx against net.onnx" in page and "on 96 samples" in page
    assert "Layers" not in page and sha256((folder / "net.onnx").read_bytes()).hexdigest() in page
    assert run(f"{SWEEP} --report page.html")[0] == 0
    page = Path("page.html").read_text("utf-8")
    assert "net.onnx, 2 sizes" in page and page.count("<circle") == 2


def test_the_4_bit_grid_is_the_reference_of_a_trade_off(run):
    line = "{data}/net.onnx out.onnx --ratio 5 --calib {data}/data.npz --json --method"
    found = json.loads(run(f"{line} integer")[1])["trade_off"]
    assert found["cost"] == "bytes" and found["whole"] / found["grid"][0] > 4
    assert json.loads(run(f"{line} hashed")[1])["trade_off"]["grid"] is None


@pytest.mark.parametrize("page", ["{data}/net.onnx", "out.onnx", "{data}", "{data}/net.onnx/page"])
def test_a_page_replaces_no_model_and_no_folder(run, no_work, page):
    code, out, err = run(f"{GOOD} --macs 0.6 --report {page}")
    assert code == 2 and not out and err.count("\n") == 1 and not os.listdir()


def test_without_jinja2_it_says_how_to_get_it_before_any_work(run, no_work, monkeypatch):
    monkeypatch.setattr("onnxcompress.report.page.jinja2", None)
    assert run(f"{GOOD} --macs 0.6 --report page.html") == (
        2,
        "",
        "Error: a report page needs jinja2: pip install 'onnxcompress[report]'\n",
    )


SWEEP = "sweep {data}/net.onnx --method integer --calib {data}/data.npz --ratio 4 --ratio 3"


def test_a_sweep_prints_what_each_size_costs_and_draws_it(run, tmp_path):
    code, out, _ = run(f"{SWEEP} --plot curve.svg --eval {{data}}/labelled.npz --cache kept")
    assert code == 0
    assert out.index("3 times smaller") < out.index("4 times smaller")
    drawn = ET.fromstring((tmp_path / "curve.svg").read_text("utf-8"))
    assert sum(part.tag.endswith("circle") for part in drawn) == 2
    code, out, _ = run(f"{SWEEP} --json --cache kept")
    points = json.loads(out)["points"]
    assert [point["target"] for point in points] == [
        "3 times smaller file",
        "4 times smaller file",
    ]


@pytest.mark.parametrize(
    ("methods", "targets"),
    [
        ("integer --method basis", ("--ratio 2", "--ratio 4")),
        ("auto", ("--macs 0.8", "--macs 0.6")),
    ],
)
def test_a_point_of_a_sweep_is_the_file_that_compress_writes(run, monkeypatch, methods, targets):
    even = Latency(1, 1, 1, 1, 1)
    monkeypatch.setattr("onnxcompress.compression.validate.validation.latency", lambda *_: even)
    compared, compare = [], Validation.compare
    monkeypatch.setattr(
        Validation, "compare", lambda self, *two: compared.append(two[0]) or compare(self, *two)
    )
    asked = f"--calib {{data}}/data.npz --eval {{data}}/labelled.npz --json --method {methods}"
    points = json.loads(run(f"sweep {{data}}/net.onnx {asked} {' '.join(targets)}")[1])["points"]
    shown, compared[:] = [*compared], []
    for target, point, model in zip(targets, points, shown, strict=True):
        code, out, _ = run(f"{{data}}/net.onnx out.onnx {asked} {target}")
        report = json.loads(out)
        both = report["comparison"]
        save(model, Path("point.onnx"))
        assert code == 0 and Path("point.onnx").read_bytes() == Path("out.onnx").read_bytes()
        assert point["target"] == report["target"] and point["ratio"] == both["ratio"]
        assert point["snr"] == min(both["snr"].values())
        assert point["metric"] == both["after"]["metric"]


def test_a_quiet_sweep_prints_its_table_and_does_not_say_how_far_it_is(run, monkeypatch):
    monkeypatch.setattr("onnxcompress.report.progress.EVERY", 0.0)
    loud, quiet = (run(f"{SWEEP}{words}") for words in ("", " --quiet"))
    assert "fitting 1 of 4" in loud[2] and not quiet[2]
    assert loud[:2] == quiet[:2]


def test_a_sweep_marks_the_points_that_compress_would_refuse(run, monkeypatch):
    times = iter([Latency(1, 1, 1, 1, 1), *[Latency(1, 1.2, 1.2, 1.1, 1.3)] * 4])
    monkeypatch.setattr(
        "onnxcompress.compression.validate.validation.latency", lambda *_: next(times)
    )
    asked = "--method basis --calib {data}/data.npz --cache kept --macs 0.6"
    reason = "it is slower: 1.20 of the original's time"
    code, out, _ = run(f"sweep {{data}}/net.onnx {asked} --macs 0.8 --plot curve.svg")
    [_, good, bad] = out.splitlines()
    assert code == 0 and "refused" not in good and bad.endswith(f"refused: {reason}")
    drawn = Path("curve.svg").read_text("utf-8")
    assert "open: refused" in drawn and drawn.count('<circle class="open"') == 1
    code, out, err = run(f"sweep {{data}}/net.onnx {asked} --json --report page.html")
    [point] = json.loads(out)["points"]
    assert code == 1 and err == f"Error: no target is met: {reason}\n"
    assert point["failures"] == [reason]
    assert "refused: it is slower" in Path("page.html").read_text("utf-8")
    code, _, err = run(f"{{data}}/net.onnx out.onnx {asked}")
    assert code == 1 and err == f"Error: {reason}\n"


def test_a_sweep_without_samples_says_that_others_stand_in(run):
    line = "sweep {data}/net.onnx --method integer --ratio 4 --cache kept"
    code, out, _ = run(f"{line} --plot curve.svg --report page.html")
    assert code == 0 and "STAND-IN samples" in out
    assert "STAND-IN samples" in Path("curve.svg").read_text("utf-8")
    page = Path("page.html").read_text("utf-8")
    assert "pictures that stand in for them" in page and "held-out" not in page
    [point] = json.loads(run(f"{line} --json")[1])["points"]
    assert (point["samples"], point["real"]) == (64, False)


def test_without_samples_a_size_out_of_reach_is_refused_before_any_are_made_up(run, monkeypatch):
    monkeypatch.setattr(prepare, "find_stand_ins", None)  # It would raise if it were called.
    code, _, err = run("{data}/net.onnx out.onnx --ratio 1000")
    assert code == 1 and "the most that sizes alone allow is" in err
    assert not Path("out.onnx").exists()


def test_a_size_out_of_reach_is_shown_with_what_can_be_attained(run):
    code, out, _ = run(f"{SWEEP} --ratio 50 --cache kept --plot curve.svg")
    reason = "a ratio of 50 is out of reach; the most that sizes alone allow is "
    assert code == 0 and f"refused: {reason}" in out.splitlines()[-1]
    assert Path("curve.svg").read_text("utf-8").count("<circle") == 2
    [*_, point] = json.loads(run(f"{SWEEP} --ratio 50 --cache kept --json")[1])["points"]
    assert point["ratio"] is None and point["failures"][0].startswith(reason)


def test_a_sweep_of_sizes_out_of_reach_ends_as_compress_does(run):
    asked = "--method integer --calib {data}/data.npz --cache kept --ratio 50"
    ends = [
        run(f"sweep {{data}}/net.onnx {asked} --ratio 90 --plot curve.svg"),
        run(f"{{data}}/net.onnx out.onnx {asked}"),
    ]
    for code, out, err in ends:
        assert code == 1 and not out and "a ratio of 50 is out of reach; the most" in err
    assert os.listdir() == ["kept"]


def test_a_sweep_of_two_kinds_of_targets_is_refused(run):
    code, out, err = run(f"{SWEEP} --macs 0.5")
    assert code == 2 and not out and err.count("\n") == 1 and "one of them at a time" in err


# ------------------------------------------------------------------------------- a refinement


REFINED = f"{GOOD} --macs 0.6 --refine 2"


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(
        "onnxcompress.compression.pipeline.compress", lambda *_, **__: pytest.fail("it ran")
    )


def test_a_refined_model_is_measured_before_and_after(torch, run):
    line = f"{REFINED} --eval {{data}}/labelled.npz --train {{data}}/labelled.npz --augment flip"
    code, out, _ = run(f"{line} --jobs 1 --cache kept --json")
    report = json.loads(out)
    refined, both = report["refined"], report["comparison"]
    assert code == 0 and 2 <= len(refined["epochs"]) <= 3
    assert refined["epochs"][0]["loss"] is None
    assert refined["snr"].keys() == both["snr"].keys() and refined["metric"] is not None
    config = json.loads(metadata("out.onnx")["onnxcompress.config"])
    assert config["refine"] == {"epochs": 2, "device": "auto", "augment": "flip"}
    assert config["train"][0] == 40
    first = Path("out.onnx").read_bytes()
    code, out, _ = run(f"{line} --jobs 1 --cache kept")
    assert code == 0 and "compressed" in out and "refined: 2 epochs in" in out
    assert Path("out.onnx").read_bytes() == first


def test_without_torch_it_says_how_to_get_it_before_any_work(run, no_work, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(REFINED) == (
        2,
        "",
        "Error: refinement needs torch: pip install 'onnxcompress[refine]'\n",
    )


def test_what_cannot_be_refined_is_said_before_any_work(torch, run, folder, no_work):
    model = onnx.load(folder / "net.onnx")
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Shrink"
    onnx.save(model, folder / "shrink.onnx")
    code, out, err = run(REFINED.replace("net.onnx", "shrink.onnx"))
    assert (code, out, err) == (2, "", "Error: refinement does not know Shrink\n")
    code, out, err = run(f"{REFINED} --augment twist")
    assert code == 2 and "there are flip, crop" in err and err.count("\n") == 1


def test_a_refinement_needs_calibration_samples(torch, run):
    code, out, err = run("{data}/net.onnx out.onnx --macs 0.6 --refine 2")
    assert code == 2 and not out and "Error: a refinement needs calibration samples" in err


def test_torch_is_imported_for_a_refinement_alone(folder, tmp_path):
    words = [*GOOD.format(data=folder).split(), "--macs", "0.6", "--dry-run", "--quiet"]
    done = process(words, tmp_path, env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0 and "numpy" in done.stderr and "torch" not in done.stderr


# --------------------------------------------------------------------------------- configurations


def configured(run, text, line="compress {data}/net.onnx out.onnx --config config.yaml --json"):
    Path("config.yaml").write_text(text)
    return run(line)


def test_a_configuration_has_options_and_rules_and_the_command_line_goes_before_it(run):
    code, out, _ = configured(
        run,
        "method: codebook\nratio: 3\nop_types: {Gemm: {method: 'integer:bits=8'}}\n"
        "layers: {'conv*': {method: [half, integer]}, conv1: {skip: true}}\n",
        "compress {data}/net.onnx out.onnx --config config.yaml --ratio 1.3 --json",
    )
    report = json.loads(out)
    used = {row["layer"]: row["method"] for row in report["rows"]}
    assert code == 0 and report["target"].startswith("1.3")
    assert used["head"].startswith("integer:bits=8") and used["conv2"].startswith(
        ("half", "integer")
    )
    assert "conv1" in report["skipped"] and "conv1" not in used
    config = json.loads(report["provenance"]["metadata"]["onnxcompress.config"])
    assert config["rules"]["layers"]["conv1"] == {"skip": True}


REFUSED = "compress {data}/net.onnx out.onnx --config config.yaml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ration: 3", "did you mean 'ratio'"),
        ("layers: {stem: {skip: true}}", "no layer matches 'stem'; there are conv0"),
        ("op_types: {Gem: {skip: true}}", "no layer is a Gem; there are Conv, Gemm"),
        ("layers: {conv0: {methods: half}}", "layers → conv0 → methods"),
        ("layers: {conv0: {method: halve}}", "did you mean 'half'"),
        ("ratio: [2, 3]", "ratio takes one value"),
        ("ratio: much", "much"),
        ("- ratio", "must hold options"),
        ("a: [", "config.yaml"),
        ("a: !!python/object:os.system {}", "config.yaml"),
        ("[" * 100_000, "config.yaml"),
        ("#" * (1 << 21), "too large"),
        ("ratio: !!float abc", "no readable YAML"),
        ("ratio: !!bool foo", "no readable YAML"),
        ("ratio: " + "1" * 5000, "no readable YAML"),
        ("seed: " + "9" * 40, "too large a number"),
        ("seed: " + ":".join(["1", *["59"] * 2000]), "too large a number"),
        ("ratio: " + "9" * 19 + "e999", "ratio"),
        ('calib: "a\\0b"', "no option can hold"),
        ("calib: 2020-01-01", "calib takes one value"),
        ("calib: !!binary aGVsbG8=", "calib takes one value"),
        ("only: [null]", "only takes one value"),
        ("json: 5", "5"),
        ("samples: 99999999999", "samples"),
        ("jobs: 100000", "jobs"),
        ("input-shapes: 'x:²,3'", "no shape"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_in_one_line(run, text, said):
    code, out, error = configured(run, text, REFUSED)
    assert code == 2 and not out and said in error.splitlines()[-1]
    assert error.startswith("Error:") or "NO CALIBRATION" in error
    assert not Path("out.onnx").exists()


def test_a_model_without_layers_can_be_inspected(run):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "none", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), "none.onnx")
    code, out, _ = run("inspect none.onnx --json")
    assert code == 0 and json.loads(out)["layers"] == [] == json.loads(out)["estimates"]


@pytest.mark.parametrize("path", [".", "/dev/zero", "absent.yaml"])
def test_a_configuration_that_is_no_file_is_refused_at_once(run, path):
    code, out, error = run(f"compress {{data}}/net.onnx out.onnx --config {path}")
    assert code == 2 and not out and error.count("\n") == 1 and "is no file" in error
