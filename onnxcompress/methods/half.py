"""Half: every weight as a 16-bit float, widened when the model is loaded.  Half the file.

The layer computes as before, with weights rounded to 11 significant bits: relative errors of at
most 2^-11, far below what a network notices.  The model's own types stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self
from zlib import crc32

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import DecodedWeight, Method
from onnxcompress.core.statistics import Statistics

# Rounding takes 2^-11 at most, so float16 does not hold a channel whose error is above this share.
LEAST = 2.0**-10


@dataclass(frozen=True)
class Half(Method):
    """Store weights as 16-bit floats: the safe halving."""

    auto: ClassVar[bool] = True
    packs: ClassVar[bool] = True
    quick: ClassVar[bool] = True

    @property
    def fixed(self) -> bool:
        return True

    def settings(self, layer: Layer) -> list[Half]:
        narrow = layer.nbytes <= 2 * layer.weight.size
        return [] if narrow or not _holds(layer.grouped) else [self]

    def declined(self, layer: Layer) -> str | None:
        narrow = layer.nbytes <= 2 * layer.weight.size
        reason = (
            "it is stored in 16 bits or fewer" if narrow else "float16 does not hold its values"
        )
        return None if self.settings(layer) else reason

    def fit(self, layer: Layer, statistics: Statistics) -> HalfWeight:
        return HalfWeight(layer.weight.astype(np.float16), layer.weight.dtype)

    def blank(self, layer: Layer) -> HalfWeight:
        rng = np.random.default_rng([crc32(layer.name.encode()), layer.weight.size])
        drawn = rng.integers(0, 1 << 14, layer.weight.shape, np.uint16)
        return HalfWeight(drawn.view(np.float16), layer.weight.dtype)


def _holds(weight: Array) -> bool:
    """Whether float16 has the weights of every output channel to their usual precision."""
    rows = weight.reshape(-1, weight.shape[-1]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(rows - rows.astype(np.float16).astype(np.float32)).max(1, initial=0)
    return bool((off <= LEAST * np.abs(rows).max(1, initial=0)).all())


@dataclass(frozen=True, eq=False)
class HalfWeight(DecodedWeight):
    """The weight as float16.

    Attributes:
        dtype: that it had.
    """

    half: Array
    dtype: Any

    @property
    def factors(self) -> tuple[Shape, ...]:
        return (self.half.shape,)

    def astype(self, dtype: Any) -> Self:
        return replace(self, dtype=np.dtype(dtype))

    def decode(self) -> Array:
        return self.half.astype(self.dtype)

    def scaled(self, gain: Array) -> Self:
        wide = self.half.astype(np.float32) * gain.reshape(-1, *(1,) * (self.half.ndim - 1))
        return replace(self, half=wide.astype(np.float16))

    def emit_weight(self, op: Emitter, dtype: Any) -> Value:
        return op.Cast(self.half, to=dtype)

    def emit_rows(self, op: Emitter, indices: Value, dtype: Any) -> Value | None:
        return op.Cast(op.Gather(self.half, indices, axis=0), to=dtype)
