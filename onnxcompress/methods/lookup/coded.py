"""The rows of a weight that are to be coded, and the codes and scales that come out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from onnxcompress.core.layer import Array, Layer

JUDGED = 2**17  # So many weights show the error of all, where nothing is known of the inputs.
LEARNED = 2**17  # A table is learned from so many weights: more tell it little.
CHUNKED = 2**19  # At most so many weights are rounded together, which bounds the memory.


def grouped_for_fit(layer: Layer) -> Array:
    """The weight ``(groups, rows, n)`` in the type that it is fitted in."""
    return layer.grouped.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a weight, and what their fit starts from.

    Attributes:
        weight: ``(groups, rows, n)``.
        starts: first scales, each ``(groups, rows, parts)``; every part of a row has its own.
        usual: which of them serves where there is no time to try them all.
        zero: zero points in units of the scale, like the scales; or None.
        single: whether scales are stored as 32-bit floats.
    """

    weight: Array
    starts: tuple[Array, ...]
    usual: int = 0
    zero: Array | None = None
    single: bool = False

    @property
    def parts(self) -> int:
        return self.starts[0].shape[2]

    def some(self, rows: slice) -> Self:
        """Some of the rows of each group."""
        return replace(
            self,
            weight=self.weight[:, rows],
            starts=tuple(start[:, rows] for start in self.starts),
            zero=None if self.zero is None else self.zero[:, rows],
        )

    def whole(self, together: int) -> Self:
        """As many of the rows as make whole segments."""
        count = self.weight.shape[1]
        return self.some(slice(0, count - count % together)) if count % together else self

    def starting(self, index: int) -> Self:
        """The same with one of its first scales alone."""
        return replace(self, starts=(self.starts[index],), usual=0)

    def chunks(self, height: int) -> list[Self]:
        """All rows, so many of each group at a time."""
        count = self.weight.shape[1]
        return [self.some(slice(i, i + height)) for i in range(0, count, height)]


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that rows are rounded to, times their scales.

    Attributes:
        table: ``(k, d)``; sorted if d is 1.
        learn: whether the table is fitted to the layer too.
        segment: where each byte chooses the table of the next row's, rows that are coded together,
            see `trellis`; else 0.
    """

    table: Array
    learn: bool = False
    segment: int = 0

    @property
    def together(self) -> int:
        """Rows that only make sense together."""
        return self.segment or 1

    def astype(self, dtype: np.dtype) -> Self:
        return replace(self, table=self.table.astype(dtype))


@dataclass(frozen=True, eq=False)
class Coded:
    """The fit of a weight.

    Attributes:
        codes: ``(out, pieces)``, rows of the table.
        scale: ``(out, parts)``.
        table: ``(k, d)``.
        error: relative squared output error, of the rows that were looked at.
        zero: zero points ``(out, parts)``, or None.
    """

    codes: Array
    scale: Array
    table: Array
    error: float
    zero: Array | None = None

    def decoded(self, layer: Layer) -> Array:
        """The weight that it stands for, in the layer's shape."""
        rows = self.table[self.codes].reshape(len(layer.weight), -1)[:, : layer.fan_in]
        repeated = rows.shape[1] // self.scale.shape[1]
        if self.zero is not None:
            rows = rows - np.repeat(self.zero, repeated, axis=1)
        return (rows * np.repeat(self.scale, repeated, axis=1)).reshape(layer.weight.shape)
