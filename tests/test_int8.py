"""Layers that compute in int8: ranges, the pass, what runtimes make of it, the whole way."""

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.compression.build.refit import refit
from onnxcompress.compression.build.streams import Streams
from onnxcompress.compression.pipeline import compress
from onnxcompress.compression.search.int8_sensitive import without_sensitive
from onnxcompress.compression.search.int8_smooth import smoothing
from onnxcompress.compression.search.plan_int8 import Int8Plan
from onnxcompress.core.arithmetic import Arithmetic, Range, Rounded, Seen, rounded_by_sample
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.samples import from_batches
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, check, compute_int8, find_layers, save
from onnxcompress.graph.int8_region import int8_region
from onnxcompress.graph.passes.smooth_inputs import smooth_inputs
from onnxcompress.methods.integer import Integer


def tensor(rng, *shape, scale=1.0):
    return (scale * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network(opset=17, channels=32, side=16):
    """Two convolutions, a residual, a pooling and a Gemm."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": tensor(rng, channels, 3, 3, 3), "b1": tensor(rng, channels),
        "w2": tensor(rng, channels, channels, 3, 3), "b2": tensor(rng, channels),
        "w3": tensor(rng, channels, channels, 3, 3), "w4": tensor(rng, 10, channels),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], "add"),
        helper.make_node("Relu", ["a"], ["r2"], "relu2"),
        helper.make_node("Conv", ["r2", "w3"], ["c3"], "conv3", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c3"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w4"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 10])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def products(rows=4, size=64):
    """Two matrix products with a Relu between."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], "second"),
    ]
    weights = {"w1": tensor(rng, size, 2 * size).T.copy().T, "w2": tensor(rng, 2 * size, size)}
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, size])],
        [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def images(count=8, side=16, seed=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3, side, side)).astype(np.float32)


def ranges_of(model, region, x):
    wanted = [name for name in region.ranged if name != "x"]
    shown = model.copy()
    del shown.graph.output[:]
    for name in wanted:
        shown.graph.output.add(name=name)
    session = Session(Model(shown.proto))
    values = {"x": x} | dict(zip(session.outputs, session.run({"x": x}), strict=True))
    return {name: Range.best(Seen.of(values[name])) for name in region.ranged}


@cache
def exact():
    """Whether products are exact: processors without VNNI add two in 16 bits, which overflow."""
    product = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [product], "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [16, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [16, 16])],
        [numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    [y] = Session(Model(model)).run({"x": np.full((16, 64), 255, np.uint8)})
    return bool((y == 64 * 255 * 127).all())


def rounded(weight):
    """The nearest whole numbers, half as large where the products of these would overflow."""
    whole = Rounded.of(weight)
    half = np.rint(whole.numbers / 2).astype(np.int8)
    return whole if exact() else Rounded(half, 2 * whole.scale)


def static(model, x, names=None):
    layers, _ = find_layers(model)
    chosen = [n for n in layers if names is None or n in names]
    region = int8_region(model, chosen)
    ranges = ranges_of(model, region, x)
    read = {n: ranges[region.source[model.nodes[n][1].input[0]]] for n in chosen}
    kinds = {n: Arithmetic("static", read[n]) for n in chosen}
    weights = {n: rounded(layers[n].weight) for n in chosen}
    return compute_int8(model, weights, kinds, ranges, region=region)


def decibel(a, b):
    return 10 * np.log10(np.sum(np.square(a)) / max(np.sum(np.square(a - b)), 1e-20))


def optimized(model, folder):
    """The operators that onnxruntime runs."""
    source, target = folder / "in.onnx", folder / "optimized.onnx"
    save(model, source)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(target).graph.node]


def test_counts_of_batches_add_up_to_those_of_all():
    x = np.random.default_rng(3).normal(size=(6, 500)).astype(np.float32)
    whole, parts = Seen.of(x), Seen.of(x[:2]) + Seen.of(x[2:])
    assert np.array_equal(whole.counts, parts.counts)
    assert (whole.low, whole.high) == (parts.low, parts.high) == (x.min(), x.max())


@pytest.mark.parametrize("make", [
    lambda rng: rng.normal(size=20000),
    lambda rng: np.maximum(rng.normal(size=20000), 0),
    lambda rng: rng.standard_t(3, size=20000),
    lambda rng: np.minimum(np.maximum(3 * rng.normal(size=20000), 0), 6),
])  # fmt: skip
def test_the_best_range_errs_no_more_than_that_of_the_ends(make):
    x = make(np.random.default_rng(4)).astype(np.float32)
    seen = Seen.of(x)
    best, ends = Range.best(seen), Range.between(seen.low, seen.high)
    error, most = (np.mean(np.square(x - r.rounded(x))) for r in (best, ends))
    assert error <= most * 1.02  # bins are 3 % wide


