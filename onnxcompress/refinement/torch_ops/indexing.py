"""Operators that take parts of tensors, and put tensors together."""

# pyright: reportMissingImports=false

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.refinement.torch_ops.operator import (
    Node,
    Operator,
    integers,
    last_axis_first,
    pick,
    setting,
)


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=node.get("axis", 1))


def _split(node: Node, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    sizes = setting(node, "split", split)
    if sizes is None:
        return x.split(ceil(x.shape[axis] / len(node.operation.outputs)), dim=axis)
    return x.split(sizes, dim=axis)


def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin, end = setting(node, "starts", starts) or [], setting(node, "ends", ends) or []
    along = setting(node, "axes", axes) or list(range(len(begin)))
    step = [1] * len(begin) if steps is None else integers(steps)
    for a, b, axis, s in zip(begin, end, along, step, strict=True):
        places = range(*slice(a, b, s).indices(x.shape[axis]))
        if s < 0:
            x = pick(x, axis % x.ndim, places)
        else:
            before = [slice(None)] * (axis % x.ndim)
            x = x[(*before, slice(places.start, max(places.stop, places.start), s))]
    return x


def _gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    flat = index.reshape(-1).to(torch.int64)
    rows = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return rows.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _pad(
    node: Node,
    x: Tensor,
    pads: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    ends = setting(node, "pads", pads) or []
    count = len(ends) // 2
    along = list(range(count)) if axes is None else [axis % x.ndim for axis in integers(axes)]
    pairs = [(0, 0)] * x.ndim
    for axis, low, high in zip(along, ends[:count], ends[count:], strict=True):
        pairs[axis] = (low, high)
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else value.item()
        return functional.pad(x, last_axis_first(pairs), value=fill)
    for axis, (low, high) in enumerate(pairs):
        if low or high:
            n = x.shape[axis]
            x = pick(x, axis, [_source(i, n, mode) for i in range(-low, n + high)])
    return x


def _source(index: int, length: int, mode: str) -> int:
    """Where padding takes the entry of a place outside from."""
    if mode == "edge":
        return min(max(index, 0), length - 1)
    if mode == "wrap":
        return index % length
    if length == 1:
        return 0
    index = index % (2 * length - 2)
    return min(index, 2 * length - 2 - index)


OPERATORS = {
    "Concat": Operator(_concat),
    "Gather": Operator(_gather),
    "Pad": Operator(_pad, settings=(2,)),
    "Slice": Operator(_slice),
    "Split": Operator(_split, all_outputs=True),
}
