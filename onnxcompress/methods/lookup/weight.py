"""Bytes, tables and scales in place of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import DecodedWeight
from onnxcompress.methods.lookup.tables import LEVELS, counting, fits_half, is_shared, packed


@dataclass(frozen=True, eq=False)
class CodedWeight(DecodedWeight):
    """Bytes, tables and scales.

    Attributes:
        codes: uint8 for every digit; int8 numbers where there is no table.
        tables: int8 ``(k, d)`` for every digit.
        scale: ``(out, parts)``, float16 where it fits.
        shape: of the weight.
        columns: of a row of what is decoded, at least the fan-in.
        dtype: of the weight.
    """

    codes: tuple[Array, ...]
    tables: tuple[Array, ...]
    scale: Array
    shape: Shape
    columns: int
    dtype: Any

    @classmethod
    def of(cls, codes: Array, scale: Array, tables: Sequence[Array], layer: Layer) -> Self:
        """From codes ``(out, pieces)`` of one table of vectors."""
        (table,) = tables
        kind = np.float16 if fits_half(scale) else np.float32
        fan_in = (codes.shape[1] * table.shape[1],)
        flat = codes.astype(np.uint8).ravel()
        shape = layer.weight.shape
        return cls((flat,), (table,), scale.astype(kind), shape, *fan_in, layer.weight.dtype)

    @classmethod
    def of_levels(cls, numbers: Array, scale: Array, levels: int, layer: Layer) -> Self:
        """From numbers ``(out, fan_in)`` with so many levels; the scale is that of odd steps."""
        kind = np.float16 if fits_half(scale) else np.float32
        if levels == 256:
            codes, tables = ((numbers - 128).astype(np.int8).ravel(),), ()
        else:
            codes = tuple(packed(numbers, levels))
            tables = tuple(map(counting, LEVELS[levels]))
        shape = layer.weight.shape
        return cls(codes, tables, scale.astype(kind), shape, prod(shape[1:]), layer.weight.dtype)

    def arrays(self) -> Iterator[Array]:
        """Tables that count are the same for all layers and are not among them."""
        yield from self.codes
        yield self.scale
        yield from (t for t in self.tables if not is_shared(t))

    def shared_arrays(self) -> Iterator[Array]:
        yield from filter(is_shared, self.tables)

    @property
    def factors(self) -> tuple[Shape, ...]:
        return (self.shape,)

    def astype(self, dtype: Any) -> Self:
        return replace(self, dtype=np.dtype(dtype))

    def scaled(self, gain: Array) -> Self:
        both = self.scale.astype(np.float32) * gain[:, None]
        return replace(self, scale=both.astype(np.float16 if fits_half(both) else np.float32))

    @property
    def _radices(self) -> list[int]:
        """What each digit counts for."""
        sizes = [int(table.max()) + 1 for table in self.tables[1:]]
        return [prod(sizes[i:]) for i in range(len(self.tables))]

    def decode(self) -> Array:
        out, count = self.shape[0], self.shape[0] * self.columns
        units = np.zeros(count, np.float32)
        if self.tables:
            for codes, table, radix in zip(self.codes, self.tables, self._radices, strict=True):
                units += table[codes].ravel()[:count].astype(np.float32) * np.float32(radix)
        else:
            units += self.codes[0]
            units += units + 1
        rows = units.reshape(out, self.scale.shape[1], -1)
        rows *= self.scale.astype(np.float32)[:, :, None]
        rows = rows.reshape(out, -1)[:, : prod(self.shape[1:])]
        return np.ascontiguousarray(rows).reshape(self.shape).astype(self.dtype, copy=False)

    def emit_weight(self, op: Emitter, dtype: Any) -> Value:
        out, *rest = self.shape
        parts = self.scale.shape[1]
        unpadded = self.columns == prod(rest)
        shape = self.shape if parts == 1 and unpadded else (out, parts, self.columns // parts)
        weight = self._emit_units(op, shape)
        column = (out, parts, *(1,) * (len(shape) - 2))
        scale = self.scale.reshape(column if parts > 1 else (out, *(1,) * (len(shape) - 1)))
        weight = op.Mul(weight, op.Cast(scale, to=np.float32) if scale.itemsize == 2 else scale)
        if not unpadded:
            weight = op.Reshape(weight, np.array([out, self.columns]))
            weight = op.Slice(weight, np.array([0]), np.array([prod(rest)]), np.array([1]))
        if shape != self.shape:
            weight = op.Reshape(weight, np.array(self.shape))
        return weight if dtype == np.float32 else op.Cast(weight, to=dtype)

    def _emit_units(self, op: Emitter, shape: Shape) -> Value:
        """The weight in units of the scale."""
        wanted, count = np.array(shape), prod(shape)
        if not self.tables:
            levels = op.Cast(self.codes[0].reshape(shape), to=np.float32)
            return op.Add(op.Add(levels, levels), np.array(1, np.float32))
        total = None
        for codes, table, radix in zip(self.codes, self.tables, self._radices, strict=True):
            found = op.Gather(table, op.Cast(codes, to=np.int32), axis=0)
            found = op.Cast(found, to=np.float32)
            if len(codes) * table.shape[1] != count:
                found = op.Reshape(found, np.array([-1]))
                found = op.Slice(found, np.array([0]), np.array([count]))
            found = op.Reshape(found, wanted)
            if radix > 1:
                found = op.Mul(found, np.array(radix, np.float32))
            total = found if total is None else op.Add(total, found)
        return total
