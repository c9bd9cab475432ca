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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from math import prod
from typing import Any, ClassVar, Literal, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import CompressedWeight, Method
from onnxcompress.core.statistics import Statistics

SMALLEST = 32  # stored values of a layer for which sharing is tried
SHARES = (2, 3, 4, 8, 16, 32)  # tried where the share is open
EXACT, DROPPED = -1, 0  # in place of a band's number of values
LEAST_VALUES = 8  # of a hashed band
DENSE = 8192  # inputs of a filter above which the preconditioner is flat
TILE = 32768  # most positions that are hashed; their indices are shared by all blocks
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
GOLDEN = 0x9E3779B1
ALPHA, BETA = 0.25, 2.5  # of the paper's allocation
STEPS = 60  # of conjugate gradients; half as many to compare allocations,
ENOUGH = 1e-3  # they end when a step lowers the error by less than this share
TRIAL_WORK = 2**31  # each with about so many multiplications
FINE = 2**20  # weights up to which the arithmetic is in float64


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
    auto: ClassVar[bool] = False  # codebook errs less at any size, on every layer that we measured

    share: float | None = None
    allocation: Literal["best", "uniform", "beta"] | None = None
    seed: int = 1691

    def __post_init__(self) -> None:
        if self.share is not None and not 1 < self.share < 1e6:
            raise ValueError(f"share must be above 1, got {self.share}")
        if self.allocation not in (None, "best", "uniform", "beta"):
            raise ValueError(f"allocation must be best, uniform or beta, not {self.allocation}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")

    @property
    def fixed(self) -> bool:
        return self.share is not None

    def settings(self, layer: Layer) -> list[Hashed]:
        whole = replace(self, allocation=self.allocation or "best")
        shares = [self.share] if self.share else sorted(SHARES, reverse=True)
        found = [replace(whole, share=share) for share in shares]
        return [s for s in found if (s.share or 1) * SMALLEST <= layer.weight.size]

    def fit(self, layer: Layer, statistics: Statistics) -> HashedWeight:
        assert self.share
        tile = _Tile.of(layer, self.seed)
        problem = _Problem(layer, statistics, tile)
        options = [*dict.fromkeys(_allocations(problem, self.share, self.allocation or "best"))]
        chosen = options[0]
        if len(options) > 1:
            trial = problem.sampled()
            chosen = min(options, key=lambda buckets: trial.solve(buckets, STEPS // 2)[1])
        (values, exact), _ = problem.solve(chosen, STEPS)
        kind = layer.weight.dtype
        return HashedWeight(values.astype(kind), exact.astype(kind), None, tile, chosen, kind)


@dataclass(frozen=True)
class _Tile:
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
        axes = [_dct(k) for k in self.shape[2:]]
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


def _dct(length: int) -> Array:
    """The orthonormal DCT-II, ``(frequencies, positions)``."""
    frequency, position = np.ogrid[:length, :length]
    matrix = np.cos(np.pi * frequency * (2 * position + 1) / (2 * length))
    matrix[0] /= np.sqrt(2)
    return matrix * np.sqrt(2 / length)


def _split(tile: _Tile, buckets: Sequence[int]) -> tuple[Array, Array, Array]:
    """Exact frequencies, hashed frequencies, and the counts of the latter's bands."""
    given = np.array(buckets)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(given, 0))[:-1]])
    bands = tile.bands
    exact, hashed = np.flatnonzero(given[bands] == EXACT), np.flatnonzero(given[bands] > 0)
    return exact, hashed, np.stack([given, offsets])[:, bands[hashed]]


