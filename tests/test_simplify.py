"""What exporters leave behind goes, and the outputs stay."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.cli.commands import main
from onnxcompress.compression import simplify as simplifying
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, check, fold_smaller

FLOAT = TensorProto.FLOAT
PARAMETERS = ("scale", "shift", "mean", "variance")


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], **attributes)


def build(nodes, weights, shape, outputs=("y",), opset=17):
    """A checked model that reads x and gives outputs of any shape."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    inputs = [helper.make_tensor_value_info("x", FLOAT, shape)]
    given = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "net", inputs, given, tensors)
    imports = [helper.make_opsetid("", opset)]
    model = Model(helper.make_model(graph, ir_version=8, opset_imports=imports))
    check(model)
    return model


def operators(model):
    return [node.op_type for node in model.graph.node]


def same_outputs(a, b, x):
    for first, second in zip(Session(a).run({"x": x}), Session(b).run({"x": x}), strict=True):
        np.testing.assert_allclose(second, first, rtol=0, atol=1e-5 * np.abs(first).max())


def norm(x, y):
    return node("BatchNormalization", [x, *PARAMETERS], y)


def constants(rng, channels, shape=None):
    """Batch normalization's parameters, and one constant for each of the four operations."""
    values = {name: rng.uniform(0.5, 2, channels).astype(np.float32) for name in PARAMETERS}
    shape = shape or (channels,)
    more = {f"c{op}": rng.uniform(0.5, 2, channels).reshape(shape) for op in ARITHMETIC}
    return values | {name: value.astype(np.float32) for name, value in more.items()}


ARITHMETIC = ("Mul", "Add", "Sub", "Div")
LAYERS = {  # weight, attributes, shape of x, channels of the output
    "Conv": ((6, 2, 3, 3), {"group": 2}, [2, 4, 8, 8], 6),
    "ConvTranspose": ((4, 3, 3, 3), {"group": 2, "strides": [2, 2]}, [2, 4, 5, 5], 6),
    "Gemm": ((4, 6), {"alpha": 0.5}, [2, 4], 6),
    "MatMul": ((4, 6), {}, [2, 3, 4], 6),
}


def layer(op_type, x, y):
    return node(op_type, [x, "w"], y, **LAYERS[op_type][1])


