"""What codes are fitted to, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.core.layer import Array, Layer

TRIED = 2**20  # weights that are rounded with every first scale

LEARNED = 2**17  # weights that a table is learned from

CHUNKED = 2**19  # weights that are rounded together


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that a weight is rounded to.

    Attributes:
        table: ``(k, d)``; sorted if d is 1.
        first: scales to start from, in units of a row's root mean square.
        parts: of a filter, each with a scale of its own; only for d = 1.
        learn: whether the table is fitted to the layer too.
    """

    table: Array
    first: Sequence[float]
    parts: int = 1
    learn: bool = False


@dataclass(frozen=True, eq=False)
class Coded:
    """The fit of a weight.

    Attributes:
        codes: ``(out, pieces)``, rows of the table; uint8.
        scale: ``(out, parts)``.
        table: ``(k, d)``, k at most 256.
        error: relative squared output error, of the rows that were looked at.
    """

    codes: Array
    scale: Array
    table: Array
    error: float

    def decoded(self, layer: Layer) -> Array:
        """The weight that it stands for, in the layer's shape."""
        rows = self.table[self.codes].reshape(len(layer.weight), -1)[:, : layer.fan_in]
        scale = np.repeat(self.scale, rows.shape[1] // self.scale.shape[1], axis=1)
        return (rows * scale).reshape(layer.weight.shape)
