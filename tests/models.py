"""Small models, one for every kind of layer; the layer's node is called "layer"."""

from itertools import pairwise

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph import Model

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}

# kind -> operator, weight shape as stored, input shape, attributes, bias shape
KINDS = {
    "conv": ("Conv", (12, 8, 3, 3), (2, 8, 9, 10), {"pads": [1, 1, 1, 1]}, (12,)),
    "conv 1-D": ("Conv", (12, 8, 5), (2, 8, 20), {"dilations": [2]}, (12,)),
    "conv 3-D": ("Conv", (8, 6, 3, 2, 3), (1, 6, 5, 6, 7), {"strides": [1, 2, 1]}, (8,)),
    "strided": (
        "Conv",
        (12, 8, 3, 5),
        (2, 8, 11, 12),
        {"strides": [2, 3], "pads": [1, 2, 0, 1], "dilations": [2, 1]},
        None,
    ),
    "same upper": (
        "Conv", (12, 8, 3, 4), (2, 8, 9, 10), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, (12,),
    ),
    "same lower": (
        "Conv", (12, 8, 2, 3), (2, 8, 9, 10), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}, (12,),
    ),
    "valid": ("Conv", (12, 8, 3, 3), (2, 8, 9, 10), {"auto_pad": "VALID"}, (12,)),
    "grouped": ("Conv", (12, 6, 3, 3), (2, 12, 9, 10), {"group": 2, "pads": [0, 1, 2, 1]}, (12,)),
    "depthwise": ("Conv", (8, 1, 3, 3), (2, 8, 9, 10), {"group": 8}, (8,)),
    "pointwise": ("Conv", (12, 16, 1, 1), (2, 16, 5, 6), {"strides": [2, 1]}, (12,)),
    "transposed": (
        "ConvTranspose",
        (8, 12, 3, 4),
        (2, 8, 5, 6),
        {"strides": [2, 3], "output_padding": [1, 0], "pads": [1, 0, 0, 2]},
        (12,),
    ),
    "transposed 1-D": ("ConvTranspose", (8, 12, 4), (2, 8, 6), {"dilations": [2]}, (12,)),
    "transposed grouped": (
        "ConvTranspose", (12, 6, 3, 3), (2, 12, 5, 6), {"group": 2, "strides": [2, 2]}, (12,),
    ),
    "transposed to a shape": (
        "ConvTranspose", (8, 12, 3, 3), (2, 8, 5, 6), {"strides": [2, 2], "output_shape": [10, 13]},
        (12,),
    ),
    "transposed same": (
        "ConvTranspose", (8, 12, 3, 3), (2, 8, 5, 6), {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        (12,),
    ),
    "gemm": ("Gemm", (16, 12), (7, 16), {}, (12,)),
    "gemm transposed": (
        "Gemm", (12, 16), (16, 7), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, (1, 12),
    ),
    "gemm with one bias": ("Gemm", (12, 16), (7, 16), {"transB": 1}, ()),
    "matmul": ("MatMul", (16, 12), (2, 3, 16), {}, None),
    "matmul from the left": ("MatMul", (12, 16), (2, 16, 5), {"left": 1}, None),
}  # fmt: skip


def layer_model(kind, rng, dtype="float32", opset=17):
    """The model of one layer, and a sample for it."""
    opset = 22 if dtype == "bfloat16" else opset  # the first one with such convolutions
    element = ONNX_TYPES[dtype]
    dtype = helper.tensor_dtype_to_np_dtype(element)
    op_type, weight_shape, input_shape, attributes, bias_shape = KINDS[kind]
    attributes = dict(attributes)
    left = attributes.pop("left", False)
    fan_in = np.prod(weight_shape[1:])
    weight = (rng.normal(size=weight_shape) / np.sqrt(fan_in)).astype(dtype)
    tensors = [numpy_helper.from_array(weight, "w")]
    inputs = ["w", "x"] if left else ["x", "w"]
    if bias_shape is not None:
        bias = rng.normal(size=bias_shape).astype(dtype)
        tensors.append(numpy_helper.from_array(bias, "b"))
        inputs.append("b")
    nodes = [helper.make_node(op_type, inputs, ["y"], "layer", **attributes)]
    x = helper.make_tensor_value_info("x", element, input_shape)
    y = helper.make_tensor_value_info("y", element, [None] * len(input_shape))
    graph = helper.make_graph(nodes, "net", [x], [y], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return Model(proto), {"x": (rng.normal(size=input_shape) + 0.3).astype(dtype)}


def network(rng, size=12):
    """Convolutions with a residual connection, a pooled head; 3 x size x size to 10 scores."""
    nodes, tensors = [], []

    def conv(x, inputs, out, name, stride=1):
        weight = rng.normal(size=(out, inputs, 3, 3)) * np.sqrt(2 / (9 * inputs))
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w"))
        tensors.append(
            numpy_helper.from_array(rng.normal(size=out).astype(np.float32) / 10, f"{name}.b")
        )
        attributes = {"pads": [1] * 4, "strides": [stride] * 2}
        nodes.append(
            helper.make_node(
                "Conv", [x, f"{name}.w", f"{name}.b"], [f"{name}.y"], name, **attributes
            )
        )
        return f"{name}.y"

    def node(op_type, inputs, name):
        nodes.append(helper.make_node(op_type, inputs, [f"{name}.y"], name))
        return f"{name}.y"

    x = node("Relu", [conv("x", 3, 16, "stem")], "relu0")
    y = node("Relu", [conv(x, 16, 16, "first")], "relu1")
    x = node("Relu", [node("Add", [x, conv(y, 16, 16, "second")], "add")], "relu2")
    x = node("Relu", [conv(x, 16, 32, "wide", 2)], "relu3")
    x = node("Flatten", [node("GlobalAveragePool", [x], "pool")], "flat")
    tensors.append(numpy_helper.from_array(rng.normal(size=(32, 10)).astype(np.float32), "head.w"))
    nodes.append(helper.make_node("Gemm", [x, "head.w"], ["y"], "head"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(proto)


def perceptron(rng, sizes, side=0):
    """Dense layers "fc0", "fc1", ... with ReLUs between them.

    Args:
        side: size of a second input, which the layer "side" adds to the first one's output.
    """
    nodes, tensors, given, x = [], [], [("x", sizes[0])], "x"

    def dense(x, inputs, out, name):
        weight = rng.normal(size=(out, inputs)) * np.sqrt(2 / inputs)
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.w"))
        nodes.append(helper.make_node("Gemm", [x, f"{name}.w"], [f"{name}.y"], name, transB=1))
        return f"{name}.y"

    for index, (inputs, out) in enumerate(pairwise(sizes)):
        if index:
            nodes.append(helper.make_node("Relu", [x], [f"relu{index}.y"], f"relu{index}"))
            x = f"relu{index}.y"
        x = dense(x, inputs, out, f"fc{index}")
        if side and not index:
            given.append(("t", side))
            nodes.append(
                helper.make_node("Add", [x, dense("t", side, out, "side")], ["sum"], "add")
            )
            x = "sum"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n, size in given],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", sizes[-1]])],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Model(proto)


def images(rng, count, batch=16):
    """Batches of smooth random images."""
    small = rng.normal(size=(count, 3, 6, 6)).repeat(2, 2).repeat(2, 3)
    noisy = (small + 0.2 * rng.normal(size=small.shape)).astype(np.float32)
    return [{"x": noisy[i : i + batch]} for i in range(0, count, batch)]
