"""The graph surgery: what is not compressed stays as it is, byte for byte."""

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from models import layer_model
from onnxcompress import graph
from onnxcompress.core.method import CompressedWeight
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, ModelError, find_layers, inline_functions, load, rewrite, save
from onnxcompress.methods.basis import Basis
from onnxcompress.methods.half import Half

FLOAT = TensorProto.FLOAT


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------- builders


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def build(nodes, inputs, outputs, weights, ir=10, opset=17, **parts):
    """A checked model; ``inputs`` and ``outputs`` map a name to a shape."""
    tensors = [
        w if isinstance(w, TensorProto) else numpy_helper.from_array(w, name)
        for name, w in weights.items()
    ]
    kind = tensors[0].data_type if tensors else FLOAT
    inputs = [value(name, shape, kind) for name, shape in inputs.items()]
    if ir < 4:
        inputs += [value(t.name, t.dims, t.data_type) for t in tensors]
    outputs = [value(name, shape, kind) for name, shape in outputs.items()]
    made = helper.make_graph(nodes, "main", inputs, outputs, tensors)
    proto = helper.make_model(
        made, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)], **parts
    )
    onnx.checker.check_model(proto)
    return Model(proto)


def conv(name, x, weight, y, *bias, **attributes):
    return helper.make_node("Conv", [x, weight, *bias], [y], name, **attributes)


def two_convs(rng, **parts):
    """x (N, 4, 6, 6) -> conv "a" -> Relu -> conv "b" -> y."""
    weights = {
        "wa": rng.standard_normal((8, 4, 3, 3), np.float32),
        "ba": rng.standard_normal(8, np.float32),
        "wb": rng.standard_normal((6, 8, 3, 3), np.float32),
    }
    nodes = [
        conv("a", "x", "wa", "ya", "ba", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["ya"], ["ra"], "relu"),
        conv("b", "ra", "wb", "y"),
    ]
    return build(nodes, {"x": ["N", 4, 6, 6]}, {"y": ["N", 6, 4, 4]}, weights, **parts)


def basis(layer, rank=None):
    """A data-free basis of this rank, or of full rank."""
    _, out, fan_in = layer.grouped.shape
    return Basis("filter", rank or min(out, fan_in)).fit(layer, Statistics.white(layer))


def compressed(model, names=None, rank=None):
    layers, _ = find_layers(model)
    return rewrite(model, {name: basis(layers[name], rank) for name in names or layers})


def run(model, **feeds):
    return Session(model).run(feeds)


def same_outputs(first, second, **feeds):
    for a, b in zip(run(first, **feeds), run(second, **feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


def differences(a, b, path="model"):
    """Paths of all fields in which two protobuf messages differ."""
    if [d.name for d, _ in a.ListFields()] != [d.name for d, _ in b.ListFields()]:
        yield f"{path}: other fields"
        return
    for (descriptor, left), (_, right) in zip(a.ListFields(), b.ListFields(), strict=True):
        where = f"{path}.{descriptor.name}"
        if hasattr(left, "ListFields"):
            yield from differences(left, right, where)
        elif descriptor.message_type is None:
            if left != right:
                yield where
        elif len(left) != len(right):
            yield f"{where}: {len(left)} and {len(right)} entries"
        else:
            for index, pair in enumerate(zip(left, right, strict=True)):
                yield from differences(*pair, f"{where}[{index}]")


def remove(items, *names):
    for index in reversed([i for i, item in enumerate(items) if item.name in names]):
        del items[index]


def nodes_of(model, op_type):
    return [node for node in model.graph.node if node.op_type == op_type]


def weight_names(model):
    return [tensor.name for tensor in model.graph.initializer]


# ------------------------------------------------------------ what is not compressed stays as it is


def rich(rng):
    """A model that uses every corner of the format."""
    proto = two_convs(rng).proto
    made = proto.graph
    proto.opset_import.extend([helper.make_opsetid("local", 1), helper.make_opsetid("unused", 3)])
    proto.producer_name, proto.producer_version = "somebody", "1.2"
    proto.model_version, proto.domain, proto.doc_string = 7, "org.example", "a model"
    made.doc_string = "a graph"
    twice = helper.make_function(
        *("local", "Twice", ["v"], ["t"]),
        [helper.make_node("Add", ["v", "v"], ["t"], "add")],
        [helper.make_opsetid("", 17)],
    )
    twice.doc_string = "doubles"
    proto.functions.append(twice)
    made.node[-1].output[0] = "yb"
    made.node.extend(
        [
            helper.make_node("Twice", ["yb"], ["y2"], "twice", domain="local"),
            helper.make_node("Add", ["y2", "sparse"], ["y"], "add_sparse"),
        ]
    )
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([2, 3]), "sparse"),
        numpy_helper.from_array(np.int64([1, 2]), "sparse_indices"),
        [4],
    )
    made.sparse_initializer.append(sparse)
    made.initializer.append(numpy_helper.from_array(rng.standard_normal(5), "unused"))
    made.value_info.append(value("ra", ["N", 8, 6, 6]))
    for item in (made.input[0], made.output[0]):
        item.type.denotation = "IMAGE"
        item.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
        item.doc_string = f"about {item.name}"
    for node in made.node:
        node.doc_string = f"about {node.name}"
    for tensor in made.initializer:
        tensor.doc_string = f"about {tensor.name}"
    for owner in (proto, made, twice, *made.node, *made.value_info, *made.input, *made.initializer):
        owner.metadata_props.add(key="key", value=f"of {getattr(owner, 'name', 'model')}")
    made.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="ba"
    )
    training = proto.training_info.add()
    training.algorithm.CopyFrom(
        helper.make_graph(
            [helper.make_node("Identity", ["ba"], ["new"], "step")], "step", [], [value("new", [8])]
        )
    )
    training.update_binding.add(key="ba", value="new")
    onnx.checker.check_model(proto)
    return Model(proto)


