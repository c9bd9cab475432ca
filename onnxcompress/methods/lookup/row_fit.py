"""Codes and scales of the rows of a weight, in turn, in the metric of the inputs.

Codes come from error feedback and coordinate descent, scales from least squares; every row keeps
the best pair that it has had.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.methods.lookup.coded import Rows
from onnxcompress.methods.lookup.error_feedback import (
    Metric,
    Pick,
    Picker,
    descend,
    feedback,
    row_errors,
)
from onnxcompress.methods.lookup.kmeans import is_even, nearest
from onnxcompress.methods.lookup.tables import levels_of, stored
from onnxcompress.methods.lookup.trellis import remembering

# Products of a table with so many metrics (entries) are kept while a weight is rounded.
IMAGES = 2**23


@dataclass(frozen=True, eq=False)
class Block:
    """Some inputs and their metric.

    Attributes:
        part: of every piece, the one whose scale it has; ``columns``: of every column.
    """

    metric: Metric
    part: Array
    columns: Array


@dataclass(frozen=True, eq=False)
class State:
    """A rounded weight; what is a list has one entry a block.

    Attributes:
        codes, values: ``(groups, rows, pieces)`` and ``(groups, rows, n)``.
        scale: ``(groups, rows, parts)``.
        error: of every row, ``(groups, rows)``.
        gradients: ``(values - weight) H``, like the values.
    """

    codes: list[Array]
    values: list[Array]
    scale: Array
    error: Array
    gradients: list[Array]

    @property
    def total(self) -> float:
        """The error of all rows."""
        return float(self.error.sum(dtype=np.float64))

    def better(self, other: State | None) -> State:
        """The better of two states, row by row."""
        if other is None:
            return self
        wins = (self.error < other.error)[:, :, None]

        def merged(ours: list[Array], theirs: list[Array]) -> list[Array]:
            return [np.where(wins, a, b) for a, b in zip(ours, theirs, strict=True)]

        return State(
            merged(self.codes, other.codes),
            merged(self.values, other.values),
            np.where(wins, self.scale, other.scale),
            np.minimum(self.error, other.error),
            merged(self.gradients, other.gradients),
        )


def picker(
    table: Array, scale: Array, part: Array, zero: Array | None = None, segment: int = 0
) -> Picker:
    """Rounds pieces to rows of a table times ``scale`` ``(groups, rows, parts)``.

    Args:
        part: of every piece.
        zero: zero points, like the scales; for a table of single values.
        segment: of a `Grid`.
    """
    scale = scale.transpose(2, 0, 1)
    if segment:
        return partial(remembering, table, scale, part, segment)
    if table.shape[1] > 1:
        return partial(_vectors, table, scale, part)
    zeros = np.zeros_like(scale) if zero is None else zero.transpose(2, 0, 1)
    numbers = _even if is_even(table[:, 0]) else _uneven
    return lambda _: numbers(table[:, 0], scale, part, zeros)


def _even(table: Array, scale: Array, part: Array, zero: Array) -> Pick:
    """Rounds to ``(first + step k - zero) scale``."""
    step, top = (table[-1] - table[0]) / (len(table) - 1), len(table) - 1
    sizes, starts = np.maximum(scale, 1e-30) * step, (zero - table[0]) / step
    units = 1 / sizes

    def pick(target: Array, piece: int) -> tuple[Array, Array]:
        p = part[piece]
        codes = target[:, 0] * units[p]
        codes += starts[p]
        np.rint(codes, out=codes)
        np.maximum(codes, 0, out=codes)
        np.minimum(codes, top, out=codes)
        return codes, ((codes - starts[p]) * sizes[p])[:, None]

    return pick


def _uneven(table: Array, scale: Array, part: Array, zero: Array) -> Pick:
    """Rounds to ``(table[k] - zero) scale``."""
    middle, units = (table[1:] + table[:-1]) / 2, 1 / np.maximum(scale, 1e-30)

    def pick(target: Array, piece: int) -> tuple[Array, Array]:
        p = part[piece]
        unit = target[:, 0] * units[p] + zero[p]
        codes = np.searchsorted(middle, unit.ravel()).reshape(unit.shape)
        return codes, ((table[codes] - zero[p]) * scale[p])[:, None]

    return pick


def _vectors(table: Array, scale: Array, part: Array, metrics: Array) -> Pick:
    """Rounds to rows t of the table: those with the largest ``x M tᵀ - t M tᵀ / 2``."""
    sizes, units = scale[:, :, None], 1 / np.maximum(scale, 1e-30)[:, :, None]

    def images(some: Array) -> Array:
        """What a piece with a 1 behind it is multiplied by, for some of the pieces."""
        image = table @ some
        energy = np.einsum("gpkd,kd->gpk", image, table)[..., None]
        return np.concatenate([image, energy / -2], axis=3).swapaxes(2, 3)

    wide = metrics.size // table.shape[1] * len(table) > IMAGES
    every = None if wide else images(metrics)
    extended = np.ones((scale.shape[1], table.shape[1] + 1, scale.shape[2]), table.dtype)

    def pick(target: Array, piece: int) -> tuple[Array, Array]:
        p = part[piece]
        own = images(metrics[:, piece, None])[:, 0] if every is None else every[:, piece]
        np.multiply(target, units[p], out=extended[:, :-1])
        codes = (extended.swapaxes(1, 2) @ own).argmax(2)
        return codes, table[codes].swapaxes(1, 2) * sizes[p]

    return pick


class RowFit:
    """The rows that are fitted together.

    Attributes:
        weights: of every block's columns, ``(groups, rows, n)``.
        images: ``weight H``; only a fit needs them, not the search for a first scale.
    """

    def __init__(self, rows: Rows, blocks: list[Block], table: Array, segment: int = 0) -> None:
        self.rows, self.blocks, self.segment = rows, blocks, segment
        self.table, self.width, self.count = table, table.shape[1], rows.parts
        self.weights = [b.metric.taken(rows.weight) for b in blocks]

    @cached_property
    def images(self) -> list[Array]:
        return [w @ b.metric.values for w, b in zip(self.weights, self.blocks, strict=True)]

    @property
    def energy(self) -> float:
        """Output variance of the rows."""
        pairs = zip(self.weights, self.images, strict=True)
        return float(sum(np.einsum("grn,grn->", w, i, dtype=np.float64) for w, i in pairs))

    def started(self) -> Array:
        """The best of the first scales for every row."""
        starts = self.rows.starts
        if len(starts) == 1:
            return starts[0]
        best = self._errors().argmin(1)[:, None, :, None]
        return np.take_along_axis(np.stack(starts, axis=1), best, axis=1)[:, 0]

    def promising(self, most: int) -> Rows:
        """The rows with those first scales that are worth trying: one in a large layer.

        Args:
            most: weights that are rounded with every first scale.
        """
        count, size = len(self.rows.starts), self.rows.weight.size
        step = size * count // most
        if count == 1 or step <= 1:
            return self.rows
        some = RowFit(self.rows.some(slice(step // 2, None, step)), self.blocks, self.table)
        return self.rows.starting(int(some._errors().sum((0, 2)).argmin()))

    def _errors(self) -> Array:
        """Errors of the rows with each first scale, ``(groups, starts, rows)``."""
        rows = self.rows
        count, scale = len(rows.starts), np.concatenate(rows.starts, axis=1)
        zero = None if rows.zero is None else np.concatenate([rows.zero] * count, axis=1)
        error = np.zeros(scale.shape[:2])
        for w, b in zip(self.weights, self.blocks, strict=True):
            copies = np.concatenate([w] * count, axis=1)
            own = picker(self.table, scale, b.part, zero)
            _, values = feedback(copies, own, b.metric.factor, self.width)
            error += row_errors(copies - values, b.metric.values)
        return error.reshape(len(error), count, -1)

    def _picker(self, scale: Array, block: Block) -> Picker:
        return picker(self.table, scale, block.part, self.rows.zero, self.segment)

    def nearest(self, scale: Array, sweeps: int) -> State:
        """The nearest values, and some sweeps of coordinate descent from there."""
        codes = []
        for w, b in zip(self.weights, self.blocks, strict=True):
            groups, rows, n = w.shape
            zero = None if self.rows.zero is None else self.rows.zero[:, :, b.part]
            flat = nearest(w.reshape(-1, n), self.table, scale[:, :, b.part], zero)
            codes.append(flat.reshape(groups, rows, -1).astype(np.uint8))
        state = self.rescaled(codes, self.decoded(codes, scale), scale)
        for _ in range(sweeps):
            state = self._descended(state).better(state)
        return state

    def turn(self, scale: Array, sweeps: int) -> State:
        """Codes by error feedback and some sweeps of coordinate descent, from a scale."""
        pairs = [
            feedback(w, self._picker(scale, b), b.metric.factor, self.width)
            for w, b in zip(self.weights, self.blocks, strict=True)
        ]
        state = self.rescaled([c for c, _ in pairs], [v for _, v in pairs], scale)
        for _ in range(sweeps):
            state = self._descended(state)
        return state

    def _descended(self, state: State) -> State:
        codes, values, gradients = [], [], []
        for c, v, g, b in zip(state.codes, state.values, state.gradients, self.blocks, strict=True):
            own = self._picker(state.scale, b)
            moved = descend(c, v, g, own, b.metric.values, self.width)
            for kept, array in zip((codes, values, gradients), moved, strict=True):
                kept.append(array)
        return self.rescaled(codes, values, state.scale, gradients)

    def rescaled(
        self,
        codes: list[Array],
        values: list[Array],
        scale: Array,
        gradients: list[Array] | None = None,
    ) -> State:
        """The state with least-squares scales."""
        scale, values = scale.copy(), [v.copy() for v in values]
        if gradients is None:
            images = [v @ b.metric.values for v, b in zip(values, self.blocks, strict=True)]
        else:
            images = [g + image for g, image in zip(gradients, self.images, strict=True)]
        for part in range(self.count):
            self._rescale(part, values, scale, images)
        values = self.decoded(codes, scale)
        gradients = [i - image for i, image in zip(images, self.images, strict=True)]
        error: Any = sum(
            np.einsum("grn,grn->gr", v - w, g)
            for v, w, g in zip(values, self.weights, gradients, strict=True)
        )
        return State(codes, values, scale, error, gradients)

    def _rescale(self, part: int, values: list[Array], scale: Array, images: list[Array]) -> None:
        """The best scales of one part of the rows, in place; images are ``values H``."""
        own: list[Any] = [b.columns == part if self.count > 1 else slice(None) for b in self.blocks]
        above, below = np.zeros(scale.shape[:2]), np.zeros(scale.shape[:2])
        moved = []
        for v, o, b, image, target in zip(
            values, own, self.blocks, images, self.images, strict=True
        ):
            alone = image if self.count == 1 else v[:, :, o] @ b.metric.values[:, o]
            square = np.einsum("grn,grn->gr", alone[:, :, o], v[:, :, o])
            off = target[:, :, o] - image[:, :, o]
            above += np.einsum("grn,grn->gr", off, v[:, :, o]) + square
            below += square
            moved.append(alone)
        gain = np.where(below > 0, above / np.maximum(below, 1e-30), 1)
        better = scale[:, :, part] * np.clip(gain, 0.25, 4)
        better = better if self.rows.single else stored(better, levels_of([self.table]))
        ratio = (better / np.maximum(scale[:, :, part], 1e-30))[:, :, None]
        scale[:, :, part] = better
        for v, o, image, alone in zip(values, own, images, moved, strict=True):
            v[:, :, o] *= ratio
            image += (ratio - 1).astype(image.dtype) * alone

    def decoded(self, codes: list[Array], scale: Array) -> list[Array]:
        """What the codes stand for."""
        values = []
        for c, b in zip(codes, self.blocks, strict=True):
            units = self.table[c].reshape(*c.shape[:2], -1)
            if self.rows.zero is not None:
                units -= self.rows.zero[:, :, b.columns]
            values.append(units * scale[:, :, b.columns])
        return values

    def ordered(self, codes: list[Array]) -> Array:
        """Codes in the order of the inputs, without those of padding."""
        columns = [b.metric.columns[:: self.width] // self.width for b in self.blocks]
        order = np.argsort(np.concatenate(columns))
        joined = np.concatenate(codes, axis=2)[:, :, order]
        return joined[:, :, : -(-self.rows.weight.shape[2] // self.width)]
