"""Weights as bytes that stand for the rows of a table, times a scale for every output channel.

A byte picks one of at most 256 rows of a table (256, d), which are d neighbouring weights::

    W[o, j d ... (j + 1) d] = scale[o] * table[byte[o, j]]                    8 / d bits a weight

One row lookup both unpacks and decodes.  A table of vectors is a vector code.  A table that counts
in base L holds d numbers of L levels ``2 k - (L - 1)``; where the levels do not fill bytes well, a
number has several digits, each with bytes and a table of its own: 8 levels = 2 * (4 levels) + (2
levels).  256 levels need no table.

Codes and scales are fitted in turn in the metric of the inputs (see `rounding`): error feedback,
coordinate descent, least-squares scales, and for a table of the layer's own its least squares too.
Such a table starts from k-means over the layer's pieces; a row that none of them uses is moved to
the piece that errs most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np

from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.parallel import side_by_side
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.error_feedback import (
    Metric,
    Pick,
    descend,
    feedback,
    metrics,
    row_errors,
)
from onnxcompress.methods.lookup.kmeans import largest, means, nearest, pieces, seeded, sizes
from onnxcompress.methods.lookup.tables import in_bytes, stored

ROUNDS = 4  # of error feedback, coordinate descent and scales

BLIND_ROUNDS = 3  # of codes and scales, where nothing is known of the inputs

SWEEPS = 2  # of coordinate descent in each

FINE = 2**16  # weights up to which the arithmetic is in float64, and trials are long

WORK = (
    2**29
)  # multiplications of a sweep from which there are fewer rounds: many rounds gain little

SMALL = 2**14  # weights up to which a fit that knows nothing of the inputs is looked at too

TRIED = 2**20  # weights that are rounded with every first scale

LEARNED = 2**17  # weights that a table is learned from

CHUNKED = 2**19  # weights that are rounded together,

CHUNK_ROWS = 256  # but no fewer rows than these, each of which takes numpy little time,

CHUNK_MOST = 2**23  # unless that is more weights than these,

FEWEST_ROWS = 32  # and no fewer than these at all

TRIAL_INPUTS = 4096  # inputs of a filter that are looked at, and

TRIAL_WORK = 2**27  # multiplications of a sweep where only the error is wanted: of so many rows,

TRIAL_ROWS = 32  # but no fewer than these

TRIAL_LEARNED = 2**17  # weights that a table is learned from in a trial

TABLE_STEPS = 12  # of conjugate gradients for a table


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


def encode(
    layer: Layer,
    statistics: Statistics,
    table: Array,
    first: Sequence[float],
    *,
    parts: int = 1,
    learn: bool = False,
    trial: bool = False,
) -> Coded:
    """Round a weight to the rows of a table, times scales.

    Args:
        table: ``(k, d)``; sorted if d is 1.
        first: scales to start from, in units of a row's root mean square.
        parts: of a filter, each with a scale of its own; only for d = 1.
        learn: fit the table to the layer too.
        trial: look at some rows alone, when the error is all that matters.
    """
    weight = layer.grouped
    kind = np.float64 if weight.size <= FINE else np.float32
    weight = weight.astype(kind, copy=False)
    table = table.astype(kind)
    if not statistics.count:
        return _blind(weight, table, first, parts, learn, trial)
    blocks = _blocks(weight, statistics, table, parts, trial)
    if trial:
        first = first[len(first) // 2 :][:1] if weight.size > FINE else first
        weight = _some_rows(weight, blocks, learn)
    rounds, sweeps = _effort(layer, blocks, trial)
    effort = max(rounds, 1 + learn), sweeps
    plain = table
    if learn:
        table = seeded(weight, table, first, parts)
    first = _Fit(weight, blocks, table, parts).promising(first)
    if learn and weight.size > LEARNED:
        some = weight[:, :: -(-weight.size // LEARNED)]
        table, learn = _Fit(some, blocks, table, parts).run(first, True, effort)[2], False
    row = weight.shape[0] * weight.shape[2]
    rows = max(CHUNKED // row, min(CHUNK_ROWS, CHUNK_MOST // row), FEWEST_ROWS)
    rows = weight.shape[1] if learn else rows
    chunks = [weight[:, i : i + rows] for i in range(0, weight.shape[1], rows)]
    found = side_by_side(
        lambda chunk: _Fit(chunk, blocks, table, parts).run(first, learn, effort), chunks
    )
    codes, scale, tables, errors, energies = zip(*found, strict=True)
    fitted = Coded(
        np.concatenate(codes, axis=1).reshape(-1, codes[0].shape[2]),
        np.concatenate(scale, axis=1).reshape(-1, parts),
        tables[-1],
        max(sum(errors), 0.0) / max(sum(energies), 1e-30),
    )
    if weight.size <= SMALL and not trial:
        blind = _blind(weight, plain, first, parts, learn)
        error = statistics.error(layer.weight, _decoded(blind, layer))
        return min(fitted, replace(blind, error=error), key=lambda fit: fit.error)
    return fitted


def _decoded(found: Coded, layer: Layer) -> Array:
    rows = found.table[found.codes].reshape(len(layer.weight), -1)[:, : layer.fan_in]
    return (rows * np.repeat(found.scale, rows.shape[1] // found.scale.shape[1], axis=1)).reshape(
        layer.weight.shape
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """Some inputs and their metric.

    Attributes:
        part: of every piece, the one whose scale it has; ``columns``: of every column.
    """

    metric: Metric
    part: Array
    columns: Array


def _blocks(
    weight: Array, statistics: Statistics, table: Array, parts: int, trial: bool
) -> list[_Block]:
    """The metrics of the inputs; for a trial, of no more of them than its error needs."""
    fan_in, width = weight.shape[2], table.shape[1]
    found = metrics(statistics, width, weight.dtype)
    if trial:
        count = max(1, len(found) * TRIAL_INPUTS // fan_in)
        found = found[:: -(-len(found) // count)]
    size = -(-fan_in // parts)
    place = [np.minimum(m.columns[::width] // size, parts - 1) for m in found]
    return [_Block(m, part, np.repeat(part, width)) for m, part in zip(found, place, strict=True)]


def _effort(layer: Layer, blocks: list[_Block], trial: bool) -> tuple[int, int]:
    """Rounds, and sweeps in each: many rounds gain little, and large layers take long."""
    if trial:
        return (1, 1) if layer.weight.size > FINE else (ROUNDS // 2, SWEEPS)
    work = sum(layer.weight.size * len(b.metric.columns) for b in blocks)
    return (ROUNDS if work < WORK else ROUNDS // 2 if work < 32 * WORK else 1), SWEEPS


def _some_rows(weight: Array, blocks: list[_Block], learn: bool) -> Array:
    """Rows enough to know the error."""
    inputs = sum(len(b.metric.columns) for b in blocks)
    work = sum(len(b.metric.columns) ** 2 for b in blocks) * len(weight)
    rows = max(TRIAL_ROWS, TRIAL_WORK // work, learn * TRIAL_LEARNED // inputs)
    step = -(-weight.shape[1] // rows)
    return weight[:, step // 2 :: step]


def picker(table: Array, scale: Array, part: Array) -> Pick:
    """Rounds pieces to rows of a table times ``scale`` ``(groups, rows, parts)``.

    Args:
        part: of every piece.
    """
    width = table.shape[1]
    middle = (table[1:, 0] + table[:-1, 0]) / 2

    def pick(target: Array, piece: int, metric: Array) -> tuple[Array, Array]:
        size = scale[:, :, part[piece]]
        if width == 1:
            unit = target[:, :, 0] / np.maximum(size, 1e-30)
            codes = np.searchsorted(middle, unit.ravel()).reshape(size.shape)
        else:
            images = table @ metric
            energy = np.einsum("gkd,kd->gk", images, table) / 2
            match = target @ images.swapaxes(1, 2)  # the metric is symmetric
            match -= size[:, :, None] * energy[:, None]
            codes = match.argmax(2)
        return codes, table[codes] * size[:, :, None]

    return pick


class _Fit:
    """Codes and scales in turn; the best of every row is kept.

    A state is codes, values, scale, the error of every row, and the gradients
    ``(values - weight) H``.

    Attributes:
        weights: of every block's columns, ``(groups, rows, n)``; codes and values likewise.
        images: ``weight H``; only a fit needs them, not the search for a first scale.
        scale: ``(groups, rows, parts)``.
    """

    def __init__(self, weight: Array, blocks: list[_Block], table: Array, parts: int) -> None:
        self.table, self.width, self.count = table, table.shape[1], parts
        self.weight, self.blocks = weight, blocks
        self.weights = [b.metric.taken(weight) for b in blocks]

    @cached_property
    def images(self) -> list[Array]:
        return [w @ b.metric.values for w, b in zip(self.weights, self.blocks, strict=True)]

    def run(self, first: Sequence[float], learn: bool, effort: tuple[int, int]) -> tuple[Any, ...]:
        """Codes and scales ``(groups, rows, ...)``, the table, squared error, and energy."""
        rounds, sweeps = effort
        scale = self._started(first)
        best = None
        for turn in range(rounds):
            state = self._scaled(*self._rounded(scale), scale)
            for _ in range(sweeps):
                state = self._descended(*state)
            scale = state[2]
            best = self._better(best, state)
            if learn and turn < rounds - 1:
                best = self._learned(best)
                scale = best[2]
        assert best is not None
        codes, _, scale, error, _ = best
        energy = sum(
            np.einsum("grn,grn->", w, image, dtype=np.float64)
            for w, image in zip(self.weights, self.images, strict=True)
        )
        return (
            self._ordered(codes),
            scale,
            self.table,
            float(error.sum(dtype=np.float64)),
            float(energy),
        )

    def promising(self, first: Sequence[float]) -> Sequence[float]:
        """The first scales that are worth trying: one alone in a large layer."""
        count, (groups, rows, n) = len(first), self.weight.shape
        step = rows * groups * n * count // TRIED
        if count == 1 or step <= 1:
            return first
        some = _Fit(self.weight[:, step // 2 :: step], self.blocks, self.table, self.count)
        return [first[int(some._errors_of(first)[1].sum((0, 2)).argmin())]]

    def _started(self, first: Sequence[float]) -> Array:
        """The best of the first scales for every row."""
        size = sizes(self.weight, self.count)
        if len(first) == 1:
            return size * first[0]
        size, error = self._errors_of(first)
        return size * np.asarray(first, size.dtype)[error.argmin(1)][:, :, None]

    def _errors_of(self, first: Sequence[float]) -> tuple[Array, Array]:
        """Sizes of the rows, and their errors ``(groups, first, rows)`` with each first scale."""
        size, count = sizes(self.weight, self.count), len(first)
        tried = np.concatenate([size * f for f in first], axis=1)
        error = np.zeros(tried.shape[:2])
        for w, b in zip(self.weights, self.blocks, strict=True):
            copies = np.concatenate([w] * count, axis=1)
            _, values = feedback(
                copies, picker(self.table, tried, b.part), b.metric.factor, self.width
            )
            error += row_errors(copies - values, b.metric.values)
        return size, error.reshape(len(size), count, -1)

    def _rounded(self, scale: Array) -> tuple[list[Array], list[Array]]:
        found = [
            feedback(w, picker(self.table, scale, b.part), b.metric.factor, self.width)
            for w, b in zip(self.weights, self.blocks, strict=True)
        ]
        return [c for c, _ in found], [v for _, v in found]

    def _descended(self, codes: Any, values: Any, scale: Array, _: Array, gradients: Any) -> Any:
        found = [
            descend(c, v, g, picker(self.table, scale, b.part), b.metric.values, self.width)
            for c, v, g, b in zip(codes, values, gradients, self.blocks, strict=True)
        ]
        codes, values, gradients = ([f[i] for f in found] for i in range(3))
        return self._scaled(codes, values, scale, gradients)

    def _scaled(
        self,
        codes: list[Array],
        values: list[Array],
        scale: Array,
        gradients: list[Array] | None = None,
    ) -> Any:
        """The state with least-squares scales."""
        scale, values = scale.copy(), [v.copy() for v in values]
        if gradients is None:
            images = [v @ b.metric.values for v, b in zip(values, self.blocks, strict=True)]
        else:
            images = [g + image for g, image in zip(gradients, self.images, strict=True)]
        for part in range(self.count):
            self._rescale(part, values, scale, images)
        values = self._decoded(codes, scale)
        gradients = [i - image for i, image in zip(images, self.images, strict=True)]
        error = sum(
            np.einsum("grn,grn->gr", v - w, g)
            for v, w, g in zip(values, self.weights, gradients, strict=True)
        )
        return codes, values, scale, error, gradients

    def _rescale(self, part: int, values: list[Array], scale: Array, images: list[Array]) -> None:
        """The best scales of one part of the rows, in place; images are ``values H``."""
        own: list[Any] = [b.columns == part if self.count > 1 else slice(None) for b in self.blocks]
        above, below = np.zeros(scale.shape[:2]), np.zeros(scale.shape[:2])
        moved = []
        for v, o, b, image, wanted in zip(
            values, own, self.blocks, images, self.images, strict=True
        ):
            alone = image if self.count == 1 else v[:, :, o] @ b.metric.values[:, o]
            square = np.einsum("grn,grn->gr", alone[:, :, o], v[:, :, o])
            off = wanted[:, :, o] - image[:, :, o]
            above += np.einsum("grn,grn->gr", off, v[:, :, o]) + square
            below += square
            moved.append(alone)
        gain = np.where(below > 0, above / np.maximum(below, 1e-30), 1)
        better = stored(scale[:, :, part] * np.clip(gain, 0.25, 4))
        ratio = (better / np.maximum(scale[:, :, part], 1e-30))[:, :, None]
        scale[:, :, part] = better
        for v, o, image, alone in zip(values, own, images, moved, strict=True):
            v[:, :, o] *= ratio
            image += (ratio - 1).astype(image.dtype) * alone

    def _decoded(self, codes: list[Array], scale: Array) -> list[Array]:
        return [
            self.table[c].reshape(*c.shape[:2], -1) * scale[:, :, b.columns]
            for c, b in zip(codes, self.blocks, strict=True)
        ]

    @staticmethod
    def _better(best: Any, state: Any) -> Any:
        """The better of two states, row by row."""
        if best is None:
            return state
        wins = state[3] < best[3]
        lists = {
            i: [np.where(wins[:, :, None], a, b) for a, b in zip(state[i], best[i], strict=True)]
            for i in (0, 1, 4)
        }
        scale = np.where(wins[:, :, None], state[2], best[2])
        return lists[0], lists[1], scale, np.minimum(state[3], best[3]), lists[4]

    def _learned(self, best: Any) -> Any:
        """The table that is the least squares of these codes, by conjugate gradients."""
        codes, values, scale, _, gradients = best
        table, flat = self.table.copy(), [c.ravel() for c in codes]
        sizes = [scale[:, :, b.columns].reshape(-1, self.width) for b in self.blocks]

        def gathered(images: list[Array]) -> Array:
            total = np.zeros(table.shape)
            for c, y, size in zip(flat, images, sizes, strict=True):
                y = y.reshape(-1, self.width) * size
                for i in range(self.width):
                    total[:, i] += np.bincount(c, y[:, i], len(table))
            return total

        def imaged(moved: list[Array]) -> list[Array]:
            return [m @ b.metric.values for m, b in zip(moved, self.blocks, strict=True)]

        residual = gathered([-g for g in gradients])
        weights = sum(
            np.bincount(c, s[:, 0] ** 2, len(table)) for c, s in zip(flat, sizes, strict=True)
        )
        unused = np.flatnonzero(weights == 0)
        weights = np.maximum(weights, 1e-12 * np.max(weights))[:, None]
        direction, square = None, 0.0
        for _ in range(TABLE_STEPS):
            ready, previous = residual / weights, square
            square = float(np.vdot(residual, ready))
            if square <= 0:
                break
            direction = ready if direction is None else ready + square / previous * direction
            moved = [
                (direction.astype(table.dtype)[c] * s).reshape(v.shape)
                for c, s, v in zip(flat, sizes, values, strict=True)
            ]
            images = imaged(moved)
            curve = sum(float(np.vdot(m, i)) for m, i in zip(moved, images, strict=True))
            if curve <= 0:
                break
            table = table + (square / curve * direction).astype(table.dtype)
            residual = residual - square / curve * gathered(images)
        if self.width > 1:  # single values stay in order
            anew = self._worst(len(unused), values, gradients, sizes, np.abs(table).max())
            table[unused[: len(anew)]] = anew
        self.table = in_bytes(table)
        return self._scaled(codes, self._decoded(codes, scale), scale)

    def _worst(
        self, count: int, values: Any, gradients: Any, sizes: list[Array], most: float
    ) -> Array:
        """Pieces with the largest errors, at most so many: as they are, within a table's range."""
        errors, wanted = [], []
        for w, v, g, size in zip(self.weights, values, gradients, sizes, strict=True):
            errors.append(((v - w) * g).reshape(-1, self.width).sum(1))
            wanted.append(w.reshape(-1, self.width) / np.maximum(size, 1e-30))
        worst = largest(np.concatenate(errors), count)
        return np.clip(np.concatenate(wanted)[worst], -most, most)

    def _ordered(self, codes: list[Array]) -> Array:
        """Codes in the order of the inputs, without those of padding."""
        columns = [b.metric.columns[:: self.width] // self.width for b in self.blocks]
        order = np.argsort(np.concatenate(columns))
        joined = np.concatenate(codes, axis=2)[:, :, order]
        return joined[:, :, : -(-self.weight.shape[2] // self.width)]


def _blind(
    weight: Array,
    table: Array,
    first: Sequence[float],
    parts: int,
    learn: bool,
    trial: bool = False,
) -> Coded:
    """Without knowledge of the inputs: the nearest rows, and least-squares scales."""
    n = weight.shape[2]
    rows, part = pieces(weight, table.shape[1], parts)
    if learn:
        table = seeded(weight, table, first, parts)
        lesson = rows[:: -(-rows.size // LEARNED)]
        codes, scale, _ = _by_turns(lesson, n, table, first, part)
        table = means(lesson, codes, scale[:, part], table)
    if trial:
        step = max(1, rows.size // TRIED)  # a large weight has rows enough to judge by
        rows = rows[step // 2 :: step]
    height = max(1, CHUNKED // rows.shape[1])
    chunks = [rows[i : i + height] for i in range(0, len(rows), height)]
    found = side_by_side(lambda chunk: _by_turns(chunk, n, table, first, part), chunks)
    codes, scale, error = (np.concatenate(each) for each in zip(*found, strict=True))
    energy = float(np.square(rows).sum(dtype=np.float64))
    return Coded(codes, scale, table, float(error.sum(dtype=np.float64)) / max(energy, 1e-30))


def _by_turns(
    weight: Array, n: int, table: Array, first: Sequence[float], part: Array
) -> tuple[Array, Array, Array]:
    """Codes, scales and the squared error of every row, from the best of the first scales.

    Args:
        weight: ``(rows, pieces * width)``, padded with zeros after ``n`` columns.
        part: of every piece.
    """
    columns = np.repeat(part, table.shape[1])
    size = sizes(weight[None, :, :n], int(part[-1]) + 1)[0]

    def turn(scale: Array) -> tuple[Array, Array, Array]:
        scale, codes = scale.copy(), nearest(weight, table, scale[:, part])
        unit = table[codes].reshape(len(weight), -1)
        for p in range(scale.shape[1]):
            own = columns == p if scale.shape[1] > 1 else slice(None)
            z, w = unit[:, own], weight[:, own]
            gain = np.einsum("rn,rn->r", z, w) / np.maximum(np.einsum("rn,rn->r", z, z), 1e-30)
            scale[:, p] = stored(np.maximum(gain, 1e-12))
        return codes, scale, np.square(weight - unit * scale[:, columns]).sum(1)

    def better(one: tuple[Array, ...], other: tuple[Array, ...]) -> Any:
        wins = other[2] < one[2]
        pairs = zip(one[:2], other[:2], strict=True)
        codes, scale = (np.where(wins[:, None], b, a) for a, b in pairs)
        return codes, scale, np.minimum(one[2], other[2])

    best = reduce(better, (turn(size * factor) for factor in first))
    for _ in range(BLIND_ROUNDS - 1):
        best = better(best, turn(best[1]))
    return best[0].astype(np.uint8), *best[1:]
