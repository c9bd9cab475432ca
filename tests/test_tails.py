"""What lies behind a layer answers as the whole model does."""

import numpy as np
import onnx.parser
import pytest

from models import images, network
from onnxcompress.compression.measure.tails import behind
from onnxcompress.core.method import Plain
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_layers, rewrite


def outputs(model, batches):
    return [Session(model).run(batch) for batch in batches]


def check(model, readers, batches):
    """Every weight halved, in the whole model and in what lies behind it."""
    layers, expected = find_layers(model)[0], outputs(model, batches)
    for name, tail in behind(model, readers, batches):
        halved = Plain((layers[name].weight / 2).astype(np.float32))
        weights = dict.fromkeys(readers[name], halved)
        whole = outputs(rewrite(model, weights), batches)
        for one, other in zip(tail.outputs(weights, {}, expected), whole, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        yield name, len(tail.model.graph.node)


def test_what_lies_behind_each_layer_gives_the_outputs_of_the_whole_model(rng):
    model, batches = network(rng), images(rng, 16, batch=8)
    readers = {name: [name] for name in find_layers(model)[0]}
    nodes = [count for _, count in check(model, readers, batches)]
    assert nodes == sorted(nodes, reverse=True) and nodes[-1] < nodes[0]


THREE_OUTPUTS = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[n, 4] x) => (float[n, 4] early, float[n, 4] head, float[n, 4] late)
{
    early = Relu(x)
    t = Transpose <perm = [1, 0]> (w)
    a = MatMul(early, t)
    b = Gemm <transB = 1> (a, v)
    head = MatMul(b, s)
    q = MatMul(b, p)
    c = MatMul(q, t)
    late = Add(c, early)
    unread = MatMul(late, u)
}
"""


@pytest.mark.parametrize("name", ["", "same"])
def test_shared_weights_skips_and_outputs_made_before_or_without_a_layer_are_right(name, rng):
    proto = onnx.parser.parse_model(THREE_OUTPUTS)
    for key in "wvspu":
        array = rng.normal(size=(4, 4)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    for index, node in enumerate(proto.graph.node):
        node.name = name and f"{name} {index}"
    model = Model(proto)
    layers = find_layers(model)[0]
    readers = {lead: [n for n, other in layers.items() if other.shared == lead]
               for lead, layer in layers.items() if layer.shared == lead}  # fmt: skip
    assert sorted(map(len, readers.values())) == [1, 1, 1, 1, 2]
    batches = [{"x": rng.normal(size=(3, 4)).astype(np.float32)} for _ in range(2)]
    assert len(list(check(model, readers, batches))) == 5
