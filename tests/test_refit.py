"""Fits in network order, on what the compressed model really computes."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import images, network
from onnxcompress.compression.build.fitted import Fitted
from onnxcompress.compression.build.refit import refit
from onnxcompress.compression.build.streams import Streams
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, expose, find_layers, rewrite
from onnxcompress.methods.basis import Basis
from onnxcompress.methods.integer import Integer


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


def settings_for(layers, share):
    """For every layer, the filter unfolding at this share of its ranks."""
    settings = {}
    for name, layer in layers.items():
        ranked = Basis("filter").settings(layer)
        if ranked:
            settings[name] = ranked[int(share * (len(ranked) - 1))]
    return settings


def full_rank(layers):
    ranks = {name: min(layer.grouped.shape[1:]) for name, layer in layers.items()}
    return {name: Basis("filter", rank) for name, rank in ranks.items()}


def refitted(model, settings, batches, jobs=1):
    layers, _ = find_layers(model)
    return refit(Streams(model, batches, {}, jobs), layers, settings)


def rewritten(model, fitted):
    biases = {name: f.bias for name, f in fitted.items() if f.bias is not None}
    return rewrite(model, {name: f.weight for name, f in fitted.items()}, biases)


def built(nodes, weights, rng, outputs=("y",), inputs=("x",)):
    """A model with inputs n x 12 x 8 x 8, and two batches of samples."""

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 12, 8, 8])

    tensors = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "net", [*map(value, inputs)], [*map(value, outputs)], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shape = (48, 12, 8, 8)
    samples = [{x: rng.normal(size=shape).astype(np.float32) for x in inputs} for _ in range(2)]
    return Model(proto), samples


def conv(*inputs, y, name):
    return helper.make_node("Conv", inputs, [y], name, pads=[1] * 4)


def random_weight(rng):
    return rng.normal(size=(12, 12, 3, 3)) / np.sqrt(108)


def channel_means(model, tensors, batches):
    outputs = zip(*map(Session(expose(model, tensors)).run, batches), strict=True)
    return [np.concatenate(parts).mean((0, 2, 3)) for parts in outputs]


# ---------------------------------------------------------------------------------------- facts


def test_settings_that_lose_nothing_change_nothing(net, batches):
    fitted = refitted(net, full_rank(find_layers(net)[0]), batches[:4])
    assert loss(net, rewritten(net, fitted), batches[4:]) < 1e-6
    assert all(f.snr > 50 for f in fitted.values())


def test_fitting_in_network_order_beats_fitting_alone(net, batches):
    layers, _ = find_layers(net)
    settings = settings_for(layers, 0.4)
    statistics = calibrate(net, layers, batches[:8], exact=True)
    alone = {n: s.fit(layers[n], statistics[n]) for n, s in settings.items()}
    biases = {
        n: statistics[n].shift(layers[n].weight, w.decode())
        + (0 if layers[n].bias is None else layers[n].bias)
        for n, w in alone.items()
    }
    held_out = batches[8:]
    plain = loss(net, rewrite(net, alone), held_out)
    centred = loss(net, rewrite(net, alone, biases), held_out)
    together = loss(net, rewritten(net, refitted(net, settings, batches[:8])), held_out)
    assert together < 0.9 * centred < 0.9 * plain


def test_every_channel_keeps_its_mean_in_the_compressed_model(net, batches):
    fitted = refitted(net, settings_for(find_layers(net)[0], 0.4), batches[:8])
    tensors = ["stem.y", "first.y", "second.y", "wide.y"]
    before = channel_means(net, tensors, batches[:8])
    after = channel_means(rewritten(net, fitted), tensors, batches[:8])
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_the_snr_is_that_of_the_layers_outputs_in_the_compressed_model(net, batches):
    """Variance of the output over that of its error, which has no mean: the bias keeps it."""
    fitted = refitted(net, settings_for(find_layers(net)[0], 0.4), batches[:8])
    names = [name for name in fitted if name != "head"]  # the other outputs are tensors inside
    exposed = [f"{name}.y" for name in names]
    models = net, rewritten(net, fitted)
    outputs = [zip(*map(Session(expose(m, exposed)).run, batches[:8]), strict=True) for m in models]
    for name, a, b in zip(names, *outputs, strict=True):
        before, after = (np.concatenate(parts).astype(np.float64) for parts in (a, b))
        noise = (before - after).var((0, 2, 3)).sum()
        measured = 10 * np.log10(before.var((0, 2, 3)).sum() / noise)
        assert fitted[name].snr == pytest.approx(measured, abs=0.02)


def test_threads_do_not_change_a_bit(net, batches):
    settings = settings_for(find_layers(net)[0], 0.4)
    one, two = (refitted(net, settings, batches[:4], jobs=jobs) for jobs in (1, 2))
    for name in settings:
        assert one[name].bias.tobytes() == two[name].bias.tobytes()
        for a, b in zip(one[name].weight.arrays(), two[name].weight.arrays(), strict=True):
            assert a.tobytes() == b.tobytes()


# --------------------------------------------------------------------------- shapes of networks


def test_a_wide_layer_in_blocks_and_decoded_in_every_run_gives_the_same(net, batches, monkeypatch):
    layers, _ = find_layers(net)
    settings = settings_for(layers, 0.5) | {next(iter(layers)): Integer(bits=4)}
    folded = refitted(net, settings, batches)
    monkeypatch.setattr("onnxcompress.compression.build.refit.WIDE", 1)
    for name, fitted in refitted(net, settings, batches).items():
        assert fitted.snr == pytest.approx(folded[name].snr, rel=1e-3)
        size = float(np.abs(folded[name].bias).max())
        assert fitted.bias == pytest.approx(folded[name].bias, abs=1e-3 * size)


def test_a_shared_weight_is_fitted_once_and_each_layer_has_its_own_bias(rng):
    nodes = [
        conv("x", "w", "b1", y="h", name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        conv("r", "w", "b2", y="y", name="second"),
    ]
    weights = {"w": random_weight(rng), "b1": rng.normal(size=12), "b2": rng.normal(size=12)}
    model, samples = built(nodes, weights, rng)
    fitted = refitted(model, dict.fromkeys(["first", "second"], Basis("filter", 6)), samples)
    assert fitted["first"].weight is fitted["second"].weight
    assert not np.allclose(fitted["first"].bias, fitted["second"].bias)
    result = rewritten(model, fitted)
    assert len([t for t in result.graph.initializer if len(t.dims) > 1]) == 2
    before, after = (channel_means(m, ["h", "y"], samples) for m in (model, result))
    np.testing.assert_allclose(after, before, atol=2e-3)


def test_a_bias_that_the_model_computes_stays_computed(rng):
    nodes = [
        helper.make_node("Neg", ["b"], ["computed"]),
        conv("x", "w", "computed", y="y", name="layer"),
    ]
    model, samples = built(nodes, {"w": random_weight(rng), "b": rng.normal(size=12)}, rng)
    fitted = refitted(model, {"layer": Basis("filter", 12)}, samples)
    assert fitted["layer"].bias is None
    assert loss(model, rewritten(model, fitted), samples) < 1e-6


@pytest.mark.parametrize(
    ("setting", "times"),
    [(Integer(bits=3), 1.4), (Basis("filter", 6), 8)],  # blind roundings cancel in a filter's sum
)
def test_the_mean_of_the_inputs_counts_where_no_bias_can_absorb_it(rng, setting, times):
    nodes = [
        helper.make_node("Neg", ["b"], ["computed"]),
        conv("x", "w", "computed", y="y", name="layer"),
    ]
    model, samples = built(nodes, {"w": random_weight(rng), "b": rng.normal(size=12)}, rng)
    samples = [{"x": batch["x"] + 3} for batch in samples]
    fitted = refitted(model, {"layer": setting}, samples)
    layer = find_layers(model)[0]["layer"]
    blind = {"layer": Fitted(setting.fit(layer, Statistics.white(layer)))}
    error, alone = (loss(model, rewritten(model, f), samples) for f in (fitted, blind))
    assert error < alone / times


BRANCHES = {
    "two streams are added": [
        conv("x", "w1", y="a", name="one"),
        conv("x", "w2", y="b", name="two"),
        helper.make_node("Add", ["a", "b"], ["s"]),
        conv("s", "w3", y="y", name="three"),
    ],
    "an early tensor is read late": [
        conv("x", "w1", y="a", name="one"),
        helper.make_node("Relu", ["a"], ["r"]),
        conv("r", "w2", y="b", name="two"),
        conv("b", "w3", y="c", name="three"),
        helper.make_node("Add", ["c", "r"], ["d"]),
        helper.make_node("Sub", ["d", "x"], ["y"]),
    ],
    "one tensor is read twice": [
        conv("x", "w1", y="a", name="one"),
        conv("a", "w2", y="b", name="two"),
        conv("a", "w3", y="c", name="three"),
        helper.make_node("Mul", ["b", "c"], ["y"]),
    ],
}


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("chosen", [["one", "two", "three"], ["two"], ["three"], ["one"]])
def test_networks_with_branches_keep_their_outputs_at_full_rank(rng, branches, chosen):
    weights = {f"w{i}": random_weight(rng) for i in (1, 2, 3)}
    model, samples = built(BRANCHES[branches], weights, rng)
    fitted = refitted(model, dict.fromkeys(chosen, Basis("filter", 12)), samples)
    assert list(fitted) == [name for name in ("one", "two", "three") if name in chosen]
    assert loss(model, rewritten(model, fitted), samples) < 1e-5


def test_two_inputs_and_sparse_initializers_reach_the_layers_that_read_them(rng):
    nodes = [
        conv("x", "w1", y="a", name="one"),
        helper.make_node("Add", ["a", "sparse"], ["s"]),
        helper.make_node("Add", ["s", "z"], ["t"]),
        conv("t", "w2", y="y", name="two"),
    ]
    weights = {f"w{i}": random_weight(rng) for i in (1, 2)}
    model, samples = built(nodes, weights, rng, inputs=("x", "z"))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([2, 3]), "sparse"),
        numpy_helper.from_array(np.int64([1, 2]), "sparse_indices"),
        [8],
    )
    model.proto.graph.sparse_initializer.append(sparse)
    fitted = refitted(model, dict.fromkeys(["one", "two"], Basis("filter", 12)), samples)
    assert loss(model, rewritten(model, fitted), samples) < 1e-6


def selecting(rng):
    """A second layer that reads only the rows whose sum behind the first one is positive."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("ReduceSum", ["h", "one"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["chosen"]),
        helper.make_node("Compress", ["h", "chosen"], ["rows"], axis=0),
        helper.make_node("MatMul", ["rows", "v"], ["y"], "second"),
    ]
    weights = {
        "w": rng.normal(size=(32, 16)).astype(np.float32),
        "v": rng.normal(size=(16, 24)).astype(np.float32),
        "one": np.array([1]),
        "zero": np.float32(0),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 32]), ("y", ["k", 24]))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=8)), weights


