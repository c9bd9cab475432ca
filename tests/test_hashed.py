"""The hash inside the graph, the allocation of values to bands, and the least squares."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from models import layer_model
from onnxcompress.core.layer import Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, expose, find_layers, rewrite
from onnxcompress.methods.hashed import Hashed, HashedWeight
from onnxcompress.methods.hashed_forms.tile import EXACT, split_bands


@pytest.fixture
def layer(rng):
    """A smooth layer, whose energy is in the low frequencies."""
    weight = rng.normal(size=(32, 16, 5, 5))
    smooth = np.cumsum(np.cumsum(weight, axis=2), axis=3).astype(np.float32)
    return Layer("smooth", "Conv", smooth, None, {"group": 1})


def inputs(rng, fan_in, count=4000):
    mix = rng.normal(size=(fan_in, fan_in)) / fan_in**0.5 + np.eye(fan_in)
    return (rng.normal(size=(1, count, fan_in)) @ mix).astype(np.float32)


def hashed(rng, kind="conv", **given) -> tuple[onnx.ModelProto, dict, HashedWeight]:
    model, sample = layer_model(kind, rng)
    found = find_layers(model)[0]["layer"]
    [setting] = Hashed(**{"share": 2, "allocation": "uniform", **given}).settings(found)
    fitted = setting.fit(found, Statistics.white(found))
    emitted = rewrite(model, {"layer": fitted})
    gathered = [n for n in emitted.graph.node if n.op_type == "Gather"]
    return expose(emitted, [gathered[0].input[1]]).proto, sample, fitted


@pytest.mark.parametrize("kind", ["conv", "conv 1-D", "conv 3-D", "gemm"])
def test_every_evaluator_computes_the_same_indices_bit_for_bit(kind, rng):
    proto, sample, fitted = hashed(rng, kind)
    expected = fitted.tile.indices(split_bands(fitted.tile, fitted.buckets)[2])
    levels = ort.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_BASIC, levels.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(proto.SerializeToString(), options)
        np.testing.assert_array_equal(session.run(None, sample)[-1], expected)
    [*_, found] = ReferenceEvaluator(proto).run(None, sample)
    np.testing.assert_array_equal(found, expected)


def test_openvino_computes_the_same_indices_bit_for_bit(rng):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    proto, sample, fitted = hashed(rng)
    expected = fitted.tile.indices(split_bands(fitted.tile, fitted.buckets)[2])
    model = openvino.Core().read_model(proto.SerializeToString(), b"")
    compiled = openvino.Core().compile_model(model, "CPU")
    np.testing.assert_array_equal([*compiled(sample).values()][-1], expected)


def test_buckets_and_signs_are_used_about_evenly():
    weight = np.zeros((64, 64, 3, 3), np.float32)
    layer = Layer("wide", "Conv", weight, None, {"group": 1})
    [setting] = Hashed(share=8, allocation="uniform").settings(layer)
    tile = setting.fit(layer, Statistics.white(layer)).tile
    found = tile.indices(np.array([[1000], [0]]))
    uses = np.bincount(found.ravel() // 2, minlength=1000)
    mean = found.size / 1000
    assert abs(np.var(uses) / mean - 1) < 5 * np.sqrt(2 / 1000)  # as a Poisson variable
    assert abs(np.mean(found % 2) - 0.5) < 4 / np.sqrt(found.size)


def test_the_seed_changes_the_indices_and_the_same_seed_does_not(rng):
    first, second, third = (hashed(np.random.default_rng(0), seed=s)[2] for s in (1, 1, 2))
    counts = split_bands(first.tile, first.buckets)[2]
    np.testing.assert_array_equal(first.tile.indices(counts), second.tile.indices(counts))
    assert (first.tile.indices(counts) != third.tile.indices(counts)).mean() > 0.5


@pytest.mark.parametrize("allocation", ["best", "uniform", "beta"])
@pytest.mark.parametrize("share", [2, 4, 16])
def test_what_is_stored_is_the_share_that_was_asked_for(layer, allocation, share):
    [setting] = Hashed(share=share, allocation=allocation).settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    assert 0.8 / share <= fitted.nbytes / layer.weight.nbytes <= 1.02 / share


@pytest.mark.parametrize("side", [3, 5, 7])
def test_depthwise_kernels_of_any_size_have_a_fit_for_every_share(side, rng):
    weight = rng.normal(size=(96, 1, side, side)).astype(np.float32)
    layer = Layer("depthwise", "Conv", weight, None, {"group": 96})
    for setting in Hashed().settings(layer):  # One value for a filter is the least there is.
        fitted = setting.fit(layer, Statistics.white(layer))
        assert fitted.nbytes <= max(weight.nbytes / setting.share, 96 * 4)
        assert np.sum((fitted.decode() - weight) ** 2) < np.sum(weight**2)


def test_the_papers_rule_gives_low_bands_more(layer):
    [setting] = Hashed(share=4, allocation="beta").settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    sizes = np.bincount(fitted.tile.bands) * fitted.tile.filters
    shares = [
        1 if count == EXACT else count / n for count, n in zip(fitted.buckets, sizes, strict=True)
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > 2 * shares[-1]


def test_smooth_filters_keep_low_bands_exact_by_default(layer):
    [setting] = Hashed(share=4).settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    assert fitted.buckets[0] == EXACT and fitted.buckets[-1] == 0
    [uniform] = Hashed(share=4, allocation="uniform").settings(layer)
    even = uniform.fit(layer, Statistics.white(layer))
    white = Statistics.white(layer)
    best, other = (white.error(layer.weight, f.decode()) for f in (fitted, even))
    assert best < 0.5 * other


def test_least_squares_beat_bucket_means_on_inputs_not_seen_before(rng):
    weight = rng.normal(size=(32, 64)).astype(np.float32)
    layer = Layer("fc", "Gemm", weight, None, {})
    patches = inputs(rng, 64)
    known, unseen = Statistics.of(patches[:, :3000]), Statistics.of(patches[:, 3000:])
    [setting] = Hashed(share=2).settings(layer)
    means = setting.fit(layer, Statistics.white(layer)).decode()
    squares = setting.fit(layer, known).decode()
    assert unseen.error(weight, squares) < 0.9 * unseen.error(weight, means)


def test_with_nothing_known_a_value_is_the_mean_of_its_coefficients(rng):
    weight = rng.normal(size=(8, 32)).astype(np.float32)
    layer = Layer("fc", "Gemm", weight, None, {})
    [setting] = Hashed(share=4).settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    found = fitted.tile.indices(split_bands(fitted.tile, fitted.buckets)[2]).ravel()
    signed = weight.ravel() * (1 - 2 * (found % 2))
    sums = np.bincount(found // 2, signed, minlength=fitted.values.size)
    uses = np.bincount(found // 2, minlength=fitted.values.size)
    np.testing.assert_allclose(fitted.values.ravel(), sums / np.maximum(uses, 1), atol=1e-6)


def test_a_gain_is_stored_only_once_there_is_one(layer):
    [setting] = Hashed(share=4).settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    gained = fitted.scaled(np.full(32, 1.5)).scaled(np.full(32, 2))
    assert gained.nbytes - fitted.nbytes == 4 * 32
    np.testing.assert_allclose(gained.decode(), 3 * fitted.decode(), rtol=1e-6)


@pytest.mark.parametrize("given", [{"share": 1}, {"allocation": "x"}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match=r"share|allocation|seed"):
        Hashed(**given)


def test_a_wide_matrix_is_gathered_without_a_copy(rng):
    values = [onnx.helper.make_tensor_value_info(n, 1, [1, w]) for n, w in (("x", 20000), ("y", 4))]
    weight = rng.normal(size=(4, 20000)).astype(np.float32)
    tensor = onnx.numpy_helper.from_array(weight, "w")
    node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], "fc", transB=1)
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [tensor])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = Model(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset))
    layer = find_layers(model)[0]["fc"]
    [setting] = Hashed(share=4).settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    emitted = rewrite(model, {"fc": fitted.scaled(np.arange(1, 5))})
    assert [n.op_type for n in emitted.graph.node][-3:] == ["Gather", "Mul", "Gemm"]
    x = rng.normal(size=(1, 20000)).astype(np.float32)
    expected = x @ (fitted.decode() * np.arange(1, 5)[:, None]).T
    np.testing.assert_allclose(Session(emitted).run({"x": x})[0], expected, rtol=1e-3, atol=1e-2)


def test_torch_computes_the_same_indices_bit_for_bit(layer):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    [setting] = Hashed(share=4, allocation="uniform").settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    counts = split_bands(fitted.tile, fitted.buckets)[2]
    mask = 0xFFFFFFFF  # torch has no uint32 arithmetic, so int64 and a mask
    x = torch.arange(fitted.tile.filters * counts.shape[1], dtype=torch.int64)
    x = (x * 0x9E3779B1 + 1691) & mask
    for multiplier in (0x7FEB352D, 0x846CA68B):
        x = ((x >> 16) + (x << 16)) & mask
        low, high = x & 0xFFFF, x >> 16
        factor = (2 * x + multiplier) & mask
        x = (low * factor + ((high * factor & 0xFFFF) << 16)) & mask
    numbers = (x >> 8).reshape(fitted.tile.filters, -1)
    found = numbers % torch.tensor(2 * counts[0]) + torch.tensor(2 * counts[1])
    np.testing.assert_array_equal(found.numpy(), fitted.tile.indices(counts))
