"""The types the rest of the package is written in.  Imports numpy and nothing else.

    weight + Statistics ── Method.fit ──► CompressedWeight ── emit ──► subgraph

A layer is linear: it multiplies input patches p with a weight, ``y = W p + bias``.  Its error is
measured in the *metric* H, the centred second moment of the patches it reads::

    error = tr((W - Ŵ) H (W - Ŵ)ᵀ) / tr(W H Wᵀ)         H = E[p pᵀ] - E[p] E[p]ᵀ + ridge I

The mean is left out because the bias can absorb it; the ridge stands for inputs not yet seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Self

import numpy as np

from onnxcompress.core.layer import Array, Layer

# This share of the mean input variance is added in every direction, for inputs not yet seen.
DOUBT = 0.003
# Where the variance is a smaller share of the energy, as with copies of one sample, all errors of
# rounding may lie in one direction; else they are spread over all.
HARDLY = 1e-4
# From a larger fan-in a sketch is kept: a second moment would take more than SKETCH_BYTES.
SKETCH_ABOVE = 8192
SKETCH_ROWS = 2048  # A sketch has at most so many rows.
SKETCH_BYTES = 1 << 28  # Where rows are long it has fewer, so that it takes no more bytes.


def sketch_rows(fan_in: int) -> int:
    """Rows of the sketch of a second moment: fewer where they are long."""
    return max(1, min(SKETCH_ROWS, SKETCH_BYTES // (4 * fan_in)))


def moment_bytes(layer: Layer) -> int:
    """Bytes that the `Statistics` of a layer take at most."""
    fan_in = layer.fan_in
    rows = fan_in if fan_in <= SKETCH_ABOVE else 2 * sketch_rows(fan_in)
    return 4 * layer.groups * fan_in * rows


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a layer reads: mean and second moment of its input patches.

    Addition merges the statistics of two batches.  A fan-in of more than ``SKETCH_ABOVE`` is kept
    as patches, folded with random signs into `sketch_rows` rows when there are twice as many (a
    count sketch: Charikar, Chen, Farach-Colton 2002), so that memory stays linear in the fan-in,
    and bounded up to where ``SKETCH_BYTES`` are few rows.

    Attributes:
        count: patches seen; 0 where nothing is known and every direction counts alike.
        total: ``(groups, fan_in)``, the sum of the patches.
        moment: ``(groups, fan_in, fan_in)``, the sum of ``p pᵀ``; None if sketched or unknown.
        rows: ``(groups, rows, fan_in)`` with ``rowsᵀ rows`` close to the sum of ``d dᵀ``; d is p
            without the mean, which random signs would blur.  Or None.
        doubt: the share of their mean variance that inputs may have in any direction besides.
        shrinkage: how many times as far as independent patches ask for the metric is shrunk.
        derived: what fits have computed from these, for the next fit; a copy starts without it.
    """

    count: int
    total: Array
    moment: Array | None = None
    rows: Array | None = None
    doubt: float = DOUBT
    shrinkage: float = 1
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def white(cls, layer: Layer) -> Self:
        """No calibration data: every input direction matters alike."""
        return cls(0, np.zeros((layer.groups, layer.fan_in)))

    @classmethod
    def of(cls, patches: Array, centred: bool = True) -> Self:
        """Statistics of patches ``(groups, count, fan_in)``.

        Args:
            centred: or else the mean counts as 0, as where no bias can absorb what it adds.
        """
        total = (patches.sum(1, dtype=np.float64) * centred).astype(patches.dtype)
        if patches.shape[2] > SKETCH_ABOVE:
            rows = patches - total[:, None] / max(patches.shape[1], 1)
            return cls(patches.shape[1], total, rows=rows)._folded()
        return cls(patches.shape[1], total, patches.swapaxes(1, 2) @ patches)

    def __add__(self, other: Self) -> Self:
        if not self.count or not other.count:  # White ones stay white where nothing was seen.
            return other if other.count else self
        count, total = self.count + other.count, self.total + other.total
        if self.moment is not None and other.moment is not None:
            return replace(self, count=count, total=total, moment=self.moment + other.moment)
        assert self.rows is not None and other.rows is not None
        between = (self.count * other.count / count) ** 0.5 * (self.mean - other.mean)
        between = between.astype(self.rows.dtype)[:, None]
        rows = np.concatenate([self.rows, other.rows, between], axis=1)
        return replace(self, count=count, total=total, rows=rows)._folded()

    def _folded(self) -> Self:
        limit = sketch_rows(self.total.shape[1])
        if self.rows is None or self.rows.shape[1] <= 2 * limit:
            return self
        rng = np.random.default_rng(self.count)
        folded = self.rows[:, :limit].copy()
        for start in range(limit, self.rows.shape[1], limit):
            piece = self.rows[:, start : start + limit]
            signs = rng.choice(np.array([-1, 1], piece.dtype), piece.shape[1])
            for row, sign in enumerate(signs):  # This needs no other copy.
                folded[:, row] += sign * piece[:, row]
        return replace(self, rows=folded)

    @property
    def mean(self) -> Array:
        """Mean patch, ``(groups, fan_in)``."""
        return self.total / max(self.count, 1)

    @cached_property
    def ridge(self) -> float:
        """What the metric adds in every direction, in units of input variance.

        A small share of the mean variance, or where there are few patches what shrinks their
        covariance toward the truth (oracle approximating shrinkage: Chen, Wiesel, Eldar, Hero
        2010); and no less than rounding takes away from it where the inputs hardly vary.
        """
        groups, fan_in = self.total.shape
        energy = self._trace() / max(self.count, 1)
        variance = energy - float(np.sum(np.square(self.mean)))
        if self.rows is not None:  # Rows are centred.
            energy, variance = 2 * energy - variance, energy
        rounding = np.finfo(self.total.dtype).eps * energy
        rounding *= 16 if variance < HARDLY * energy else 4 / self.total.size**0.5
        trace, square = max(variance, 0.0) / groups, self._square() / groups
        spread = (self.count + 1 - 2 / fan_in) * (square - trace**2 / fan_in)
        target = (1 - 2 / fan_in) * square + trace**2
        share = min(1.0, self.shrinkage * target / spread) if spread > 0 else float(trace > 0)
        return max(max(self.doubt, share) * variance / self.total.size, float(rounding)) + 1e-12

    def _square(self) -> float:
        """Squared norm of the covariance, summed over the groups."""
        mean = self.mean.astype(np.float64)
        if self.moment is not None:
            moment = self.moment / self.count
            cross = np.einsum("gi,gij,gj->", mean, moment, mean)
            whole = float(np.vdot(moment, moment))
        elif self.rows is not None:
            gram = self.rows @ self.rows.swapaxes(1, 2) / self.count
            return float(np.vdot(gram, gram))
        else:
            return 0.0
        return whole - 2 * float(cross) + float(np.sum(np.square(mean).sum(1) ** 2))

    def _trace(self) -> float:
        if self.moment is not None:
            return float(np.trace(self.moment, axis1=1, axis2=2).sum())
        return 0.0 if self.rows is None else float(np.sum(np.square(self.rows)))

    def times(self, x: Array, columns: Array | None = None) -> Array:
        """``x H``, with H the metric of the module.

        Args:
            x: ``(groups, n, fan_in)``; or, with columns, ``(groups, n, len(columns))``: only these
                entries of rows that are zero elsewhere.
        """
        groups, fan_in = self.total.shape
        part: Any = slice(None) if columns is None else columns
        result = np.zeros((groups, x.shape[1], fan_in), x.dtype)
        if self.count:
            if self.moment is not None:
                mean = self.mean[:, :, None].astype(x.dtype)
                product = x @ self.moment[:, part]
                result += product / self.count - (x @ mean[:, part]) @ mean.swapaxes(1, 2)
            else:
                assert self.rows is not None
                result += (x @ self.rows[:, :, part].swapaxes(1, 2)) @ self.rows / self.count
        result[:, :, part] += np.asarray(self.ridge if self.count else 1, x.dtype) * x
        return result

    def block(self, start: int, stop: int) -> Array:
        """The metric between the entries of a patch from start to stop, ``(groups, n, n)``."""
        own, ridge = slice(start, stop), self.ridge if self.count else 1.0
        result = np.zeros((len(self.total), stop - start, stop - start))
        if self.moment is not None:
            result += self.moment[:, own, own]
        elif self.rows is not None:
            part = self.rows[:, :, own]
            result += part.swapaxes(1, 2) @ part
        if self.count:
            result /= self.count
        if self.moment is not None:
            result -= self.mean[:, own, None] * self.mean[:, None, own]
        result[:, np.arange(stop - start), np.arange(stop - start)] += ridge
        return result

    def partial(self, shape: Sequence[int], keep: Sequence[int]) -> Array:
        """The metric of a part of each patch, summed over the rest of it.

        Args:
            shape: of a patch, ``(in // groups, *kernel)``.
            keep: axes of that shape that stay.

        Returns:
            ``(groups, n, n)``, n the product of the lengths of the kept axes.
        """
        rest = [axis for axis in range(len(shape)) if axis not in keep]
        size = prod(shape[axis] for axis in keep)
        order = np.arange(prod(shape)).reshape(shape).transpose(*keep, *rest).reshape(size, -1)
        groups = len(self.total)
        if not self.count:
            return np.broadcast_to(np.eye(size) * order.shape[1], (groups, size, size))
        result = np.zeros((groups, size, size))
        for columns in order.T:
            if self.moment is not None:
                result += self.moment[:, columns[:, None], columns]
                result -= self.total[:, columns, None] * (self.mean[:, None, columns])
            else:
                assert self.rows is not None
                part = self.rows[:, :, columns]
                result += part.swapaxes(1, 2) @ part
        return result / self.count + self.ridge * order.shape[1] * np.eye(size)

    def output_moment(self, weight: Array) -> Array:
        """Second moment ``(out, out)`` of the outputs of a weight, block diagonal over groups."""
        groups = len(self.total)
        flat = weight.reshape(groups, len(weight) // groups, -1)
        blocks = self.times(flat) @ flat.swapaxes(1, 2) - self.ridge * (flat @ flat.swapaxes(1, 2))
        means = flat @ self.mean[:, :, None]
        blocks = blocks + means @ means.swapaxes(1, 2)
        out = flat.shape[1]
        result = np.zeros((len(weight), len(weight)), blocks.dtype)
        for g, block in enumerate(blocks):
            result[g * out : (g + 1) * out, g * out : (g + 1) * out] = block
        return result

    def error(self, weight: Array, approximation: Array) -> float:
        """Relative squared output error: 0 for a perfect copy, 1 for an all-zero weight."""
        energy = self.energy(weight)
        return self.energy(weight - approximation) / energy if energy else 0.0

    def energy(self, weight: Array) -> float:
        """Output variance of a weight of any layout that starts with the outputs.

        Where the inputs hardly vary, rounding may take away more than there is.
        """
        flat = weight.reshape(len(self.total), len(weight) // len(self.total), -1)
        flat = flat.astype(np.result_type(flat, np.float32))
        return max(float(np.sum(flat * self.times(flat), dtype=np.float64)), 0.0)

    def shift(self, weight: Array, approximation: Array) -> Array:
        """What must be added to the bias ``(out,)`` so that the mean output stays as it is."""
        flat = (weight - approximation).reshape(len(self.total), -1, self.total.shape[1])
        return (flat @ self.mean[:, :, None]).reshape(-1)