@pytest.mark.parametrize("op_type", LAYERS)
def test_what_scales_and_shifts_the_output_of_a_layer_becomes_part_of_it(op_type, rng):
    weight, _, shape, channels = LAYERS[op_type]
    spread = (channels, 1, 1) if op_type.startswith("Conv") else (channels,)
    values = constants(rng, channels, spread)
    values["w"] = rng.normal(size=weight).astype(np.float32)
    nodes = [layer(op_type, "x", "a")]
    nodes += [
        node(op, [f"t{i}" if i else "a", f"c{op}"], f"t{i + 1}") for i, op in enumerate(ARITHMETIC)
    ]
    nodes.append(norm("t4", "y") if op_type != "MatMul" else node("Sub", ["cAdd", "t4"], "y"))
    model = build(nodes, values, shape)
    result = oc.fold_affine(model)
    check(result)
    assert operators(result) == [op_type, *["Add"] * (op_type == "MatMul")]
    assert len(result.initializers.keys() - values.keys()) == 2
    same_outputs(model, result, rng.normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("op_type", LAYERS)
def test_what_scales_the_input_of_a_layer_becomes_part_of_it(op_type, rng):
    weight, _, shape, _ = LAYERS[op_type]
    spread = (4, 1, 1) if op_type.startswith("Conv") else (4,)
    values = {"w": rng.normal(size=weight), "half": np.array(0.5)}
    values["per"] = rng.uniform(0.5, 2, 4).reshape(spread)
    nodes = [node("Mul", ["half", "x"], "a"), node("Div", ["a", "per"], "b")]
    nodes.append(layer(op_type, "b", "y"))
    model = build(nodes, {n: v.astype(np.float32) for n, v in values.items()}, shape)
    result = oc.fold_affine(model)
    check(result)
    assert operators(result) == [op_type] and len(result.initializers) == 1
    same_outputs(model, result, rng.normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(("pads", "left"), [([0] * 4, []), ([1] * 4, ["Sub"])])
def test_a_shift_before_a_padded_convolution_stays(pads, left, rng):
    """Zeros at the border are not the zeros of what was shifted."""
    values = {"mean": rng.normal(size=(3, 1, 1)), "std": rng.uniform(1, 2, (3, 1, 1))}
    values["w"] = rng.normal(size=(6, 3, 3, 3))
    nodes = [node("Sub", ["x", "mean"], "a"), node("Div", ["a", "std"], "b")]
    nodes.append(node("Conv", ["b", "w"], "y", pads=pads))
    model = build(nodes, {n: v.astype(np.float32) for n, v in values.items()}, [1, 3, 8, 8])
    result = oc.fold_affine(model)
    assert operators(result) == [*left, "Conv"]
    same_outputs(model, result, rng.normal(size=(1, 3, 8, 8)).astype(np.float32))


def test_scales_are_folded_through_transpose_and_cast(rng):
    """Pictures with the channels last, normalized, and the layer's own normalization behind it."""
    values = {
        "mean": rng.normal(size=3),
        "scale": rng.uniform(1, 2, 6),
        "shift": rng.normal(size=6),
    }
    values["w"] = rng.normal(size=(6, 3, 3, 3))
    nodes = [
        node("Sub", ["x", "mean"], "a"),
        node("Transpose", ["a"], "b", perm=[0, 3, 1, 2]),
        node("Conv", ["b", "w"], "c"),
        node("Transpose", ["c"], "d", perm=[0, 2, 3, 1]),
        node("Cast", ["d"], "e", to=FLOAT),
        node("Mul", ["e", "scale"], "f"),
        node("Add", ["f", "shift"], "y"),
    ]
    model = build(nodes, {n: v.astype(np.float32) for n, v in values.items()}, [1, 8, 8, 3])
    result = oc.fold_affine(oc.drop_identities(model))
    assert operators(result) == ["Transpose", "Conv", "Transpose"]
    same_outputs(model, result, rng.normal(size=(1, 8, 8, 3)).astype(np.float32))


def kept_as_it_is(rng, change, outputs=("y",)):
    values = {"w": rng.normal(size=(6, 4)), "c": rng.uniform(1, 2, 6)}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    nodes = [node("Gemm", ["x", "w"], "a", transB=1), node("Mul", ["a", "c"], "y")]
    nodes, values = change(nodes, values)
    model = build(nodes, values, [2, 4], outputs)
    assert oc.fold_affine(model).proto == model.proto


def test_a_layer_that_others_read_or_whose_weight_others_read_stays(rng):
    kept_as_it_is(rng, lambda nodes, values: (nodes, values), ("y", "a"))
    again = node("Gemm", ["x", "w"], "z", transB=1)
    kept_as_it_is(rng, lambda nodes, values: ([*nodes, again], values), ("y", "z"))


def test_a_constant_that_is_no_scale_of_channels_stays(rng):
    kept_as_it_is(rng, lambda nodes, values: (nodes, values | {"c": np.ones((2, 6), np.float32)}))
    zeros = np.zeros(6, np.float32)
    kept_as_it_is(rng, lambda n, v: ([n[0], node("Div", ["a", "c"], "y")], v | {"c": zeros}))


def test_notes_go_and_what_applications_read_stays(rng):
    weights = {"w": rng.normal(size=(4, 6)).astype(np.float32)}
    model = build([node("MatMul", ["x", "w"], "a"), node("Relu", ["a"], "y")], weights, [2, 4])
    plain = model.copy()
    proto = model.proto
    proto.doc_string, proto.producer_name = "a network", "exporter"
    proto.metadata_props.add(key="names", value="cat, dog")
    plain.proto.producer_name = "exporter"
    plain.proto.metadata_props.add(key="names", value="cat, dog")
    for item in (proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.input):
        item.doc_string = "where it is from" * 9
        item.metadata_props.add(key="namespace", value="module.py" * 9)
    proto.graph.value_info.append(helper.make_tensor_value_info("a", FLOAT, [2, 6]))
    result = oc.strip(model)
    check(result)
    assert result.proto == plain.proto
    assert model.nbytes - result.nbytes > 800


def test_types_that_cannot_be_inferred_stay():
    nodes = [helper.make_node("Own", ["x"], ["a"], domain="own"), node("Relu", ["a"], "y")]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        value_info=[helper.make_tensor_value_info("a", FLOAT, [2])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = Model(helper.make_model(graph, opset_imports=imports, ir_version=8))
    assert [value.name for value in oc.strip(model).graph.value_info] == ["a"]


def test_constants_are_computed_where_that_takes_no_more_bytes(rng):
    nodes = [
        node("Constant", [], "one", value_int=1),
        node("Unsqueeze", ["one", "axis"], "first"),
        node("Concat", ["first", "rest"], "shape", axis=0),
        node("Reshape", ["x", "shape"], "a"),
        node("Expand", ["small", "wide"], "large"),
        node("Add", ["a", "large"], "y"),
    ]
    weights = {"axis": np.array([0]), "rest": np.array([8, -1]), "wide": np.array([1, 8, 64])}
    weights["small"] = rng.normal(size=(1, 1, 1)).astype(np.float32)
    model = build(nodes, weights, [8, 64])
    result = fold_smaller(model, simplifying.run_alone)
    check(result)
    assert operators(result) == ["Reshape", "Expand", "Add"]
    assert set(result.initializers) == {"shape", "small", "wide"}
    assert result.nbytes < model.nbytes
    same_outputs(model, result, rng.normal(size=(8, 64)).astype(np.float32))


def test_simplifying_says_what_it_did_and_leaves_out_what_changes_the_outputs(rng, monkeypatch):
    values = {"w": rng.normal(size=(6, 4)), "c": rng.uniform(1, 2, 6), "unread": np.ones(500)}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    nodes = [
        node("Identity", ["x"], "i"),
        node("Gemm", ["i", "w"], "a", transB=1),
        node("Mul", ["a", "c"], "y"),
        node("Neg", ["a"], "dead"),
    ]
    model = build(nodes, values, ["n", 4])
    before = model.proto.SerializeToString()
    result, changes = oc.simplify(model)
    assert model.proto.SerializeToString() == before
    assert operators(result) == ["Gemm"]
    assert [change.nodes for change in changes] == [1, 1, 1]
    assert sum(change.nbytes for change in changes) == model.nbytes - result.nbytes > 2000
    again, more = oc.simplify(result)
    assert again.proto == result.proto and not more

    def spoil(model):
        other = model.copy()
        other.graph.node[0].input[1] = "c"
        return other

    monkeypatch.setitem(simplifying.STEPS, "spoiled", spoil)
    assert operators(oc.simplify(again)[0]) == ["Gemm"]


def small_network(rng):
    values = {"w": rng.normal(size=(64, 32)), "c": rng.uniform(1, 2, 64)}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    nodes = [node("Gemm", ["x", "w"], "a", transB=1), node("Mul", ["a", "c"], "y")]
    nodes[0].doc_string = "where it is from" * 9
    return build(nodes, values, ["n", 32])


def test_compress_simplifies_on_request_and_says_so(rng):
    model = small_network(rng)
    methods = [oc.Half()]
    result, report = oc.compress(model, methods=methods, strip=True, simplify=True)
    assert operators(result)[-1] == "Gemm" and not result.graph.node[-1].doc_string
    assert [change.nodes for change in report.changes] == [0, 1]
    assert [row.layer for row in report.rows] == ["Gemm_0"]
    assert report.comparison is not None
    assert report.comparison.before.nbytes == model.nbytes
    assert report.comparison.worst_snr > 50
    plain, report = oc.compress(model, methods=methods)
    assert operators(plain)[-2:] == ["Gemm", "Mul"] and not report.changes


def test_the_command_line_lists_what_was_simplified(rng, tmp_path, capsys):
    oc.save(small_network(rng), tmp_path / "in.onnx")
    options = ["--method", "half", "--strip", "--simplify", "--force"]
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), *options])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "notes of the exporter" in shown and "scales and shifts" in shown
    assert operators(oc.load(tmp_path / "out.onnx"))[-1] == "Gemm"


def test_inspect_says_what_stripping_and_simplifying_would_give(rng, tmp_path, capsys):
    model = small_network(rng)
    stripped = oc.strip(model)
    oc.save(model, tmp_path / "in.onnx")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "in.onnx")])
    shown = capsys.readouterr().out
    assert f"--strip drops {model.nbytes - stripped.nbytes:,} bytes" in shown
    assert "--simplify saves 1 node and" in shown
