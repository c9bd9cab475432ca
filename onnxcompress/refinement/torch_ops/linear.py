"""Convolutions and products of matrices."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.core.padding import cropping, padding
from onnxcompress.refinement.torch_ops.operator import (
    Node,
    Operator,
    along_axis,
    last_axis_first,
    plain,
)


def _steps(node: Node, rank: int) -> tuple[Sequence[int], Sequence[int]]:
    """Strides and dilations."""
    return node.get("strides", [1] * rank), node.get("dilations", [1] * rank)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = _steps(node, weight.ndim - 2)
    pads = padding(node.attributes, x.shape[2:], weight.shape[2:])
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
    even = all(low == high for low, high in pads)
    around = [low for low, _ in pads] if even else 0
    x = x if even else functional.pad(x, last_axis_first(pads))
    return run(x, weight, bias, strides, around, dilations, node.get("group", 1))


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = _steps(node, weight.ndim - 2)
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    y = run[weight.ndim - 3](x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    cut = cropping(node.attributes, x.shape[2:], weight.shape[2:])
    y = functional.pad(y, last_axis_first([(-low, -high) for low, high in cut]))
    return y if bias is None else y + along_axis(bias, y.ndim)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.get("transA") else a
    b = b.T if node.get("transB") else b
    y = a @ b if node.get("alpha", 1.0) == 1 else node.get("alpha") * (a @ b)
    if c is None:
        return y
    return y + (c if node.get("beta", 1.0) == 1 else node.get("beta") * c)


def _matmul_integer(
    node: Node, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    if a_zero is not None and a_zero.ndim == 1:
        a_zero = a_zero[:, None]  # There is one for each row.
    wide = (x.double() - (0 if zero is None else zero) for x, zero in ((a, a_zero), (b, b_zero)))
    return torch.matmul(*wide).to(torch.int32)


def _conv_integer(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    return _conv(node, x.double(), weight.double()).to(torch.int32)


OPERATORS = {
    "Conv": Operator(_conv, bias=2),
    "ConvInteger": Operator(_conv_integer),
    "ConvTranspose": Operator(_conv_transpose, bias=2),
    "Gemm": Operator(_gemm, bias=2),
    "MatMul": plain(torch.matmul),
    "MatMulInteger": Operator(_matmul_integer),
}
