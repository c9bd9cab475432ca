"""The networks that the onnx package ships without their weights."""

from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress import graph
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_layers, load, rewrite
from onnxcompress.methods.basis import Basis

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = sorted(FOLDER.glob("light_*.onnx"))
LARGEST = 200 << 20  # bytes of weights; larger networks would take too long here
LAYERS = 5  # to compress in each network
WIDEST = 1024  # outputs of a layer whose fit is quick
COMPUTED = "its weight is computed while the model runs"

pytestmark = pytest.mark.skipif(not MODELS, reason="this onnx package ships no light models")
every_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem[6:])


def filled(model):
    """The model with random weights where it has ConstantOfShape nodes."""
    rng = np.random.default_rng(0)
    proto = model.copy().proto
    linear = [node.input[1] for node in graph.linear_nodes(model).values()]
    for node in [node for node in proto.graph.node if node.op_type == "ConstantOfShape"]:
        name = node.output[0]
        if name not in linear:
            continue
        shape = model.read(node.input[0]).tolist()
        weight = rng.standard_normal(shape, np.float32) * np.sqrt(2 / prod(shape[1:]))
        proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
        if proto.ir_version < 4:
            info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            proto.graph.input.append(info)
        proto.graph.node.remove(node)
    return Model(proto)


def dense(model, layers, weights):
    """The model with the decoded weights in their old places."""
    proto = model.copy().proto
    nodes = graph.linear_nodes(model)
    for name, weight in weights.items():
        node, decoded = nodes[name], weight.decode()
        stored = next(t for t in proto.graph.initializer if t.name == node.input[1])
        if node.op_type == "Gemm" and list(stored.dims) != list(decoded.shape):
            decoded = decoded.T
        assert layers[name].shared == name
        stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(decoded), stored.name))
    return Model(proto)


def outputs(model, sample):
    """The scores before the softmax, which would hide large errors, and the model's outputs."""
    last = list(graph.linear_nodes(model).values())[-1].output[0]
    return Session(graph.expose(model, [last, model.graph.output[0].name])).run(sample)


@every_model
def test_the_layers_of_a_light_model_are_skipped_and_its_bytes_stay(path):
    model = load(path)
    layers, skipped = find_layers(model)
    assert layers == {}
    assert skipped == dict.fromkeys(graph.linear_nodes(model), COMPUTED)
    assert rewrite(model, {}).proto.SerializeToString() == path.read_bytes()


@every_model
def test_a_light_model_with_bases_computes_what_their_decoded_weights_do(path):
    model = load(path)
    constants = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "ConstantOfShape"
    }
    if 4 * sum(prod(map(int, model.read(shape))) for shape in constants.values()) > LARGEST:
        pytest.skip("its weights take more than 200 MB: slow")
    model = filled(model)
    layers, skipped = find_layers(model)
    assert set(skipped.values()) <= {COMPUTED}  # one weight goes through a Reshape
    names = [name for name, layer in layers.items() if 8 <= layer.grouped.shape[1] <= WIDEST]
    names = [names[i] for i in np.linspace(0, len(names) - 1, LAYERS, dtype=int)]  # first to last
    weights = {}
    for name in names:
        layer = layers[name]
        setting = Basis("filter", rank=max(1, min(layer.grouped.shape[1:]) // 2))
        weights[name] = setting.fit(layer, Statistics.white(layer))
    assert len(weights) == LAYERS
    result = rewrite(model, weights)
    graph.check(result)
    known = {value.name for value in result.graph.input}
    assert {tensor.name for tensor in result.graph.initializer} <= known, "the format is IR 3"
    assert len(result.graph.node) == len(model.graph.node) + len(weights)
    rng = np.random.default_rng(1)
    sample = {
        name: rng.standard_normal(shape, dtype=dtype)
        for name, dtype, shape in graph.declared_inputs(model)
    }
    expected, got = (outputs(m, sample) for m in (dense(model, layers, weights), result))
    for before, after in zip(expected, got, strict=True):
        scale = np.abs(before).max()
        assert scale > 0
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-3 * scale)