def test_behind_a_selection_that_takes_other_rows_the_originals_count(rng):
    model, _ = selecting(rng)
    batches = [{"x": rng.normal(size=(64, 32)).astype(np.float32)} for _ in range(4)]
    layers, _ = find_layers(model)
    result = refitted(model, {name: Integer(bits=2) for name in layers}, batches)
    lengths = [
        len(Session(m).run(b)[0]) for b in batches for m in (model, rewritten(model, result))
    ]
    assert lengths[::2] != lengths[1::2]
    assert all(np.isfinite(fitted.bias).all() for fitted in result.values())


def test_a_layer_that_no_sample_reaches_is_rounded_as_its_weights_are(rng):
    model, weights = selecting(rng)
    batches = [{"x": rng.normal(size=(64, 32)).astype(np.float32)} for _ in range(4)]
    for batch in batches:  # to the other side, where nothing is chosen
        sums = (batch["x"] @ weights["w"]).sum(1, keepdims=True)
        batch["x"] *= -np.sign(sums)
    layers, _ = find_layers(model)
    with np.errstate(all="raise"):
        result = refitted(model, {name: Integer(bits=8) for name in layers}, batches)
    assert not result["second"].bias.any()
    decoded = result["second"].weight.decode()
    np.testing.assert_allclose(decoded, weights["v"].T, atol=0.02)


def test_with_stand_ins_no_deviation_is_matched_where_the_error_is_faint(net, batches):
    layers, _ = find_layers(net)
    settings = {name: Integer(8) for name in layers}
    streams = [Streams(net, batches, {}, 1) for _ in range(2)]
    real = refit(streams[0], layers, settings)
    doubted = refit(streams[1], layers, settings, doubt=0.006, guessed=True)
    assert all(f.plain is not None for f in real.values())
    assert all(f.plain is None for f in doubted.values())


def test_with_stand_ins_deviations_are_matched_where_the_error_is_large(net, batches):
    layers, _ = find_layers(net)
    settings = settings_for(layers, 0.3)
    fitted = refit(Streams(net, batches, {}, 1), layers, settings, doubt=0.006, guessed=True)
    assert any(f.plain is not None for f in fitted.values())
