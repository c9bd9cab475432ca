"""Pools over windows, and over all positions."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.core.padding import Pads, extents, padding
from onnxcompress.refinement.torch_ops.operator import Node, Operator, last_axis_first


def _windows(node: Node, x: Tensor) -> tuple[Pads, Pads]:
    """Padding of a pool's axes as the node says, and what rounding up adds to the end."""
    kernel = node.get("kernel_shape")
    strides, reach = node.get("strides", [1] * len(kernel)), extents(node.attributes, kernel)
    pads, added = padding(node.attributes, x.shape[2:], kernel), []
    for n, (low, high), extent, stride in zip(x.shape[2:], pads, reach, strides, strict=True):
        rest = n + low + high - extent
        last = rest // stride
        if node.get("ceil_mode") and ceil(rest / stride) * stride < n + low:
            last = ceil(rest / stride)  # A window must not start in the padding.
        added.append((0, max(last * stride - rest, 0)))
    return pads, added


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides, dilations = (node.get(key, [1] * len(kernel)) for key in ("strides", "dilations"))
    pads, added = _windows(node, x)
    both = [(low, high + more) for (low, high), (_, more) in zip(pads, added, strict=True)]
    least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    padded = functional.pad(x, last_axis_first(both), value=least)
    return run(padded, kernel, strides, 0, dilations)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides = node.get("strides", [1] * len(kernel))
    if any(d > 1 for d in node.get("dilations", [])):
        raise ValueError("its dilations are not supported")
    pads, added = _windows(node, x)
    run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]

    def total(values: Tensor, fill: float = 0.0) -> Tensor:
        padded = functional.pad(values, last_axis_first(pads), value=fill)
        return run(functional.pad(padded, last_axis_first(added)), kernel, strides)

    if not any(map(any, pads)) and not any(map(any, added)):
        return total(x)
    counted = total(torch.ones_like(x[:1, :1]), float(node.get("count_include_pad", 0)))
    return total(x) / counted


def _global(function: Callable[..., Tensor]) -> Operator:
    return Operator(lambda node, x: function(x, dim=tuple(range(2, x.ndim)), keepdim=True))


OPERATORS = {
    "AveragePool": Operator(_average_pool),
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "MaxPool": Operator(_max_pool),
}
