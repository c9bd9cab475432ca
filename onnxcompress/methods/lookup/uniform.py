"""Evenly spaced values, and a first scale for every row of a weight by a line search.

A row w becomes ``s (u - z)``: s its scale, z its zero point, u the numbers of a grid of L levels::

    odd       u = 2 k - (L - 1)    z = 0        symmetric; without a zero where L is even
    signed    u = k - L / 2        z = 0        with an exact zero
    shifted   the same             z of its own, so that the row's range is used from end to end

The scale that just holds a row's range (min-max) is the best for many levels, unless few weights
are far from the others; for few levels a smaller one errs less.  So the search goes down from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from onnxcompress.core.layer import Array

CHUNK = 2**17  # weights that are rounded together, so that they stay in the processor's cache
SAMPLE = 2**18  # weights that a kind of grid is chosen by
COARSE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of the min-max scale, for few levels,
COARSE_MANY = (1.0, 0.9, 0.75)  # and for many,
MANY = 64  # levels
FINE = (0.95, 1.05)  # around the best of these; with many levels others round by chance better
FINE_MANY = (0.95, 0.986, 0.993, 1.007, 1.014, 1.021, 1.028)

Kind = Literal["odd", "signed", "shifted"]


@dataclass(frozen=True)
class Uniform:
    """A grid of evenly spaced numbers."""

    levels: int
    kind: Kind

    @property
    def odd(self) -> bool:
        """Whether its numbers are those of the first line of the module."""
        return self.kind == "odd" or self.levels % 2 == 1

    @cached_property
    def table(self) -> Array:
        """Its numbers u, ascending, ``(levels, 1)``."""
        numbers = np.arange(float(self.levels))[:, None]
        return 2 * numbers - (self.levels - 1) if self.odd else numbers - self.levels // 2

    def fitting(self, rows: Array) -> tuple[Array, Array | None]:
        """Scales ``(n,)`` that just hold the range of rows ``(n, m)``, and zero points."""
        low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
        first, last = float(self.table[0, 0]), float(self.table[-1, 0])
        if self.kind != "shifted":
            return np.maximum(low / first, high / last), None
        scale, step = (high - low) / (last - first), 2 if self.odd else 1
        steps = np.rint(-low / np.where(scale > 0, scale, 1) / step)
        return scale, (first + step * steps).astype(rows.dtype)

    def errors(self, rows: Array, scale: Array, zero: Array | None) -> Array:
        """Squared errors ``(n,)`` of rows ``(n, m)`` that become the nearest values."""
        first, last = float(self.table[0, 0]), float(self.table[-1, 0])
        size = np.maximum(scale, 1e-30)[:, None].astype(rows.dtype)
        offset = np.zeros((1, 1), rows.dtype) if zero is None else zero[:, None]
        units = rows / size
        if self.odd:  # every second number
            units += offset - first
            units *= 0.5
            np.clip(np.rint(units, out=units), 0, self.levels - 1, out=units)
            units *= 2
            units += first - offset
        else:
            units += offset
            np.clip(np.rint(units, out=units), first, last, out=units)
            units -= offset
        units *= size
        units -= rows
        return np.einsum("nm,nm->n", units, units)


@dataclass(frozen=True, eq=False)
class Searched:
    """What a line search finds for rows.

    Attributes:
        widest: the min-max scales ``(n,)``.
        scale: the best scales.
        zero: zero points; None where the grid has none.
        error: squared errors with the best scales.
    """

    widest: Array
    scale: Array
    zero: Array | None
    error: Array


def search(rows: Array, grid: Uniform) -> Searched:
    """The best scales of rows ``(n, m)``, with nothing known of the inputs."""
    height = max(1, CHUNK // max(1, rows.shape[1]))
    chunks = [rows[i : i + height] for i in range(0, len(rows), height)]
    results = [_search(chunk, grid) for chunk in chunks]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(result, name) for result in results])

    zero = joined("zero") if grid.kind == "shifted" else None
    return Searched(joined("widest"), joined("scale"), zero, joined("error"))


def _search(rows: Array, grid: Uniform) -> Searched:
    widest, zero = grid.fitting(rows)
    share, error = np.ones_like(widest), np.full(len(rows), np.inf)

    def consider(shares: Array) -> None:
        nonlocal share, error
        tried = grid.errors(rows, widest * shares, zero)
        better = tried < error
        share, error = np.where(better, shares, share), np.where(better, tried, error)

    for part in COARSE_MANY if grid.levels >= MANY else COARSE:
        consider(np.full_like(widest, part))
    coarse = share
    for part in FINE_MANY if grid.levels >= MANY else FINE:
        consider(coarse * part)
    return Searched(widest, widest * share, zero, error)


def best_kinds(rows: Array, levels: int, kinds: Sequence[Kind]) -> Iterator[tuple[float, Uniform]]:
    """Squared errors of some of the rows ``(n, m)`` with each kind of grid."""
    some = rows[:: max(1, rows.size // SAMPLE)]
    for kind in kinds:
        grid = Uniform(levels, kind)
        yield float(search(some, grid).error.sum(dtype=np.float64)), grid
