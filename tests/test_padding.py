"""Padding is what onnx says that it is: sizes agree with its shape inference."""

from itertools import product

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.core.padding import cropping, extents, output_size, padding

SIZE, KERNEL = (7, 8), (3, 2)
PADS = [
    {},
    {"pads": [1, 0, 2, 1]},
    {"auto_pad": "VALID"},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
]
STEPS = [{}, {"strides": [2, 3]}, {"dilations": [2, 1]}, {"strides": [2, 2], "dilations": [1, 3]}]
TRANSPOSED = [{"output_padding": [1, 0], "strides": [2, 2]}, {"output_shape": [9, 9]}]


def inferred(op_type, attributes):
    kinds = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 1, *SIZE)), ("w", (1, 1, *KERNEL)), ("y", None))
    ]
    node = helper.make_node(op_type, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph([node], "net", kinds[:2], kinds[2:])
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph), strict_mode=True)
    return [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim][2:]


@pytest.mark.parametrize("attributes", [a | b for a, b in product(PADS, STEPS)], ids=str)
@pytest.mark.parametrize("op_type", ["Conv", "ConvTranspose"])
def test_sizes_are_those_that_onnx_infers(op_type, attributes):
    size = output_size(attributes, SIZE, KERNEL, op_type == "ConvTranspose")
    assert size == inferred(op_type, attributes)


@pytest.mark.parametrize("attributes", TRANSPOSED, ids=str)
def test_a_transposed_convolution_has_the_size_that_it_names(attributes):
    assert output_size(attributes, SIZE, KERNEL, True) == inferred("ConvTranspose", attributes)


@pytest.mark.parametrize("pads", ["SAME_UPPER", "SAME_LOWER"])
def test_an_odd_entry_goes_to_the_end_that_the_attribute_names(pads):
    attributes = {"auto_pad": pads, "strides": [1, 1]}
    lower = pads == "SAME_LOWER"
    assert padding(attributes, SIZE, KERNEL) == [(1, 1), (1, 0) if lower else (0, 1)]
    assert cropping(attributes, SIZE, KERNEL) == [(1, 1), (1, 0) if lower else (0, 1)]


def test_a_dilated_kernel_reaches_over_the_gaps():
    reached = extents({"dilations": [2, 3]}, KERNEL)
    assert reached == [np.ptp(d * np.arange(k)) + 1 for d, k in zip([2, 3], KERNEL, strict=True)]