def test_what_is_not_compressed_stays_as_it_is_byte_for_byte(rng):
    model = rich(rng)
    result = compressed(model, ["b"], rank=3)
    graph.check(result)
    before, after = model.copy().proto, result.copy().proto
    added = set(weight_names(result)) - set(weight_names(model))
    replaced = model.graph.node[2]
    *inner, last = after.graph.node[2:4]
    assert [node.op_type for node in (*inner, last)] == ["Conv", "Conv"]
    assert inner[0].input[0] == replaced.input[0]
    for name in ("name", "output", "doc_string", "metadata_props"):
        assert getattr(last, name) == getattr(replaced, name)
    assert {i for node in (*inner, last) for i in node.input[1:]} == added
    del before.graph.node[2], after.graph.node[2:4]
    remove(before.graph.initializer, "wb")
    remove(after.graph.initializer, *added)
    assert list(differences(before, after)) == []
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(
        deterministic=True
    )


def test_the_rich_model_survives_a_file(rng, tmp_path):
    model = rich(rng)
    save(model, tmp_path / "rich.onnx")
    assert list(differences(model.proto, load(tmp_path / "rich.onnx").proto)) == []


def test_a_rewrite_leaves_its_input_model_alone(rng):
    model = rich(rng)
    before = model.proto.SerializeToString(deterministic=True)
    compressed(model, rank=2)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_a_rewrite_with_nothing_returns_the_same_bytes(rng):
    model = rich(rng)
    assert rewrite(model, {}).proto == model.proto


def test_a_full_rank_rewrite_keeps_the_outputs(rng):
    model = two_convs(rng)
    same_outputs(model, compressed(model), x=rng.standard_normal((2, 4, 6, 6), np.float32))


# ---------------------------------------------------------------------------------------- names


def test_new_names_are_unique_even_where_the_model_uses_names_like_ours(rng):
    fresh = compressed(two_convs(rng), ["b"], rank=3)
    assert {"b/weight", "~1"} < set(weight_names(fresh))
    assert fresh.graph.node[2].name == "b/Conv" and fresh.graph.node[2].output == ["b/Conv_out"]
    proto = two_convs(rng).proto
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1]), "b/weight_1"),
        numpy_helper.from_array(np.int64([0]), "b/weight_1_indices"),
        [4],
    )
    proto.graph.sparse_initializer.append(sparse)
    for name in ("b/weight", "~1"):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32([1]), name))
    proto.graph.node.append(helper.make_node("Relu", ["ra"], ["b/Conv_out"], "b/Conv"))
    result = compressed(Model(proto), ["b"], rank=3)
    graph.check(result)
    nodes = [node.name for node in result.graph.node]
    tensors = [*weight_names(result), *(o for node in result.graph.node for o in node.output)]
    tensors += [sparse.values.name for sparse in result.graph.sparse_initializer]
    for names in (nodes, tensors):
        assert len(set(names)) == len(names)


def test_unnamed_and_duplicate_nodes_get_unique_keys_and_keep_their_names(rng):
    proto = two_convs(rng).proto
    for node in proto.graph.node:
        node.name = ""
    proto.graph.node[1].name = "Conv_0"  # what the first would be called
    model = Model(proto)
    layers, _ = find_layers(model)
    assert list(layers) == ["Conv_0_1", "Conv_2"]
    result = compressed(model, rank=3)
    assert [n.name for n in result.graph.node if n.output[0] in ("ya", "ra", "y")] == [
        *("", "Conv_0", "")
    ]
    for node in proto.graph.node:
        node.name = "same"
    model = Model(proto)
    layers, _ = find_layers(model)
    assert list(layers) == ["Conv_0", "Conv_2"]
    result = compressed(model, rank=3)
    graph.check(result)
    assert [n.name for n in result.graph.node if n.output[0] in ("ya", "ra", "y")] == ["same"] * 3


def test_name_nodes_gives_the_names_of_the_reports(rng):
    proto = two_convs(rng).proto
    proto.graph.node[0].name = proto.graph.node[2].name = ""
    model = Model(proto)
    named = graph.name_nodes(model)
    assert [node.name for node in named.graph.node] == model.keys == ["Conv_0", "relu", "Conv_2"]
    assert proto.graph.node[0].name == ""


# ----------------------------------------------------------------------- where weights come from


SHARED = {
    "Conv": ((12, 12, 3, 3), {"pads": [1, 1, 1, 1]}),
    "ConvTranspose": ((12, 6, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}),
    "Gemm": ((12, 12), {}),
    "MatMul": ((12, 12), {}),
}


@pytest.mark.parametrize("op_type", SHARED)
def test_a_shared_weight_is_stored_once_and_each_bias_is_its_own(rng, op_type):
    shape, attributes = SHARED[op_type]
    weights = {"w": 0.3 * rng.standard_normal(shape, np.float32)}
    nodes = []
    for index in range(2):
        inputs = [f"x{index}", "w"]
        if op_type != "MatMul":
            inputs.append(f"b{index}")
            weights[f"b{index}"] = rng.standard_normal(12, np.float32)
        output = [f"x{index + 1}"]
        nodes.append(helper.make_node(op_type, inputs, output, f"n{index}", **attributes))
    size = [3, 12, 5, 5] if len(shape) > 2 else [3, 12]
    model = build(nodes, {"x0": size}, {"x2": size}, weights)
    layers, _ = find_layers(model)
    assert [layer.shared for layer in layers.values()] == ["n0", "n0"]
    assert layers["n0"].weight is layers["n1"].weight
    weight = basis(layers["n0"])
    result = rewrite(model, dict.fromkeys(layers, weight))
    graph.check(result)
    stored = set(weight_names(result))
    assert "w" not in stored
    assert len([n for n in stored if len(result.initializers[n].dims) > 1]) == len(weight.chain)
    assert sum(result.initializers[n].dims == [12] for n in stored) == len(weights) - 1
    same_outputs(model, result, x0=rng.standard_normal(size, np.float32))


def test_a_weight_read_in_two_ways_is_not_shared_and_stays_while_it_is_read(rng):
    weights = {"w": rng.standard_normal((4, 4), np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "plain"),
        helper.make_node("Gemm", ["h", "w"], ["y"], "turned", transB=1),
    ]
    model = build(nodes, {"x": [2, 4]}, {"y": [2, 4]}, weights)
    layers, _ = find_layers(model)
    assert [layer.shared for layer in layers.values()] == ["plain", "turned"]
    result = compressed(model, ["plain"])
    assert "w" in weight_names(result)
    same_outputs(model, result, x=rng.standard_normal((2, 4), np.float32))


