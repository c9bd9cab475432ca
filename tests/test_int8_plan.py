"""What computes in int8 and what does not: each float layer has a reason, each corner a test."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_int8 import images, network, products, static

from onnxcompress.compression.expand import expand
from onnxcompress.compression.inspect import examine
from onnxcompress.compression.measure.int8_times import Times
from onnxcompress.compression.pipeline import compress
from onnxcompress.compression.search import plan_int8 as planning
from onnxcompress.compression.search import size_limit
from onnxcompress.compression.search.int8_choice import Choice, together
from onnxcompress.compression.search.plan_int8 import plan_int8
from onnxcompress.compression.target import Target
from onnxcompress.compression.validate import validation
from onnxcompress.core.arithmetic import Arithmetic
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.samples import from_batches
from onnxcompress.execution.latency import Latency
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, compute_int8, find_layers
from onnxcompress.methods.integer import Integer
from onnxcompress.report.tables import render_inspection

FOUR_BITS = Integer(bits=4, zero_point="none", group=1 << 20)


@pytest.fixture
def all_faster(monkeypatch):
    """Times in which int8 is faster everywhere, and nothing is sensitive."""

    def choice(original, model, layers, static, dynamic, values, sample):
        return Choice(list(static), dynamic[0], 0.5, 1.0)

    monkeypatch.setattr(
        planning, "time_dynamic", lambda model, layers, reads: dict.fromkeys(layers, Times(1, 0.1))
    )
    monkeypatch.setattr(planning, "fastest", choice)
    monkeypatch.setattr(planning, "robust", lambda *given: given[3])


def reasons(model, batch, **options):
    layers, _ = find_layers(model)
    plan = plan_int8(model, model, layers, [batch], **options)
    return {name: str(kind) if not kind.reason else kind.reason
            for name, kind in plan.arithmetic.items()}  # fmt: skip


def fitted(model):
    layers, _ = find_layers(model)
    return {n: FOUR_BITS.fit(layer, Statistics.white(layer)) for n, layer in layers.items()}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layers_of_other_types_stay_float(all_faster, dtype):
    model = products()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        changed = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name)
        tensor.CopyFrom(changed)
    found = reasons(Model(model.proto), {"x": np.ones((4, 64), dtype)})
    assert set(found.values()) == {f"its type is {np.dtype(dtype).name}"}


def test_inspect_says_which_layers_can_compute_in_int8_and_why_the_others_cannot():
    facts = examine(network())
    assert {row["float"] for row in facts["layers"]} == {""}
    count = len(facts["layers"])
    said = render_inspection(facts)
    assert f"{count} of {count} layers can compute in int8 (--compute int8), where" in said
    old = examine(network(opset=12))
    why = {row["layer"]: row["float"] for row in old["layers"]}
    assert why["conv1"] == "opset 12 has no scale for each channel; 13 has"
    assert f"in float: conv1, {', '.join([*why][1:3])}" in render_inspection(old)


def test_convolutions_need_samples_and_opset_13(all_faster):
    sample = {"x": images(1)}
    assert "samples=..." in reasons(network(), sample, static=False)["conv1"]
    assert "opset 12" in reasons(network(opset=12), sample)["conv1"]
    old = products()
    old.proto.opset_import[0].version = 10
    found = reasons(Model(old.proto), {"x": np.ones((4, 64), np.float32)})
    assert found["first"] == "opset 10 is too old"
    assert reasons(network(), sample)["conv1"] == "int8 (static ranges)"


def test_layers_in_bodies_stay_float(all_faster):
    inner = products()
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    body = helper.make_graph(
        list(inner.graph.node), "body", [], outputs, list(inner.graph.initializer)
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], "if", then_branch=body, else_branch=body)], "net",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), inner.graph.input[0]],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 64])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    model = Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    found = reasons(model, {"c": np.array(True), "x": np.ones((4, 64), np.float32)})
    assert found and set(found.values()) == {"it lies in the body of another node"}


def test_readers_of_one_weight_compute_alike():
    layers, _ = find_layers(products())
    shared = {n: replace(layer, shared="first") for n, layer in layers.items()}
    assert together(shared, ["first"]) == set()
    assert together(shared, [*shared]) == {"first", "second"}
    assert together(layers, ["first"]) == {"first"}


def test_a_weight_that_several_layers_read_is_stored_once():
    model = products(size=64)
    for node in model.graph.node[2:]:
        node.input[0], node.input[1] = "x", "w1"
    model = Model(model.proto)
    weights = fitted(model)
    both = dict.fromkeys(weights, weights["first"])
    result = compute_int8(model, both, dict.fromkeys(weights, Arithmetic("dynamic")), {})
    codes = [
        t for t in result.graph.initializer if np.prod(t.dims) == weights["first"].codes[0].size
    ]
    assert len(codes) == 1


def test_layers_that_are_left_out_keep_their_floats(all_faster):
    model = network()
    layers, _ = find_layers(model)
    del layers["conv2"]
    plan = plan_int8(model, model, layers, [{"x": images(1)}])
    assert plan.kind("conv2") == "float" and plan.kind("conv1") == "static"


@pytest.mark.parametrize("make", ["static", "dynamic"])
def test_int8_layers_are_listed_with_their_bytes_and_expand_to_integers(make):
    if make == "static":
        model, sample = network(), {"x": images(2)}
        result = static(model, sample["x"])
    else:
        model = products()
        kinds = dict.fromkeys(find_layers(model)[0], Arithmetic("dynamic"))
        result = compute_int8(model, fitted(model), kinds, {})
        sample = {"x": np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)}
    rows = examine(result)["layers"]
    assert len(rows) == len(find_layers(model)[0])
    assert all(row["bytes"] and "computes in 8 bits" in row["reason"] for row in rows)
    written = expand(result)
    assert any(t.data_type == TensorProto.INT8 and np.prod(t.dims) > 1000
               for t in written.graph.initializer)  # fmt: skip
    assert "Gather" not in [node.op_type for node in written.graph.node]
    assert np.array_equal(*(Session(m).run(sample)[0] for m in (result, written)))


@pytest.mark.parametrize("target", [Target(latency=0.9), Target(ratio=5)])
def test_targets_of_time_and_size_are_met_with_whole_numbers(all_faster, monkeypatch, target):
    spent = Latency(1.0, 0.5, 0.5, 0.5, 0.5)
    for place in (size_limit, validation):
        monkeypatch.setattr(place, "latency", lambda *given: spent)
    model = network(channels=32)
    samples = from_batches([{"x": x[None]} for x in images(24)])
    methods = [Integer(zero_point="none", group=1 << 20, bits=8 if target.latency else None)]
    result, report = compress(model, samples=samples, compute="int8", jobs=1, target=target,
                              methods=methods)  # fmt: skip
    rows = [row for row in report.rows if row.arithmetic != "float"]
    assert rows and all("integer" in row.method for row in rows)
    assert model.nbytes / result.nbytes >= (target.ratio or 2)
    if target.latency:
        assert all("bits=8" in row.method for row in rows)
