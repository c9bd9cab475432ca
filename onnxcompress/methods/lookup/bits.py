"""Small integers in as few bytes as they need, and the nodes that unpack them.

Numbers of 1, 2, 4 or 8 bits lie side by side in a byte, the first in its highest bits; those of
other widths form one stream of bits.  ``byte / 2**j mod 2**bits`` takes a number out again: plain
int32 Div and Mod, which every runtime folds and computes exactly.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Shape, Value


def pack(numbers: Array, bits: int) -> Array:
    """Numbers from 0 to ``2**bits - 1``, of any shape, as uint8 ``(ceil(size * bits / 8),)``."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits(((numbers.reshape(-1, 1).astype(np.int64) >> places) & 1).astype(np.uint8))


def unpack(stored: Array, bits: int, count: int) -> Array:
    """The first ``count`` numbers of a packed array, int64."""
    stream = np.unpackbits(stored, count=count * bits).reshape(count, bits)
    return stream @ (1 << np.arange(bits - 1, -1, -1))


def emit_unpack(op: Emitter, stored: Array, bits: int, shape: Shape) -> Value:
    """Nodes that compute the numbers of a packed array, int32 of that shape."""
    count, target = prod(shape), np.array(shape)
    width = bits if 8 % bits == 0 else 1
    values = op.Cast(stored, to=np.int32)
    if width < 8:
        parts = (1 << np.arange(8 - width, -1, -width)).astype(np.int32)
        column = op.Reshape(values, np.array([-1, 1]))
        values = op.Mod(op.Div(column, parts), np.array(1 << width, np.int32))
    if width == bits:
        return op.Reshape(_first(op, values, count, len(stored) * 8 // width), target)
    stream = _first(op, values, count * bits, len(stored) * 8)
    powers = (1 << np.arange(bits - 1, -1, -1)).astype(np.int32)
    parts = op.Mul(op.Reshape(stream, np.array([*shape, bits])), powers)
    return op.ReduceSum(parts, np.array([-1]), keepdims=0)


def _first(op: Emitter, values: Value, count: int, length: int) -> Value:
    if count == length:
        return values
    return op.Slice(op.Reshape(values, np.array([-1])), np.array([0]), np.array([count]))