def test_a_weight_on_the_left_of_one_product_and_the_right_of_another_is_not_shared(rng):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "right"),
        helper.make_node("MatMul", ["w", "h"], ["y"], "left"),
    ]
    weights = {"w": rng.standard_normal((4, 4), np.float32)}
    model = build(nodes, {"x": [4, 4]}, {"y": [4, 4]}, weights)
    layers, _ = find_layers(model)
    assert [layer.shared for layer in layers.values()] == ["right", "left"]
    same_outputs(model, compressed(model), x=rng.standard_normal((4, 4), np.float32))


@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose", "Gemm"])
def test_a_bias_that_callers_may_override_stays_overridable(rng, op_type):
    size = [2, 4, 3, 3] if op_type != "Gemm" else [2, 4]
    weights = {
        "w": rng.standard_normal((4, 4, 1, 1) if op_type != "Gemm" else (4, 4), np.float32),
        "b": rng.standard_normal(4, np.float32),
    }
    node = helper.make_node(op_type, ["x", "w", "b"], ["y"], "layer")
    model = build([node], {"x": size}, {"y": size}, weights)
    model.proto.graph.input.append(value("b", [4]))
    result = compressed(Model(model.proto))
    x, b = rng.standard_normal(size, np.float32), rng.standard_normal(4, np.float32)
    same_outputs(model, result, x=x)
    same_outputs(model, result, x=x, b=b)


def test_weights_in_constant_nodes_are_compressed_and_the_constants_disappear(rng):
    weight = numpy_helper.from_array(rng.standard_normal((6, 4, 3, 3), np.float32))
    other = numpy_helper.from_array(np.float32([2]))
    nodes = [
        helper.make_node("Constant", [], ["w"], "constant", value=weight),
        helper.make_node("Constant", [], ["two"], "other", value=other),
        conv("c", "x", "w", "h"),
        helper.make_node("Mul", ["h", "two"], ["y"], "mul"),
    ]
    model = build(nodes, {"x": [1, 4, 5, 5]}, {"y": [1, 6, 3, 3]}, {})
    result = compressed(model)
    assert [node.name for node in nodes_of(result, "Constant")] == ["other"]
    assert len(result.graph.initializer) == 2
    same_outputs(model, result, x=rng.standard_normal((1, 4, 5, 5), np.float32))


def test_in_ir_3_new_initializers_are_inputs_too(rng):
    model = two_convs(rng, ir=3, opset=9)
    result = compressed(model, rank=3)
    graph.check(result)
    assert {v.name for v in result.graph.input} == {"x", *weight_names(result)}
    assert "wa" not in weight_names(result)
    same_outputs(model, compressed(model), x=rng.standard_normal((1, 4, 6, 6), np.float32))
    ort.InferenceSession(result.proto.SerializeToString(), providers=["CPUExecutionProvider"])


def test_layers_without_a_constant_float_weight_are_skipped_with_the_reason(rng):
    proto = two_convs(rng).proto
    proto.graph.initializer[2].name = "wb0"
    proto.graph.node.insert(0, helper.make_node("Neg", ["wb0"], ["wb"], "neg"))
    layers, skipped = find_layers(Model(proto))
    assert list(layers) == ["a"]
    assert skipped == {"b": "its weight is computed while the model runs"}


def test_integer_weights_are_skipped_with_their_type():
    weights = {"w": np.ones((4, 4), np.int32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    model = build([node], {"x": [2, 4]}, {"y": [2, 4]}, weights)
    assert find_layers(model) == ({}, {"m": "its weight is of type int32"})


def test_empty_and_not_finite_weights_are_skipped(rng):
    proto = two_convs(rng).proto
    weight = np.ones((8, 4, 3, 3), np.float32)
    weight[0, 0, 0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "wa"))
    layers, skipped = find_layers(Model(proto))
    assert list(layers) == ["b"]
    assert skipped == {"a": "its weight is empty or not finite"}


def test_weights_whose_squares_overflow_are_skipped(rng):
    proto = two_convs(rng).proto
    proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((8, 4, 3, 3), 1e30, np.float32), "wa")
    )
    assert find_layers(Model(proto))[1] == {
        "a": "its weight is so large that squares of it overflow"
    }


def test_layers_in_bodies_are_found_and_in_local_functions_once_these_are_inlined(rng):
    proto = two_convs(rng).proto

    def body(name):
        output = f"{name}_y"
        return helper.make_graph([conv(name, "x", "wa", output)], "body", [], [value(output, None)])

    branches = [body("inner"), body("")]
    loop = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            conv("deep", "x", "wa", "loop_y"),
        ],
        "loop",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL)],
        [value("go_on", [], TensorProto.BOOL), value("loop_y", None)],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(2), "count"))
    other = rng.standard_normal((2, 4, 3, 3), np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(other, "wf"))
    proto.graph.node.extend(
        [
            helper.make_node(
                *("If", ["yes"], ["z"], "if"), then_branch=branches[0], else_branch=branches[1]
            ),
            helper.make_node("Loop", ["count", "yes"], ["zz"], "loop", body=loop),
        ]
    )
    proto.functions.append(
        helper.make_function(
            *("local", "Block", ["v", "k"], ["t"]),
            [conv("hidden", "v", "k", "t")],
            [helper.make_opsetid("", 17)],
        )
    )
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.append(
        helper.make_node("Block", ["x", "wf"], ["zzz"], "block", domain="local")
    )
    model = Model(proto)
    graph.check(model)
    layers, skipped = find_layers(model)
    inside = ["if/else_branch/Conv_0", "if/then_branch/inner", "loop/body/deep"]
    assert list(layers) == ["a", "b", *inside]
    assert all(layers[name].shared == "a" for name in inside)
    assert skipped == {"Block/hidden": "it lies in a local function"}
    layers, skipped = find_layers(inline_functions(model))
    assert len(layers) == 6 and not skipped
    result = compressed(model, ["a", "b"])
    assert "wa" in weight_names(result), "the bodies still read it"
    same_outputs(model, result, x=rng.standard_normal((1, 4, 6, 6), np.float32))
    result = compressed(model)
    assert "wa" not in weight_names(result)
    same_outputs(model, result, x=rng.standard_normal((1, 4, 6, 6), np.float32))


