"""Tables that count, and numbers as bytes for them."""

from __future__ import annotations

from functools import cache
from itertools import product
from zlib import crc32

import numpy as np

from onnxcompress.core.layer import Array, Layer

DIGITS = {2: 8, 3: 5, 4: 4, 6: 3, 16: 2, 256: 1}  # levels -> numbers in a byte

LEVELS = {  # of a number -> of its digits
    2: (2,), 3: (3,), 4: (4,), 6: (6,), 8: (4, 2), 12: (6, 2), 16: (16,), 24: (6, 4), 32: (16, 2),
    64: (16, 4), 128: (16, 4, 2), 256: (256,),
}  # fmt: skip


def stored(scale: Array) -> Array:
    """Scales as float16 has them, unless it cannot."""
    return scale.astype(np.float16).astype(scale.dtype) if fits_half(scale) else scale


def fits_half(scale: Array) -> bool:
    """Whether float16 has all scales to a few percent, but for those that hardly matter."""
    size = np.abs(scale)
    small = (size > 2e-6) | (size < 1e-3 * size.max()) | (size < 1e-11)
    return bool(small.all() and size.max() < 6e4)


def in_bytes(table: Array) -> Array:
    """Rounded so that all entries are whole multiples of one number, -127 to 127."""
    unit = np.abs(table).max() / 127
    return np.rint(table / unit) * unit


@cache
def counting(levels: int) -> Array:
    """The table of numbers with so many levels: row k holds the digits of k, in odd steps."""
    count = DIGITS[levels]
    rows = np.array(list(product(range(levels), repeat=count)), np.int8)
    return shared(2 * rows - np.int8(levels - 1))


def packed(numbers: Array, levels: int) -> list[Array]:
    """Numbers from 0 to ``levels - 1``, less than 256 of them, as bytes for each digit's table."""
    found, numbers = [], numbers.astype(np.uint8, copy=False)
    for radix in reversed(LEVELS[levels]):
        digits, numbers = numbers % radix, numbers // radix
        count = DIGITS[radix]
        flat = np.pad(digits.ravel(), (0, -digits.size % count)).reshape(-1, count)
        found.append(flat @ (radix ** np.arange(count - 1, -1, -1)).astype(np.uint8))
    return found[::-1]


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
