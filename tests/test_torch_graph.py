"""The torch executor against onnxruntime, operator by operator and on whole models."""

import warnings

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.compression.method_spec import parse
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_layers, rewrite
from onnxcompress.methods.integer import Integer
from tests.models import KINDS, images, layer_model, network

pytest.importorskip("torch", reason="the executor needs torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnxcompress.refinement.torch_graph import TorchGraph, unsupported
    from onnxcompress.refinement.torch_ops.operator import tensor

METHODS = ("basis", "integer:bits=4", "codebook:vector=4", "hashed:share=2", "binary:stacks=2")
A = np.array


def f32(*values):
    return A(values, np.float32)


# operator, opset, shapes of the inputs, constants after them ("" is left out), attributes
CASES = [
    *[(op, 17, [(2, 3, 4)], [], {}) for op in (
        *("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Softplus", "Erf", "Exp"),
        *("Neg", "Identity", "LeakyRelu", "Abs", "Floor", "Ceil", "Sign", "Sin", "Cos", "Selu"),
        *("Softsign", "Round", "Reciprocal"),
    )],
    ("Mish", 18, [(2, 3, 4)], [], {}),
    ("Dropout", 17, [(2, 3, 4)], [], {}),
    ("Dropout", 11, [(2, 3, 4)], [], {"ratio": 0.5}),
    ("LeakyRelu", 17, [(2, 3)], [], {"alpha": 0.3}),
    ("Elu", 17, [(2, 3)], [], {"alpha": 0.3}),
    ("HardSigmoid", 17, [(2, 3)], [], {"alpha": 0.3, "beta": 0.4}),
    ("PRelu", 17, [(2, 3, 4)], [f32(0.1, -0.2, 0.3).reshape(3, 1)], {}),
    ("Gelu", 20, [(2, 3)], [], {}),
    ("Gelu", 20, [(2, 3)], [], {"approximate": "tanh"}),
    ("Clip", 7, [(2, 3)], [], {"min": -0.5, "max": 0.5}),
    ("Clip", 13, [(2, 3)], [A(-0.5, np.float32)], {}),
    ("Clip", 13, [(2, 3)], ["", A(0.5, np.float32)], {}),
    *[("Softmax", opset, [(2, 3, 4)], [], a) for opset in (7, 13) for a in ({}, {"axis": 2})],
    ("LogSoftmax", 11, [(2, 3, 4)], [], {}),
    ("LogSoftmax", 13, [(2, 3, 4)], [], {"axis": 1}),
    *[(op, 17, [(2, 3, 4), (3, 1)], [], {}) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max")],
    ("Sum", 17, [(2, 3), (3,), (2, 1)], [], {}),
    ("Pow", 17, [(2, 3)], [A(2, np.float32)], {}),
    ("Pow", 17, [(2, 3)], [f32(2, 3, 1)], {}),
    ("MatMul", 17, [(2, 3, 4), (4, 5)], [], {}),
    ("MatMul", 17, [(4,), (2, 4, 5)], [], {}),
    ("Gemm", 7, [(4, 3), (4, 5), (5,)], [], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("BatchNormalization", 15, [(2, 3, 4, 5)], [f32(1, 2, 3), f32(0, 1, 2), f32(1, 0, 1),
     f32(1, 2, 0.5)], {"epsilon": 1e-3}),
    ("InstanceNormalization", 17, [(2, 3, 4, 5)], [f32(1, 2, 3), f32(0, 1, 2)], {}),
    ("LayerNormalization", 17, [(2, 3, 4)], [f32(1, 2, 3, 4), f32(0, 1, 2, 3)], {}),
    ("LayerNormalization", 17, [(2, 3, 4)], [np.ones((3, 4), np.float32)], {"axis": 1}),
    ("GroupNormalization", 21, [(2, 4, 5, 5)], [f32(1, 2, 3, 4), f32(0, 1, 2, 3)],
     {"num_groups": 2}),
    *[(op, 13, [(2, 3, 4)], [], a) for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")
      for a in ({}, {"axes": [-1, 1], "keepdims": 0})],
    ("ReduceMean", 18, [(2, 3, 4)], [A([1])], {"keepdims": 0}),
    ("ReduceSum", 11, [(2, 3, 4)], [], {"axes": [1]}),
    ("ReduceSum", 13, [(2, 3, 4)], [A([0, 2])], {}),
    ("ReduceSum", 13, [(2, 3, 4)], [], {"noop_with_empty_axes": 1}),
    ("Concat", 13, [(2, 3), (2, 4)], [], {"axis": -1}),
    ("Split", 11, [(2, 7)], [], {"axis": 1, "split": [3, 4]}),
    ("Split", 13, [(2, 7)], [A([3, 4])], {"axis": 1}),
    ("Split", 18, [(2, 7)], [], {"axis": 1, "num_outputs": 2}),
    ("Slice", 9, [(4, 5)], [], {"starts": [1, -3], "ends": [9, -1], "axes": [0, 1]}),
    ("Slice", 13, [(4, 5)], [A([1, -1]), A([9, -99]), A([-2, 1]), A([2, -2])], {}),
    ("Gather", 13, [(4, 5)], [A([[0, -1], [2, 2]])], {"axis": 1}),
    ("Gather", 13, [(4, 5)], [A(3)], {}),
    ("Reshape", 13, [(2, 3, 4)], [A([0, -1])], {}),
    ("Flatten", 13, [(2, 3, 4)], [], {"axis": -1}),
    ("Transpose", 13, [(2, 3, 4)], [], {}),
    ("Transpose", 13, [(2, 3, 4)], [], {"perm": [1, 2, 0]}),
    ("Squeeze", 11, [(2, 1, 4)], [], {"axes": [1]}),
    ("Squeeze", 13, [(1, 2, 1)], [], {}),
    ("Squeeze", 13, [(1, 2, 1)], [A([-1])], {}),
    ("Unsqueeze", 11, [(2, 3)], [], {"axes": [0, -1]}),
    ("Unsqueeze", 13, [(2, 3)], [A([1])], {}),
    ("Expand", 13, [(3, 1)], [A([2, 1, 4])], {}),
    ("Tile", 13, [(3, 2)], [A([2, 3])], {}),
    ("Pad", 7, [(2, 3)], [], {"pads": [1, 0, 2, -1], "value": 2.0}),
    ("Pad", 13, [(2, 3)], [A([1, 0, 2, 1]), A(2, np.float32)], {}),
    ("Pad", 18, [(2, 3)], [A([1, 2]), "", A([-1])], {}),
    ("Pad", 13, [(4, 5)], [A([1, 2, 3, 4])], {"mode": "reflect"}),
    ("Pad", 13, [(4, 5)], [A([1, 2, 3, 4])], {"mode": "edge"}),
    ("DepthToSpace", 13, [(2, 12, 3, 4)], [], {"blocksize": 2}),
    ("DepthToSpace", 13, [(2, 12, 3, 4)], [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", 13, [(2, 3, 4, 6)], [], {"blocksize": 2}),
    ("Upsample", 9, [(1, 2, 3, 4)], [f32(1, 1, 2, 3)], {}),
    ("Upsample", 7, [(1, 2, 3, 4)], [], {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "linear"}),
    ("Resize", 10, [(1, 2, 6, 6)], [f32(1, 1, 0.5, 2)], {"mode": "nearest"}),
    *[("Resize", 13, [(1, 2, 5, 6)], ["", f32(1, 1, 2, 0.5)],
       {"mode": mode, "coordinate_transformation_mode": where})
      for mode in ("nearest", "linear")
      for where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")],
    *[("Resize", 13, [(1, 1, 7, 8)], ["", "", A([1, 1, 3, 19])], {"nearest_mode": how})
      for how in ("floor", "ceil", "round_prefer_ceil")],
    ("Resize", 18, [(1, 2, 5, 6)], ["", f32(3, 2)], {"mode": "linear", "axes": [2, 3]}),
    ("GlobalAveragePool", 13, [(2, 3, 4, 5)], [], {}),
    ("GlobalMaxPool", 13, [(2, 3, 4, 5)], [], {}),
    *[(op, 11, [(2, 3, *size)], [], {"kernel_shape": [3] * len(size), **a})
      for op in ("MaxPool", "AveragePool") for size in ((9,), (8, 9), (5, 6, 7)) for a in (
          {}, {"strides": [2] * len(size), "pads": [1] * 2 * len(size)},
          {"strides": [2] * len(size), "pads": [0] * len(size) + [1] * len(size)},
          {"strides": [2] * len(size), "ceil_mode": 1},
          {"strides": [2] * len(size), "auto_pad": "SAME_UPPER"},
          {"strides": [2] * len(size), "auto_pad": "SAME_LOWER"})],
    ("MaxPool", 12, [(2, 3, 9, 9)], [], {"kernel_shape": [2, 3], "dilations": [2, 3]}),
    ("AveragePool", 11, [(2, 3, 8, 8)], [], {
        "kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1}),
]  # fmt: skip


def agree(model, sample, *, optimize=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = TorchGraph(model)({name: tensor(value) for name, value in sample.items()})
    expected = Session(model, optimize=optimize).run(sample)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        reference = theirs.astype(np.float64)
        half = theirs.dtype.itemsize == 2
        scale = np.abs(reference).max() + 1e-9
        assert np.abs(ours.numpy() - reference).max() <= (1e-2 if half else 1e-4) * scale


def built(nodes, inputs, outputs, constants=(), opset=17):
    """A model from nodes; inputs name -> array, constants name -> array."""
    values = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        values,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in dict(constants).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Model(proto)


@pytest.mark.parametrize(
    ("op_type", "opset", "shapes", "constants", "attributes"),
    CASES,
    ids=[f"{i} {case[0]} {case[1]}" for i, case in enumerate(CASES)],
)
def test_an_operator_computes_what_onnxruntime_does(
    op_type, opset, shapes, constants, attributes, rng
):
    inputs = {f"x{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    known = {f"c{i}": c for i, c in enumerate(constants) if not isinstance(c, str)}
    names = [*inputs, *(f"c{i}" if f"c{i}" in known else "" for i in range(len(constants)))]
    outputs = ["y", "z"] if op_type == "Split" else ["y"]
    node = helper.make_node(op_type, names, outputs, **attributes)
    agree(built([node], inputs, outputs, known, opset), inputs)


@pytest.mark.parametrize("op_type", ["Sqrt", "Log"])
def test_operators_of_positive_numbers(op_type, rng):
    x = {"x": rng.uniform(0.1, 2, (3, 4)).astype(np.float32)}
    agree(built([helper.make_node(op_type, ["x"], ["y"])], x, ["y"]), x)


@pytest.mark.parametrize("op_type", ["Div", "Mod", "Mul", "Add", "Sub"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_integers(op_type, dtype, rng):
    """Division truncates, unsigned numbers wrap around."""
    low = 1 if dtype == np.uint32 else -2000
    a = rng.integers(low, 2**31 - 1 if low == 1 else 2000, 200).astype(dtype)
    b = rng.integers(low, 2**31 - 1 if low == 1 else 50, 200).astype(dtype)
    inputs = {"a": a, "b": np.where(b == 0, 3, b).astype(dtype)}
    nodes = [
        helper.make_node(op_type, ["a", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.INT64),
    ]
    agree(built(nodes, inputs, ["y"]), inputs)


def test_shapes_that_the_graph_computes(rng):
    """Shape, Gather, Unsqueeze, Concat, ConstantOfShape, Range, Where, Equal, Cast, Constant."""
    node = helper.make_node
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Constant", [], ["zero"], value_int=0),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Concat", ["n1", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("ConstantOfShape", ["target_of"], ["half"],
             value=numpy_helper.from_array(np.array([0.5], np.float32))),
        node("Range", ["zero", "n", "one"], ["r"]),
        node("Equal", ["r", "one"], ["is"]),
        node("Where", ["is", "half", "other"], ["w"]),
        node("Unsqueeze", ["w", "one1"], ["w1"]),
        node("Mul", ["flat", "w1"], ["y"]),
        node("Cast", ["is"], ["z"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    constants = {
        "axis": A([0]), "minus": A([-1]), "target_of": A([1]), "one": A(1), "one1": A([1]),
        "other": f32(2),
    }  # fmt: skip
    inputs = {"x": rng.normal(size=(3, 2, 4)).astype(np.float32)}
    agree(built(nodes, inputs, ["y", "z"], constants), inputs)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind, dtype, rng):
    agree(*layer_model(kind, rng, dtype))


def compressed(model, spec):
    from onnxcompress.core.statistics import Statistics

    layers, _ = find_layers(model)
    [method] = parse(spec)
    fitted = {}
    for name, layer in layers.items():
        settings = method.settings(layer)
        if settings:
            fitted[name] = settings[len(settings) // 2].fit(layer, Statistics.white(layer))
    assert fitted
    return rewrite(model, fitted)


@pytest.mark.parametrize("spec", [*METHODS, "half", "hashed:share=2+integer", "basis+half"])
def test_what_the_methods_emit(spec, rng):
    model = network(rng)
    agree(compressed(model, spec), images(rng, 4)[0], optimize=True)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_integers_of_other_widths(bits, rng):
    agree(compressed(network(rng), str(Integer(bits=bits))), images(rng, 4)[0])


def test_what_is_missing_is_named():
    x = {"x": np.zeros((1, 1, 4, 4), np.float32)}
    node = helper.make_node
    nodes = [
        node("Det", ["x"], ["d"]),
        node("MaxPool", ["x"], ["m", "indices"], kernel_shape=[2, 2]),
        node("Gelu", ["x"], ["g"], domain="com.microsoft"),
    ]
    model = built(nodes, x, ["d", "indices", "g"])
    assert unsupported(model) == ["Det", "a second output of MaxPool", "com.microsoft.Gelu"]
    with pytest.raises(ValueError, match=r"com\.microsoft\.Gelu"):
        TorchGraph(model)


def test_a_node_that_torch_cannot_compute_is_named():
    x = {"x": np.zeros((1, 1, 4, 4), np.float32)}
    node = helper.make_node(
        "Resize", ["x", "", "s"], ["y"], mode="cubic", coordinate_transformation_mode="asymmetric"
    )
    model = built([node], x, ["y"], {"s": f32(1, 1, 2, 2)})
    with pytest.raises(ValueError, match=r"Resize that computes 'y': its mode 'cubic'"):
        TorchGraph(model)({"x": tensor(x["x"])})


def test_every_call_takes_the_trained_constants_anew(rng):
    model, sample = layer_model("gemm", rng)
    graph = TorchGraph(model, ["w"])
    inputs = {name: tensor(value) for name, value in sample.items()}
    weight = tensor(model.read("w"))
    once, twice = (graph(inputs, {"w": factor * weight})[0] for factor in (1, 2))
    bias = tensor(model.read("b"))
    assert np.allclose(2 * (once - bias), twice - bias, atol=1e-5)