# ------------------------------------------------------------------------------------- failures


@dataclass(frozen=True, eq=False)
class Broken(CompressedWeight):
    """A weight that fails half way through its emission."""

    array: np.ndarray

    def decode(self):
        return self.array

    def scaled(self, gain):
        return self

    def emit(self, op, x, layer):
        op.Conv(x, self.array)
        raise RuntimeError("no luck\nsecond line")


def test_a_layer_that_cannot_be_emitted_stays_and_the_others_are_replaced(rng):
    model = two_convs(rng)
    layers, _ = find_layers(model)
    weights = {"a": Broken(np.ones((9, 9, 3, 3), np.float32)), "b": basis(layers["b"], 3)}
    failed = {}
    result = rewrite(model, weights, failed=failed)
    assert failed == {"a": "it could not be rewritten: no luck second line"}
    expected = rewrite(model, {"b": weights["b"]})
    assert len(weight_names(result)) == len(weight_names(expected))
    assert result.graph.node[0] == model.graph.node[0]
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "Conv", "Conv"]
    assert list(result.read("wa").ravel()) == list(model.read("wa").ravel())
    with pytest.raises(RuntimeError, match="no luck"):
        rewrite(model, weights)


def test_a_rewrite_of_an_unknown_layer_is_refused(rng):
    with pytest.raises(ModelError, match="nothing"):
        rewrite(two_convs(rng), {"nothing": Broken(np.ones(1))})


# --------------------------------------------------------------------------------- small passes


def with_batchnorm(rng, ir=10, bias=True, epsilon=1e-2):
    weights = {
        "w": rng.standard_normal((6, 4, 3, 3), np.float32),
        "b": rng.standard_normal(6, np.float32),
        "scale": rng.standard_normal(6, np.float32),
        "shift": rng.standard_normal(6, np.float32),
        "mean": rng.standard_normal(6, np.float32),
        "var": rng.uniform(0.1, 2, 6).astype(np.float32),
    }
    nodes = [
        conv("c", "x", "w", "h", *(["b"] if bias else [])),
        helper.make_node(
            *("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["y"], "norm"),
            epsilon=epsilon,
        ),
    ]
    if not bias:
        del weights["b"]
    return build(nodes, {"x": [2, 4, 5, 5]}, {"y": [2, 6, 3, 3]}, weights, ir, 13)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ir", [3, 10])
def test_folding_a_batchnorm_keeps_the_outputs(rng, ir, bias):
    model = with_batchnorm(rng, ir, bias)
    result = graph.fold_batchnorm(model)
    graph.check(result)
    assert [node.op_type for node in result.graph.node] == ["Conv"]
    assert len(result.graph.initializer) == 2
    same_outputs(model, result, x=rng.standard_normal((2, 4, 5, 5), np.float32))


def test_a_batchnorm_whose_conv_has_other_readers_is_not_folded(rng):
    proto = with_batchnorm(rng).proto
    proto.graph.output.append(value("h", [2, 6, 3, 3]))
    assert graph.fold_batchnorm(Model(proto)).proto == proto


@pytest.mark.parametrize("name", ["w", "scale", "mean"])
def test_a_batchnorm_whose_parameters_callers_may_override_is_not_folded(rng, name):
    proto = with_batchnorm(rng).proto
    [dims] = [list(t.dims) for t in proto.graph.initializer if t.name == name]
    proto.graph.input.append(value(name, dims))
    assert graph.fold_batchnorm(Model(proto)).proto == proto


def with_pad(rng, around=(0, 0, 1, 0, 0, 0, 2, 1), own=(), opset=17, fill=0.0, **attributes):
    weights = {"w": rng.standard_normal((6, 4, 3, 3), np.float32)}
    pad = helper.make_node("Pad", ["x"], ["p"], "pad", **attributes)
    if opset < 11:
        pad.attribute.append(helper.make_attribute("pads", around))
    else:
        weights |= {"around": np.int64(around), "fill": np.float32(fill)}
        pad.input.extend(("around", "fill"))
    given = {"pads": own} if isinstance(own, tuple) and own else {"auto_pad": own} if own else {}
    nodes = [pad, helper.make_node("Conv", ["p", "w"], ["y"], "c", **given)]
    return build(nodes, {"x": [2, 4, 7, 7]}, {"y": [2, 6, None, None]}, weights, 10, opset)


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("own", [(), (1, 2, 0, 1), "VALID"])
def test_a_conv_adds_the_zeros_of_a_pad_itself(rng, opset, own):
    model = with_pad(rng, own=own, opset=opset)
    result = graph.fold_pads(model)
    graph.check(result)
    assert [node.op_type for node in result.graph.node] == ["Conv"]
    assert weight_names(result) == ["w"]
    same_outputs(model, result, x=rng.standard_normal((2, 4, 7, 7), np.float32))


@pytest.mark.parametrize(
    "given",
    [
        {"fill": 1.0},
        {"mode": "reflect", "around": (0, 0, 1, 1, 0, 0, 1, 1)},
        {"around": (1, 0, 1, 1, 0, 0, 1, 1)},
        {"around": (0, 0, 1, 1, 0, 0, -1, 1)},
        {"own": "SAME_UPPER"},
    ],
)
def test_a_pad_that_is_no_zeros_around_an_image_is_left_alone(rng, given):
    model = with_pad(rng, **given)
    assert graph.fold_pads(model).proto == model.proto


def test_a_pad_with_other_readers_or_that_callers_may_override_is_left_alone(rng):
    read, overridden = with_pad(rng).proto, with_pad(rng).proto
    read.graph.output.append(value("p", [2, 4, 10, 8]))
    overridden.graph.input.append(value("around", [8], TensorProto.INT64))
    for proto in (read, overridden):
        assert graph.fold_pads(Model(proto)).proto == proto


def test_drop_dead_removes_the_named_constants_that_nothing_reads(rng):
    proto = two_convs(rng, ir=3, opset=9).proto
    for name in ("dead", "kept"):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32([1]), name))
        proto.graph.input.append(value(name, [1]))
    result = graph.drop_dead(Model(proto), ["dead", "wa", "x"])
    assert set(weight_names(result)) == {"wa", "ba", "wb", "kept"}
    assert {v.name for v in result.graph.input} == {"x", "wa", "ba", "wb", "kept"}


