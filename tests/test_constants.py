"""Embeddings and recurrent weights: constants that no linear layer multiplies with."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.graph import Model, find_constants, find_layers
from onnxcompress.inspection import examine
from onnxcompress.runtime import Session
from onnxcompress.specs import parse

CLASSES, EMBEDDED, HIDDEN, WINDOW = 40, 32, 48, 6


@pytest.fixture(scope="module")
def net():
    """Embedding, LSTM, head; tokens to 40 scores."""
    rng = np.random.default_rng(0)

    def tensor(name, *shape):
        value = rng.normal(size=shape) / np.sqrt(shape[-1])
        return numpy_helper.from_array(value.astype(np.float32), name)

    tensors = [
        tensor("embedding", CLASSES, EMBEDDED),
        tensor("input", 1, 4 * HIDDEN, EMBEDDED),
        tensor("recurrence", 1, 4 * HIDDEN, HIDDEN),
        tensor("head.w", HIDDEN, CLASSES),
        numpy_helper.from_array(np.array([0]), "axis"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["read"]),
        helper.make_node("Transpose", ["read"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["steps", "input", "recurrence"], ["", "last"], hidden_size=HIDDEN
        ),
        helper.make_node("Squeeze", ["last", "axis"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.w"], ["scores"], "head"),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", WINDOW])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(nodes, "net", [tokens], [scores], tensors)
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=8))


@pytest.fixture(scope="module")
def batches():
    tokens = np.random.default_rng(1).integers(0, CLASSES, (128, WINDOW))
    return [{"tokens": tokens[i : i + 16]} for i in range(0, 128, 16)]


def test_embeddings_and_recurrent_weights_are_found(net):
    found = find_constants(net, find_layers(net)[0])
    assert set(found) == {"embedding", "input", "recurrence"}
    assert found["recurrence"].weight.shape == (4 * HIDDEN, HIDDEN)


def test_inspection_lists_them_after_the_layers(net):
    rows = {row["layer"]: row for row in examine(net)["layers"]}
    assert list(rows) == ["head", "embedding", "input", "recurrence"]
    assert rows["recurrence"]["type"] == "Constant"
    assert rows["recurrence"]["shape"] == [1, 4 * HIDDEN, HIDDEN]
    assert "integer" in rows["embedding"]["methods"] and "basis" not in rows["embedding"]["methods"]
    assert rows["embedding"]["bytes"] == 4 * CLASSES * EMBEDDED


@pytest.mark.parametrize("spec", ["basis", "basis+integer"])
def test_a_chain_of_layers_cannot_stand_for_a_constant(net, spec):
    [method] = parse(spec)
    for layer in find_constants(net, find_layers(net)[0]).values():
        assert method.declined(layer)
        assert not list(method.settings(layer))
        assert not list(method.candidates(layer, oc.Statistics.white(layer)))


@pytest.mark.parametrize("spec", ["basis integer", "integer", "binary", "hashed"])
def test_constants_are_compressed_with_the_layers(net, batches, spec):
    methods = [method for word in spec.split() for method in parse(word)]
    target = oc.Target(ratio=2.2)
    result, report = oc.compress(net, methods=methods, target=target, samples=batches)
    assert net.nbytes >= 2.2 * result.nbytes
    rows = {row.layer: row for row in report.rows}
    assert set(rows) == {"embedding", "input", "recurrence", "head"}
    assert not any(rows[name].method.startswith("basis") for name in rows if name != "head")
    [scores] = Session(result).run(batches[0])
    assert scores.shape == (16, CLASSES)
    assert np.isfinite(scores).all()


def test_basis_is_for_the_layers_alone(net, batches):
    _, report = oc.compress(net, methods=[oc.Basis()], target=oc.Target(macs=0.7), samples=batches)
    assert [row.layer for row in report.rows] == ["head"]
