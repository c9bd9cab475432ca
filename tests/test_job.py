"""What a job knows of weights that several layers share."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.compression.job import Settings
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.prepare import open_samples, prepare
from onnxcompress.graph import Model, rewrite


@pytest.fixture
def shared(rng):
    """One weight that two convolutions read, of images and of a quarter of their pixels."""
    weight = (rng.normal(size=(24, 24, 3, 3)) / 15).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "large", pads=[1] * 4),
        helper.make_node("MaxPool", ["a"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w"], ["y"], "small", pads=[1] * 4),
    ]
    kinds = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 24, size, size])
        for name, size in (("x", 8), ("y", 4))
    ]
    tensors = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "net", kinds[:1], kinds[1:], tensors)
    opsets = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.fixture
def samples(rng):
    return [{"x": rng.normal(size=(4, 24, 8, 8)).astype(np.float32)} for _ in range(6)]


def counted(model, samples):
    """Multiplications of all linear nodes for the first sample."""
    first = {name: batch[:1] for name, batch in samples[0].items()}
    return sum(input_shapes(model, first)[1].values())


def test_the_multiplications_of_a_shared_weight_are_those_of_all_layers_that_read_it(
    shared, samples
):
    basis = oc.Basis("filter", 8)
    job = prepare(
        shared, open_samples(shared, samples, None)[0], None, Settings([basis], oc.Target(macs=0.5))
    )
    assert list(job.leaders) == ["large"] and job.readers("large") == ["large", "small"]
    fitted = basis.fit(job.layers["large"], oc.Statistics.white(job.layers["large"]))
    small = rewrite(shared, {"large": fitted, "small": fitted})
    sample = next(iter(job.fit.batches(1)))
    assert job.macs_of("large", fitted.factors) == sum(input_shapes(small, sample)[1].values())
    assert sum(job.macs.values()) == sum(input_shapes(shared, sample)[1].values())


def test_a_target_of_multiplications_holds_for_shared_weights(shared, samples):
    target = oc.Target(macs=0.5)
    result, report = oc.compress(shared, target=target, methods=[oc.Basis()], samples=samples)
    assert 0.4 * counted(shared, samples) < counted(result, samples)
    assert counted(result, samples) <= 0.5 * counted(shared, samples)
    before, after = report.comparison.before.macs, report.comparison.after.macs
    assert after / before == counted(result, samples) / counted(shared, samples)