def test_annotate_sets_entries_and_keeps_the_others(rng):
    model = graph.annotate(rich(rng), {"new": "1"})
    model = graph.annotate(model, {"new": "2"})
    props = {entry.key: entry.value for entry in model.proto.metadata_props}
    assert props == {"key": "of model", "new": "2"}


# -------------------------------------------------------------------------------- external data


def external(model, folder, location="weights.bin"):
    """Write the model with its large weights in another file, as other tools do."""
    proto = model.copy().proto
    onnx.save(
        *(proto, str(folder / "model.onnx")),
        save_as_external_data=True,
        location=location,
        size_threshold=64,
    )
    return folder / "model.onnx"


def test_external_data_stays_on_disk_until_it_is_read(rng, tmp_path):
    model = two_convs(rng)
    loaded = load(external(model, tmp_path))
    assert all(not loaded.initializers[name].raw_data for name in ("wa", "wb"))
    np.testing.assert_array_equal(loaded.read("wa"), model.read("wa"))
    layers, _ = find_layers(loaded)
    np.testing.assert_array_equal(layers["b"].weight, model.read("wb"))
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size - 4096 < loaded.nbytes <= size
    assert loaded.weight_bytes == model.weight_bytes


def test_a_small_model_is_saved_as_one_file_whatever_the_source_had(rng, tmp_path):
    model = two_convs(rng)
    loaded = load(external(model, tmp_path))
    [file] = save(compressed(loaded, ["b"]), tmp_path / "out" / "small.onnx")
    assert [file] == [*file.parent.iterdir()]
    assert file.stat().st_size == compressed(loaded, ["b"]).nbytes
    (tmp_path / "weights.bin").unlink()
    same_outputs(model, load(file), x=rng.standard_normal((2, 4, 6, 6), np.float32))


def test_external_data_of_a_large_model_is_saved_under_a_relative_name(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(graph.model, "LARGE_MODEL", 1024)
    model = two_convs(rng)
    result = compressed(load(external(model, tmp_path)), ["b"])
    target = tmp_path / "deep" / "out"
    written = save(result, target / "small.onnx")
    assert sorted(written) == sorted(target.iterdir())
    file, data = written
    assert file.name == "small.onnx" and re.fullmatch(r"small\.onnx\.[0-9a-f]{16}\.data", data.name)
    (tmp_path / "weights.bin").unlink()
    reloaded = load(target / "small.onnx")
    outside = [
        external_data_helper.ExternalDataInfo(tensor)
        for tensor in reloaded.graph.initializer
        if external_data_helper.uses_external_data(tensor)
    ]
    assert {info.location for info in outside} == {data.name}
    moved = tmp_path / "moved"
    target.rename(moved)
    x = rng.standard_normal((2, 4, 6, 6), np.float32)
    session = ort.InferenceSession(moved / "small.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], run(model, x=x)[0], 1e-3, 1e-3)
    same_outputs(model, load(moved / "small.onnx"), x=x)


def test_external_data_of_bodies_is_read_and_saved_in_the_file(rng, tmp_path):
    proto = two_convs(rng).proto
    branches = {}
    for name in ("then_branch", "else_branch"):
        weight = rng.standard_normal((8, 4, 3, 3), np.float32)
        branches[name] = helper.make_graph(
            *([conv(name, "x", f"w_{name}", f"y_{name}")], name, []),
            *([value(f"y_{name}", None)], [numpy_helper.from_array(weight, f"w_{name}")]),
        )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["z"], "if", **branches))
    proto.graph.output.append(value("z", ["N", 8, 4, 4]))
    model = Model(proto)
    (tmp_path / "out").mkdir()
    result = compressed(load(external(model, tmp_path)))
    save(result, tmp_path / "out" / "model.onnx")
    x = rng.standard_normal((1, 4, 6, 6), np.float32)
    same_outputs(model, load(tmp_path / "out" / "model.onnx"), x=x)


def test_all_large_weights_can_be_moved_to_external_data(rng, tmp_path):
    model = two_convs(rng)
    save(model, tmp_path / "model.onnx", external=True)
    loaded = load(tmp_path / "model.onnx")
    for name in ("wa", "wb"):
        assert external_data_helper.uses_external_data(loaded.initializers[name])
        np.testing.assert_array_equal(loaded.read(name), model.read(name))
    assert not external_data_helper.uses_external_data(loaded.initializers["ba"])


def test_a_model_with_external_data_can_be_saved_over_itself(rng, tmp_path):
    path = tmp_path / "model.onnx"
    model = two_convs(rng)
    save(model, path, external=True)
    save(compressed(load(path), ["b"]), path)
    x = rng.standard_normal((1, 4, 6, 6), np.float32)
    same_outputs(model, load(path), x=x)


def test_data_that_another_model_names_stays(rng, tmp_path):
    """A copy of a result shares its data, and may be what is compressed next."""
    model, path = two_convs(rng), tmp_path / "out.onnx"
    _, data = save(model, path, external=True)
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(path.read_bytes())
    save(compressed(load(copy), ["b"]), path)
    assert data.exists()
    x = rng.standard_normal((1, 4, 6, 6), np.float32)
    same_outputs(model, load(copy), x=x)
    copy.unlink()
    _, own = save(model, path, external=True)
    assert own == data
    [_] = save(compressed(model, ["b"]), path)
    assert [*tmp_path.iterdir()] == [path]


