"""Validation of whole models: what is compared, what is worse, what is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.cli.arguments import open_samples
from onnxcompress.cli.commands import main
from onnxcompress.compression.measure.at_once import (
    ACTIVATION_BYTES,
    batch_size,
    largest_input,
    threads,
)
from onnxcompress.compression.validate.deviation import deviation
from onnxcompress.compression.validate.states import find_states
from onnxcompress.compression.validate.validation import AS_A_RUN, Validation
from onnxcompress.compression.validate.verdict import failures, reaches
from onnxcompress.data.samples import from_batches
from onnxcompress.execution.memory import load_memory
from onnxcompress.graph import changed_outputs
from onnxcompress.report.report import Comparison, Share, Size
from onnxcompress.report.words import MOST_OUTPUTS, facts, quality

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model_of(nodes, inputs, outputs, **weights):
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in values]
        for values in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", *infos, tensors)
    opsets = [helper.make_opsetid("", 17)]
    return oc.Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def with_weight(model, name, change):
    """A copy with another weight under the same name."""
    result = model.copy()
    [tensor] = [t for t in result.graph.initializer if t.name == name]
    changed = change(numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    return replace(result)


def recurrent(rng, gain=0.9):
    """y = out(state'), state' = gain * state + x."""
    nodes = [
        helper.make_node("MatMul", ["state", "u"], ["kept"], "keep"),
        helper.make_node("Add", ["kept", "x"], ["stateN"], "add"),
        helper.make_node("MatMul", ["stateN", "w"], ["y"], "out"),
    ]
    inputs = [("x", FLOAT, [1, 4]), ("state", FLOAT, [1, 4])]
    outputs = [("y", FLOAT, [1, 3]), ("stateN", FLOAT, [1, 4])]
    u, w = (gain * np.eye(4)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    return model_of(nodes, inputs, outputs, u=u, w=w)


def frames(rng, count):
    def draw():
        return rng.normal(size=(1, 4)).astype(np.float32)

    return from_batches([{"x": draw(), "state": draw()} for _ in range(count)])


# ------------------------------------------------------------------------------- what is compared


def test_outputs_that_no_change_reaches_count_in_no_snr_and_no_share(rng):
    net = model_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["y"], "first"),
            helper.make_node("MatMul", ["x", "b"], ["z"], "second"),
        ],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["n", 3]), ("z", FLOAT, ["n", 5])],
        a=rng.normal(size=(4, 3)).astype(np.float32),
        b=rng.normal(size=(4, 5)).astype(np.float32),
    )
    other = with_weight(net, "b", lambda b: 1.1 * b)
    assert changed_outputs(net, other) == {"z"}
    samples = from_batches([{"x": rng.normal(size=(8, 4)).astype(np.float32)}])
    fidelity = Validation(net, samples).fidelity(other)
    assert fidelity.snr == {"z": pytest.approx(20, abs=1e-3)} and fidelity.shares(8).keys() == {"z"}
    assert changed_outputs(net, net) == {"y", "z"}
    assert Validation(net, samples).fidelity(net).snr == {"y": 200, "z": 200}


def test_a_body_that_reads_what_changed_has_changed(rng):
    def branch(name, factor):
        made = [helper.make_node("Mul", ["h", factor], [name], name)]
        return helper.make_graph(made, name, [], [helper.make_tensor_value_info(name, FLOAT, None)])

    bodies = {"then_branch": branch("p", "two"), "else_branch": branch("q", "one")}
    net = model_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
            helper.make_node("If", ["c"], ["y"], "if", **bodies),
            helper.make_node("Relu", ["x"], ["z"], "other"),
        ],
        [("x", FLOAT, ["n", 4]), ("c", TensorProto.BOOL, [])],
        [("y", FLOAT, None), ("z", FLOAT, None)],
        a=rng.normal(size=(4, 3)).astype(np.float32),
        one=np.float32(1),
        two=np.float32(2),
    )
    assert changed_outputs(net, with_weight(net, "two", lambda two: two + 1)) == {"y"}
    assert changed_outputs(net, with_weight(net, "a", lambda a: a + 1)) == {"y"}


def test_a_state_is_found_by_its_name_type_and_shape(rng):
    assert find_states(recurrent(rng)) == {"stateN": "state"}
    copied = model_of(
        [helper.make_node("Relu", ["x"], ["x_out"], "copy")],
        [("x", FLOAT, [1, 4])],
        [("x_out", FLOAT, [1, 4])],
    )
    assert find_states(copied) == {}  # nothing else would move it on
    other = recurrent(rng)
    other.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 5
    assert find_states(replace(other)) == {}


def test_errors_of_a_state_add_up_in_a_run_and_targets_hold_for_it(rng):
    net = recurrent(rng)
    other = with_weight(net, "u", lambda u: 0.97 * u)
    samples = frames(rng, 24)
    fidelity = Validation(net, samples).fidelity(other)
    assert fidelity.snr.keys() == {"y", "stateN", f"y{AS_A_RUN}"}

    def fed_back(gain):
        state, outputs = samples.read([0])["state"], []
        for batch in samples.batches(1):
            state = np.float32(gain) * state + batch["x"]
            outputs.append(state @ numpy_helper.to_array(net.initializers["w"]))
        return np.concatenate(outputs)

    a, b = fed_back(0.9), fed_back(0.97 * 0.9)
    expected = 10 * np.log10(np.square(a).sum() / np.square(a - b).sum())
    assert fidelity.snr[f"y{AS_A_RUN}"] == pytest.approx(expected, abs=0.01)
    assert fidelity.snr[f"y{AS_A_RUN}"] < fidelity.snr["y"] - 3
    between = oc.Target(min_snr=(fidelity.snr[f"y{AS_A_RUN}"] + fidelity.snr["y"]) / 2)
    assert not reaches(fidelity, None, between)
    stated = Validation(net, samples, states={}).fidelity(other)
    assert stated.snr.keys() == {"y", "stateN"} and reaches(stated, None, between)


def test_a_run_with_a_state_is_the_last_samples_in_their_order_and_the_report_says_so(rng):
    net, samples = recurrent(rng), frames(rng, 64)
    _, report = oc.compress(net, methods=[oc.Half()], samples=samples, force=True)
    said = [each for each in report.warnings if "state" in each]
    assert said == ["its state is fed back: the last 16 samples, in order, are held out"]
    assert report.comparison.samples == 16
    _, report = oc.compress(net, methods=[oc.Half()], samples=samples, states={}, force=True)
    assert not [each for each in report.warnings if "state" in each]


def test_a_limit_keeps_a_run_with_a_state_together(rng, tmp_path):
    arrays = {name: rng.normal(size=(40, 4)).astype(np.float32) for name in ("x", "state")}
    np.savez(tmp_path / "run.npz", **arrays)
    options = {"calib": str(tmp_path / "run.npz"), "samples": 10, "select": None, "shapes": ()}
    for words, together in (((), True), (("none",), False)):
        taken = open_samples(recurrent(rng), {**options, "preprocess": None, "states": words}, "")
        assert taken is not None
        rows = np.concatenate([batch["x"] for batch in taken])
        assert len(rows) == 10 and np.array_equal(rows, arrays["x"][:10]) == together


def test_a_state_of_no_such_name_is_refused_with_the_nearest(rng):
    with pytest.raises(oc.TargetError, match="no input 'stat'; did you mean 'state'"):
        Validation(recurrent(rng), frames(rng, 2), states={"stateN": "stat"})


def test_copies_of_one_sample_leave_what_others_need(rng):
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Gemm", ["r", "w"], ["y"])]
    inputs, outputs = [("x", FLOAT, ["n", 512])], [("y", FLOAT, ["n", 100])]
    net = model_of(nodes, inputs, outputs, w=rng.normal(size=(512, 100)).astype(np.float32))
    x = rng.normal(size=(65, 512)).astype(np.float32)
    others = from_batches([{"x": x[1:]}])
    for bits, least in ((3, 9), (4, 15)):
        same = np.repeat(x[:1], 64, 0)
        result, _ = oc.compress(net, methods=[oc.Integer(bits=bits)], samples=same, force=True)
        assert Validation(net, others).fidelity(result).snr["y"] > least


def test_where_no_output_can_be_compared_the_layers_are_and_a_target_fails(rng):
    net = model_of(
        [
            helper.make_node("MatMul", ["x", "a"], ["h"], "fc"),
            helper.make_node("ReduceMax", ["h"], ["m"], "max", axes=[1], keepdims=0),
            helper.make_node("Greater", ["m", "never"], ["k"], "greater"),
            helper.make_node("Compress", ["h", "k"], ["y"], "found", axis=0),
        ],
        [("x", FLOAT, ["n", 4])],
        [("y", FLOAT, ["found", 3])],
        a=rng.normal(size=(4, 3)).astype(np.float32),
        never=np.float32(1e9),
    )
    other = with_weight(net, "a", lambda a: 1.01 * a)
    other.graph.initializer[0].name = other.graph.node[0].input[1] = "b"
    samples = from_batches([{"x": rng.normal(size=(8, 4)).astype(np.float32)}])
    comparison = Validation(net, samples).compare(replace(other), (12, 12))
    assert comparison.snr == {"fc": pytest.approx(40, abs=0.01)} and not comparison.compared
    assert not [*failures(comparison, oc.Target())]
    for target in (oc.Target(min_snr=1), oc.Target(min_agreement=0)):
        [reason] = failures(comparison, target)
        assert "no output could be compared" in reason


# ------------------------------------------------------------------------------------ the floor

SAME = Comparison(Size(100, 90), Size(50, 45), 128, True, {"y": 30.0}, None, None, None)


def share(agreed, kind="classes"):
    return {"agreement": agreed / 128, "shares": {"y": Share(kind, agreed, 128, 128)}}


@pytest.mark.parametrize(
    ("reached", "word"),
    [
        ({}, None),
        ({"snr": {"y": 9.9}}, "Target(min_snr=...)"),
        ({"snr": {"y": 10.0}}, None),
        (share(116), None),  # 90.6 %
        (share(115), "same class on 115 of 128 samples (89.8 %, 95 % interval 83 to 94)"),
        (share(115, "ids"), "same value on 115 of 128 samples"),
        (share(116) | {"snr": {"y": 2.0}}, None),  # the classes decide
        (share(115) | {"real": False, "pictures": True}, "force=True"),
        (share(64) | {"real": False}, None),  # random inputs: the SNR decides
        (share(128) | {"real": False, "snr": {"y": 9.9}}, "Target(min_snr=...)"),
        ({"samples": 0, "snr": {"layer": 1.0}}, None),  # nothing was compared
    ],
)
def test_a_result_that_no_longer_does_the_job_is_worse(reached, word):
    found = [*failures(replace(SAME, **reached), oc.Target())]
    assert len(found) == (word is not None)
    if word is not None:
        assert "no longer does the job" in found[0] and word in found[0]


def test_a_fidelity_target_of_ones_own_replaces_the_floor():
    low = replace(SAME, snr={"y": 3.0}, **share(64))
    for target in ({"min_snr": 2}, {"min_agreement": 0.4}, {"min_agreement": 0}):
        assert not [*failures(low, oc.Target(**target))]
    assert [*failures(low, oc.Target(ratio=2))]


def test_the_quality_is_told_as_counts_or_as_the_worst_snr_and_never_unchecked():
    for reached, said in (
        ({}, "SNR 30.0 dB on 128 held-out samples"),
        ({"snr": {"y": 30.0, "z": 20.0}}, "SNR 20.0 dB on 128 held-out samples of output z"),
        (share(125), "same class on 125 of 128 held-out samples (97.7 %, 95 % interval 93 to 99)"),
        (
            {"shares": {"y": Share("positions", 500, 640, 128)}},
            "same class at 500 of 640 positions of 128 held-out samples "
            "(78.1 %, 95 % interval 70 to 84)",
        ),
        (
            {"real": False, "samples": 2},
            "SNR 30.0 dB on 2 RANDOM samples, QUALITY NOT CHECKED ON YOUR DATA (no samples=...)",
        ),
        ({"samples": 0}, "QUALITY NOT CHECKED: no output could be compared"),
        ({"snr": {}}, "QUALITY NOT CHECKED: no output could be compared"),
    ):
        assert quality(replace(SAME, **reached), "held-out") == said
    [missed] = failures(replace(SAME, **share(125)), oc.Target(min_agreement=0.98))
    assert missed.startswith("same class on 125 of 128 samples") and missed.endswith("of 0.98")


# ------------------------------------------------------------------------------------- memory


def test_fewer_samples_run_at_once_the_larger_they_are():
    assert largest_input([(1, 16, 32, 32), (1, 16, 1024, 1024)]) == 64 << 20
    assert batch_size(largest_input([(1, 16, 32, 32)]), 64) == 64
    for largest in (1, 10**4, 10**6, 64 << 20, ACTIVATION_BYTES, 10**15):
        size = batch_size(largest, 64)
        for jobs in (1, 4, 64):
            samples = size * threads(largest, size, jobs)
            assert samples == 1 or samples * 4 * largest <= ACTIVATION_BYTES


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peak_and_rest_of_the_memory_are_those_of_the_weights(tmp_path, rng):
    weight = rng.normal(size=(1024, 8192)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "fc")
    inputs, outputs = [("x", FLOAT, ["n", 1024])], [("y", FLOAT, ["n", 8192])]
    model = model_of([node], inputs, outputs, w=weight)
    onnx.save(model.proto, tmp_path / "m.onnx")
    memory = load_memory(tmp_path / "m.onnx")
    assert memory.resting is not None and memory.peak is not None
    assert 0.9 * weight.nbytes < memory.resting <= memory.peak < 5 * weight.nbytes
    assert load_memory(tmp_path / "none.onnx") == (None, None)


def product(weight, nodes=(), outputs=("y",), **more):
    """A product of x, and what other nodes make of it."""
    return model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product"), *nodes],
        [("x", FLOAT, ["n", 8])],
        [(name, FLOAT, None) for name in outputs],
        w=weight,
        **more,
    )


def test_tiny_outputs_are_compared_as_others_are(rng):
    weight = (1e-18 * rng.normal(size=(8, 8))).astype(np.float32)
    model = product(weight)
    other = with_weight(model, "w", lambda w: 1.001 * w)
    samples = from_batches([{"x": rng.normal(size=(4, 8)).astype(np.float32)}])
    [snr] = Validation(model, samples).fidelity(other).snr.values()
    assert snr == pytest.approx(60, abs=0.1)


def test_outputs_that_are_infinite_everywhere_say_nothing(rng):
    divide = helper.make_node("Div", ["y", "zero"], ["z"], "divide")
    weight = rng.normal(size=(8, 8)).astype(np.float32)
    model = product(weight, [divide], ["z"], zero=np.float32(0))
    samples = from_batches([{"x": rng.normal(size=(4, 8)).astype(np.float32)}])
    same = Validation(model, samples).fidelity(model)
    assert same.finite and not same.compared
    opposite = Validation(model, samples).compare(with_weight(model, "w", np.negative), (1, 1))
    assert not opposite.finite


def test_a_model_with_a_sequence_as_input_is_compared(rng, tmp_path, capsys):
    nodes = [
        helper.make_node("ConcatFromSequence", ["s"], ["c"], "join", axis=0),
        helper.make_node("MatMul", ["c", "w"], ["y"], "product"),
    ]
    model = model_of(nodes, [], [("y", FLOAT, ["n", 8])], w=np.eye(8, dtype=np.float32))
    given = helper.make_tensor_sequence_value_info("s", FLOAT, ["n", 8])
    model.graph.input.append(given)
    oc.save(model, tmp_path / "m.onnx")
    with pytest.raises(SystemExit) as ended:
        main(["compare", *2 * [str(tmp_path / "m.onnx")]])
    assert ended.value.code == 0, capsys.readouterr().err


# ------------------------------------------------------------ samples on which the original fails


def looked_up(rng):
    """Rows of a table of 64, of which an id of 99 is none, times a weight."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"], "head"),
    ]
    weights = {"table": rng.normal(size=(64, 32)), "w": rng.normal(size=(32, 64))}
    floats = {name: value.astype(np.float32) for name, value in weights.items()}
    return model_of(nodes, [("ids", INT64, ["n", 4])], [("y", FLOAT, ["n", 4, 64])], **floats)