def test_a_range_holds_zero_and_does_not_go_beyond_its_ends():
    for low, high in [(-1.5, 3.0), (0.0, 6.0), (-2.0, 0.0), (0.0, 0.0), (0.5, 2.0)]:
        found = Range.between(low, high)
        assert found.rounded(np.zeros(1, np.float32))[0] == 0
        assert 0 <= found.zero <= 255
        assert found.high <= max(high, 0) + found.scale / 2 + 1e-20
    assert Range.between(0, 6).high <= 6  # or else a Clip is not seen to be needless


def test_what_a_range_leaves_is_what_the_operators_leave():
    x = 3 * images(1)
    found = Range.between(-2.5, 4)
    model = products()
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, x.shape)],
        [numpy_helper.from_array(np.array(found.scale, np.float32), "s"),
         numpy_helper.from_array(np.array(found.zero, np.uint8), "z")],
    )  # fmt: skip
    model = Model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    assert np.array_equal(Session(model).run({"x": x})[0], found.rounded(x))


def test_convolutions_and_what_lies_between_them_run_on_bytes(tmp_path):
    model, x = network(), images()
    result = static(model, x)
    check(result, "the result")
    operators = optimized(result, tmp_path)
    assert operators.count("QLinearConv") == 3
    assert "QLinearAdd" in operators and "QLinearGlobalAveragePool" in operators
    assert "QGemm" in operators
    assert "Conv" not in operators and "Relu" not in operators
    before, after = (Session(m).run({"x": x})[0] for m in (model, result))
    assert decibel(before, after) > 25


def test_bytes_run_the_same_without_optimization_and_in_the_reference():
    model, x = network(opset=21), images(2)  # the reference has these operators since 19
    result = static(model, x)
    fast, plain = Session(result).run({"x": x})[0], Session(result, optimize=False).run({"x": x})[0]
    before = Session(model).run({"x": x})[0]
    apart = decibel(before, fast) + 10
    assert decibel(fast, plain) > apart
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator(result.proto)
    assert decibel(fast, reference.run(None, {"x": x})[0]) > apart


def test_a_layer_left_out_reads_floats():
    model, x = network(), images()
    result = static(model, x, ["conv2", "conv3"])
    assert result.nodes["conv1"][1].input[1] == "w1"
    after = Session(result).run({"x": x})[0]
    assert decibel(Session(model).run({"x": x})[0], after) > 25


def test_matrix_products_find_their_ranges_while_they_run(tmp_path):
    model = products()
    layers, _ = find_layers(model)
    weights = {n: rounded(layer.weight) for n, layer in layers.items()}
    result = compute_int8(model, weights, dict.fromkeys(layers, Arithmetic("dynamic")), {})
    assert "DynamicQuantizeMatMul" in optimized(result, tmp_path)
    x = np.random.default_rng(5).normal(size=(4, 64)).astype(np.float32)
    before, after = (Session(m).run({"x": x})[0] for m in (model, result))
    assert decibel(before, after) > 30
    reference = pytest.importorskip("onnx.reference").ReferenceEvaluator(result.proto)
    assert decibel(after, reference.run(None, {"x": x})[0]) > decibel(before, after) + 10


def test_a_bias_far_larger_than_its_weights_fits_into_int32():
    model = network()
    bias, weight = model.initializers["b1"], model.initializers["w1"]
    large = numpy_helper.to_array(bias).copy()
    small = numpy_helper.to_array(weight).copy()
    large[0], small[0] = 1000.0, 1e-12
    changed = model.copy()
    for value in changed.graph.initializer:
        if value.name == "b1":
            value.CopyFrom(numpy_helper.from_array(large, "b1"))
        if value.name == "w1":
            value.CopyFrom(numpy_helper.from_array(small, "w1"))
    changed, x = Model(changed.proto), images()
    after = Session(static(changed, x)).run({"x": x})[0]
    assert decibel(Session(changed).run({"x": x})[0], after) > 20