def test_data_that_the_source_names_in_a_folder_below_stays(rng, tmp_path):
    model, below = two_convs(rng), tmp_path / "below"
    _, data = save(model, below / "out.onnx", external=True)
    proto = onnx.load(below / "out.onnx", load_external_data=False)
    relocated(f"below/{data.name}")(proto, tmp_path)
    (tmp_path / "source.onnx").write_bytes(proto.SerializeToString())
    save(compressed(load(tmp_path / "source.onnx"), ["b"]), below / "out.onnx")
    x = rng.standard_normal((1, 4, 6, 6), np.float32)
    same_outputs(model, load(tmp_path / "source.onnx"), x=x)


def test_links_are_followed_as_onnxruntime_follows_them(rng, tmp_path):
    """Caches of model hubs: both files are links into a folder of blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    snapshot.mkdir()
    model = two_convs(rng)
    external(model, blobs, "model.onnx_data").rename(blobs / "m")
    (blobs / "model.onnx_data").rename(blobs / "d")
    (snapshot / "model.onnx").symlink_to("../blobs/m")
    (snapshot / "model.onnx_data").symlink_to("../blobs/d")
    x = rng.standard_normal((1, 4, 6, 6), np.float32)
    same_outputs(model, load(snapshot / "model.onnx"), x=x)
    (snapshot / "model.onnx").unlink()
    (snapshot / "model.onnx").write_bytes((blobs / "m").read_bytes())
    with pytest.raises(ModelError, match="outside its folder"):
        load(snapshot / "model.onnx")


def relocated(location):
    def change(proto, folder):
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    return change


def without_data(proto, folder):
    (folder / "weights.bin").unlink()


def with_half_the_data(proto, folder):
    data = folder / "weights.bin"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (relocated("../weights.bin"), "outside its folder"),
        (relocated("/etc/passwd"), "outside its folder"),
        (relocated("other.bin"), "is missing"),
        (without_data, "is missing"),
        (with_half_the_data, "is truncated"),
    ],
)
def test_bad_external_data_is_refused_in_one_line(rng, tmp_path, change, reason):
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 16))
    folder = tmp_path / "inner"
    folder.mkdir()
    path = external(two_convs(rng), folder)
    proto = onnx.load(path, load_external_data=False)
    change(proto, folder)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_external_data_that_shrinks_after_loading_is_reported_in_one_line(rng, tmp_path):
    model = load(external(two_convs(rng), tmp_path))
    with_half_the_data(None, tmp_path)
    with pytest.raises(ModelError, match="wb") as caught:
        model.read("wb")
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- load and save


def test_saving_is_deterministic(rng, tmp_path):
    model = rich(rng)
    for name in ("one", "two"):
        save(compressed(model, rank=3), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("step", ["fsync", "umask"])
def test_a_save_that_fails_half_way_leaves_the_old_file_and_nothing_else(
    rng, tmp_path, monkeypatch, outside, step
):
    def fail(*_):
        raise OSError("disk full")

    path = tmp_path / "model.onnx"
    save(two_convs(rng), path, external=outside)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(f"os.{step}", fail)
    with pytest.raises(ModelError, match="cannot be written: disk full"):
        save(compressed(load(path), rank=2), path, external=outside)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def whole(rng):
    return two_convs(rng).proto.SerializeToString()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"This is no model.\n" * 50, "truncated or not an ONNX model"),
        (bytes(range(256)) * 4, "truncated or not an ONNX model"),
        (b"\x08\x0a", "has no graph"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_model_is_refused_in_one_line(tmp_path, data, reason):
    path = tmp_path / "model.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ModelError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)


def test_a_model_truncated_anywhere_is_refused_in_one_line(rng, tmp_path):
    data, path = whole(rng), tmp_path / "model.onnx"
    for length in (1, 10, len(data) // 3, len(data) // 2, len(data) - 3):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_an_invalid_model_is_refused_in_one_line(rng, tmp_path):
    proto = two_convs(rng).proto
    proto.graph.node[1].input[0] = "nowhere"
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="not a valid ONNX model") as caught:
        load(path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ float types


def typed(rng, kind):
    """Convolution, transposed convolution and Gemm in one of the small float types."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {
        "w": 0.2 * rng.standard_normal((8, 4, 3, 3)),
        "b": rng.standard_normal(8),
        "wt": 0.2 * rng.standard_normal((8, 4, 2, 2)),
        "wg": 0.1 * rng.standard_normal((64, 5)),
        "bg": rng.standard_normal(5),
    }
    weights = {name: w.astype(dtype) for name, w in weights.items()}
    nodes = [
        conv("c", "x", "w", "h", "b"),
        helper.make_node("ConvTranspose", ["h", "wt"], ["t"], "t", strides=[1, 1]),
        helper.make_node("Flatten", ["t"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "wg", "bg"], ["y"], "g"),
    ]
    return build(nodes, {"x": [1, 4, 5, 5]}, {"y": [1, 5]}, weights, opset=22)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_rewrite_keeps_the_float_type_and_the_model_runs(rng, kind):
    model = typed(rng, kind)
    layers, skipped = find_layers(model)
    assert list(layers) == ["c", "t", "g"] and not skipped
    biases = {"c": rng.standard_normal(8).astype(np.float32)}
    weights = {n: basis(layer) for n, layer in layers.items()}
    result = rewrite(model, weights, biases)
    graph.check(result)
    assert {t.data_type for t in result.graph.initializer if t.data_type != 7} == {kind}
    graph.check(rewrite(model, weights))
    x = rng.standard_normal((1, 4, 5, 5), np.float32).astype(layers["c"].weight.dtype)
    expected, got = run(model, x=x)[0], run(rewrite(model, weights), x=x)[0]
    np.testing.assert_allclose(*(a.astype(np.float32) for a in (expected, got)), 0.05, 0.1)


def test_the_float32_twin_has_no_bfloat16_left(rng):
    model = typed(rng, TensorProto.BFLOAT16)
    before = model.proto.SerializeToString(deterministic=True)
    twin = graph.as_float32(model)
    graph.check(twin)
    assert graph.needs_float32(model) and not graph.needs_float32(twin)
    assert {t.data_type for t in twin.graph.initializer} == {FLOAT}
    assert twin.graph.input[0].type.tensor_type.elem_type == FLOAT
    assert model.proto.SerializeToString(deterministic=True) == before


