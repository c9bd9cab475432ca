"""Operators that change the shape alone, or say or make one."""

# pyright: reportMissingImports=false

from __future__ import annotations

from math import prod

import numpy as np
import torch
from torch import Tensor

from onnxcompress.refinement.torch_ops.operator import Node, Operator, integers, setting, tensor


def constant(node: Node) -> Tensor:
    """A Constant that holds plain numbers."""
    (key, value), *_ = node.attributes.items()
    return tensor(np.array(value, np.float32 if key.startswith("value_float") else np.int64))


def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = tensor(node.get("value", np.zeros(1, np.float32)), shape.device)
    return value.reshape(()).expand(integers(shape))


def _shape(node: Node, x: Tensor) -> Tensor:
    part = slice(node.get("start", 0), node.get("end"))
    return torch.tensor(list(x.shape)[part], dtype=torch.int64, device=x.device)


def _range(node: Node, start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    ends = start.item(), stop.item(), step.item()
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


def _reshape(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    sizes = setting(node, "shape", shape) or []
    if not node.get("allowzero"):
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    listed = setting(node, "axes", axes)
    return x.squeeze() if listed is None else x.squeeze(tuple(listed))


def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    listed = setting(node, "axes", axes) or []
    rank = x.ndim + len(listed)
    for axis in sorted(axis % rank for axis in listed):
        x = x.unsqueeze(axis)
    return x


def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, -1, b, b, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // b**2, height * b, width * b)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = node.get("blocksize")
    split = x.reshape(n, channels, height // b, b, width // b, b).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, channels * b**2, height // b, width // b)


OPERATORS = {
    "Constant": Operator(constant),
    "ConstantOfShape": Operator(_constant_of_shape),
    "DepthToSpace": Operator(_depth_to_space),
    "Expand": Operator(_expand),
    "Flatten": Operator(_flatten),
    "Range": Operator(_range, settings=(0, 1, 2)),
    "Reshape": Operator(_reshape),
    "Shape": Operator(_shape),
    "SpaceToDepth": Operator(_space_to_depth),
    "Squeeze": Operator(_squeeze),
    "Tile": Operator(_tile),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_unsqueeze),
}
