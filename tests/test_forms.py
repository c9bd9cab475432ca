"""Weights in the forms that people ship: whole numbers and scales, products of whole numbers."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxcompress as oc
from onnxcompress.compression.inspect import examine, inventory
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.method_spec import parse
from onnxcompress.core.method import Plain
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_constants, find_layers, rewrite
from onnxcompress.report.tables import render_inspection

INPUTS, OUTPUTS = 96, 64
node = helper.make_node
QUICK = {"progress": False, "jobs": 1}


def model(nodes, weights, shape=("n", INPUTS), opset=17):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return Model(helper.make_model(graph, opset_imports=sets, ir_version=9))


def integers(low, high, shape, dtype: type = np.int8):
    return np.random.default_rng(low % 7).integers(low, high + 1, shape).astype(dtype)


def answers(net, x):
    return Session(net).run({"x": x})[0]


def decibels(net, result, x):
    before, after = answers(net, x), answers(result, x)
    return 10 * np.log10(np.square(before).sum() / max(np.square(before - after).sum(), 1e-20))


def drawn(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def cast_and_scaled(low=-127, high=127, zero=False):
    """int8 -> Cast -> (Cast of a zero point, Sub) -> Mul -> MatMul."""
    weights = {
        "q": integers(low, high, (INPUTS, OUTPUTS)),
        "s": np.random.default_rng(2).uniform(0.001, 0.01, (1, OUTPUTS)).astype(np.float32),
    }
    nodes = [node("Cast", ["q"], ["f"], to=TensorProto.FLOAT)]
    if zero:
        weights["z"] = np.array(3, np.int8)
        nodes += [
            node("Cast", ["z"], ["fz"], to=TensorProto.FLOAT),
            node("Sub", ["f", "fz"], ["d"]),
        ]
    nodes += [
        node("Mul", ["d" if zero else "f", "s"], ["w"]),
        node("MatMul", ["x", "w"], ["y"], "m"),
    ]
    return model(nodes, weights)


def dequantized(kind, op_type="MatMul"):
    """int8 -> DequantizeLinear -> MatMul or Conv, whose input is not quantized."""
    conv = op_type == "Conv"
    shape = (OUTPUTS, INPUTS // 4, 3, 3) if conv else (INPUTS, OUTPUTS)
    scales = {
        "tensor": (np.array(0.01, np.float32), {}),
        "axis": (np.linspace(0.01, 0.02, OUTPUTS, dtype=np.float32), {"axis": 0 if conv else 1}),
        "block": (
            np.linspace(0.01, 0.02, 6 * OUTPUTS, dtype=np.float32).reshape(6, OUTPUTS),
            {"axis": 0, "block_size": 16},
        ),
    }
    scale, attributes = scales[kind]
    weights = {"q": integers(-127, 127, shape), "s": scale}
    nodes = [node("DequantizeLinear", ["q", "s"], ["w"], **attributes)]
    nodes += [node(op_type, ["x", "w"], ["y"], "m")]
    open_ = ("n", INPUTS // 4, 6, 6) if conv else ("n", INPUTS)
    return model(nodes, weights, open_, 21 if kind == "block" else 17)


FLOATING = {
    "Cast and Mul": cast_and_scaled,
    "Cast, Sub and Mul": lambda: cast_and_scaled(zero=True),
    "a scale for all": lambda: dequantized("tensor"),
    "a scale for each output": lambda: dequantized("axis"),
    "a scale for each block": lambda: dequantized("block"),
    "Conv, a scale for each output": lambda: dequantized("axis", "Conv"),
}


@pytest.mark.parametrize("form", FLOATING)
def test_whole_numbers_times_scales_are_a_weight(form):
    net = FLOATING[form]()
    layers, skipped = find_layers(net)
    assert list(layers) == ["m"] and not skipped
    layer = layers["m"]
    assert net.weight_bytes - 64 < layer.nbytes <= net.weight_bytes < 2 * layer.weight.size
    x = drawn(4, *([INPUTS // 4, 6, 6] if layer.op_type == "Conv" else [INPUTS]))
    for data in (None, {"x": drawn(64, *x.shape[1:])}):
        result, _ = oc.compress(net, methods="integer:bits=4", samples=data, **QUICK)
        assert result.nbytes < net.nbytes and "q" not in result.constants
        assert decibels(net, result, x) > 15


def test_an_embedding_of_whole_numbers_is_a_constant_under_the_name_of_its_floats():
    weights = {"q": integers(-90, 90, (50, 40)), "s": np.full((50, 1), 0.01, np.float32)}
    nodes = [
        node("Cast", ["x"], ["tokens"], to=TensorProto.INT64),
        node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "s"], ["table"]),
        node("Gather", ["table", "tokens"], ["y"]),
    ]
    net = model(nodes, weights, ("n",))
    [(name, layer)] = find_constants(net, find_layers(net)[0]).items()
    assert name == "table" and layer.nbytes == net.weight_bytes
    result, _ = oc.compress(net, methods="integer:bits=4", **QUICK)
    assert result.nbytes < net.nbytes
    assert decibels(net, result, np.arange(50, dtype=np.float32)) > 15


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-5, 5), (0, 15), (-3, 3)])
@pytest.mark.parametrize("data", [False, True])
def test_numbers_of_few_levels_are_stored_exactly_in_fewer_bits(low, high, data):
    net = cast_and_scaled(low, high)
    samples = {"x": drawn(64, INPUTS)} if data else None
    result, report = oc.compress(
        net, methods="integer:bits=4", samples=samples, correct=False, **QUICK
    )
    assert report.rows[0].nbytes[1] < 0.6 * report.rows[0].nbytes[0]
    assert decibels(net, result, drawn(8, INPUTS)) > 110


def test_nothing_is_left_of_numbers_that_are_stored_in_8_bits_already():
    with pytest.raises(oc.BudgetError, match="nothing is left to save"):
        oc.compress(cast_and_scaled(), methods="integer:bits=8", **QUICK)


def test_arithmetic_that_makes_a_larger_tensor_is_no_view_of_a_constant():
    weights = {"a": drawn(INPUTS, 1), "b": drawn(1, OUTPUTS)}
    nodes = [node("Mul", ["a", "b"], ["w"]), node("MatMul", ["x", "w"], ["y"], "m")]
    _, skipped = find_layers(model(nodes, weights))
    assert "cannot be computed" in skipped["m"]


# -------------------------------------------------------------- products of whole numbers


def integer_product():
    """DynamicQuantizeLinear -> MatMulInteger with a zero point -> Cast -> Mul."""
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        node("MatMulInteger", ["xq", "q", "xz", "z"], ["i"], "m"),
        node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["xs", "s"], ["ss"]),
        node("Mul", ["f", "ss"], ["y"]),
    ]
    stored = integers(10, 250, (INPUTS, OUTPUTS), np.uint8)
    weights = {"q": stored, "z": np.array(130, np.uint8), "s": np.array(0.01, np.float32)}
    return model(nodes, weights)


def integer_convolution(op_type):
    weights = {
        "w": integers(-127, 127, (32, INPUTS // 4, 3, 3)),
        **{name: np.array(0.05, np.float32) for name in ("xs", "ws")},
        "ys": np.array(2.0, np.float32),
        "wz": np.array(0, np.int8),
        **{name: np.array(128, np.uint8) for name in ("xz", "yz")},
    }
    nodes = [node("QuantizeLinear", ["x", "xs", "xz"], ["xq"])]
    if op_type == "ConvInteger":
        nodes += [node("ConvInteger", ["xq", "w", "xz", "wz"], ["i"], "m")]
        nodes += [node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]
    else:
        read = ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
        nodes += [node("QLinearConv", read, ["yq"], "m")]
        nodes += [node("DequantizeLinear", ["yq", "ys", "yz"], ["y"])]
    return model(nodes, weights, ("n", INPUTS // 4, 6, 6))


def integer_lstm():
    scales = {name: np.full(1, 0.005, np.float32) for name in ("ws", "rs")}
    zeros = {name: np.zeros(1, np.int8) for name in ("wz", "rz")}
    weights = {"w": integers(-99, 99, (1, 24, 128)), "r": integers(-99, 99, (1, 32, 128))}
    read = ["x", "w", "r", *[""] * 5, "ws", "wz", "rs", "rz"]
    made = node("DynamicQuantizeLSTM", read, ["y"], "m", domain="com.microsoft", hidden_size=32)
    return model([made], {**weights, **scales, **zeros}, (5, "n", 24))


def integer_matmul():
    weights = {"q": integers(-127, 127, (INPUTS, OUTPUTS)), "s": np.array(0.01, np.float32)}
    made = node("DynamicQuantizeMatMul", ["x", "q", "s"], ["y"], "m", domain="com.microsoft")
    return model([made], weights)


MULTIPLIED = {
    "MatMulInteger": integer_product,
    "ConvInteger": lambda: integer_convolution("ConvInteger"),
    "QLinearConv": lambda: integer_convolution("QLinearConv"),
    "DynamicQuantizeLSTM": integer_lstm,
    "DynamicQuantizeMatMul": integer_matmul,
}


@pytest.mark.parametrize("form", MULTIPLIED)
def test_whole_numbers_that_are_multiplied_become_fewer_levels_of_their_type(form):
    net = MULTIPLIED[form]()
    shape = [d.dim_value or 16 for d in net.graph.input[0].type.tensor_type.shape.dim]
    x = drawn(*shape)
    operators = [n.op_type for n in net.graph.node]
    result, _ = oc.compress(net, methods="integer:bits=4", **QUICK)
    assert result.nbytes < net.nbytes
    assert [n.op_type for n in result.graph.node][-len(operators) :] == operators
    assert decibels(net, result, x) > 15
    if form == "MatMulInteger":
        evaluated: Any = ReferenceEvaluator(result.proto).run(None, {"x": x})
        np.testing.assert_allclose(answers(result, x), evaluated[0], rtol=1e-5, atol=1e-5)


def test_few_levels_of_multiplied_numbers_come_out_exactly():
    net = integer_matmul()
    proto = net.copy().proto
    stored = integers(-8, 7, (INPUTS, OUTPUTS)) * 9  # multiples, as rounding to 4 bits gives
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(stored.astype(np.int8), "q"))
    x = drawn(8, INPUTS)
    result, _ = oc.compress(Model(proto), methods="integer:bits=4", **QUICK)
    assert result.nbytes < 0.75 * net.nbytes
    np.testing.assert_array_equal(answers(result, x), answers(Model(proto), x))


def test_what_a_product_reads_shapes_the_fit_of_its_whole_numbers():
    net, scale = integer_product(), np.geomspace(1, 0.01, INPUTS, dtype=np.float32)
    x = drawn(256, INPUTS) * scale
    blind, seeing = (
        oc.compress(net, methods="integer:bits=3", samples=data, force=True, **QUICK)[0]
        for data in (None, {"x": x})
    )
    assert decibels(net, seeing, x) > decibels(net, blind, x) + 0.5


def test_every_byte_has_a_row_in_inspect():
    for make in (*FLOATING.values(), *MULTIPLIED.values()):
        net = make()
        layers, rest = inventory(net, {})
        assert sum(row["bytes"] or 0 for row in (*layers, *rest)) == net.nbytes
        assert sum(row["bytes"] or 0 for row in layers) > 0.9 * net.weight_bytes


def test_numbers_that_share_bytes_are_listed_and_left_with_the_reason():
    weights = {"b": integers(0, 255, (64, 3, 16), np.uint8), "s": np.full(192, 0.01, np.float32)}
    settings: dict[str, Any] = {"K": INPUTS, "N": 64, "bits": 4, "block_size": 32}
    made = node("MatMulNBits", ["x", "b", "s"], ["y"], "m", domain="com.microsoft", **settings)
    [[row], _] = inventory(model([made], weights), {})
    assert row["bytes"] == 64 * 48 + 768 and "share a byte" in row["reason"]


# ------------------------------------------------------------------- stacks of matrices


def stack(weight, shape, left=False):
    """A MatMul of a stack of matrices."""
    rng = np.random.default_rng(3)
    value = (rng.normal(size=weight) / 10).astype(np.float32)
    return model(
        [node("MatMul", ["w", "x"] if left else ["x", "w"], ["y"], "m")], {"w": value}, shape
    )


STACKS = {
    "one matrix": (lambda: stack((1, INPUTS, 40), ("b", "t", INPUTS)), (3, 5, INPUTS)),
    "one matrix, four axes": (
        lambda: stack((1, 1, INPUTS, 40), ("b", "t", INPUTS)),
        (3, 5, INPUTS),
    ),
    "one input for all": (lambda: stack((4, INPUTS, 40), ("b", 1, "t", INPUTS)), (3, 1, 5, INPUTS)),
    "inputs of their own": (
        lambda: stack((4, INPUTS, 40), ("b", 4, "t", INPUTS)),
        (3, 4, 5, INPUTS),
    ),
    "two axes, one broadcast": (
        lambda: stack((2, 3, INPUTS, 40), ("b", 2, 1, "t", INPUTS)),
        (3, 2, 1, 5, INPUTS),
    ),
    "the left factor": (
        lambda: stack((4, 40, INPUTS), ("b", 4, INPUTS, 5), True),
        (3, 4, INPUTS, 5),
    ),
}


@pytest.mark.parametrize("form", STACKS)
@pytest.mark.parametrize("spec", ["integer:bits=4", "basis:unfolding=filter,rank=24"])
def test_each_matrix_of_a_stack_is_a_group_that_is_fitted_to_what_it_reads(form, spec):
    make, shape = STACKS[form]
    net, x = make(), drawn(*shape)
    layer = find_layers(net)[0]["m"]
    seen = calibrate(net, {"m": layer}, [{"x": drawn(40, *shape[1:]) * 3}])["m"]
    assert seen.total.shape == (layer.groups, INPUTS) and seen.count >= 200
    assert layer.macs(shape) == input_shapes(net, {"x": x})[1]["m"]
    [method] = parse(spec)
    fitted = method.fit(layer, seen)
    result = rewrite(net, {"m": fitted}, {"m": np.arange(len(layer.weight), dtype=np.float32)})
    dense = rewrite(net, {"m": Plain(fitted.decode())})
    bias = np.arange(len(layer.weight), dtype=np.float32).reshape(layer.groups, -1)
    lead = layer.attributes["lead"] if layer.groups > 1 else ()
    added = bias.reshape(*lead, 1, -1) if lead else bias[0]
    added = added.swapaxes(-1, -2) if "left" in layer.attributes else added
    np.testing.assert_allclose(answers(result, x), answers(dense, x) + added, rtol=1e-4, atol=1e-4)
    kept = rewrite(net, {"m": Plain(layer.weight)})
    np.testing.assert_allclose(answers(kept, x), answers(net, x), rtol=1e-4, atol=1e-5)


def test_matrices_of_a_stack_follow_their_own_inputs():
    net = STACKS["inputs of their own"][0]()
    scales = np.random.default_rng(5).permuted(
        np.tile(np.geomspace(1, 0.01, INPUTS), (4, 1)), axis=1
    )
    x = (drawn(64, 4, 5, INPUTS) * scales[:, None]).astype(np.float32)
    results = [
        oc.compress(net, methods="basis:rank=24", samples=data, force=True, **QUICK)[0]
        for data in (None, {"x": x})
    ]
    assert decibels(net, results[1], x) > decibels(net, results[0], x) + 5


# --------------------------------------------------------------------------- equations

EQUATIONS = {  # the shapes of the input and of the weight
    "bsd,de->bse": ((2, 5, INPUTS), (INPUTS, 40)),
    "bshd,hde->bse": ((2, 5, 4, 24), (4, 24, 40)),
    "bsd,hed->bhse": ((2, 5, INPUTS), (4, 10, INPUTS)),
    "ebk,ekn->enb": ((4, 5, INPUTS), (4, INPUTS, 40)),
    "de,bsd->bse": ((2, 5, INPUTS), (INPUTS, 40)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("spec", ["integer:bits=4", "basis:unfolding=filter,rank=16"])
def test_an_equation_with_a_constant_is_a_layer(equation, spec):
    shape, lengths = EQUATIONS[equation]
    left = equation.startswith("de,")
    made = node("Einsum", ["w", "x"] if left else ["x", "w"], ["y"], "m", equation=equation)
    net = model([made], {"w": (drawn(*lengths) / 10).astype(np.float32)}, shape)
    layers, skipped = find_layers(net)
    layer, x = layers["m"], drawn(*shape)
    seen = calibrate(net, layers, [{"x": x * 2}])["m"]
    assert not skipped and seen.total.shape == (layer.groups, INPUTS)
    assert layer.macs(shape) == input_shapes(net, {"x": x})[1]["m"]
    kept = rewrite(net, {"m": Plain(layer.weight)})
    np.testing.assert_allclose(answers(kept, x), answers(net, x), rtol=1e-4, atol=1e-5)
    fitted = parse(spec)[0].fit(layer, seen)
    dense = answers(rewrite(net, {"m": Plain(fitted.decode())}), x)
    bias = np.full(len(layer.weight), 3, np.float32)
    result = rewrite(net, {"m": fitted}, {"m": bias})
    np.testing.assert_allclose(answers(result, x), dense + 3, rtol=1e-4, atol=1e-4)
    [evaluated] = ReferenceEvaluator(result.proto).run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(evaluated), dense + 3, rtol=1e-4, atol=1e-4)


def test_an_equation_that_is_no_product_of_two_is_left_with_the_reason():
    made = node("Einsum", ["x", "w"], ["y"], "m", equation="bi,jk->bjk")
    net = model([made], {"w": drawn(INPUTS, OUTPUTS)})
    assert "equation" in find_layers(net)[1]["m"]


# ------------------------------------------------------------------------- fused operators

FUSED = {
    "LayerNormalization": ("", 17, {"axis": -1}, ("g", "b")),
    "GroupNormalization": ("", 21, {"num_groups": 4}, ("g", "b")),
    "RMSNormalization": ("", 23, {"axis": -1}, ("g",)),
    "SkipLayerNormalization": ("com.microsoft", 17, {}, ("x", "g", "b")),
    "SimplifiedLayerNormalization": ("", 17, {"axis": -1}, ("g",)),
    "Attention": ("com.microsoft", 17, {"num_heads": 4}, ("qkv", "qb")),
}


@pytest.mark.parametrize("op_type", FUSED)
def test_fused_operators_stay_as_they_are(op_type):
    domain, opset, settings, read = FUSED[op_type]
    weights = {
        "g": drawn(INPUTS), "b": drawn(INPUTS), "qkv": drawn(INPUTS, 3 * INPUTS) / 10,
        "qb": drawn(3 * INPUTS), "w": drawn(INPUTS, OUTPUTS) / 10,
    }  # fmt: skip
    fused = node(op_type, ["x", *read], ["h"], "fused", domain=domain, **settings)
    net = model(
        [fused, node("MatMul", ["h", "w"], ["y"], "m")], weights, (2, INPUTS, INPUTS), opset
    )
    for name in weights.keys() - {*read, "w"}:
        net.proto.graph.initializer.remove(net.initializers[name])
    net.changed()
    result, _ = oc.compress(net, methods="integer:bits=4", **QUICK)
    [same] = [n for n in result.graph.node if n.name == "fused"]
    assert (same.op_type, list(same.output)) == (op_type, ["h"])
    assert list(same.input) == list(fused.input) and list(same.attribute) == list(fused.attribute)
    assert result.nbytes < net.nbytes / 2
    assert decibels(net, result, drawn(2, INPUTS, INPUTS)) > 12


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (cast_and_scaled, "next: onnxcompress IN OUT"),
        (
            lambda: model([node("MatMul", ["x", "x"], ["y"], "m")], {}, (INPUTS, INPUTS)),
            "constants",
        ),
        (lambda: model([node("Neg", ["x"], ["y"])], {}), "nothing"),
    ],
)
def test_inspect_says_what_to_do_next(make, advice):
    said = render_inspection(examine(make())).splitlines()
    assert any(line.startswith("next: ") and advice in line for line in said)