# ------------------------------------------------------------------------------------------ Gemm


@pytest.mark.parametrize("bias", ["none", "constant", "row", "scalar", "matrix", "computed"])
@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_gemm_keeps_its_outputs_whatever_its_attributes(rng, bias, turned):
    left, right = turned
    shape = {"constant": 5, "row": (1, 5), "scalar": (), "matrix": (3, 5), "computed": (3, 5)}
    weights = {"w": rng.standard_normal((5, 8) if right else (8, 5), np.float32)}
    nodes, extra = [], []
    if bias != "none":
        weights["b"] = np.asarray(rng.standard_normal(shape[bias]), np.float32)
        extra = ["b"]
    if bias == "computed":
        nodes, extra = [helper.make_node("Neg", ["b"], ["nb"], "neg")], ["nb"]
    attributes = {"alpha": 0.5, "beta": 2.0, "transA": left, "transB": right}
    nodes.append(helper.make_node("Gemm", ["x", "w", *extra], ["y"], "g", **attributes))
    size = [8, 3] if left else [3, 8]
    model = build(nodes, {"x": size}, {"y": [3, 5]}, weights)
    result = compressed(model)
    assert len(nodes_of(result, "Gemm")) == 2
    graph.check(result)
    same_outputs(model, result, x=rng.standard_normal(size, np.float32))


def test_before_opset_11_every_gemm_has_a_bias(rng):
    weights = {
        "w": rng.standard_normal((8, 5), np.float32),
        "b": rng.standard_normal(5, np.float32),
    }
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g")
    model = build([node], {"x": [3, 8]}, {"y": [3, 5]}, weights, opset=9)
    result = compressed(model)
    graph.check(result)
    assert len(nodes_of(result, "Gemm")) == 2
    same_outputs(model, result, x=rng.standard_normal((3, 8), np.float32))


def test_a_matmul_with_its_weight_on_the_left_keeps_its_outputs(rng):
    weights = {"w": rng.standard_normal((5, 8), np.float32)}
    node = helper.make_node("MatMul", ["w", "x"], ["y"], "m")
    model = build([node], {"x": [2, 8, 3]}, {"y": [2, 5, 3]}, weights)
    result = compressed(model)
    assert len(nodes_of(result, "MatMul")) == 2 and "w" not in weight_names(result)
    same_outputs(model, result, x=rng.standard_normal((2, 8, 3), np.float32))


# -------------------------------------------------------------------------------------- detached


def wide(rng, *extra, **weights):
    weights = {"w": rng.standard_normal((64, 64), np.float32), **weights}
    node = helper.make_node("MatMul", ["x", "w"], ["h"], "m")
    return build([node, *extra], {"x": [2, 64]}, {"y": [2, 64]}, weights, opset=21)


def test_a_detached_model_with_its_weights_runs_like_the_original(rng):
    small = rng.standard_normal(64, np.float32)
    model = wide(rng, helper.make_node("Add", ["h", "b"], ["y"], "add"), b=small)
    stub, weights = graph.detached(model)
    assert list(weights) == ["w"]
    assert len(stub) < graph.DETACHED_BYTES
    np.testing.assert_array_equal(weights["w"], model.read("w"))
    options = ort.SessionOptions()
    values = [ort.OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
    options.add_external_initializers(list(weights), values)
    providers = ["CPUExecutionProvider"]
    x = rng.standard_normal((2, 64), np.float32)
    expected = ort.InferenceSession(model.proto.SerializeToString(), providers=providers)
    got = ort.InferenceSession(stub, options, providers=providers)
    np.testing.assert_array_equal(got.run(None, {"x": x})[0], expected.run(None, {"x": x})[0])


def test_weights_of_four_bits_are_not_detached_and_run(rng):
    packed = helper.make_tensor("q", TensorProto.INT4, [128, 64], rng.integers(-8, 8, 128 * 64))
    packed = numpy_helper.from_array(numpy_helper.to_array(packed), "q")
    extra = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], "dequantize"),
        helper.make_node("MatMul", ["d", "hh"], ["unused"], "left"),
        helper.make_node("Transpose", ["h"], ["hh"], "turn"),
        helper.make_node("Identity", ["h"], ["y"], "identity"),
    ]
    extra = [extra[0], extra[2], extra[1], extra[3]]
    model = wide(rng, *extra, q=packed, s=np.float32(0.1))
    _, weights = graph.detached(model)
    assert list(weights) == ["w"]
    assert model.weight_bytes == 64 * 64 * 4 + 128 * 64 // 2 + 4
    run(model, x=rng.standard_normal((2, 64), np.float32))


# ------------------------------------------------------------------------------- passes of others


def drop_dropout(model):
    """The pass that docs/passes.md shows."""
    result = model.copy()
    nodes = result.nodes.items()
    graph.bypass(result, [key for key, (_, node) in nodes if node.op_type == "Dropout"])
    return result


def dropout(x, y, name="drop"):
    return helper.make_node("Dropout", [x, "ratio"], [y, f"{y}_mask"], name)


RATIO = {"ratio": np.float32(0.5)}


def with_branches(nodes, other, weights):
    """x -> nodes -> If, one branch of which is ``other`` -> y."""
    made = [helper.make_graph([n], "branch", [], [value(n.output[0], ["N", 4])]) for n in other]
    flag = helper.make_node("If", ["yes"], ["y"], "if", then_branch=made[0], else_branch=made[1])
    return build([*nodes, flag], {"x": ["N", 4]}, {"y": ["N", 4]}, weights)


DROPOUTS = {
    "between": [dropout("h", "d"), helper.make_node("Neg", ["d"], ["y"])],
    "as the output": [dropout("h", "y")],
    "twice as the output": [dropout("h", "d"), dropout("d", "y", "second")],
    "as the output and read": [dropout("h", "y"), helper.make_node("Neg", ["h"], ["other"])],
    "of the input": [dropout("x", "d"), helper.make_node("Add", ["d", "h"], ["y"])],
    "from input to output": [dropout("x", "y")],
}


