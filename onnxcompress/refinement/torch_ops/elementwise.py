"""Operators that compute entry by entry.

The unsigned types that torch stores but does not compute with go through int64 and wrap around.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnxcompress.refinement.torch_ops.operator import Node, Operator, plain, torch_type

# torch stores these types, but does not compute with them.
WRAPPED = (torch.uint16, torch.uint32)
SOFTPLUS_LINEAR_ABOVE = 80  # Above, float32 cannot tell softplus from its argument.


def _wrap(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Arithmetic of two tensors; what torch cannot compute with wraps around in int64."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in WRAPPED:
            return function(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
        return function(a, b)

    return run


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(lambda node, *inputs: reduce(function, inputs))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return _wrap(torch.fmod if node.get("fmod") else torch.remainder)(a, b)


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = node.get("min") if low is None else low
    high = node.get("max") if high is None else high
    return x if low is None and high is None else torch.clamp(x, low, high)


def _pow(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if y.numel() == 1 and y.ndim <= x.ndim:  # The gradient of x ** 2 is finite where x is 0.
        return x.pow(y.item()).to(x.dtype)
    return x.pow(y).to(x.dtype)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _elu(node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.get("alpha", 1.0))


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813)
    return gamma * functional.elu(x, alpha)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.get("approximate", "none"))


def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.get("alpha", 0.01))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=SOFTPLUS_LINEAR_ABOVE)


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(torch_type(node.get("to")))


OPERATORS = {
    "Abs": plain(torch.abs),
    "Add": plain(_wrap(torch.add)),
    "And": plain(torch.logical_and),
    "Cast": Operator(_cast),
    "Ceil": plain(torch.ceil),
    "Clip": Operator(_clip, settings=(1, 2)),
    "Cos": plain(torch.cos),
    "Div": plain(_wrap(_divide)),
    "Dropout": Operator(lambda node, x, *rest: x),
    "Elu": Operator(_elu),
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Gelu": Operator(_gelu),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": plain(_hard_swish),
    "Identity": Operator(lambda node, x: x),
    "LeakyRelu": Operator(_leaky_relu),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mish": plain(functional.mish),
    "Mod": Operator(_mod),
    "Mul": plain(_wrap(torch.mul)),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "PRelu": plain(_prelu),
    "Pow": Operator(_pow, settings=(1,)),
    "Reciprocal": plain(torch.reciprocal),
    "Relu": plain(torch.relu),
    "Round": plain(torch.round),
    "Selu": Operator(_selu),
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Softplus": plain(_softplus),
    "Softsign": plain(functional.softsign),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(_wrap(torch.sub)),
    "Sum": _variadic(torch.add),
    "Tanh": plain(torch.tanh),
    "Where": plain(torch.where),
}
