"""Hashed: filters as frequencies whose values are shared by a hash.  Smaller files.

A filter v over k kernel positions goes into the orthonormal DCT-II, one kernel axis after the
other, ``F = v Dᵀ`` and ``v = F D``.  Frequencies with the same sum of indices form a band.  A band
is exact (all coefficients are stored), dropped (zero), or hashed: its N coefficients share K
values, and which one, with which sign, follows from a hash of the coefficient's position::

    F[i] = sign(i) values[bucket(i)]        2 bucket(i) + (sign(i) < 0) = hash(i) mod 2K

No index is stored: the graph computes the hash from the positions 0, 1, 2, ... of one tile.
All blocks of output channels share the tile, and each has values of its own.

The hash ("rm32d") is made of what every runtime computes exactly, uint32 ``+ * /``::

    x = 0x9E3779B1 i + seed        twice: x = (x >> 16) + (x << 16);  x = x (2 x + m)

The weight is linear in what is stored, so the values (and with them the exact coefficients, which
make up for the error of the others) are the least squares of the layer's output error, found by
conjugate gradients.

References:
    Chen, Wilson, Tyree, Weinberger, Chen. Compressing convolutional neural networks in the
    frequency domain. KDD 2016. https://arxiv.org/abs/1506.04449 (FreshNets)
    Chen, Wilson, Tyree, Weinberger, Chen. Compressing neural networks with the hashing trick.
    ICML 2015. https://arxiv.org/abs/1504.04788 (HashedNets: the same without the DCT)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.hashed_forms.allocation import allocations
from onnxcompress.methods.hashed_forms.least_squares import STEPS, Problem
from onnxcompress.methods.hashed_forms.tile import GOLDEN, MULTIPLIERS, Tile, split_bands

SMALLEST = 32  # Sharing is not tried where it leaves a layer fewer stored values.
SHARES = (2, 3, 4, 8, 16, 32)  # These shares are tried where the share is open.


@dataclass(frozen=True)
class Hashed(Method):
    """Let weights share values that a hash picks: a smaller file, the original's speed.

    Attributes:
        share: weights for each stored value.
        allocation: how the values are spread over the frequency bands.  best (the default)
            tries exact, hashed and dropped bands and keeps what errs least; uniform hashes all
            bands alike; beta is the paper's rule, which favours low frequencies.
        seed: of the hash.
    """

    opset: ClassVar[int] = 13

    share: float | None = None
    allocation: Literal["best", "uniform", "beta"] | None = None
    seed: int = 1691

    def __post_init__(self) -> None:
        if self.share is not None and not 1 < self.share < 1e6:
            raise MethodError(f"share must be above 1, got {self.share}")
        if self.allocation not in (None, "best", "uniform", "beta"):
            raise MethodError(f"allocation must be best, uniform or beta, not {self.allocation}")
        if not 0 <= self.seed < 2**32:
            raise MethodError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")

    @property
    def fixed(self) -> bool:
        return self.share is not None

    def settings(self, layer: Layer) -> list[Hashed]:
        whole = replace(self, allocation=self.allocation or "best")
        shares = [self.share] if self.share else sorted(SHARES, reverse=True)
        settings = [replace(whole, share=share) for share in shares]
        return [s for s in settings if (s.share or 1) * SMALLEST <= layer.weight.size]

    def fit(self, layer: Layer, statistics: Statistics) -> HashedWeight:
        assert self.share
        tile = Tile.of(layer, self.seed)
        problem = Problem(layer, statistics, tile)
        options = [*dict.fromkeys(allocations(problem, self.share, self.allocation or "best"))]
        chosen = options[0]
        if len(options) > 1:
            trial = problem.sampled()
            chosen = min(options, key=lambda buckets: trial.solve(buckets, STEPS // 2)[1])
        (values, exact), _ = problem.solve(chosen, STEPS)
        kind = layer.weight.dtype
        return HashedWeight(values.astype(kind), exact.astype(kind), None, tile, chosen, kind)


@dataclass(frozen=True, eq=False)
class HashedWeight(CompressedWeight):
    """Values, exact coefficients, and what the hash needs.

    Attributes:
        values: ``(blocks, n)``, band after band.
        exact: ``(blocks, filters, n)``, coefficients of the exact bands.
        gain: ``(out,)``, what the output channels are multiplied with; None for 1.
        tile: the sizes.
        buckets: values of every band; -1 where it is exact, 0 where it is dropped.
        dtype: of the weight.
    """

    values: Array
    exact: Array
    gain: Array | None
    tile: Tile
    buckets: tuple[int, ...]
    dtype: Any

    def arrays(self) -> Iterator[Array]:
        yield from (a for a in (self._stored, self.exact, self.gain) if a is not None and a.size)

    @property
    def factors(self) -> tuple[Shape, ...]:
        return (self.tile.shape,)

    @property
    def _stored(self) -> Array:
        """The values; none at all if no band is hashed."""
        return self.values if max(self.buckets) > 0 else self.values[:, :0]

    def astype(self, dtype: Any) -> Self:
        kind = np.dtype(dtype)
        gain = None if self.gain is None else self.gain.astype(kind)
        values, exact = self.values.astype(kind), self.exact.astype(kind)
        return replace(self, values=values, exact=exact, gain=gain, dtype=kind)

    def scaled(self, gain: Array) -> Self:
        both = gain if self.gain is None else gain * self.gain
        return replace(self, gain=both.astype(self.dtype))

    def decode(self) -> Array:
        exact, hashed, counts = split_bands(self.tile, self.buckets)
        parts = []
        if len(hashed):
            values = self.values.astype(np.float32)
            table = np.stack([values, -values], axis=2).reshape(self.tile.blocks, -1)
            parts.append(table[:, self.tile.indices(counts)])
        if len(exact):
            parts.append(self.exact.astype(np.float32))
        rows = self.tile.transform[np.concatenate([hashed, exact]).astype(int)]
        weight = (np.concatenate(parts, axis=2) @ rows).reshape(self.tile.shape)
        if self.gain is not None:
            weight = weight * self.gain.astype(np.float32).reshape(_column(self.tile.shape))
        return weight.astype(self.dtype)

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        tile = self.tile
        exact, hashed, counts = split_bands(tile, self.buckets)
        parts = []
        if len(hashed):
            values = _wide(op, self.values[:, :, None])
            table = op.Concat(values, op.Neg(values), axis=2)
            table = op.Reshape(table, np.array([tile.blocks, -1]))
            parts.append(op.Gather(table, self._indices(op, counts), axis=1))
        if (tile.blocks, tile.filters) == tile.shape:  # It is a wide matrix, not copied once more.
            return layer.apply(op, x, self._finished(op, parts[0], layer), bias=layer.bias)
        if len(exact):
            parts.append(_wide(op, self.exact))
        weight = op.Concat(*parts, axis=2) if len(parts) > 1 else parts[0]
        rows = tile.transform[np.concatenate([hashed, exact]).astype(int)]
        if rows.size > 1:
            weight = op.MatMul(weight, rows)
        weight = self._finished(op, op.Reshape(weight, np.array(tile.shape)), layer)
        return layer.apply(op, x, weight, bias=layer.bias)

    def _finished(self, op: Emitter, weight: Value, layer: Layer) -> Value:
        """The weight with its gain, in the layer's type."""
        if self.gain is not None:
            weight = op.Mul(weight, _wide(op, self.gain.reshape(_column(self.tile.shape))))
        if layer.weight.dtype != np.float32:
            weight = op.Cast(weight, to=layer.weight.dtype)
        return weight

    def _indices(self, op: Emitter, counts: Array) -> Value:
        """Nodes for `Tile.indices`: shifts are divisions and multiplications by powers of 2."""
        tile, n = self.tile, counts.shape[1]

        def number(value: int) -> Array:
            return np.array(value, np.uint32)

        span = op.Range(np.array(0), np.array(tile.filters * n), np.array(1))
        position = op.Cast(span, to=np.uint32)
        bits = op.Add(op.Mul(position, number(GOLDEN)), number(tile.seed))
        half = number(1 << 16)
        for multiplier in MULTIPLIERS:
            bits = op.Add(op.Div(bits, half), op.Mul(bits, half))
            bits = op.Mul(bits, op.Add(op.Mul(bits, number(2)), number(multiplier)))
        bits = op.Div(bits, number(1 << 8))
        if (tile.blocks, tile.filters) != tile.shape:
            bits = op.Reshape(bits, np.array([tile.filters, n]))
        bits = op.Mod(bits, (2 * counts[0]).astype(np.uint32))
        return op.Add(op.Cast(bits, to=np.int64), 2 * counts[1])


def _wide(op: Emitter, array: Array) -> Any:
    """The array in float32, by a node where it is stored otherwise."""
    return array if array.dtype == np.float32 else op.Cast(array, to=np.float32)


def _column(shape: Shape) -> Shape:
    return (-1, *(1,) * (len(shape) - 1))
