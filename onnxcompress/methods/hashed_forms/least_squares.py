"""The least squares of what is stored, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.hashed_forms.tile import Tile, split_bands
from onnxcompress.methods.lookup.conjugate_gradients import conjugate_gradients

DENSE = 8192  # With more inputs of a filter, the preconditioner is flat.
STEPS = 60  # Conjugate gradients take so many steps, and half as many to compare allocations.
ENOUGH = 1e-3  # They end when a step lowers the error by less than this share.
TRIAL_WORK = 2**31  # To compare an allocation takes about so many multiplications.
FINE = 2**20  # For layers of no more weights, the arithmetic is in float64.


class Problem:
    """The least squares of one layer, for any allocation; coefficients are ``(blocks, ...)``."""

    def __init__(self, layer: Layer, statistics: Statistics, tile: Tile) -> None:
        self.tile, self._statistics, self._layer = tile, statistics, layer
        self._groups = layer.groups
        self._transform = tile.transform
        self._dtype = np.float64 if layer.weight.size <= FINE else np.float32
        weight = layer.weight.astype(self._dtype)
        self._weight = weight.reshape(layer.groups, -1, layer.fan_in)
        self._blocks = tile.blocks

    def sampled(self) -> Problem:
        """The same with so few of the blocks that trials are cheap."""
        fan_in = self._layer.fan_in
        rows = self._weight.shape[1] * self._groups // self._blocks
        work = rows * fan_in * fan_in * STEPS // 2
        count = max(1, min(self._blocks // self._groups, TRIAL_WORK // (work * self._groups)))
        few = Problem(self._layer, self._statistics, self.tile)
        few._weight = self._weight[:, : count * rows]
        few._blocks = count * self._groups
        return few

    def densities(self) -> list[Array]:
        """Energy for each coefficient of a band, of the outputs and of the weight itself."""
        power = np.square(self._forward(self._weight)).reshape(-1, len(self.tile.bands)).mean(0)
        bands, known = self.tile.bands, self._diagonal().mean((0, 1))
        return [np.bincount(bands, total) / np.bincount(bands) for total in (power * known, power)]

    def solve(self, buckets: Sequence[int], steps: int) -> tuple[tuple[Array, Array], float]:
        """Values ``(blocks, n)`` and exact coefficients ``(blocks, filters, n)``, and their error.

        Both are one array ``(blocks, ...)`` for the conjugate gradients, values first.
        """
        exact, hashed, counts = split_bands(self.tile, buckets)
        place, sign = self._places(counts)
        count = max(1, int(np.maximum(buckets, 0).sum()))
        shape = (self._blocks, self.tile.filters, len(self.tile.bands))
        times = self._statistics.times

        def gathered(coefficients: Array) -> Array:
            """Sums of what shares a value, and the exact coefficients as they are."""
            rows = coefficients[:, :, hashed].reshape(self._blocks, -1) * sign
            sums = np.stack([np.bincount(place, row, count) for row in rows])
            kept = coefficients[:, :, exact].reshape(self._blocks, -1)
            return np.concatenate([sums, kept], axis=1).astype(self._dtype)

        def decode(x: Array) -> Array:
            full = np.zeros(shape, self._dtype)
            if len(hashed):
                # The mode clip checks nothing.
                spread = x[:, :count].take(place, axis=1, mode="clip") * sign
                full[:, :, hashed] = spread.reshape(*shape[:2], -1)
            full[:, :, exact] = x[:, count:].reshape(*shape[:2], -1)
            return (full @ self._transform).reshape(self._weight.shape)

        def seen(weight: Array) -> Array:
            return gathered(self._forward(times(weight)).reshape(shape))

        def error(x: Array) -> float:
            off = self._weight - decode(x)
            return float(np.vdot(off, times(off)))

        size = np.repeat(self._diagonal(), self._weight.shape[1], axis=1).reshape(shape)
        signs = np.ones(shape, self._dtype)
        signs[:, :, hashed] = sign.reshape(self.tile.filters, -1)
        # This is about the diagonal of the metric, for each coefficient.
        diagonal = np.maximum(gathered(size * signs), 1e-30)
        start = gathered(size * self._forward(self._weight).reshape(shape)) / diagonal
        least = error(start)
        steps = steps if self._statistics.count else 0  # Bucket means are the least squares.
        x = conjugate_gradients(
            lambda step: seen(decode(step)), seen(self._weight - decode(start)), start, steps,
            diagonal=diagonal, enough=(least, ENOUGH),
        )  # fmt: skip
        best, least = min((start, least), (x, error(x)), key=lambda pair: pair[1])
        return (best[:, :count], best[:, count:].reshape(*shape[:2], -1)), least

    def _forward(self, weight: Array) -> Array:
        positions = len(self.tile.bands)
        return weight.reshape(-1, positions) @ self._transform.T

    def _places(self, counts: Array) -> tuple[Array, Array]:
        """The value that every hashed position of a block takes, and its sign."""
        picked = self.tile.indices(counts).ravel() if counts.shape[1] else np.zeros(0, np.int64)
        return picked // 2, (1 - 2 * (picked % 2)).astype(np.float32)

    def _diagonal(self) -> Array:
        """About the diagonal of the metric in the frequency domain, ``(groups, in, k)``."""
        statistics, (inputs, *kernel) = self._statistics, self._layer.weight.shape[1:]
        if not statistics.count or inputs * prod(kernel) > DENSE:
            return np.ones((self._groups, inputs, prod(kernel)), np.float32)
        places = np.eye(1)[None]
        if prod(kernel) > 1:
            keep = range(1, 1 + len(kernel))
            places = statistics.partial((inputs, *kernel), list(keep))
        channels = statistics.partial((inputs, *kernel), [0])
        frequencies = np.einsum("fa,gab,fb->gf", self._transform, places, self._transform)
        energy = np.diagonal(channels, axis1=1, axis2=2)
        both = energy[:, :, None] * frequencies[:, None]
        total = np.maximum(frequencies.sum(1), 1e-30)[:, None, None]
        return (both / total).astype(np.float32)
