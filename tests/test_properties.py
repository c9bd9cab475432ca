"""Random layers of all kinds and attributes: a basis of full rank loses nothing."""

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_layers, rewrite
from onnxcompress.methods.basis import Basis

CLOSE = 1e-4  # of the largest output, in float32


def model_of(nodes, x, weights):
    """A model with one input x and one output y."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(proto), x.astype(np.float32)


@st.composite
def convolutions(draw):
    """A model of one Conv or ConvTranspose with random attributes, and an input."""
    rank = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, out = (groups * draw(st.integers(1, 4)) for _ in range(2))

    def each(low, high):
        return [draw(st.integers(low, high)) for _ in range(rank)]

    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 2)
    reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    size = [r + draw(st.integers(2, 4)) for r in reach]
    attributes = {"group": groups, "strides": strides, "dilations": dilations}
    padding = draw(st.sampled_from(["pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "shape"]))
    if padding == "pads":
        share = 2 if transposed else 1  # a transposed convolution cuts its pads off
        attributes["pads"] = [draw(st.integers(0, r // share)) for r in reach * 2]
    elif padding != "shape":
        attributes["auto_pad"] = padding
        if padding != "VALID" and not transposed:
            attributes["dilations"] = [1] * rank  # onnxruntime has no other
    elif transposed:
        full = [s * (n - 1) + r + 1 for s, n, r in zip(strides, size, reach, strict=True)]
        attributes["output_shape"] = [
            n - draw(st.integers(1 - min(s, 2), min(r, 2)))
            for n, r, s in zip(full, reach, strides, strict=True)
        ]
    if transposed and padding == "pads":
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    for name in draw(st.sets(st.sampled_from(["group", "strides", "dilations"]))):
        if attributes[name] in (1, [1] * rank):
            del attributes[name]  # what is not written has this value
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    shape = (inputs, out // groups, *kernel) if transposed else (out, inputs // groups, *kernel)
    weights = {"w": rng.normal(size=shape)}
    if draw(st.booleans()):
        weights["b"] = rng.normal(size=out)
    op_type = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(op_type, ["x", *weights], ["y"], "layer", **attributes)
    return model_of([node], rng.normal(size=(2, inputs, *size)), weights)


@st.composite
def products(draw):
    """A model of one Gemm or MatMul, and an input."""
    rows, inputs, out = (draw(st.integers(2, 6)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    weight = rng.normal(size=(inputs, out))
    if draw(st.booleans()):
        turned = draw(st.booleans())
        batch = draw(st.sampled_from([(), (3,), (2, 3)]))
        x = rng.normal(size=(*batch, inputs, rows) if turned else (*batch, rows, inputs))
        order = ["w", "x"] if turned else ["x", "w"]
        node = helper.make_node("MatMul", order, ["y"], "layer")
        return model_of([node], x, {"w": weight.T if turned else weight})
    trans_a, trans_b = draw(st.booleans()), draw(st.booleans())
    attributes = {"transA": int(trans_a), "transB": int(trans_b)}
    for name in draw(st.sets(st.sampled_from(["alpha", "beta"]))):
        attributes[name] = draw(st.sampled_from([0.5, -2.0]))
    weights = {"w": weight.T if trans_b else weight}
    extra, nodes = [], []
    shape = draw(st.sampled_from([None, (), (1,), (out,), (1, out), (rows, 1), (rows, out)]))
    if shape is not None:
        weights["b"], extra = rng.normal(size=shape), ["b"]
        if draw(st.booleans()):
            nodes, extra = [helper.make_node("Neg", ["b"], ["computed"], "neg")], ["computed"]
    nodes.append(helper.make_node("Gemm", ["x", "w", *extra], ["y"], "layer", **attributes))
    x = rng.normal(size=(inputs, rows) if trans_a else (rows, inputs))
    return model_of(nodes, x, weights)


cases = st.one_of(convolutions(), convolutions(), products())
random_layers = given(cases)
repeatable = settings(derandomize=True, deadline=None, max_examples=60)


def full(layer):
    """Every unfolding that the layer allows, at the rank that spans everything."""
    _, out, fan_in = layer.grouped.shape
    inputs, kernel = layer.weight.shape[1], layer.kernel
    yield Basis("filter", min(out, fan_in))
    for setting in Basis()._unfoldings(layer):
        if setting.unfolding == "tucker":
            yield Basis("tucker", min(out, fan_in), input_rank=inputs)
        if setting.unfolding == "spatial":
            first = int(np.prod([kernel[axis] for axis in setting.first]))
            rest = int(np.prod(kernel)) // first
            yield Basis("spatial", min(inputs * first, out * rest), setting.first)


def same(a, b):
    return a.shape == b.shape and np.allclose(a, b, atol=1e-3)


def close(answer, expected):
    assert answer.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0), 1e-6)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=CLOSE * scale)


@repeatable
@random_layers
def test_a_basis_of_full_rank_reproduces_the_outputs_and_the_model_stays_valid(case):
    model, x = case
    layer = find_layers(model)[0]["layer"]
    expected = Session(model).run({"x": x})[0]
    try:
        [reference] = ReferenceEvaluator(model.proto).run(None, {"x": x})
    except Exception:
        reference = None  # it cannot run the original
    for setting in full(layer):
        fitted = setting.fit(layer, Statistics.white(layer))
        emitted = rewrite(model, {"layer": fitted})
        onnx.checker.check_model(emitted.proto, full_check=True)
        onnx.shape_inference.infer_shapes(emitted.proto, strict_mode=True, data_prop=True)
        close(Session(emitted).run({"x": x})[0], expected)
        if reference is not None and same(reference, expected):
            close(ReferenceEvaluator(emitted.proto).run(None, {"x": x})[0], reference)


@repeatable
@random_layers
def test_statistics_predict_the_mean_and_the_energy_of_the_real_output(case):
    model, x = case
    layers, _ = find_layers(model)
    layer = layers["layer"]
    statistics = calibrate(model, layers, [{"x": x}], exact=True)["layer"]
    plain = model.copy().proto
    del plain.graph.node[-1].input[2:]  # the bias
    y = Session(Model(plain)).run({"x": x})[0].astype(np.float64)
    axis = {"MatMul": -2 if layer.attributes.get("left") else -1, "Gemm": -1}.get(layer.op_type, 1)
    answers = np.moveaxis(y, axis, -1).reshape(-1, len(layer.weight))
    assert statistics.count == len(answers)
    mean = (layer.grouped @ statistics.mean[:, :, None]).ravel()
    scale = np.abs(answers).max(initial=1e-6)
    np.testing.assert_allclose(mean, answers.mean(0), rtol=0, atol=CLOSE * scale)
    predicted = np.diag(statistics.output_moment(layer.weight))
    np.testing.assert_allclose(predicted, np.square(answers).mean(0), rtol=0, atol=1e-3 * scale**2)


@repeatable
@random_layers
def test_multiplications_are_counted_as_the_emitted_nodes_spend_them(case):
    model, x = case
    layer = find_layers(model)[0]["layer"]
    shapes, macs = input_shapes(model, {"x": x})
    assert layer.macs(shapes["layer"]) == macs["layer"]
    for setting in full(layer):
        fitted = setting.fit(layer, Statistics.white(layer))
        emitted = rewrite(model, {"layer": fitted})
        counted = sum(input_shapes(emitted, {"x": x})[1].values())
        assert layer.macs(shapes["layer"], *fitted.factors) == counted
