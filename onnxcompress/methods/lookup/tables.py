"""Tables of evenly spaced numbers, and these numbers packed into the bytes that pick their rows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from math import prod
from zlib import crc32

import numpy as np

from onnxcompress.core.layer import Array, Layer

# This maps the levels of a digit to the number of such digits that a byte holds.
DIGITS = {2: 8, 3: 5, 4: 4, 6: 3, 16: 2, 256: 1}
LEVELS = {  # This maps the levels of a number to those of its digits, whose product they are.
    2: (2,), 3: (3,), 4: (4,), 6: (6,), 8: (4, 2), 12: (6, 2), 16: (16,), 24: (6, 4), 32: (16, 2),
    64: (16, 4), 128: (16, 4, 2), 256: (256,),
}  # fmt: skip

# Float16 rounds the smallest numbers by up to the first; its largest number is the second.
LOST, LARGEST = 2.0**-25, 65504.0

NOTHING = 1e-28  # A scale of zeros is one that is no larger.


def levels_of(tables: Iterable[Array]) -> float:
    """Values that each weight chooses from, of tables ``(k, d)`` for its digits."""
    return prod(len(table) ** (1 / table.shape[1]) for table in tables)


def stored(scale: Array, levels: float = 256) -> Array:
    """Scales as float16 has them, unless it cannot."""
    return scale.astype(np.float16).astype(scale.dtype) if fits_half(scale, levels) else scale


def fits_half(scale: Array, levels: float = 256, room: float = 1.0) -> bool:
    """Whether float16 has all scales, even after a factor of up to ``room``.

    What it rounds off the smallest, a share of at most 1 / levels, is less than what rounding a
    row to so many levels does: a filter that is nearly dead needs no more.
    """
    size = np.abs(scale[np.abs(scale) > NOTHING])
    least = LOST * levels * room
    return not size.size or bool(size.min() >= least and size.max() * room <= LARGEST)


def in_bytes(table: Array) -> Array:
    """Rounded so that all entries are whole multiples of one number, -127 to 127."""
    unit = np.abs(table).max() / 127
    return np.rint(table / unit) * unit


@cache
def counting(levels: int) -> tuple[Array, ...]:
    """A table for each digit of numbers with so many levels: what the digits of a byte stand for.

    The numbers are the sums of their digits' entries; they count in steps of two around zero.
    """
    tables, left = [], levels
    for radix in LEVELS[levels]:
        left //= radix  # A digit counts for this.
        rows = np.array(list(product(range(radix), repeat=DIGITS[radix])), np.int16)
        rows = 2 * rows - (radix - 1)
        tables.append(shared((rows * left).astype(np.int8)))
    return tuple(tables)


def packed(numbers: Array, levels: int) -> list[Array]:
    """Numbers from 0 to ``levels - 1``, less than 256 of them, as bytes for each digit's table."""
    result, numbers = [], numbers.astype(np.uint8, copy=False)
    for radix in reversed(LEVELS[levels]):
        digits, numbers = numbers % radix, numbers // radix
        count = DIGITS[radix]
        flat = np.pad(digits.ravel(), (0, -digits.size % count)).reshape(-1, count)
        result.append(flat @ (radix ** np.arange(count - 1, -1, -1)).astype(np.uint8))
    return result[::-1]


def some_codes(layer: Layer, width: int, parts: int = 1, levels: int = 256) -> tuple[Array, Array]:
    """Codes and scales of the right shapes, with any values."""
    rng = np.random.default_rng([crc32(layer.name.encode()), layer.weight.size])
    out, fan_in = len(layer.weight), layer.fan_in
    codes = rng.integers(0, levels, (out, -(-fan_in // width)), np.uint8)
    return codes, rng.uniform(1, 2, (out, parts))


def is_shared(table: Array) -> bool:
    """Whether a table is one that other layers have too: those that are not fitted to a layer."""
    return not table.flags.writeable


def shared(table: Array) -> Array:
    """Mark a table as one that is stored once for all layers."""
    table.flags.writeable = False
    return table
