"""Random layers of all kinds: a basis of full rank loses nothing."""

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.core import Statistics
from onnxcompress.graph import Model, find_layers, rewrite
from onnxcompress.methods.basis import Basis
from onnxcompress.runtime import Session


@st.composite
def convolutions(draw):
    """A model of one Conv or ConvTranspose with random attributes, and an input."""
    rank = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2]))
    inputs, out = (groups * draw(st.integers(2, 5)) for _ in range(2))

    def each(low, high):
        return [draw(st.integers(low, high)) for _ in range(rank)]

    kernel, strides, dilations = each(1, 3), each(1, 2), each(1, 2)
    attributes = {"group": groups, "strides": strides, "dilations": dilations}
    extent = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    before, after = ([draw(st.integers(0, e)) for e in extent] for _ in range(2))
    size = [e + draw(st.integers(2, 4)) for e in extent]
    if draw(st.booleans()) and not transposed:
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        if attributes["auto_pad"] != "VALID":
            attributes["dilations"] = [1] * rank  # what runtimes agree on
    else:
        attributes["pads"] = [*before, *after]
    if transposed:
        attributes["pads"] = [
            min(p, e // 2) for p, e in zip([*before, *after], extent * 2, strict=True)
        ]
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    shape = (inputs, out // groups, *kernel) if transposed else (out, inputs // groups, *kernel)
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    weight = rng.normal(size=shape).astype(np.float32)
    bias = rng.normal(size=out).astype(np.float32)
    op_type = "ConvTranspose" if transposed else "Conv"
    node = helper.make_node(op_type, ["x", "w", "b"], ["y"], "layer", **attributes)
    x = rng.normal(size=(2, inputs, *size)).astype(np.float32)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * x.ndim)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(proto), x


def full(layer):
    """Every unfolding at the rank that spans everything."""
    _, out, fan_in = layer.grouped.shape
    inputs = layer.weight.shape[1]
    yield Basis("filter", min(out, fan_in))
    if any(length > 1 for length in layer.kernel):
        yield Basis("tucker", min(out, fan_in), input_rank=inputs)
    wide = [axis for axis, length in enumerate(layer.kernel) if length > 1]
    if len(wide) > 1:
        for axis in wide:
            first = layer.kernel[axis]
            yield Basis("spatial", min(inputs * first, out * fan_in // inputs // first), (axis,))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(convolutions())
def test_a_basis_of_full_rank_reproduces_the_outputs_and_the_model_stays_valid(case):
    model, x = case
    layer = find_layers(model)[0]["layer"]
    expected = Session(model).run({"x": x})[0]
    for setting in full(layer):
        fitted = setting.fit(layer, Statistics.white(layer))
        emitted = rewrite(model, {"layer": fitted})
        onnx.checker.check_model(emitted.proto, full_check=True)
        onnx.shape_inference.infer_shapes(emitted.proto, strict_mode=True, data_prop=True)
        answer = Session(emitted).run({"x": x})[0]
        np.testing.assert_allclose(answer, expected, atol=1e-4 * max(np.abs(expected).max(), 1e-6))
