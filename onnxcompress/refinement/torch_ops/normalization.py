"""Normalization by mean and variance, and softmax."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.refinement.torch_ops.operator import Node, Operator, along_axis


def _batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if node.get("training_mode"):
        raise ValueError("its training mode is not supported")
    epsilon = node.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def _normalize(node: Node, x: Tensor, axes: Sequence[int]) -> Tensor:
    variance, mean = torch.var_mean(x, dim=tuple(axes), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + node.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = _normalize(node, x, range(2, x.ndim))
    return y * along_axis(scale, x.ndim) + along_axis(bias, x.ndim)


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1) % x.ndim
    y = _normalize(node, x, range(axis, x.ndim)) * scale
    return y if bias is None else y + bias


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    split = x.reshape(len(x), groups, -1)
    y = _normalize(node, split, [2]).reshape(x.shape)
    if len(scale) != x.shape[1]:  # Before opset 21 there is one for a group.
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return y * along_axis(scale, x.ndim) + along_axis(bias, x.ndim)


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % x.ndim  # Before opset 13, all axes from this one on together.
        return function(x.reshape(prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

    return Operator(run)


OPERATORS = {
    "BatchNormalization": Operator(_batch_norm, settings=(3, 4)),
    "GroupNormalization": Operator(_group_norm),
    "InstanceNormalization": Operator(_instance_norm),
    "LayerNormalization": Operator(_layer_norm),
    "LogSoftmax": _softmax(torch.log_softmax),
    "Softmax": _softmax(torch.softmax),
}