@pytest.mark.parametrize("words", [
    "compare net.onnx net.onnx", "net.onnx out.onnx --method integer:bits=8",
    "net.onnx out.onnx --method half", "net.onnx out.onnx --ratio 2",
    "net.onnx out.onnx --compute int8",
])  # fmt: skip
@pytest.mark.parametrize("wrong", [0, 21])
def test_where_the_original_fails_the_sample_is_to_blame(
    words, wrong, rng, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    oc.save(looked_up(rng), "net.onnx")
    ids = rng.integers(0, 64, (32, 4))
    ids[wrong, 2] = 99
    np.savez("ids.npz", ids=ids)
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--calib", "ids.npz", "--quiet"])
    [line] = [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    assert stop.value.code == 2
    assert f"the original itself does not run on sample {wrong} of --calib" in line
    assert "(Gather): indices element out of data bounds, idx=99" in line and "result" not in line


def test_where_random_inputs_do_not_suit_the_original_no_result_is_to_blame(rng):
    net, ids = looked_up(rng), np.zeros((4, 1, 4), np.int64)
    samples = from_batches([{"ids": each} for each in ids])
    validation = Validation(net, samples, real=False, jobs=1)
    assert validation.decisions
    wrong = from_batches([{"ids": each} for each in np.where(np.arange(4) == 3, 99, ids)])
    with pytest.raises(oc.OnnxCompressError, match=r"original.*random inputs: give samples="):
        replace(validation, samples=wrong).fidelity(net)
    with pytest.raises(oc.OnnxCompressError, match=r"original.*random inputs: give samples="):
        deviation(net, net, wrong, real=False)


def test_of_very_many_outputs_those_that_changed_most_are_listed(rng):
    size, snr = Size(1, 1, 1, None), {f"y{i}": float(rng.uniform(20, 40)) for i in range(5000)}
    rest = dict.fromkeys(("agreement", "metric", "latency"))
    both = Comparison(size, size, samples=4, real=True, snr=snr, **rest)
    lines = [fact for fact in facts(both) if fact.what.startswith("SNR")]
    assert len(lines) == MOST_OUTPUTS + 1 and lines[-1].what == "SNR of 4,900 others, dB"
    ordered = sorted(snr.values())
    assert {line.after for line in lines[:-1]} == {f"{value:.2f}" for value in ordered[:100]}
    assert lines[-1].after == f"{ordered[100]:.2f} or more"
