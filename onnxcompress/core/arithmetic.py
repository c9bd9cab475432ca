"""What a layer computes in: float, or int8 with ranges that are fixed or found while it runs.

A tensor is stored as bytes q by a scale s and a zero point z::

    x ~ s (q - z)        q = clip(round(x / s) + z, 0, 255)        0 <= z <= 255

`Seen` counts what a tensor holds; `Range.best` is the one whose error over these counts is least::

    error = sum over x of  x^2 where |x| < s / 2,  s^2 / 12 inside,  (distance to the end)^2 outside
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Value
from onnxcompress.core.method import CompressedWeight, DecodedWeight

LEVELS = 255  # A byte has so many steps.
MANTISSA = 5  # So many bits of a value's mantissa tell its bin, which makes bins 3 % wide.
CUTS = 2.0 ** (-np.arange(49) / 8)  # These shares of the largest value are tried as the end.
ZERO = np.float32(1e-30)  # A value below this counts as 0.


@dataclass(frozen=True, eq=False)
class Seen:
    """Counts of the values of a tensor in bins of equal relative width; ``+`` merges batches.

    Attributes:
        counts: ``(bins,)``, each value by the weight that its error has.
        low, high: the smallest and the largest value, 0 included.
    """

    counts: Array
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> Self:
        """Of an array, with a weight for each of its values (broadcast) or 1 for all."""
        values = np.ascontiguousarray(values, np.float32)
        shift = 1 << (8 + MANTISSA)
        size = np.abs(values).view(np.int32) >> (23 - MANTISSA)
        size[np.abs(values) < ZERO] = 0
        key = np.where(values < 0, ~size, size) + shift  # Keys ascend as the values do.
        weights = None if weights is None else np.broadcast_to(weights, values.shape).ravel()
        counts = np.bincount(key.ravel(), weights, 2 * shift)
        low, high = (float(f(values, initial=0.0)) for f in (np.min, np.max))
        return cls(counts.astype(np.float64), low, high)

    def __add__(self, other: Self) -> Self:
        low, high = min(self.low, other.low), max(self.high, other.high)
        return type(self)(self.counts + other.counts, low, high)

    def __mul__(self, weight: float) -> Self:
        """The same values, whose errors matter so much more."""
        return type(self)(self.counts * weight, self.low, self.high)


@cache
def _centres() -> Array:
    """The value in the middle of each bin."""
    shift = 1 << (8 + MANTISSA)
    bits = (np.arange(shift, dtype=np.int64) << (23 - MANTISSA)) + (1 << (22 - MANTISSA))
    with np.errstate(invalid="ignore"):
        values = bits.astype(np.int32).view(np.float32).astype(np.float64)
    values[~np.isfinite(values)] = np.finfo(np.float32).max
    values[0] = 0.0
    return np.concatenate([-values[::-1], values])


@dataclass(frozen=True)
class Range:
    """Scale and zero point of a tensor of bytes."""

    scale: float
    zero: int

    @classmethod
    def between(cls, low: float, high: float) -> Self:
        """From the ends, which may be moved so that 0 is a byte; none goes beyond them."""
        low, high = min(low, 0.0), max(high, 0.0)
        span = np.float32(max(high - low, 1e-20))
        zero = round(-low / span * LEVELS)
        steps = [(high, LEVELS - zero), (-low, zero)]
        scale = min([np.float32(end / count) for end, count in steps if count and end > 0]
                    or [np.float32(span / LEVELS)])  # fmt: skip
        if low and high:
            scale = np.float32(span / LEVELS)
        return cls(float(np.nextafter(scale, np.float32(0))), zero)

    @classmethod
    def best(cls, seen: Seen, clip: float = 1.0) -> Self:
        """The one with the least error, of what the ends may be cut to.

        Args:
            clip: by how much an error of what lies outside counts more; infinite for no cut.
        """
        if not np.isfinite(clip):
            return cls.between(seen.low, seen.high)
        values, counts = _centres(), seen.counts
        sums = [np.concatenate([[0.0], np.cumsum(counts * values**k)]) for k in range(3)]

        def total(k: int, start: Array, stop: Array) -> Array:
            return sums[k][stop] - sums[k][start]

        high = seen.high * CUTS if seen.high > 0 else np.zeros(1)
        low = seen.low * CUTS if seen.low < 0 else np.zeros(1)
        low, high = low[:, None], high[None]
        step = np.maximum((high - low) / LEVELS, 1e-30)
        first, last = np.searchsorted(values, low), np.searchsorted(values, high, "right")
        inner = np.searchsorted(values, -step / 2), np.searchsorted(values, step / 2, "right")
        first, last = np.broadcast_arrays(first, last)
        near = np.maximum(inner[0], first), np.minimum(inner[1], last)
        error = step**2 / 12 * (total(0, first, last) - total(0, *near)) + total(2, *near)
        start, stop = np.zeros_like(first), np.full_like(last, len(values))
        for begin, end, edge in ((start, first, low), (last, stop, high)):
            outside = total(2, begin, end) - 2 * edge * total(1, begin, end)
            error += clip * (outside + edge**2 * total(0, begin, end))
        best = np.unravel_index(np.argmin(error), error.shape)
        return cls.between(float(low[best[0], 0]), float(high[0, best[1]]))

    @property
    def low(self) -> float:
        return -self.zero * self.scale

    @property
    def high(self) -> float:
        return (LEVELS - self.zero) * self.scale

    def rounded(self, values: Array) -> Array:
        """What is left of these values."""
        scale = np.float32(self.scale)
        bytes_ = np.clip(np.rint(values / scale) + np.float32(self.zero), 0, LEVELS)
        return (bytes_ - np.float32(self.zero)) * scale


def rounded_by_sample(x: Array) -> Array:
    """What dynamic ranges leave of a batch, whose samples come in one by one."""
    return np.stack([Range.between(float(one.min()), float(one.max())).rounded(one) for one in x])


@dataclass(frozen=True)
class Arithmetic:
    """What a layer computes in.

    Attributes:
        kind: float; static, int8 with fixed ranges; dynamic, int8 with a range for every run.
        reads: of what a static layer reads.
        reason: why it computes in float.
    """

    kind: Literal["float", "static", "dynamic"] = "float"
    reads: Range | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self.kind if self.kind == "float" else f"int8 ({self.kind} ranges)"


@dataclass(frozen=True, eq=False)
class Rounded(DecodedWeight):
    """Whole numbers, -127 to 127, in the weight's shape, and a scale ``(out,)``."""

    numbers: Array
    scale: Array

    @classmethod
    def of(cls, weight: Array) -> Self:
        """The nearest, by the largest of each channel."""
        largest = np.abs(weight.reshape(len(weight), -1)).max(1)
        scale = np.maximum(largest / 127, 1e-20).astype(np.float32)
        numbers = np.rint(weight / _column(scale, weight.ndim))
        return cls(np.clip(numbers, -127, 127).astype(np.int8), scale)

    def integers(self) -> tuple[Array, Array]:
        return self.numbers, self.scale

    def decode(self) -> Array:
        return self.numbers * _column(self.scale, self.numbers.ndim)

    def scaled(self, gain: Array) -> Self:
        return replace(self, scale=self.scale * gain.astype(np.float32))

    def emit_weight(self, op: Emitter, dtype: Any) -> Value:
        return op.Mul(
            op.Cast(self.numbers, to=dtype), _column(self.scale.astype(dtype), self.numbers.ndim)
        )


def _column(scale: Array, rank: int) -> Array:
    return scale.reshape(-1, *(1,) * (rank - 1))


def in_integers(weight: CompressedWeight) -> CompressedWeight:
    """The weight itself where it is int8 numbers and a scale for each channel, else the nearest."""
    known = weight.integers()
    return weight if known is not None else Rounded.of(weight.decode().astype(np.float32))