def test_samples_are_rounded_one_by_one_where_ranges_are_dynamic():
    x = np.stack([np.linspace(-1, 1, 8), np.linspace(0, 100, 8)]).astype(np.float32)
    one, both = rounded_by_sample(x[:1]), rounded_by_sample(x)
    assert np.array_equal(one[0], both[0])
    assert np.abs(both - x).max() < 100 / 255


def test_compress_computes_in_int8_where_that_is_faster():
    model = network(channels=64, side=24)
    samples = from_batches([{"x": x[None]} for x in images(32, 24)])
    result, report = compress(model, samples=samples, compute="int8", jobs=1)
    assert result.nbytes < 0.4 * model.nbytes
    assert all(row.arithmetic == "float" or "int8" in row.arithmetic for row in report.rows)
    assert all(row.note for row in report.rows if row.arithmetic == "float")
    assert report.comparison is not None and report.comparison.worst_snr > 20


def test_an_unknown_arithmetic_is_refused():
    with pytest.raises(ValueError, match="float, int8 or auto"):
        compress(network(), compute="int4")


@pytest.mark.parametrize("levels", [4, 6, 16, 32, 64, 256])
def test_codes_are_decoded_to_the_same_integers_when_the_model_is_loaded(levels, tmp_path):
    model = products()
    layers, _ = find_layers(model)
    method = Integer(levels=levels, zero_point="none", group=1 << 20)
    weights = {n: method.fit(layer, Statistics.white(layer)) for n, layer in layers.items()}
    plain = {}
    for name, weight in weights.items():
        numbers = weight.integers()
        assert numbers is not None
        plain[name] = Rounded(*numbers)
    kinds = dict.fromkeys(layers, Arithmetic("dynamic"))
    coded, whole = (compute_int8(model, w, kinds, {}) for w in (weights, plain))
    x = np.random.default_rng(6).normal(size=(4, 64)).astype(np.float32)
    assert np.array_equal(*(Session(m).run({"x": x})[0] for m in (coded, whole)))
    assert "Gather" not in optimized(coded, tmp_path)
    assert coded.nbytes < whole.nbytes or levels > 16


def test_layers_go_back_to_float_as_long_as_that_is_worth_its_time():
    errors = {"a": 0.5, "b": 0.004, "c": 0.001}  # of all, what these layers cost
    times = {"a": 0.02, "b": 0.5, "c": 0.4}  # and gain

    def kept(enough=0.0, most=10.0):
        return without_sensitive(
            [*errors], lambda names: [[n] for n in names],
            lambda names: 0.1 * sum(errors[n] for n in names),
            lambda names: 2 - sum(times[n] for n in names), most, enough,
        )  # fmt: skip

    assert kept() == ["b", "c"]
    assert kept(enough=0.0003) == ["c"]
    assert kept(enough=0.0003, most=1.15) == ["b", "c"]


def test_layers_in_int8_are_fitted_to_their_own_weights():
    model, x = network(), images(32)
    layers, _ = find_layers(model)
    region = int8_region(model, layers)
    ranges = {n: Range(8 * r.scale, r.zero) for n, r in ranges_of(model, region, x).items()}
    kinds = {n: Arithmetic("static") for n in layers}
    plan = Int8Plan(kinds, region, ranges)
    method = Integer(bits=8, zero_point="none", group=1 << 20)
    streams = Streams(model, [{"x": x}], {}, 1, plan.tensors)
    fitted = refit(streams, layers, dict.fromkeys(layers, method), plan)
    for name, layer in layers.items():
        assert decibel(layer.weight, fitted[name].plain.weight.decode()) > 35


def test_smoothed_inputs_compute_the_same_and_round_better():
    model = products()
    layers, _ = find_layers(model)
    x = np.random.default_rng(7).normal(size=(4, 64)).astype(np.float32)
    x[:, :3] *= 30
    scales = smoothing(model, {"first": layers["first"]}, [{"x": x}])
    assert scales.keys() == {"first"}
    smooth = smooth_inputs(model, scales)
    before = Session(model).run({"x": x})[0]
    assert decibel(before, Session(smooth).run({"x": x})[0]) > 100

    def rounded(one):
        weight = Rounded.of(find_layers(one)[0]["first"].weight)
        changed = compute_int8(one, {"first": weight}, {"first": Arithmetic("dynamic")}, {})
        return decibel(before, Session(changed).run({"x": x})[0])

    assert rounded(smooth) > rounded(model) + 3
    assert not smoothing(model, {"first": layers["first"]}, [{"x": x[:, ::-1] * 0}])