@pytest.mark.parametrize("place", DROPOUTS)
def test_a_bypassed_node_goes_wherever_it_stands(place, rng):
    nodes = [helper.make_node("Relu", ["x"], ["h"], "relu"), *DROPOUTS[place]]
    model = build(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, RATIO)
    result = drop_dropout(model)
    graph.check(result)
    assert not nodes_of(result, "Dropout") and not result.graph.initializer
    left = ["Identity"] if place == "from input to output" else []
    assert [n.op_type for n in nodes_of(result, "Identity")] == left
    assert [output.name for output in result.graph.output] == ["y"]
    same_outputs(model, result, x=rng.standard_normal((3, 4), np.float32))


def test_what_bodies_read_of_a_bypassed_node_is_read_before_it(rng):
    weights = {**RATIO, "yes": np.array([True])}
    other = [helper.make_node("Neg", ["d"], ["n"]), helper.make_node("Abs", ["d"], ["a"])]
    nodes = [helper.make_node("Relu", ["x"], ["h"], "relu"), dropout("h", "d")]
    inputs = numpy_helper.from_array(weights["yes"], "yes")
    model = with_branches(nodes, other, {**RATIO, "yes": inputs})
    result = drop_dropout(model)
    graph.check(result)
    assert not nodes_of(result, "Dropout")
    same_outputs(model, result, x=rng.standard_normal((3, 4), np.float32))


def test_a_node_in_a_body_is_bypassed_too(rng):
    yes = numpy_helper.from_array(np.array([True]), "yes")
    other = [dropout("h", "b"), dropout("h", "b")]
    model = with_branches(
        [helper.make_node("Relu", ["x"], ["h"], "relu")], other, {**RATIO, "yes": yes}
    )
    result = drop_dropout(model)
    graph.check(result)
    inner = [node.op_type for scope in result.scopes[1:] for node in scope.graph.node]
    assert inner == ["Identity"] * 2
    same_outputs(model, result, x=rng.standard_normal((3, 4), np.float32))


def test_a_node_whose_other_output_is_read_is_not_bypassed(rng):
    nodes = [dropout("x", "d"), helper.make_node("Not", ["d_mask"], ["m"]),
             helper.make_node("Where", ["m", "x", "d"], ["y"])]  # fmt: skip
    model = build(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, RATIO)
    result = drop_dropout(model)
    assert len(nodes_of(result, "Dropout")) == 1
    same_outputs(model, result, x=rng.standard_normal((3, 4), np.float32))


def test_long_chains_are_bypassed_at_once():
    names = ["x", *(f"t{i}" for i in range(20_000)), "y"]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
    nodes[-1] = helper.make_node("Relu", [names[-2]], ["y"])
    model = build(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, {})
    result = model.copy()
    assert len(graph.bypass(result, result.keys[:-1])) == 20_000
    assert [(*node.input, *node.output) for node in result.graph.node] == [("x", "y")]


@pytest.mark.parametrize("inner", [True, False])
def test_weights_in_the_bodies_of_unnamed_nodes_are_replaced(inner, rng):
    """What decodes them stands before the node, whose number it changes."""
    names = ("then_branch", "else_branch")
    tensors = [
        numpy_helper.from_array(rng.standard_normal((64, 64), np.float32), f"w_{name}")
        for name in names
    ]
    nodes, x = [], "x"
    for index in range(2):  # the same inner names again: two bodies do not see each other
        branches = {}
        for name, weight in zip(names, tensors, strict=True):
            node = helper.make_node("MatMul", [x, weight.name], [f"out_{name}"])
            branches[name] = helper.make_graph(
                [node], name, [], [value(f"out_{name}", None)], [weight] if inner else []
            )
        nodes.append(helper.make_node("If", ["yes"], [f"y{index}"], **branches))
        x = f"y{index}"
    yes = numpy_helper.from_array(np.array([True]), "yes")
    weights = {t.name: t for t in tensors} if not inner else {}
    model = build(nodes, {"x": ["N", 64]}, {"y1": ["N", 64]}, {"yes": yes, **weights})
    model.graph.input[0].type.tensor_type.elem_type = FLOAT
    model.graph.output[0].type.tensor_type.elem_type = FLOAT
    layers, _ = find_layers(model)
    assert len(layers) == 4
    half = {name: Half().fit(layer, Statistics.white(layer)) for name, layer in layers.items()}
    result = rewrite(model, half)
    graph.check(result)
    assert result.nbytes < 0.7 * model.nbytes
    x = rng.standard_normal((3, 64), np.float32)
    [expected], [outputs] = run(model, x=x), run(result, x=x)
    assert np.linalg.norm(outputs - expected) < 2**-10 * np.linalg.norm(expected)


def test_onnxruntime_is_not_given_constants_that_nothing_reads(rng):
    model = two_convs(rng)
    for index in range(100):
        graph.add_constant(model, f"unread{index}", np.ones(4, np.float32))
    proto = onnx.load_from_string(graph.detached(model)[0])
    assert {t.name for t in proto.graph.initializer} == {"wa", "ba", "wb"}
    run(model, x=rng.standard_normal((1, 4, 6, 6), np.float32))


def test_edits_are_seen_at_once_and_those_of_others_after_changed(rng):
    model = two_convs(rng).copy()
    assert model.consumers["ra"] == 1 and model.producers["ra"] == "relu"
    graph.bypass(model, ["relu"])
    assert model.consumers["ra"] == 0 and "relu" not in model.nodes
    graph.add_constant(model, "new", np.ones(3, np.float32))
    assert "new" in model.constants
    graph.drop_constants(model, ["new"])
    assert "new" not in model.constants
    model.graph.node[-1].input[0] = "x"
    model.changed()
    assert model.consumers["ya"] == 0 and model.consumers["x"] == 2


@pytest.mark.parametrize("groups", [-1, 0, 5])
def test_a_layer_whose_outputs_do_not_fall_into_its_groups_is_skipped(rng, groups):
    model, _ = layer_model("depthwise", rng)
    [group] = [a for a in model.graph.node[0].attribute if a.name == "group"]
    group.i = groups
    layers, skipped = find_layers(model)
    assert not layers and "do not belong together" in skipped["layer"]
