"""Nodes that show a constant in another form, computed with numpy.

Identity, Transpose, Cast and the like move or convert entries; DequantizeLinear gives
``(x - zero) * scale``, with one scale for all, one per index of an axis, or one per block of it;
arithmetic with other constants spells the same in several nodes.  What comes out has as many
entries as the largest constant that goes in, which it *shows*.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
from onnx import NodeProto

from onnxcompress.core.layer import Array
from onnxcompress.graph.nodes import attributes_of

MOVES = ("Identity", "Transpose", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.true_divide}
VIEWS = (*MOVES, "DequantizeLinear", *ARITHMETIC)  # These show a constant in another form.
MOST_VIEWS = 64  # What more nodes compute counts as no view of a constant.


def viewed(node: NodeProto, inputs: Sequence[Array]) -> Array:
    """What a node of `VIEWS` makes of its inputs."""
    x, *rest = inputs
    attributes = attributes_of(node)
    if node.op_type == "Transpose":
        return x.transpose(attributes.get("perm"))
    if node.op_type == "Cast":
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if node.op_type == "Reshape":
        keep = not attributes.get("allowzero")
        return x.reshape([x.shape[i] if keep and not n else n for i, n in enumerate(rest[0])])
    if node.op_type == "Flatten":
        axis = attributes.get("axis", 1) % (x.ndim + 1)
        return x.reshape(prod(x.shape[:axis]), -1)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        axes = tuple(rest[0].tolist() if rest else attributes.get("axes", ()))
        if node.op_type == "Unsqueeze":
            return np.expand_dims(x, axes)
        return x.squeeze(axes or None)
    if node.op_type in ARITHMETIC:
        return _combined(node.op_type, x, rest[0])
    if node.op_type == "DequantizeLinear":
        kind = attributes.get("output_dtype")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else rest[0].dtype
        axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
        scale, *zero = (_along(part.astype(np.float32), x, axis, block) for part in rest)
        return ((x.astype(np.float32) - (zero[0] if zero else 0)) * scale).astype(dtype)
    return x


def _combined(op_type: str, x: Array, other: Array) -> Array:
    """The sum, difference, product or quotient of two arrays of one type.

    Raises:
        ValueError: it has more entries than either of them, or whole numbers are divided.
    """
    if prod(np.broadcast_shapes(x.shape, other.shape)) > max(x.size, other.size):
        raise ValueError("two constants are combined to a larger one")
    if op_type == "Div" and x.dtype.kind in "iub":
        raise ValueError("whole numbers are divided")
    with np.errstate(all="ignore"):
        return ARITHMETIC[op_type](x, other)


def _along(part: Array, x: Array, axis: int, block: int) -> Array:
    """Scales or zero points in the shape of what they belong to."""
    if block:
        return part.repeat(block, axis)[tuple(map(slice, x.shape))]
    if part.size == 1:
        return part.reshape(())
    return part.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
