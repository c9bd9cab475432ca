"""Targets, fits in place, and the whole way on a small network."""

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from models import images, network
from onnxcompress.graph import find_layers, rewrite
from onnxcompress.measuring import calibrate, input_shapes
from onnxcompress.metrics import Fidelity, MetricError, decibel, find_metric, has_class_scores
from onnxcompress.refit import refit
from onnxcompress.runtime import Session


@pytest.fixture(scope="module")
def net():
    return network(np.random.default_rng(1))


@pytest.fixture(scope="module")
def batches():
    return images(np.random.default_rng(2), 192)


def loss(a, b, batches):
    first, second, fidelity = Session(a), Session(b), Fidelity()
    for batch in batches:
        fidelity.add(first.outputs, first.run(batch), second.run(batch))
    return fidelity.loss


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
    model, report = oc.compress(net, target=oc.Target(ratio=ratio), samples=samples)
    assert ratio <= net.nbytes / model.nbytes < 1.1 * ratio
    assert report.comparison.after.nbytes == model.nbytes


def test_two_size_targets_hold_together(net, batches):
    target = oc.Target(ratio=1.3, macs=0.5)
    _, report = oc.compress(net, target=target, samples=batches)
    assert report.comparison.ratio >= 1.3
    assert report.comparison.after.macs <= 0.5 * report.comparison.before.macs


@pytest.mark.parametrize("target", [{"min_snr": 12}, {"min_agreement": 0.8}])
def test_a_fidelity_target_holds_on_held_out_samples(net, batches, target):
    _, report = oc.compress(net, target=oc.Target(**target), samples=batches)
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
    for target in (None, oc.Target(min_snr=20), oc.Target(max_drop=1)):
        with pytest.raises(oc.BudgetError, match=r"--calib|--eval"):
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


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16"])
def test_narrow_models_are_compressed_in_their_own_type(net, batches, kind):
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
    assert {t.data_type for t in model.graph.initializer if t.data_type in (1, 10, 16)} == {wanted}
    assert report.comparison.worst_snr > 10


def test_metadata_is_in_the_result_and_counted(net, batches):
    target = oc.Target(ratio=1.3)
    model, _ = oc.compress(net, target=target, samples=batches, metadata={"k": "v" * 500})
    assert [(e.key, len(e.value)) for e in model.proto.metadata_props] == [("k", 500)]
    assert net.nbytes / model.nbytes >= 1.3


# ----------------------------------------------------------------------------------- the refit


def settings_for(layers, share):
    found = {}
    for name, layer in layers.items():
        ranked = oc.Basis("filter").settings(layer)
        if ranked:
            found[name] = ranked[int(share * (len(ranked) - 1))]
    return found


def test_settings_that_lose_nothing_change_nothing(net, batches):
    layers, _ = find_layers(net)
    ranks = {name: min(layer.grouped.shape[1:]) for name, layer in layers.items()}
    fitted = refit(net, layers, {n: oc.Basis("filter", r) for n, r in ranks.items()}, batches[:4])
    result = rewrite(
        net, {n: f.weight for n, f in fitted.items()}, {n: f.bias for n, f in fitted.items()}
    )
    assert loss(net, result, batches[4:]) < 1e-6
    assert all(f.snr > 50 for f in fitted.values())


def test_fitting_in_network_order_beats_fitting_alone(net, batches):
    layers, _ = find_layers(net)
    settings = settings_for(layers, 0.4)
    statistics = calibrate(net, layers, batches[:8], exact=True)
    alone = {n: s.fit(layers[n], statistics[n]) for n, s in settings.items()}
    fitted = refit(net, layers, settings, batches[:8])
    together = rewrite(
        net, {n: f.weight for n, f in fitted.items()}, {n: f.bias for n, f in fitted.items()}
    )
    assert loss(net, together, batches[8:]) < 0.9 * loss(net, rewrite(net, alone), batches[8:])


def test_every_channel_keeps_its_mean_in_the_compressed_model(net, batches):
    layers, _ = find_layers(net)
    fitted = refit(net, layers, settings_for(layers, 0.4), batches[:8])
    result = rewrite(
        net, {n: f.weight for n, f in fitted.items()}, {n: f.bias for n, f in fitted.items()}
    )
    from onnxcompress.graph import expose

    tensors = ["first.y", "second.y", "wide.y"]
    before, after = (Session(expose(model, tensors)) for model in (net, result))
    for a, b in zip(
        zip(*map(before.run, batches[:8]), strict=True),
        zip(*map(after.run, batches[:8]), strict=True),
        strict=True,
    ):
        means = [np.concatenate(parts).mean((0, 2, 3)) for parts in (a, b)]
        np.testing.assert_allclose(means[1], means[0], atol=2e-3)


# --------------------------------------------------------------------------------- the metrics


def test_fidelity_sums_over_batches(rng):
    a = rng.normal(size=(20, 5))
    b = a + 0.1 * rng.normal(size=a.shape)
    fidelity = Fidelity()
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
