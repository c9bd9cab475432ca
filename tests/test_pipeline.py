"""Targets, fits in place, and the whole way on a small network."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from models import images, network, perceptron
from onnxcompress.compression.build import best
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.method_spec import parse
from onnxcompress.compression.search import bisect, candidates, size_limit
from onnxcompress.compression.validate import blame
from onnxcompress.compression.validate.decisions import Decision
from onnxcompress.compression.validate.fidelity import Fidelity, decibel, has_class_scores
from onnxcompress.compression.validate.metrics import find_metric
from onnxcompress.compression.validate.validation import Validation
from onnxcompress.core.errors import MethodError, MetricError, OutputError
from onnxcompress.data.samples import Samples, from_batches
from onnxcompress.execution.latency import Latency
from onnxcompress.execution.session import Session
from onnxcompress.graph.lookups import LARGE_TABLE
from onnxcompress.methods.basis import BasisWeight
from onnxcompress.report.report import Epoch
from onnxcompress.report.tables import render_report


@pytest.fixture(scope="module")
def net():
    return network(np.random.default_rng(1))


@pytest.fixture(scope="module")
def batches():
    return images(np.random.default_rng(2), 192)


def test_the_original_answers_once_however_many_models_are_compared_with_it(
    net, batches, monkeypatch
):
    index = np.arange(48)
    whole = np.concatenate([batch["x"] for batch in batches])
    samples = Samples(lambda rows: {"x": whole[rows]}, index, batch=16)
    validation = Validation(net, samples)
    small, _ = oc.compress(net, methods=[oc.Integer(bits=3)])
    first = [validation.fidelity(small, limit) for limit in (None, 20)]
    monkeypatch.setattr(Validation, "_reference", None)  # nothing answers any more
    again = [validation.fidelity(small, limit) for limit in (None, 20)]
    assert [f.loss for f in first] == [f.loss for f in again]
    assert first[0].loss != first[1].loss


def test_a_result_is_written_as_the_command_line_writes_it_or_not_at_all(net, tmp_path):
    oc.save(net, tmp_path / "net.onnx")
    four, place = [oc.Integer(bits=4)], tmp_path / "new" / "small.onnx"
    model, report = oc.compress(net, methods=four, output=place)
    assert not report.worse and oc.load(place).proto == model.proto
    assert [file.name for file in place.parent.iterdir()] == ["small.onnx"]
    with pytest.raises(OutputError, match="force=True"):
        oc.compress(tmp_path / "net.onnx", methods=four, output=tmp_path / "net.onnx")


def test_a_result_that_is_worse_is_written_by_force_alone(net, batches, tmp_path):
    place, target = tmp_path / "small.onnx", oc.Target(min_snr=90)
    few = {"methods": [oc.Integer(bits=2, group=4)], "target": target, "samples": batches[:1]}
    with pytest.raises(oc.CompressionError, match="nothing was written") as caught:
        oc.compress(net, **few, output=place)
    assert caught.value.report.worse and not place.exists()
    assert isinstance(caught.value, oc.OnnxCompressError)
    oc.compress(net, **few, output=place, force=True)
    assert oc.compress(net, **few)[0].proto == oc.load(place).proto
    properties = {entry.key: entry.value for entry in oc.load(place).proto.metadata_props}
    assert properties["onnxcompress.forced"] == "; ".join(caught.value.report.failures)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"target": {"ratio": 4}}, "target must be a Target, such as Target"),
        ({"methods": [4]}, "methods must be spellings such as"),
        ({"methods": 4}, "methods must be spellings such as"),
        ({"compute": "int4"}, "compute must be float, int8 or auto"),
        ({"samples": 4}, "samples cannot be int"),
        ({"jobs": -1}, "jobs must be a whole number"),
        ({"cache": 4}, "cache must be a folder"),
        ({"only": 4}, "only must be patterns"),
        ({"providers": "CPUExecutionProvidr"}, "did you mean 'CPUExecutionProvider'"),
        ({"evaluation": [{"x": np.ones((4, 3, 12, 12), np.float32)}]}, "needs labels"),
    ],
)
def test_a_wrong_argument_is_an_error_of_this_package_that_names_it(net, wrong, says):
    with pytest.raises(oc.OnnxCompressError, match=says) as caught:
        oc.compress(net, **{"methods": "half", **wrong})
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize("wrong", [{"ratio": -1}, {"macs": 50}, {"ratio": "4"}])
def test_a_target_that_cannot_be_is_an_error_of_this_package(wrong):
    with pytest.raises(oc.TargetError, match=next(iter(wrong))):
        oc.Target(**wrong)
    with pytest.raises(MethodError, match="bits must be"):
        oc.Integer(bits=99)


def test_labels_are_taken_from_a_loader_of_pairs_as_from_arrays(net, rng):
    images, labels = rng.normal(size=(24, 3, 12, 12)).astype("f"), rng.integers(0, 10, 24)
    pairs = [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 24, 8)]
    found = [
        oc.compress(net, methods="half", evaluation=given)[1].comparison
        for given in ({"x": images, "y": labels}, pairs)
    ]
    assert found[0].before.metric == found[1].before.metric is not None


# --------------------------------------------------------------------------------- the targets


@pytest.mark.parametrize("macs", [0.8, 0.5, 0.3])
def test_a_share_of_multiplications_is_met_from_below(net, batches, macs):
    model, report = oc.compress(net, target=oc.Target(macs=macs), samples=batches)
    both = report.comparison
    assert not report.failures
    assert macs * 0.95 < both.after.macs / both.before.macs <= macs
    counted = sum(input_shapes(model, {"x": batches[0]["x"][:1]})[1].values())
    assert counted == both.after.macs * 1 or counted * 16 == both.after.macs


@pytest.mark.parametrize("ratio", [1.2, 1.6])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_ratio_is_met_and_hardly_exceeded(net, batches, ratio, calibrated):
    samples = batches if calibrated else None
    model, report = oc.compress(
        net, methods=[oc.Basis()], target=oc.Target(ratio=ratio), samples=samples
    )
    assert ratio <= net.nbytes / model.nbytes < 1.1 * ratio
    assert report.comparison.after.nbytes == model.nbytes


def test_a_ratio_is_met_where_settings_are_far_apart_and_the_first_is_a_few_bytes_too_large(
    monkeypatch,
):
    class Steps:
        bounds = (0, 12_000)
        at = staticmethod(lambda limit, work=np.inf: limit // 2000 * 2000)
        spent = staticmethod(lambda chosen: chosen)

    monkeypatch.setattr(size_limit, "_file_bytes", lambda job, chosen: chosen + 2135)
    job = SimpleNamespace(original=SimpleNamespace(nbytes=12_200))
    found = size_limit._byte_limit(job, Steps, 2, np.inf)
    assert Steps.at(found) == 2000  # with 4000 the file has 35 bytes more than half


def test_a_setting_that_is_fixed_keeps_any_ratio_below_its_own(net):
    fixed, _ = oc.compress(net, methods=[oc.Integer(bits=4)])
    model, report = oc.compress(
        net, methods=[oc.Integer(bits=4)], target=oc.Target(ratio=0.9 * net.nbytes / fixed.nbytes)
    )
    assert not report.failures
    assert model.proto.graph.ByteSize() <= fixed.proto.graph.ByteSize()


@pytest.mark.parametrize("ratio", np.linspace(3.2, 5.2, 9))
def test_a_ratio_is_met_where_scales_take_more_bytes_than_foreseen(ratio):
    names = [f"w{i}" for i in range(8)]
    calls = [f"y{i} = MatMul({f'y{i - 1}' if i else 'x'}, {name})" for i, name in enumerate(names)]
    head = "<ir_version: 8, opset_import: ['' : 17]> g (float[n, 64] x) => (float[n, 64] y7) {"
    proto = onnx.parser.parse_model(head.replace("'", '"') + " ".join(calls) + "}")
    rng = np.random.default_rng(0)
    for index, name in enumerate(names):  # scales that float16 does not hold, and their opposite
        weight = rng.standard_normal((64, 64)) * 10.0 ** (6 if index % 2 else -7)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype("f"), name))
    model = oc.Model(proto)
    result, report = oc.compress(model, methods=[oc.Integer()], target=oc.Target(ratio=ratio))
    assert not report.failures
    assert model.nbytes / result.nbytes >= ratio


def test_a_table_that_outweighs_the_layers_is_within_the_budget():
    text = "<ir_version: 8, opset_import: ['' : 17]> g (float[n, 64] x) => (float[n, 64] y) {"
    proto = onnx.parser.parse_model(text.replace("'", '"') + "a = MatMul(x, v) y = MatMul(a, w) }")
    rng = np.random.default_rng(0)
    for name in ("v", "w"):
        weight = rng.standard_normal((64, 64), np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    small = oc.Model(proto)
    model, _ = oc.compress(small, methods=[oc.Integer(bits=4)], target=oc.Target(ratio=1.5))
    assert small.nbytes / model.nbytes > 1.5


def test_two_size_targets_hold_together(net, batches):
    target = oc.Target(ratio=1.3, macs=0.5)
    _, report = oc.compress(net, target=target, samples=batches)
    assert report.comparison.ratio >= 1.3
    assert report.comparison.after.macs <= 0.5 * report.comparison.before.macs


@pytest.mark.parametrize("target", [{"min_snr": 12}, {"min_agreement": 0.8}])
def test_a_fidelity_target_holds_on_held_out_samples(net, batches, target):
    _, report = oc.compress(net, methods=[oc.Basis()], target=oc.Target(**target), samples=batches)
    assert not report.failures
    assert report.comparison.worst_snr >= target.get("min_snr", 0)
    assert report.comparison.agreement >= target.get("min_agreement", 0)
    assert report.comparison.after.macs < 0.95 * report.comparison.before.macs


def test_a_fidelity_that_allows_nothing_is_a_miss_with_the_curves_that_say_why(net, batches):
    _, report = oc.compress(net, target=oc.Target(min_snr=100), samples=batches)
    assert report.worse and "not worth it" in report.failures[0]
    assert set(report.curves) >= {"first", "second", "wide"}


@pytest.mark.parametrize("target", [{"macs": 0.001}, {"ratio": 500}, {"ratio": 1.2, "macs": 0.01}])
def test_an_impossible_target_names_what_can_be_reached(net, batches, target):
    with pytest.raises(oc.BudgetError, match=r"out of reach.* \d"):
        oc.compress(net, target=oc.Target(**target), samples=batches)


def test_without_samples_fidelity_cannot_be_asked_for(net):
    for target in (*(oc.Target(min_snr=snr) for snr in (20, 0)), oc.Target(max_drop=0)):
        with pytest.raises(oc.TargetError, match=r"samples=|evaluation="):
            oc.compress(net, target=target)


def test_every_layer_is_in_the_report(net, batches):
    _, report = oc.compress(
        net, target=oc.Target(macs=0.9), samples=batches, only=lambda name: name != "wide"
    )
    assert [row.layer for row in report.rows] == ["stem", "first", "second", "head"]
    assert report.skipped == {"wide": "it was left out on request"}
    assert all(row.method or row.note for row in report.rows)


def test_the_same_bytes_come_out_whatever_the_threads_and_what_ran_before(net, batches):
    def run(jobs):
        target = oc.Target(macs=0.5)
        model, _ = oc.compress(net, target=target, samples=batches, jobs=jobs)
        return model.proto.SerializeToString(deterministic=True)

    first = run(1)
    oc.compress(network(np.random.default_rng(9)), target=oc.Target(macs=0.7), samples=batches)
    assert run(2) == first


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_models_of_other_floats_are_compressed_in_their_own_type(net, batches, kind):
    narrow = net.copy()
    wanted = getattr(onnx.TensorProto, kind)
    for tensor in narrow.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(wanted)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(dtype), tensor.name))
    for value in (*narrow.graph.input, *narrow.graph.output):
        value.type.tensor_type.elem_type = wanted
    narrow.proto.opset_import[0].version = 22  # the first with bfloat16 convolutions
    narrow = oc.Model(narrow.proto)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(wanted)
    samples = [{"x": batch["x"].astype(dtype)} for batch in batches]
    model, report = oc.compress(narrow, target=oc.Target(macs=0.6), samples=samples)
    assert not report.failures
    kinds = {t.data_type for t in model.graph.initializer}
    assert kinds & {1, 10, 11, 16} == {wanted}
    assert report.comparison.worst_snr > 10


def test_metadata_is_in_the_result_and_counted(net, batches):
    target = oc.Target(ratio=1.3)
    model, _ = oc.compress(net, target=target, samples=batches, metadata={"k": "v" * 500})
    entries = {entry.key: entry.value for entry in model.proto.metadata_props}
    assert entries["k"] == "v" * 500 and json.loads(entries["onnxcompress.config"])["target"]
    assert net.nbytes / model.nbytes >= 1.3
    [point] = oc.trade_off(net, [target], samples=batches, metadata=lambda target: {"k": "v" * 500})
    assert point.ratio == net.nbytes / model.nbytes


# --------------------------------------------------------------------------------- the metrics


def test_fidelity_sums_over_batches(rng):
    a = rng.normal(size=(20, 5))
    b = a + 0.1 * rng.normal(size=a.shape)
    fidelity = Fidelity({"y": Decision("classes")})
    for i in range(0, 20, 5):
        fidelity.add(["y"], [a[i : i + 5]], [b[i : i + 5]])
    assert fidelity.snr["y"] == pytest.approx(decibel(np.sum(a**2), np.sum((a - b) ** 2)))
    assert fidelity.agreement == np.mean(a.argmax(1) == b.argmax(1))


def test_probabilities_are_compared_as_logarithms():
    a, b = np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]])
    fidelity = Fidelity()
    fidelity.add(["y"], [a], [b])
    assert fidelity.noise["y"] == pytest.approx(np.sum(np.square(np.log(a) - np.log(b))))


def test_outputs_that_are_not_finite_are_noticed():
    fidelity = Fidelity()
    fidelity.add(["y"], [np.ones((2, 3))], [np.array([[1, np.nan, 1]] * 2)])
    assert not fidelity.finite and fidelity.loss == np.inf


def test_class_scores_are_told_from_other_outputs():
    assert has_class_scores(np.zeros((4, 10))) and has_class_scores(np.zeros((4, 10, 1, 1)))
    assert not has_class_scores(np.zeros((4, 1))) and not has_class_scores(np.zeros((4, 3, 8, 8)))


def test_metrics_measure_what_they_say(rng):
    scores = rng.normal(size=(50, 8))
    labels = rng.integers(0, 8, 50)
    assert np.mean(find_metric("top1")(scores, labels)) == 100 * np.mean(scores.argmax(1) == labels)
    assert np.all(find_metric("top5")(scores, scores.argmax(1)) == 100)
    image = rng.uniform(size=(2, 1, 4, 4))
    assert find_metric("psnr")(image, np.clip(image, 0, 1) + 0.1) == pytest.approx(20)
    with pytest.raises(MetricError, match="top1, top5, psnr"):
        find_metric("topp")


# ------------------------------------------------------------------------- what is out of the way


def test_a_layer_that_cannot_be_rewritten_is_reported_and_the_others_go_on(
    net, batches, monkeypatch
):
    emit = BasisWeight.emit

    def broken(self, op, x, layer):
        if layer.name == "first":
            raise RuntimeError("no luck")
        return emit(self, op, x, layer)

    monkeypatch.setattr(BasisWeight, "emit", broken)
    _, report = oc.compress(net, target=oc.Target(macs=0.5), samples=batches)
    rows = {row.layer: row for row in report.rows}
    assert "no luck" in report.skipped["first"]
    assert not rows["first"].method and any(row.method for row in report.rows)
    assert report.comparison.after.macs < report.comparison.before.macs


@pytest.mark.parametrize("level", [0, 0.001, 7])
@pytest.mark.parametrize("seed", [4, 9])
def test_samples_that_never_vary_do_no_harm(level, seed):
    net = network(np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    same = [{"x": np.full((64, 3, 12, 12), level, np.float32)}]
    real = from_batches([{"x": rng.normal(size=(64, 3, 12, 12)).astype(np.float32)}])
    snrs = []
    for samples in (same, None):
        small, _ = oc.compress(net, methods=[oc.Integer(4)], samples=samples)
        snrs.append(Validation(net, real).fidelity(small).snr["y"])
    assert snrs[0] > snrs[1] - 1  # Only the gains may differ.


def test_a_ratio_far_out_of_reach_is_refused_before_anything_is_fitted(net, monkeypatch):
    monkeypatch.setattr(candidates, "find_candidates", None)
    with pytest.raises(oc.BudgetError, match=r"1000 is out of reach; the most .* is [1-9]\d?\."):
        oc.compress(net, target=oc.Target(ratio=1000))


def test_copies_of_one_sample_fit_as_none_and_are_said_to():
    net = perceptron(np.random.default_rng(0), (32, 64, 10))
    same = np.repeat(np.random.default_rng(1).normal(size=(1, 32)).astype(np.float32), 64, 0)
    one, report = oc.compress(net, methods=[oc.Integer(4)], samples=same)
    none, _ = oc.compress(net, methods=[oc.Integer(4)])
    assert one.graph == none.graph
    assert report.comparison.samples == 1
    assert "63 of 64 samples repeat others: only 1 is different" in report.warnings
    assert "no two samples differ, so the fits use none but the weights alone" in report.warnings


def test_copies_are_left_out_of_the_fit_and_of_what_it_is_judged_by():
    net = perceptron(np.random.default_rng(0), (32, 64, 10))
    x = np.random.default_rng(1).normal(size=(40, 32)).astype(np.float32)
    many, report = oc.compress(net, methods=[oc.Integer(4)], samples=np.repeat(x, 3, 0))
    once, _ = oc.compress(net, methods=[oc.Integer(4)], samples=x)
    assert many.graph == once.graph
    assert report.comparison.samples == 16


@pytest.mark.parametrize("seed", [0, 1])
def test_an_input_that_never_varies_takes_no_bytes_from_others(seed):
    rng = np.random.default_rng(seed)
    net = perceptron(rng, (32, 64, 64, 10), side=128)
    constant = np.tile(rng.normal(size=128), (16, 1)).astype(np.float32)
    batches = [{"x": rng.normal(size=(16, 32)).astype(np.float32), "t": constant} for _ in range(4)]
    _, report = oc.compress(net, methods="integer", target=oc.Target(ratio=4.8), samples=batches)
    assert report.comparison.worst_snr > 30
    assert abs(report.predicted - report.comparison.worst_snr) < 6


@pytest.mark.parametrize("target", [{"ratio": 1}, {"macs": 1}])
def test_a_target_that_asks_for_nothing_changes_nothing(net, batches, target):
    model, report = oc.compress(net, target=oc.Target(**target), samples=batches)
    assert report.comparison.worst_snr == 200
    assert model.proto.graph == net.proto.graph


def test_a_method_that_needs_a_newer_opset_is_refused_in_one_line(net, batches, monkeypatch):
    monkeypatch.setattr(oc.Basis, "opset", 99)
    with pytest.raises(oc.BudgetError, match=r"basis needs opset 99, and the model has \d+"):
        oc.compress(net, target=oc.Target(macs=0.6), samples=batches)


def test_agreement_is_refused_at_once_where_there_are_no_class_scores(batches):
    values = [onnx.helper.make_tensor_value_info(n, 1, ["n", 3, 8, 8]) for n in "xy"]
    weight = onnx.numpy_helper.from_array(np.ones((3, 3, 3, 3), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "only", pads=[1] * 4)
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = oc.Model(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset))
    samples = [{"x": np.ones((2, 3, 8, 8), np.float32)}] * 4
    with pytest.raises(oc.TargetError, match="no class scores"):
        oc.compress(model, target=oc.Target(min_agreement=0.9), samples=samples)


def test_a_model_without_layers_to_compress_is_a_miss_that_says_so(net, batches):
    for target in (oc.Target(ratio=2), oc.Target(min_snr=20), None):
        with pytest.raises(oc.BudgetError, match="no layer can be compressed"):
            oc.compress(net, target=target, samples=batches, only=lambda name: False)


def test_a_result_that_onnxruntime_refuses_is_reported_as_worse(net, batches, monkeypatch):
    def refuse(model):
        raise oc.ModelError("it does not load")

    monkeypatch.setattr("onnxcompress.compression.judge.verify", refuse)
    _, report = oc.compress(net, target=oc.Target(macs=0.6), samples=batches)
    assert report.worse and report.comparison is None
    assert report.failures == ("the result is no valid model: it does not load",)


def test_the_given_input_shapes_decide_the_multiplications(net, batches):
    free = net.copy()
    for axis in (2, 3):
        free.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    target, macs = oc.Target(macs=0.6), []
    for shapes in ({"x": [1, 3, 12, 12]}, {"x": [1, 3, 24, 24]}):
        _, report = oc.compress(free, target=target, samples=batches, shapes=shapes)
        macs.append(report.comparison.before.macs)
    assert 3 * macs[0] < macs[1]


def test_the_predicted_snr_is_known_before_the_fit_and_noise_is_called_noise(
    net, batches, monkeypatch
):
    said = []

    def track(items, what, total):
        said.append(what)
        return items

    def run(ratio):
        target, methods = oc.Target(ratio=ratio), [oc.Integer()]
        return oc.compress(net, methods=methods, target=target, samples=batches, progress=track)[1]

    fine, rough = run(3), run(6)
    assert fine.predicted > rough.predicted
    assert f"refitting ({fine.predicted:.1f} dB expected)" in said
    assert not [w for w in fine.warnings if "noise" in w]
    monkeypatch.setattr("onnxcompress.compression.judge.NOISE", rough.predicted + 0.1)
    assert [w for w in run(6).warnings if "noise" in w]


@pytest.mark.parametrize("kind", ["path", "proto", "bytes"])
def test_a_model_is_taken_as_people_have_it(net, tmp_path, kind):
    path = tmp_path / "net.onnx"
    oc.save(net, path)
    proto = onnx.load(path)
    model = {"path": str(path), "proto": proto, "bytes": proto.SerializeToString()}[kind]
    result, report = oc.compress(model, methods=["integer:bits=8"])
    assert report.comparison.ratio > 3 and result.nbytes < net.nbytes / 3


def test_what_is_no_model_and_no_method_is_refused_in_one_line(net):
    with pytest.raises(oc.ModelError, match="must be a path"):
        oc.compress(3)
    with pytest.raises(oc.OnnxCompressError, match="did you mean 'integer'"):
        oc.compress(net, methods=["integre:bits=4"])


def test_a_generator_that_reuses_its_buffer_gives_different_samples(net, batches):
    def reusing():
        buffer = np.empty_like(batches[0]["x"])
        for batch in batches:
            buffer[:] = batch["x"]
            yield {"x": buffer}

    methods = ["integer:bits=4"]
    _, expected = oc.compress(net, methods=methods, samples=batches)
    _, report = oc.compress(net, methods=methods, samples=reusing())
    assert report.comparison.snr == expected.comparison.snr


def test_settings_that_are_fixed_are_fitted_without_measuring_sensitivities(net, batches):
    said = []

    def track(items, what, total):
        said.append(what)
        return items

    methods = [oc.Integer(bits=4)]
    report = oc.compress(net, methods=methods, samples=batches, progress=track)[1]
    assert said[:2] == ["comparing settings", "refitting"]
    assert not {"fitting", "measuring sensitivity"} & {*said}
    assert all(0 < row.error < 0.1 for row in report.rows)
    assert report.predicted is None and report.trade_off is None


def test_a_result_that_folding_would_undo_says_how_to_keep_it(net, batches):
    _, decoded = oc.compress(net, methods=[oc.Binary(stacks=2)], samples=batches)
    assert any("onnxslim --skip-optimizations" in w for w in decoded.warnings)
    _, factored = oc.compress(net, target=oc.Target(macs=0.6), samples=batches)
    assert not any("onnxslim" in w for w in factored.warnings)


# ------------------------------------------------------------------------- all methods, all targets


@pytest.mark.parametrize("ratio", [2, 3.5])
def test_auto_meets_a_ratio_of_the_file(net, batches, ratio):
    model, report = oc.compress(net, target=oc.Target(ratio=ratio), samples=batches)
    assert not report.failures
    assert ratio <= net.nbytes / model.nbytes < 1.2 * ratio  # five layers have few steps


@pytest.mark.usefixtures("unrecorded")
def test_auto_is_no_worse_than_each_of_its_methods(net, batches):
    target = oc.Target(ratio=3.5)
    reached = {
        name: oc.compress(net, methods=methods, target=target, samples=batches)[1]
        for name, methods in {
            "auto": None,
            "integer": [oc.Integer()],
            "codebook": [oc.Codebook()],
        }.items()
    }
    snr = {name: report.comparison.worst_snr for name, report in reached.items()}
    assert snr["auto"] > max(snr.values()) - 0.2


@pytest.mark.parametrize("target", [oc.Target(min_snr=25), oc.Target(min_snr=40)])
def test_a_fidelity_target_costs_no_more_than_by_a_single_method(net, batches, target):
    sizes = {
        title: oc.compress(net, methods=methods, target=target, samples=batches)[0].nbytes
        for title, methods in {
            "auto": None,
            "integer": parse("integer"),
            "codebook": parse("codebook"),
        }.items()
    }
    assert sizes["auto"] <= min(sizes.values()) / bisect.LESS


def test_a_single_method_is_taken_where_it_turns_out_better_than_the_mix(net, batches, monkeypatch):
    def misjudged(job, observed, found):
        for name, known in found.items():
            coarse = [c for c in known if name == "wide" and str(c.setting) == "integer:bits=2"]
            others = [c for c in known if not isinstance(c.setting, oc.Integer)]
            yield name, [replace(c, error=1e-6 * c.error) for c in coarse] + others

    monkeypatch.setattr(candidates, "by_numbers", lambda job, targets: False)  # fit all
    monkeypatch.setattr(candidates, "_judged", misjudged)
    found = {}
    for close in (0.0, np.inf):
        monkeypatch.setattr(bisect, "CLOSE", close)
        _, report = oc.compress(net, target=oc.Target(ratio=3.5), samples=batches)
        found[close] = {row.method.partition(":")[0] for row in report.rows}, report.comparison
    assert "integer" in found[0.0][0]
    assert found[np.inf][0] <= {"codebook", ""}
    assert found[np.inf][1].worst_snr > found[0.0][1].worst_snr + 1


def test_a_layer_that_cannot_stay_as_it_was_is_not_left_out():
    curves = SimpleNamespace(without=lambda name: SimpleNamespace(options={name: []}))
    assert best._without(SimpleNamespace(job=None), curves, "in int8", None) is None


def test_a_slower_model_fails_where_speed_was_asked_and_is_a_warning_elsewhere(
    net, batches, monkeypatch
):
    slow = Latency(before=1, after=1.2, ratio=1.2, low=1.1, high=1.3)
    monkeypatch.setattr("onnxcompress.compression.validate.validation.latency", lambda *_: slow)
    report = oc.compress(net, target=oc.Target(macs=0.5), samples=batches)[1]
    assert report.failures == ("it is slower: 1.20 of the original's time",)
    report = oc.compress(net, target=oc.Target(ratio=1.5), samples=batches)[1]
    assert not report.failures and "it takes 1.20 of the original's time" in report.warnings


def test_a_verdict_on_speed_needs_an_effect_above_the_spread():
    ratios = {(0.7, 0.9): "faster", (1.05, 1.2): "slower", (0.9, 1.1): "inconclusive"}
    for (low, high), verdict in ratios.items():
        assert Latency(1, 1, (low + high) / 2, low, high).verdict == verdict


@pytest.fixture
def clock(monkeypatch):
    """One by which a model saves 60 % of what its layers save alone."""

    def by(fixed, kept):
        def spent(model, other, sample, *_):
            before, after = (sum(input_shapes(m, sample)[1].values()) for m in (model, other))
            took = before - kept * (before - after) + fixed * before
            ratio = took / (before * (1 + fixed))
            return Latency(before * (1 + fixed), took, ratio, ratio, ratio)

        return spent

    monkeypatch.setattr("onnxcompress.compression.measure.timing.latency", by(0, 1))
    for module in ("search.size_limit", "validate.validation"):
        monkeypatch.setattr(f"onnxcompress.compression.{module}.latency", by(1, 0.6))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("share", [1.0, 0.9, 0.8, 0.72])
def test_a_share_of_the_time_that_the_cheapest_settings_reach_is_not_refused(net, batches, share):
    _, report = oc.compress(net, target=oc.Target(latency=share), samples=batches)
    assert not report.failures and report.comparison.latency.ratio <= share
    with pytest.raises(oc.BudgetError, match=r"least that was measured is 0\.[67]"):
        oc.compress(net, target=oc.Target(latency=0.5), samples=batches)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("others", [{"ratio": 2.5}, {"ratio": 5}, {"macs": 0.7}, {"macs": 0.4}])
def test_a_share_of_the_time_goes_with_another_size_target(net, batches, others):
    methods = [method for spec in ("basis+integer:bits=8", "integer") for method in parse(spec)]
    target = oc.Target(latency=0.8, **others)
    _, report = oc.compress(net, target=target, methods=methods, samples=batches)
    after, before = report.comparison.after, report.comparison.before
    assert not report.failures and report.comparison.latency.ratio <= 0.8
    assert after.nbytes * others.get("ratio", 1) <= before.nbytes
    assert after.macs <= others.get("macs", 1) * before.macs


def test_a_ratio_that_so_few_multiplications_do_not_allow_is_named_with_one_that_they_do(
    net, batches
):
    methods = parse("basis+integer:bits=8")

    def compressed(ratio):
        target = oc.Target(ratio=ratio, macs=0.5)
        return oc.compress(net, target=target, methods=methods, samples=batches)[0]

    with pytest.raises(oc.BudgetError, match="so few multiplications") as refusal:
        compressed(500)
    attainable = float(str(refusal.value).split()[-1])
    assert compressed(0.95 * attainable).nbytes <= net.nbytes / (0.95 * attainable)
    with pytest.raises(oc.BudgetError, match="so few multiplications"):
        compressed(1.2 * attainable)


@pytest.mark.usefixtures("clock")
def test_a_share_of_the_time_that_a_file_so_small_does_not_allow_is_refused(net, batches):
    with pytest.raises(oc.BudgetError, match=r"0.5 of the time .* in a file 2 times smaller"):
        target = oc.Target(latency=0.5, ratio=2)
        oc.compress(net, target=target, methods=parse("basis+integer:bits=8"), samples=batches)


def test_a_latency_target_is_met_by_measurement_or_refused(batches):
    wide = network(np.random.default_rng(1), size=48)
    samples = [{"x": b["x"].repeat(4, 2).repeat(4, 3)} for b in batches[:4]]
    try:
        _, report = oc.compress(wide, target=oc.Target(latency=0.9), samples=samples)
    except oc.BudgetError as error:
        assert "of the time is out of reach" in str(error)
    else:
        late = any("of the time instead of 0.9" in why for why in report.failures)
        assert late == (report.comparison.latency.low > 0.9)


@pytest.mark.parametrize("least", [0.3, -np.inf])
def test_the_trade_off_shows_what_compress_gives(least, net, batches, tmp_path, monkeypatch):
    monkeypatch.setattr(blame, "HURTS", least)  # of every layer, where it is infinite
    monkeypatch.setattr(best, "FALLS_BACK", least)
    targets = [oc.Target(ratio=ratio) for ratio in (2, 3.5, 500)]
    points = list(oc.trade_off(net, targets, samples=batches, cache=tmp_path))
    with pytest.raises(oc.BudgetError) as error:
        oc.compress(net, target=targets.pop(), samples=batches, cache=tmp_path)
    assert points.pop() == oc.Point("500 times smaller file", failures=(str(error.value),))
    for target, point in zip(targets, points, strict=True):
        model, report = oc.compress(net, target=target, samples=batches, cache=tmp_path)
        assert point.ratio == net.nbytes / model.nbytes
        assert point.snr == report.comparison.worst_snr
        assert point.agreement == report.comparison.agreement
        assert point.macs == report.comparison.after.macs


def test_a_point_of_a_trade_off_says_why_compress_would_refuse_it(net, batches, monkeypatch):
    slow = Latency(before=1, after=1.2, ratio=1.2, low=1.1, high=1.3)
    monkeypatch.setattr("onnxcompress.compression.validate.validation.latency", lambda *_: slow)
    targets = [oc.Target(ratio=1.5), oc.Target(macs=0.9)]
    small, fast = oc.trade_off(net, targets, methods=[oc.Basis()], samples=batches)
    assert small.failures == ()
    assert fast.failures == ("it is slower: 1.20 of the original's time",)


def test_targets_that_need_different_methods_share_no_trade_off_by_default(net, batches):
    targets = [oc.Target(ratio=1.5), oc.Target(macs=0.9)]
    with pytest.raises(oc.TargetError, match="methods of their own"):
        next(oc.trade_off(net, targets, samples=batches))


def test_a_cache_changes_no_byte(net, batches, tmp_path):
    results = [
        oc.compress(net, target=oc.Target(ratio=3), samples=batches, cache=cache)[0]
        for cache in (None, tmp_path, tmp_path)
    ]
    assert len({model.proto.SerializeToString(deterministic=True) for model in results}) == 1


def test_a_cache_is_of_the_samples_that_errors_are_judged_on_too(net, tmp_path, monkeypatch):
    fitted, find = [], candidates.find_candidates
    monkeypatch.setattr(
        candidates, "find_candidates", lambda *given: fitted.append(given) or find(*given)
    )
    pixels = np.random.default_rng(0).normal(size=(48, 3, 12, 12)).astype(np.float32)

    def samples():
        whole = pixels.copy()
        return Samples(lambda rows: {"x": whole[rows]}, np.arange(48), batch=16)

    def run():
        oc.compress(net, target=oc.Target(ratio=2), samples=samples(), cache=tmp_path)

    run()
    run()
    assert len(fitted) == 1
    [*_, held_out] = samples().split()[1].index
    pixels[held_out] += 1
    run()
    assert len(fitted) == 2


def test_a_layer_that_causes_much_of_the_error_is_named(net, batches):
    _, report = oc.compress(
        net, methods=[oc.Integer(bits=2)], samples=batches, only=lambda n: n in ("first", "wide")
    )
    assert any("alone causes" in warning and "skip=[" in warning for warning in report.warnings)


def sharing(rng):
    """m1, m2 and m3 multiply with one weight, m4 with a larger one; and samples."""
    head = "<ir_version: 8, opset_import: ['' : 17]> g (float[n, 64] x) => (float[n, 512] m4)"
    body = "{m1 = MatMul(x, w) m2 = MatMul(m1, w) m3 = MatMul(m2, w) m4 = MatMul(m3, v)}"
    proto = onnx.parser.parse_model(head.replace("'", '"') + body)
    for node in proto.graph.node:
        node.name = node.output[0]
    for name, width in (("w", 64), ("v", 512)):
        weight = (rng.normal(size=(64, width)) / 8).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    batches = [{"x": rng.normal(size=(32, 64)).astype(np.float32)} for _ in range(4)]
    return oc.Model(proto), batches


ALL_THREE = "skip=['m1', 'm2', 'm3']"


def test_a_weight_that_hurts_is_named_with_all_layers_that_share_it(rng):
    model, batches = sharing(rng)
    _, report = oc.compress(
        model,
        methods=lambda layer: [oc.Integer(bits=8 if layer.name == "m4" else 2)],
        samples=batches,
    )
    [warning] = [w for w in report.warnings if "alone causes" in w]
    assert warning.startswith("the weight of m1, m2, m3 alone causes 100%")
    assert f"; {ALL_THREE} leaves it as it is" in warning
    assert report.skips == {"m1": ALL_THREE}


def test_a_weight_that_was_left_as_it_was_is_named_with_all_layers_that_share_it(rng, monkeypatch):
    def misjudged(job, observed, found):
        for name, known in found.items():
            coarse = [replace(c, error=1e-6 * c.error) for c in known[:1]]
            yield name, known if name == "m4" else coarse

    monkeypatch.setattr(candidates, "by_numbers", lambda job, targets: False)  # fit all
    monkeypatch.setattr(candidates, "_judged", misjudged)
    model, batches = sharing(rng)
    _, report = oc.compress(
        model, methods=[oc.Integer()], target=oc.Target(ratio=3), samples=batches
    )
    assert report.skipped.keys() == {"m1", "m2", "m3"}
    [reason] = {*report.skipped.values()}
    assert reason.startswith("it caused ") and ALL_THREE in reason
    assert {row.layer: row.note for row in report.rows} == {**report.skipped, "m4": ""}


@pytest.mark.parametrize("bits", [8, 7, 4])
def test_layers_behind_a_table_that_is_looked_up_as_codes_are_fitted_in_network_order(bits, rng):
    head = "<ir_version: 8, opset_import: ['' : 17]> g (int64[n, 8] ids) => (float[n, 8, 64] y)"
    body = "{e = Gather(table, ids) h = MatMul(e, first) r = Relu(h) y = MatMul(r, second)}"
    proto = onnx.parser.parse_model(head.replace("'", '"') + body)
    shapes = {"table": (LARGE_TABLE // 64, 64), "first": (64, 64), "second": (64, 64)}
    for name, shape in shapes.items():
        weight = (rng.normal(size=shape) / 8).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    samples = {"ids": rng.integers(0, LARGE_TABLE // 64, (96, 8))}
    small, report = oc.compress(oc.Model(proto), methods=f"integer:bits={bits}", samples=samples)
    assert any(node.op_type == "Gather" and node.output[0] != "e" for node in small.graph.node)
    assert [row.layer for row in report.rows if row.note] == []
    assert report.comparison.snr["y"] > 6 * bits - 10


def test_a_fit_to_loud_samples_does_not_ruin_quiet_ones(rng):
    """A filter bank of mostly zeros on powers that lie far apart, and the logarithm of its bands.

    The mean over all samples is that of the loud ones, which are loud in few inputs; the quiet
    ones are as loud in all.
    """
    bank = np.zeros((64, 16), np.float32)
    for band in range(16):
        bank[4 * band : 4 * band + 4, band] = rng.uniform(0.2, 1, 4)
    first = np.eye(64, dtype=np.float32) + 0.01 * rng.random((64, 64)).astype(np.float32)
    head = "<ir_version: 8, opset_import: ['' : 17]> g (float[n, 64] x) => (float[n, 16] y)"
    body = "{h = MatMul(x, first) p = MatMul(h, bank) c = Clip(p, low) y = Log(c)}"
    proto = onnx.parser.parse_model(head.replace("'", '"') + body)
    for name, value in {"first": first, "bank": bank, "low": np.array(1e-6, np.float32)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model = oc.Model(proto)
    quiet = rng.uniform(0.5, 1, (64, 64))
    loud = rng.uniform(0.5, 1, (64, 64)) * 10 ** np.linspace(6, 0, 64)
    samples = np.stack([quiet, loud], 1).reshape(-1, 64).astype(np.float32)
    fitted, _ = oc.compress(
        model, methods="integer:bits=6", samples=samples[:96], correct=False, force=True
    )
    plain, _ = oc.compress(model, methods="integer:bits=6", force=True)
    truth, ours, theirs = (
        Session(each).run({"x": samples[96:]})[0] for each in (model, fitted, plain)
    )
    assert np.square(ours - truth).sum() < 1.2 * np.square(theirs - truth).sum()


# ------------------------------------------------------------------------------- a refinement


CURVE = [Epoch(0, float("nan"), 1.0, 30.0), Epoch(1, 0.5, 0.25, 60.0)]


def test_the_report_is_about_the_refined_model_and_keeps_what_it_was_before(net, batches):
    given = {}

    def undo(small, original, samples, track):
        given.update(small=small, original=original, count=len(samples))
        return original, CURVE

    asked = {"methods": [oc.Basis()], "target": oc.Target(macs=0.5, min_snr=150)}
    small, before = oc.compress(net, samples=batches, **asked)
    result, report = oc.compress(net, samples=batches, refinement=undo, **asked)
    assert before.worse and before.refined is None
    assert given["small"].proto.graph == small.proto.graph and given["count"] == sum(
        len(batch["x"]) for batch in batches
    )
    assert result is given["original"]
    assert report.refined.epochs == tuple(CURVE) and report.refined.best == CURVE[1]
    assert report.refined.snr == before.comparison.snr
    assert report.refined.agreement == before.comparison.agreement
    assert report.comparison.worst_snr == 200
    assert not any("SNR" in failure for failure in report.failures)
    assert report.to_dict()["refined"]["epochs"][1]["held_out"] == 0.25


def test_the_three_models_stand_side_by_side(net, batches):
    _, report = oc.compress(
        net,
        target=oc.Target(macs=0.5),
        samples=batches,
        refinement=lambda small, original, samples, track: (original, CURVE),
    )
    printed = render_report(report, "nothing was written", quiet=False)
    assert ["original", "compressed", "refined"] in [line.split() for line in printed.splitlines()]
    [row] = [line.split() for line in printed.splitlines() if line.startswith("SNR of y, dB")]
    assert row[4:6] == [f"{report.refined.worst_snr:.2f}", "200.00"]
    gain = 200 - report.refined.worst_snr
    assert f"refined: 1 epoch in 1.5 minutes, the best is number 1: SNR {gain:+.2f} dB" in printed


def test_a_refinement_without_samples_is_refused_before_any_work(net):
    with pytest.raises(oc.TargetError, match="give samples="):
        oc.compress(net, target=oc.Target(macs=0.5), refinement=lambda *_: pytest.fail("it ran"))


def test_a_function_gives_layers_methods_of_their_own(net, batches):
    layers, _ = oc.find_layers(net)
    first, second, *_ = layers

    def methods(layer):
        fixed = {first: [oc.Integer(bits=8)], second: []}
        return fixed.get(layer.name, [oc.Codebook(), oc.Integer()])

    _, report = oc.compress(net, methods=methods, target=oc.Target(ratio=1.3), samples=batches)
    used = {row.layer: row.method for row in report.rows}
    assert used[first].startswith("integer:bits=8")
    assert second not in used and report.skipped[second] == "it was left out on request"
    assert report.comparison.ratio >= 1.3
