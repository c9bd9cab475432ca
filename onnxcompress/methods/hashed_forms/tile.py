"""The tile of positions whose hash says which of its values every coefficient takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import Self

import numpy as np
from scipy.fft import dct

from onnxcompress.core.layer import Array, Layer, Shape

EXACT, DROPPED = -1, 0  # They stand in place of a band's number of values.
# At most so many positions are hashed, but one filter at least; all blocks share their indices.
TILE = 32768
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)  # These are the m of the hash, which `hashed` explains.
GOLDEN = 0x9E3779B1  # This is a prime near 2^32 over the golden ratio.


@dataclass(frozen=True)
class Tile:
    """How a weight is cut up: sizes alone.

    Attributes:
        shape: of the weight.
        blocks: of output channels, each with its own values.
        seed: of the hash.
    """

    shape: Shape
    blocks: int
    seed: int

    @classmethod
    def of(cls, layer: Layer, seed: int) -> Self:
        out, *patch = layer.weight.shape
        inside = out // layer.groups
        rows = max(r for r in range(1, inside + 1) if inside % r == 0 and (
            r == 1 or r * prod(patch) <= TILE))  # fmt: skip
        return cls(layer.weight.shape, out // rows, seed)

    @property
    def filters(self) -> int:
        """Of a block."""
        return prod(self.shape[:2]) // self.blocks

    @property
    def bands(self) -> Array:
        """The band of every frequency."""
        return np.array([sum(f) for f in product(*map(range, self.shape[2:]))])

    @property
    def transform(self) -> Array:
        """D, ``(frequencies, kernel positions)``."""
        axes = [np.asarray(dct(np.eye(k), axis=0, norm="ortho")) for k in self.shape[2:]]
        return reduce(lambda a, b: np.kron(a, b), axes, np.eye(1)).astype(np.float32)

    def indices(self, counts: Array) -> Array:
        """``(filters, hashed frequencies)``: twice the bucket, plus 1 where the sign is minus.

        Args:
            counts: values of every hashed frequency's band, and where they start: ``(2, n)``.
        """
        x = np.arange(self.filters * counts.shape[1], dtype=np.uint32)
        x = x * np.uint32(GOLDEN) + np.uint32(self.seed)
        for multiplier in MULTIPLIERS:
            x = (x >> np.uint32(16)) + (x << np.uint32(16))
            x = x * (x * np.uint32(2) + np.uint32(multiplier))
        numbers = (x >> np.uint32(8)).reshape(self.filters, -1).astype(np.int64)
        return numbers % (2 * counts[0]) + 2 * counts[1]


def split_bands(tile: Tile, buckets: Sequence[int]) -> tuple[Array, Array, Array]:
    """Exact frequencies, hashed frequencies, and the counts of the latter's bands."""
    sizes = np.array(buckets)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(sizes, 0))[:-1]])
    bands = tile.bands
    exact, hashed = np.flatnonzero(sizes[bands] == EXACT), np.flatnonzero(sizes[bands] > 0)
    return exact, hashed, np.stack([sizes, offsets])[:, bands[hashed]]
