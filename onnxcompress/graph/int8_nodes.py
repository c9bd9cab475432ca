"""Nodes that multiply whole numbers, and the constants that they read as weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from onnxcompress.core.layer import Array
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import attributes_of, is_linear
from onnxcompress.graph.scopes import Scope

# Operators that multiply whole numbers are in these domains.
DOMAINS = ("", "ai.onnx", "com.microsoft")
# For every weight, an operator has its input, that of its zero point, and whether outputs are last.
INTEGER = {
    "MatMulInteger": ((1, 3, True),),
    "ConvInteger": ((1, 3, False),),
    "QLinearConv": ((3, 5, False),),
    "QLinearMatMul": ((3, 5, True),),
    "DynamicQuantizeMatMul": ((1, 3, True),),
    "MatMulIntegerToFloat": ((1, 5, True),),
    "DynamicQuantizeLSTM": ((1, 9, True), (2, 11, True)),
    "QAttention": ((1, 7, True),),
    "QGemm": ((3, 5, True),),
}
# This input of each operator holds a weight of which several numbers share a byte.
PACKED = {"MatMulNBits": 1, "GatherBlockQuantized": 0, "MatMulBnb4": 1}
BYTES = (TensorProto.UINT8, TensorProto.INT8)


def is_integer(node: NodeProto) -> bool:
    return node.op_type in INTEGER and node.domain in DOMAINS


def packed_weight(node: NodeProto) -> int | None:
    """The input that holds a weight of which several numbers share a byte."""
    return PACKED.get(node.op_type) if node.domain == "com.microsoft" else None


def in_8_bits(model: Model, scope: Scope, node: NodeProto) -> bool:
    """Whether a node multiplies bytes, or floats that runtimes fuse to that."""
    if is_integer(node):
        return True
    known = is_linear(node) and node.op_type != "Einsum"  # No runtime fuses an Einsum.
    return known and {*map(scope.key, node.input[:2])} <= model.quantized


@dataclass(frozen=True, eq=False)
class Integers:
    """A constant of bytes that some node multiplies with.

    Attributes:
        outputs_last: whether its last axis is that of the outputs, the one before that of the
            inputs; else they are first.
        zero: its zero point, one for all.
        reads: the tensor of floats that it is multiplied with, where that is known.
    """

    outputs_last: bool
    zero: int
    reads: str = ""

    def rows(self, value: Array) -> Array:
        """The numbers without their zero point, as floats, a row for every output."""
        moved = value.swapaxes(-1, -2) if self.outputs_last else value.reshape(len(value), -1)
        return moved.astype(np.float32).reshape(-1, moved.shape[-1]) - np.float32(self.zero)

    def attributes(self, value: Array) -> dict[str, Any]:
        """What a Layer that is such a constant has to know, to give the bytes."""
        known = {"group": 1} if self.reads and value.ndim == 2 else {}
        own = {"shape": value.shape, "outputs_last": self.outputs_last, "zero": self.zero}
        return {**own, "integers": value.dtype.name, **known}


def find_integers(model: Model) -> dict[str, Integers]:
    """The constants of bytes that nodes multiply with, by name."""
    constants: dict[str, Integers] = {}
    for scope, node in model.nodes.values():
        for key, integers in _weights(model, scope, node):
            root = model.root(key)
            if model.constants[root].data_type in BYTES:
                moved = root != key  # The axis of the outputs has moved with it.
                last = integers.outputs_last and not moved
                constants.setdefault(root, replace(integers, outputs_last=last))
    return constants


def _weights(model: Model, scope: Scope, node: NodeProto) -> Iterator[tuple[str, Integers]]:
    if is_integer(node):
        outputs_last = not attributes_of(node).get("transB")
        for index, zero, last in INTEGER[node.op_type]:
            key, point = (scope.key(name) for name in _named(node, index, zero))
            if model.fixed(key):
                reads = _unrounded(model, scope, node) if last else ""
                yield key, Integers(last and outputs_last, _zero(model, key, point), reads)
    elif is_linear(node) and in_8_bits(model, scope, node):
        last = not (node.op_type.startswith("Conv") or attributes_of(node).get("transB"))
        for key in filter(model.views.__contains__, map(scope.key, node.input[:2])):
            direct = key
            while model.views[key][1].op_type != "DequantizeLinear":
                key = model.shown(key)
            around, maker = model.views[key]
            number, point = (around.key(name) for name in _named(maker, 0, 2))
            yield number, Integers(last and key == direct, _zero(model, number, point))


def _named(node: NodeProto, *indices: int) -> list[str]:
    """Some inputs of a node; "" for those that it has not."""
    return [node.input[i] if i < len(node.input) else "" for i in indices]


def _zero(model: Model, key: str, point: str) -> int:
    """The zero point of a weight, where it has but one; else the middle of its type."""
    value = np.unique(model.read(point)) if point and model.fixed(point) else np.zeros(0)
    unsigned = model.constants[model.root(key)].data_type == TensorProto.UINT8
    return int(value[0]) if len(value) == 1 else 128 * unsigned


def _unrounded(model: Model, scope: Scope, node: NodeProto) -> str:
    """What a product reads before it is rounded to bytes, in the main graph."""
    if scope.outer is not None:
        return ""
    if node.op_type == "DynamicQuantizeMatMul":
        return node.input[0]
    maker = model.producers.get(node.input[0])
    rounds = ("DynamicQuantizeLinear", "QuantizeLinear")
    quantizes = maker is not None and model.nodes[maker][1].op_type in rounds
    return model.nodes[maker][1].input[0] if maker and quantizes else ""