def _allocations(problem: _Problem, share: float, rule: str) -> Iterator[tuple[int, ...]]:
    """Values for every band of a block, so that together there is one for ``share`` weights."""
    sizes = np.bincount(problem.tile.bands) * problem.tile.filters
    budget = max(1, int(sizes.sum() / share))
    if rule == "beta" and len(sizes) > 1:
        yield _beta(sizes, budget)
    elif rule == "uniform" or len(sizes) == 1:
        yield tuple(int(max(1, n // share)) for n in sizes)
    else:
        for density in problem.densities():
            yield from _graded(np.argsort(-density, kind="stable"), sizes, budget)


def _graded(order: Array, sizes: Array, budget: int) -> Iterator[tuple[int, ...]]:
    """The first bands of the order exact, the next ones hashed, the others dropped."""
    for count, more in product(range(len(sizes) + 1), repeat=2):
        exact, hashed = order[:count], order[count : count + more]
        left = budget - int(sizes[exact].sum())
        enough = LEAST_VALUES * more <= left < sizes[hashed].sum()
        if left < 0 or len(hashed) < more or not (enough if more else count):
            continue
        buckets = np.full(len(sizes), DROPPED)
        buckets[exact] = EXACT
        buckets[hashed] = sizes[hashed] * left // max(sizes[hashed].sum(), 1)
        yield tuple(int(b) for b in buckets)


def _beta(sizes: Array, budget: int) -> tuple[int, ...]:
    """The paper's rule: shares like a beta density; what a band cannot use goes to the next."""
    x = (np.arange(len(sizes)) + 1) / len(sizes)
    density = x ** (ALPHA - 1) * (1 - x + 0.5 / len(sizes)) ** (BETA - 1)
    buckets, left = [], float(budget)
    for band, size in enumerate(sizes):
        wanted = left * density[band] * size / (density[band:] * sizes[band:]).sum()
        count = int(min(size, wanted))
        left -= count
        buckets.append(EXACT if count == size else max(count, DROPPED))
    return tuple(buckets)


# ----------------------------------------------------------------------------------- least squares


class _Problem:
    """The least squares of one layer, for any allocation; coefficients are ``(blocks, ...)``."""

    def __init__(self, layer: Layer, statistics: Statistics, tile: _Tile) -> None:
        self.tile, self._statistics, self._layer = tile, statistics, layer
        self._groups = layer.groups
        self._transform = tile.transform
        self._dtype = np.float64 if layer.weight.size <= FINE else np.float32
        weight = layer.weight.astype(self._dtype)
        self._weight = weight.reshape(layer.groups, -1, layer.fan_in)
        self._blocks = tile.blocks

    def sampled(self) -> _Problem:
        """The same with so few of the blocks that trials are cheap."""
        fan_in = self._layer.fan_in
        rows = self._weight.shape[1] * self._groups // self._blocks
        work = rows * fan_in * fan_in * STEPS // 2
        count = max(1, min(self._blocks // self._groups, TRIAL_WORK // (work * self._groups)))
        few = _Problem(self._layer, self._statistics, self.tile)
        few._weight = self._weight[:, : count * rows]
        few._blocks = count * self._groups
        return few

    def densities(self) -> list[Array]:
        """Energy for each coefficient of a band, of the outputs and of the weight itself."""
        power = np.square(self._forward(self._weight)).reshape(-1, len(self.tile.bands)).mean(0)
        bands, known = self.tile.bands, self._diagonal().mean((0, 1))
        return [np.bincount(bands, found) / np.bincount(bands) for found in (power * known, power)]

    def solve(self, buckets: Sequence[int], steps: int) -> tuple[tuple[Array, Array], float]:
        """Values ``(blocks, n)`` and exact coefficients ``(out * in, n)``, and their error."""
        exact, hashed, counts = _split(self.tile, buckets)
        place, sign = self._places(counts)
        count = max(1, int(np.maximum(buckets, 0).sum()))
        shape = (self._blocks, self.tile.filters, len(self.tile.bands))

        def gathered(rows: Array) -> Array:
            return np.stack([np.bincount(place, row, count) for row in rows]).astype(self._dtype)

        def decode(x: tuple[Array, Array]) -> Array:
            full = np.zeros(shape, self._dtype)
            if len(hashed):
                spread = x[0].take(place, axis=1, mode="clip") * sign  # "clip" checks nothing
                full[:, :, hashed] = spread.reshape(*shape[:2], -1)
            full[:, :, exact] = x[1]
            return (full @ self._transform).reshape(self._weight.shape)

        def adjoint(y: Array) -> tuple[Array, Array]:
            full = self._forward(y).reshape(shape)
            flat = full[:, :, hashed].reshape(self._blocks, -1)
            return gathered(flat * sign), full[:, :, exact]

        size = self._diagonal()  # of the metric, for each coefficient
        size = np.repeat(size, self._weight.shape[1], axis=1).reshape(shape)
        flat = gathered(size[:, :, hashed].reshape(self._blocks, -1))
        sizes = np.maximum(flat, 1e-30), np.maximum(size[:, :, exact], 1e-30)
        coefficients = self._forward(self._weight).reshape(shape)
        weighted = (size * coefficients)[:, :, hashed].reshape(self._blocks, -1)
        start = gathered(weighted * sign) / sizes[0], coefficients[:, :, exact]
        if not self._statistics.count:
            steps = 0  # bucket means are the least squares
        found = self._descend(start, sizes, decode, adjoint, steps)
        return min((self._descend(start, sizes, decode, adjoint, 0), found), key=lambda f: f[1])

    def _descend(
        self, x: Any, sizes: Any, decode: Any, adjoint: Any, steps: int
    ) -> tuple[Any, float]:
        """Preconditioned conjugate gradients from the start, and the error where they end."""
        off = self._weight - decode(x)
        image = self._statistics.times(off)
        residual = adjoint(image)
        direction, square = None, 0.0
        for _ in range(steps):
            ready = tuple(r / s for r, s in zip(residual, sizes, strict=True))
            previous, square = square, _dot(residual, ready)
            if square <= 0:
                break
            if direction is None:
                direction = ready
            else:
                turn = square / previous
                direction = tuple(r + turn * d for r, d in zip(ready, direction, strict=True))
            moved = decode(direction)
            product_ = self._statistics.times(moved)
            curve = float(np.vdot(moved, product_))
            if curve <= 0:
                break
            length = self._dtype(square / curve)
            x = tuple(a + length * d for a, d in zip(x, direction, strict=True))
            off -= length * moved
            image -= length * product_
            residual = adjoint(image)
            if length * square < ENOUGH * float(np.vdot(off, image)):
                break
        off = self._weight - decode(x)  # anew: what the steps kept up to date has rounding in it
        return x, float(np.vdot(off, self._statistics.times(off)))

    def _forward(self, weight: Array) -> Array:
        positions = len(self.tile.bands)
        return weight.reshape(-1, positions) @ self._transform.T

    def _places(self, counts: Array) -> tuple[Array, Array]:
        """The value that every hashed position of a block takes, and its sign."""
        found = self.tile.indices(counts).ravel() if counts.shape[1] else np.zeros(0, np.int64)
        return found // 2, (1 - 2 * (found % 2)).astype(np.float32)

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


def _dot(a: Sequence[Array], b: Sequence[Array]) -> float:
    return sum(float(np.vdot(x, y)) for x, y in zip(a, b, strict=True))


# ----------------------------------------------------------------------------------- what is stored


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
    tile: _Tile
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
        exact, hashed, counts = _split(self.tile, self.buckets)
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
        exact, hashed, counts = _split(tile, self.buckets)
        parts = []
        if len(hashed):
            values = _wide(op, self.values[:, :, None])
            table = op.Concat(values, op.Neg(values), axis=2)
            table = op.Reshape(table, np.array([tile.blocks, -1]))
            parts.append(op.Gather(table, self._indices(op, counts), axis=1))
        if (tile.blocks, tile.filters) == tile.shape:  # a wide matrix, not copied once more
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
        """Nodes for `_Tile.indices`: shifts are divisions and multiplications by powers of 2."""
        tile, n = self.tile, counts.shape[1]

        def number(value: int) -> Array:
            return np.array(value, np.uint32)

        span = op.Range(np.array(0), np.array(tile.filters * n), np.array(1))
        position = op.Cast(span, to=np.uint32)
        found = op.Add(op.Mul(position, number(GOLDEN)), number(tile.seed))
        half = number(1 << 16)
        for multiplier in MULTIPLIERS:
            found = op.Add(op.Div(found, half), op.Mul(found, half))
            found = op.Mul(found, op.Add(op.Mul(found, number(2)), number(multiplier)))
        found = op.Div(found, number(1 << 8))
        if (tile.blocks, tile.filters) != tile.shape:
            found = op.Reshape(found, np.array([tile.filters, n]))
        found = op.Mod(found, (2 * counts[0]).astype(np.uint32))
        return op.Add(op.Cast(found, to=np.int64), 2 * counts[1])


def _wide(op: Emitter, array: Array) -> Any:
    """The array in float32, by a node where it is stored otherwise."""
    return array if array.dtype == np.float32 else op.Cast(array, to=np.float32)


def _column(shape: Shape) -> Shape:
    return (-1, *(1,) * (len(shape) - 1))
