"""A linear layer detached from its graph.

A layer multiplies input patches p with a weight, ``y = W p + bias``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol, Self

import numpy as np

from onnxcompress.core.padding import output_size

Array = np.ndarray

Shape = tuple[int, ...]

Value = Any
"""A tensor of the graph that is being built: what an `Emitter` returns and takes; nothing of it is
read elsewhere."""


class Emitter(Protocol):
    """Adds ONNX nodes: ``y = op.Conv(x, weight, strides=[2, 2])``.

    The name of the method is the operator; what it takes are Values and arrays, which become
    initializers, and what it returns is the Value of the output.

    Attributes:
        opset: of the model.
    """

    opset: int

    def __getattr__(self, op_type: str) -> Any: ...


@dataclass(frozen=True, eq=False)
class Unread:
    """A weight that stays in its file until `Layer.read`; of an array it has what says its size."""

    shape: Shape
    dtype: Any
    load: Callable[[], Array]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.load().astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear node with a constant weight, detached from its graph.

    Attributes:
        name: of the node; the key of every dictionary of the pipe.
        op_type: Conv, ConvTranspose, Gemm, MatMul or Einsum; Constant for a large constant that
            other nodes read, whose rows (out, in) are often all that is known of it.
        weight: output first, however the node stores it: ``(out, in // groups, *kernel)`` for
            the convolutions, ``(out, in)`` for Gemm (alpha included) and MatMul.  Of a large one
            in a file only shape and type are known, see `Unread`; methods are given layers that
            are read.
        bias: ``(out,)``; a Value where the model computes it; None where there is none.
        attributes: the node's: strides, pads, dilations, group, auto_pad, output_padding,
            transA, beta (of a computed bias); ``left=1`` for a MatMul that computes ``W @ x``;
            ``lead``, the first axes of a stack of matrices, each of them a group;
            ``contraction``, what an Einsum computes;
            ``shape`` of a Constant, and ``group`` where it is known what it is multiplied with;
            ``indices`` of a table that is only looked up by rows, the tensors that say which, and
            ``reads`` ``(out,)``, in how many samples each row is;
            ``integers`` of one that is made of bytes, the type, with ``zero``, which is left out
            of the weight, and ``outputs_last``, where the weight is so, transposed.
        shared: name of the first layer that reads an equal weight, itself where there is no other.
        stored: bytes that the weight takes in the file; 0 where they are those of the array.
    """

    name: str
    op_type: str
    weight: Array
    bias: Array | Value | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shared: str = ""
    stored: int = 0

    def read(self) -> Self:
        """The layer with its weight in memory."""
        weight: Any = self.weight
        return replace(self, weight=weight.load()) if isinstance(weight, Unread) else self

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in the file."""
        return self.stored or self.weight.nbytes

    @property
    def correctable(self) -> bool:
        """Whether there is a bias that can be changed, or a place for one."""
        return isinstance(self.bias, Array | None) and self.op_type != "Constant"

    @property
    def fan_in(self) -> int:
        """Entries of a patch of one group."""
        return prod(self.weight.shape[1:])

    @property
    def groups(self) -> int:
        return self.attributes.get("group", 1)

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def grouped(self) -> Array:
        """The weight as one matrix a group, ``(groups, out // groups, fan_in)``."""
        return self.weight.reshape(self.groups, len(self.weight) // self.groups, -1)

    def apply(
        self,
        op: Emitter,
        x: Value,
        *weights: Array | Value,
        bias: Any = None,
        shapes: Sequence[Shape] = (),
    ) -> Value:
        """Emit this layer with another weight, or as a chain of layers with these weights.

        In a chain, the stride, dilation and padding of a kernel axis go to the weight that
        spans this axis, and the bias to the last.

        Args:
            shapes: of the weights of a chain, where nodes compute them.
        """
        known = [weight.shape for weight in weights if isinstance(weight, Array)]
        shapes = shapes or (known if len(known) == len(weights) else [self.weight.shape])
        if self.op_type == "Einsum":
            ranks = [shape[0] // self.groups for shape in shapes]
            return self.attributes["contraction"].emit(op, x, weights, ranks, bias)
        steps = zip(weights, shapes, self._axes(shapes), strict=True)
        for position, (weight, shape, axes) in enumerate(steps):
            last = bias if position == len(weights) - 1 else None
            x = self._emit(op, x, weight, shape, axes, last, first=position == 0)
        return x

    def macs(self, input_shape: Sequence[int], *shapes: Shape) -> int:
        """Multiplications of the layer, or of a chain of layers with weights of these shapes."""
        shapes = shapes or (self.weight.shape,)
        if self.op_type == "Constant":
            return 0
        if self.op_type in ("Gemm", "MatMul", "Einsum"):
            seen = self._broadcast(input_shape)
            rows = prod(seen) // self.weight.shape[1] // self.groups
            return rows * sum(map(prod, shapes))
        batch, _, *size = input_shape
        total = 0
        transposed = self.op_type == "ConvTranspose"
        for shape, axes in zip(shapes, self._axes(shapes), strict=True):
            out = output_size(self._attributes(axes), size, shape[2:], transposed)
            places = size if transposed else out
            total += batch * prod(places) * prod(shape)
            size = out
        return total

    def _broadcast(self, input_shape: Sequence[int]) -> Sequence[int]:
        """The shape of the input, as every matrix of a stack has one of its own."""
        lead = self.attributes.get("lead", ())
        if not lead or len(input_shape) < 2:
            return input_shape
        return (*np.broadcast_shapes(tuple(input_shape[:-2]), lead), *input_shape[-2:])

    def _axes(self, shapes: Sequence[Shape]) -> list[set[int]]:
        """For every weight of a chain, the kernel axes whose attributes it takes."""
        if len(shapes) == 1:
            return [set(range(len(self.kernel)))]
        owner = {
            axis: next(i for i, shape in enumerate(shapes) if shape[2 + axis] == length)
            for axis, length in enumerate(self.kernel)
        }
        return [{axis for axis in owner if owner[axis] == i} for i in range(len(shapes))]

    def _emit(
        self,
        op: Emitter,
        x: Value,
        weight: Array | Value,
        shape: Shape,
        axes: set[int],
        bias: Any,
        first: bool,
    ) -> Value:
        extra = () if bias is None else (bias,)
        if self.op_type == "Constant":
            return _as_stored(op, weight, self.attributes)
        if self.op_type == "Gemm":
            attributes = {"transA": self.attributes.get("transA", 0)} if first else {}
            if bias is not None and not isinstance(bias, Array):
                attributes["beta"] = self.attributes.get("beta", 1.0)
            return op.Gemm(x, weight, *extra, **attributes, transB=1)
        if self.op_type == "MatMul":
            left, lead = self.attributes.get("left"), self.attributes.get("lead", ())
            weight = _stacked(op, weight, shape, self.groups, lead)
            y = op.MatMul(weight, x) if left else op.MatMul(x, _swap(op, weight, len(lead)))
            if bias is None:
                return y
            if self.groups > 1:
                bias = bias.reshape(*lead, 1, -1)
                return op.Add(y, bias.swapaxes(-1, -2) if left else bias)
            return op.Add(y, bias[:, None] if left else bias)
        if self.op_type == "ConvTranspose":
            weight = _input_first(op, weight, self.groups, shape)
        return getattr(op, self.op_type)(x, weight, *extra, **self._attributes(axes))

    def _attributes(self, axes: set[int]) -> dict[str, Any]:
        """The attributes of a convolution that spans only these kernel axes."""
        rank = len(self.kernel)
        if len(axes) == rank:
            return dict(self.attributes)
        neutral = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
        result = {}
        for key, value in self.attributes.items():
            if key == "output_shape":
                continue  # It says nothing of a single axis.
            if key in neutral:
                value = [v if i % rank in axes else neutral[key] for i, v in enumerate(value)]
            result[key] = value
        return result


def _as_stored(op: Emitter, weight: Array | Value, attributes: Mapping[str, Any]) -> Value:
    """A Constant in its own shape; bytes are rounded."""
    *outer, first, second = attributes["shape"]
    last = attributes.get("outputs_last")
    value = op.Reshape(weight, np.array([*outer, second, first] if last else attributes["shape"]))
    if last:
        value = op.Transpose(value, perm=[*range(len(outer)), len(outer) + 1, len(outer)])
    if "integers" not in attributes:
        return value
    limits = np.iinfo(attributes["integers"])
    value = op.Floor(op.Add(value, np.array(attributes["zero"] + 0.5, np.float32)))
    value = op.Max(
        op.Min(value, np.array(limits.max, np.float32)), np.array(limits.min, np.float32)
    )
    return op.Cast(value, to=attributes["integers"])


def _stacked(
    op: Emitter, weight: Array | Value, shape: Shape, groups: int, lead: Shape
) -> Array | Value:
    """A matrix ``(groups * out, in)`` as a stack of matrices, ``(*lead, out, in)``."""
    if not lead:
        return weight
    return reshaped(op, weight, (*lead, shape[0] // groups, shape[1]))


def reshaped(op: Emitter, value: Array | Value, shape: Sequence[int]) -> Array | Value:
    """In another shape: at once where it is an array, by a node where it is computed."""
    if isinstance(value, Array):
        return value.reshape(shape)
    return op.Reshape(value, np.array(shape))


def _swap(op: Emitter, weight: Array | Value, rank: int = 0) -> Any:
    """A stack of matrices transposed: at once where it is an array, by a node where it is computed.

    Args:
        rank: axes before those of the matrices.
    """
    if isinstance(weight, Array):
        return np.ascontiguousarray(weight.swapaxes(-1, -2))
    return op.Transpose(weight, perm=[*range(rank), rank + 1, rank])


def _input_first(op: Emitter, weight: Array | Value, groups: int, shape: Sequence[int]) -> Any:
    """``(out, in // groups, *kernel)`` as ConvTranspose stores it: ``(in, out // groups, ...)``."""
    if isinstance(weight, Array):
        out, inputs, *kernel = weight.shape
        split = weight.reshape(groups, out // groups, inputs, *kernel)
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(-1, out // groups, *kernel))
    out, inputs, *kernel = shape
    split = op.Reshape(weight, np.array([groups, out // groups, inputs, *kernel]))
    swapped = op.Transpose(split, perm=[0, 2, 1, *range(3, 3 + len(kernel))])
    return op.Reshape(swapped, np.array([-1, out // groups, *kernel]))
