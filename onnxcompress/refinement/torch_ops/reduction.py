"""Reductions over axes."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnxcompress.refinement.torch_ops.operator import Node, Operator, setting


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        listed = setting(node, "axes", axes)
        if not listed and node.get("noop_with_empty_axes"):
            return x
        dims = tuple(listed) if listed else tuple(range(x.ndim))
        y = function(x, dim=dims, keepdim=bool(node.get("keepdims", 1)))
        return y if x.is_floating_point() else y.to(x.dtype)

    return Operator(run)


def _square_sum(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.square().sum(dim, keepdim)


def _norm(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return _square_sum(x, dim, keepdim).sqrt()


OPERATORS = {
    "ReduceL2": _reduce(_norm),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(_square_sum),
}
