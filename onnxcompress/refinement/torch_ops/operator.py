"""What an operator is, and what the families of operators share.

Every floating-point type is computed in float32, whatever the model says: what is trained has
masters in float32.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxcompress.core.layer import Array
from onnxcompress.graph import Operation


@dataclass(frozen=True, eq=False)
class Node:
    """What an operator's function is given besides its inputs."""

    operation: Operation
    opset: int

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.operation.attributes

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, or the default that the ONNX operator has for it."""
        return self.attributes.get(key, default)


@dataclass(frozen=True, eq=False)
class Operator:
    """How torch computes an operator, and what its inputs are.

    Attributes:
        run: takes the `Node` and its inputs, None for one that is left out; gives the first
            output, or a tuple of outputs.
        settings: inputs that are settings or statistics, not weights.
        bias: the input that is a bias, where even a single number is a weight.
        all_outputs: whether all outputs are computed, or the first alone.
    """

    run: Callable[..., Any]
    settings: tuple[int, ...] = ()
    bias: int | None = None
    all_outputs: bool = False


def plain(function: Callable[..., Tensor]) -> Operator:
    """An operator whose attributes do not matter."""
    return Operator(lambda node, *inputs: function(*inputs))


def tensor(array: Array, device: str | torch.device = "cpu") -> Tensor:
    """An array as torch computes with it: floating-point types in float32, 4-bit ones in 8 bits."""
    kind = array.dtype.name
    if kind.startswith(("float", "bfloat")):
        array = array.astype(np.float32)
    elif kind in ("int4", "int2", "uint4", "uint2"):
        array = array.astype(np.int8)
    return torch.from_numpy(np.array(array, order="C")).to(device)  # A copy may be written to.


def torch_type(name: str) -> torch.dtype:
    """The type that torch computes with for a type as numpy names it."""
    return torch.float32 if name.startswith(("float", "bfloat")) else getattr(torch, name)


def integers(values: Tensor | Sequence[int]) -> list[int]:
    """The entries of a tensor that says a shape, axes, ...; of an attribute too."""
    flat = values if isinstance(values, Sequence) else values.reshape(-1).tolist()
    return [int(value) for value in flat]


def setting(node: Node, key: str, value: Tensor | None) -> list[int] | None:
    """What is an attribute in older opsets and an input in newer ones."""
    entries = node.get(key) if value is None else value
    return None if entries is None else integers(entries)


def along_axis(values: Tensor, rank: int, axis: int = 1) -> Tensor:
    """A vector along one axis of tensors of this rank."""
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def pick(x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    """The entries at these places of an axis."""
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))


def last_axis_first(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Padding of all axes in the order that torch takes it in."""
    return [n for pair in reversed(pads) for n in pair]
