"""Evenly spaced values, and a first scale for every row of a weight by a line search.

A row w becomes ``s (u - z)``: s its scale, z its zero point, u the numbers of a grid of L levels::

    odd       u = 2 k - (L - 1)    z = 0        symmetric; without a zero where L is even
    signed    u = k - L / 2        z = 0        with an exact zero
    shifted   the same             z of its own, so that the row's range is used from end to end

The scale that just holds a row's range (min-max) is the best for many levels, unless few weights
are far from the others; for few levels a smaller one errs less.  So the search goes down from it.
A row that was rounded before, to multiples of some step, is exact where the grid holds these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from onnxcompress.core.layer import Array

CHUNK = 2**17  # About so many weights are rounded together: they stay in the processor's cache.
SAMPLE = 2**18  # A kind of grid is chosen by about so many weights.
# These shares of the min-max scale are tried first, for few levels.
COARSE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
COARSE_MANY = (1.0, 0.9, 0.75)  # For many levels these are enough, since 1 is mostly the best.
MANY = 64  # So many levels, or more, are many.
FINE = (0.95, 1.05)  # The best of those is tried times these.
# With many levels it is tried times these, some of which round better by chance.
FINE_MANY = (0.95, 0.986, 0.993, 1.007, 1.014, 1.021, 1.028)

STEPS = 256  # In a row of multiples of a step, none is larger than so many steps.
ROUNDED = 1e-6  # Float32 may have rounded off this share of a row's largest entry.
REMAINDER = 1e-3  # A remainder below this share of it may be what differences have lost.
# A step of this share of the scale that holds a row holds it too: that scale may be rounded up.
NEARLY = 1 - 1e-5
GLANCE = 64  # So many entries of a row show whether it may be one of multiples.
DIVISIONS = 12  # A step is found in at most so many divisions, or there is none.

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
        step = 2 if self.odd else 1  # It leads from one number to the next.
        shifted = self.kind == "shifted"
        scale = (high - low) / (last - first) if shifted else np.maximum(low / first, high / last)
        if shifted or 0 in self.table:
            exact = unit(rows) / step
            scale = np.asarray(np.where(exact > scale * NEARLY, exact, scale))
        if not shifted:
            return scale, None
        steps = np.rint(-low / np.where(scale > 0, scale, 1) / step)
        return scale, (first + step * steps).astype(rows.dtype)

    def errors(self, rows: Array, scale: Array, zero: Array | None) -> Array:
        """Squared errors ``(n,)`` of rows ``(n, m)`` that become the nearest values."""
        first, last = float(self.table[0, 0]), float(self.table[-1, 0])
        size = np.maximum(scale, 1e-30)[:, None].astype(rows.dtype)
        offset = np.zeros((1, 1), rows.dtype) if zero is None else zero[:, None]
        units = rows / size
        if self.odd:  # Its numbers are two apart.
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


def unit(rows: Array) -> Array:
    """The step of every row ``(n, m)`` whose entries are multiples of one, at most `STEPS`; else 0.

    By Euclid's algorithm, first on some of the entries of some of the rows.
    """
    result = np.zeros(len(rows), rows.dtype)
    if len(rows) > 2 * GLANCE and not unit(rows[:: len(rows) // GLANCE]).any():
        return result
    some = _common(rows[:, :GLANCE])
    left = np.flatnonzero(some)
    if not len(left):
        return result
    whole = rows[left].astype(np.float64)
    step = _common(whole, some[left])
    numbers = np.rint(whole / np.maximum(step, 1e-30)[:, None])
    square = np.einsum("nm,nm->n", numbers, numbers)
    # This is the step with the least squares.
    step = np.einsum("nm,nm->n", numbers, whole) / np.maximum(square, 1)
    off = np.abs(whole - numbers * step[:, None]).max(1)
    exact = off <= ROUNDED * np.abs(whole).max(1)
    result[left] = np.where(exact & (square > 0), step, 0)
    return result


def _common(rows: Array, start: Array | None = None) -> Array:
    """About the greatest common divisors of rows; 0 for those that would be tiny."""
    size = np.abs(rows)
    largest = size.max(1, initial=0)
    least = np.where(size > 0, size, np.inf).min(1, initial=np.inf)
    step = np.where(np.isfinite(least), least, 0) if start is None else start.astype(rows.dtype)
    for _ in range(DIVISIONS):
        step[step * STEPS < largest] = 0
        alive = np.flatnonzero(step)
        part, values = step[alive, None], size[alive]
        rest = np.abs(values - part * np.rint(values / part))
        rest[rest < REMAINDER * largest[alive, None]] = np.inf
        least = rest.min(1, initial=np.inf)
        if not np.isfinite(least).any():
            return step
        step[alive] = np.minimum(step[alive], least)
    return np.zeros_like(step)


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
