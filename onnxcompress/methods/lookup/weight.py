"""Bytes, tables and scales in place of a weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from typing import Any, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value, reshaped
from onnxcompress.core.method import DecodedWeight
from onnxcompress.methods.lookup.coded import Coded
from onnxcompress.methods.lookup.tables import counting, fits_half, is_shared, levels_of, packed
from onnxcompress.methods.lookup.trellis import emit_places, places
from onnxcompress.methods.lookup.uniform import Uniform

SUMS_BYTES = 10  # MatMulInteger is there from this opset on.
# This is the zero point of grids that have a zero, but no zero points of their own.
ONE = np.ones((1, 1), np.int8)


@dataclass(frozen=True, eq=False)
class CodedWeight(DecodedWeight):
    """Bytes, tables and scales.

    Attributes:
        codes: uint8 for every digit; int8 numbers where there is no table.
        tables: int8 ``(k, d)`` for every digit; a weight is the sum of what its digits pick.
            Where bytes remember, it is one, ``(P * WORDS, d)``, see `trellis`.
        scale: ``(out, parts)``, float16 where it fits.
        zero: zero points ``(out, parts)``, or one for all ``(1, 1)``, in units of the scale, int8;
            or None.
        shape: of the weight.
        columns: of a row of what is decoded, at least the fan-in.
        dtype: of the weight.
        segment: rows of a segment, where each byte chooses the table of the next row's; else 0.
    """

    codes: tuple[Array, ...]
    tables: tuple[Array, ...]
    scale: Array
    zero: Array | None
    shape: Shape
    columns: int
    dtype: Any
    segment: int = 0

    @classmethod
    def of(
        cls, codes: Array, scale: Array, tables: Sequence[Array], layer: Layer, segment: int = 0
    ) -> Self:
        """From codes ``(out, pieces)`` of one table of vectors."""
        (table,) = tables
        kind = np.float16 if fits_half(scale, levels_of(tables)) else np.float32
        fan_in = (codes.shape[1] * table.shape[1],)
        flat = codes.astype(np.uint8).ravel()
        shape = layer.weight.shape
        kept = scale.astype(kind)
        return cls((flat,), (table,), kept, None, shape, *fan_in, layer.weight.dtype, segment)

    @classmethod
    def of_numbers(cls, fitted: Coded, grid: Uniform, layer: Layer, single: bool = False) -> Self:
        """From numbers ``(out, fan_in)`` of an evenly spaced grid.

        Tables count in steps of two around zero, so that all layers share them: in units of half
        the scale, ``u - z`` of a grid with a zero is ``2 u + 1 - (2 z + 1)``.

        Args:
            single: keep the scales as 32-bit floats, whether float16 holds them or not.
        """
        scale, zero = fitted.scale, fitted.zero
        if grid.levels == 256:
            codes, tables = ((fitted.codes.astype(np.int16) - 128).astype(np.int8).ravel(),), ()
        else:
            codes, tables = tuple(packed(fitted.codes, grid.levels)), counting(grid.levels)
        if tables and not grid.odd:
            scale, zero = scale / 2, ONE if zero is None else 2 * zero + 1
        half = fits_half(scale, grid.levels) and not single
        return cls(
            codes,
            tables,
            scale.astype(np.float16 if half else np.float32),
            None if zero is None else zero.astype(np.int8, copy=False),
            layer.weight.shape,
            layer.fan_in,
            layer.weight.dtype,
        )

    def arrays(self) -> Iterator[Array]:
        """Tables that count are the same for all layers and are not among them."""
        yield from self.codes
        yield self.scale
        if self.zero is not None and not self._one_zero:
            yield self.zero
        yield from (t for t in self.tables if not is_shared(t))

    def shared_arrays(self) -> Iterator[Array]:
        yield from filter(is_shared, self.tables)

    @property
    def _levels(self) -> float:
        """Values that each weight chooses from."""
        return levels_of(self.tables) if self.tables else 256

    @property
    def _one_zero(self) -> bool:
        """Whether all rows have the zero point of grids that need none of their own."""
        return self.zero is not None and self.zero.size < self.scale.size

    @property
    def factors(self) -> tuple[Shape, ...]:
        return (self.shape,)

    def astype(self, dtype: Any) -> Self:
        return replace(self, dtype=np.dtype(dtype))

    def scaled(self, gain: Array) -> Self:
        both = self.scale.astype(np.float32) * gain[:, None]
        half = self.scale.dtype == np.float16 and fits_half(both, self._levels)
        return replace(self, scale=both.astype(np.float16 if half else np.float32))

    @property
    def units(self) -> Array:
        """The weight in units of the scale, without its zero points: ``(out, columns)``, int16."""
        count = self.shape[0] * self.columns
        units = np.zeros(count, np.int16)
        if not self.tables:
            units += self.codes[0]
        for codes, table in zip(self.codes, self.tables, strict=False):
            units += table[self._places(codes)].ravel()[:count]
        return units.reshape(self.shape[0], self.columns)

    def _places(self, codes: Array) -> Array:
        """The rows of a table that bytes pick."""
        if not self.segment:
            return codes
        rows = codes.reshape(self.shape[0], -1)
        return places(rows, self.segment, self.tables[0])

    def decode(self) -> Array:
        rows = self.units.reshape(*self.scale.shape, -1).astype(np.float32)
        if self.zero is not None:
            rows -= self.zero[:, :, None]
        rows *= self.scale.astype(np.float32)[:, :, None]
        rows = rows.reshape(self.shape[0], -1)[:, : prod(self.shape[1:])]
        return np.ascontiguousarray(rows).reshape(self.shape).astype(self.dtype, copy=False)

    def integers(self) -> tuple[Array, Array] | None:
        if self.scale.shape[1] > 1:
            return None
        units = self.units if self.zero is None else (self.units - self.zero) // self._step
        units = units[:, : prod(self.shape[1:])].reshape(self.shape)
        if units.min(initial=0) < -128 or units.max(initial=0) > 127:
            return None
        scale = self.scale[:, 0].astype(np.float32)
        return units.astype(np.int8), scale if self.zero is None else scale * self._step

    @property
    def _step(self) -> int:
        """What all differences to a zero point are multiples of."""
        return 2 if self.tables else 1

    def emit_integers(self, op: Emitter) -> Array | Value:
        out, *rest = self.shape
        tables, zero = self.tables, self.zero
        # This gives (u - 1) / 2, since one digit alone has odd entries.
        if tables and self._one_zero:
            tables, zero = tuple(table // 2 for table in tables), None
        total: Any = self._emit_bytes(op, tables, out * self.columns) if tables else self.codes[0]
        if zero is not None:
            rows = op.Cast(op.Reshape(total, np.array([out, self.columns])), to=np.int32)
            total = op.Sub(rows, zero.astype(np.int32))
            total = op.Div(total, np.array(2, np.int32)) if self._step == 2 else total
            total = op.Cast(total, to=np.int8)
        if self.columns != prod(rest):
            total = op.Reshape(total, np.array([out, self.columns]))
            total = op.Slice(total, np.array([0]), np.array([prod(rest)]), np.array([1]))
        return reshaped(op, total, self.shape)

    def emit_weight(self, op: Emitter, dtype: Any) -> Value:
        out, *rest = self.shape
        parts, unpadded = self.scale.shape[1], self.columns == prod(rest)
        shape = self.shape if parts == 1 and unpadded else (out, parts, self.columns // parts)
        column = (out, parts if parts > 1 else 1, *(1,) * (len(shape) - 2))[: len(shape)]
        weight = self._emit_units(op, shape)
        if self.zero is not None:
            weight = op.Sub(weight, self._emit_zero(op, column))
        scale: Any = self.scale.reshape(column)
        weight = op.Mul(weight, op.Cast(scale, to=np.float32) if scale.itemsize == 2 else scale)
        if not unpadded:
            weight = op.Reshape(weight, np.array([out, self.columns]))
            weight = op.Slice(weight, np.array([0]), np.array([prod(rest)]), np.array([1]))
        if shape != self.shape:
            weight = op.Reshape(weight, np.array(self.shape))
        return weight if dtype == np.float32 else op.Cast(weight, to=dtype)

    def emit_rows(self, op: Emitter, indices: Value, dtype: Any) -> Value | None:
        rows, columns = self.shape
        parts, widths = self.scale.shape[1], [table.shape[1] for table in self.tables]
        if self.segment or self.columns != columns or any(columns % width for width in widths):
            return None
        flat = op.Reshape(indices, np.array([-1]))

        def picked(array: Array) -> Value:
            return op.Cast(op.Gather(array.reshape(rows, -1), flat, axis=0), to=np.float32)

        units = picked(self.codes[0]) if not self.tables else None
        for codes, table in zip(self.codes, self.tables, strict=False):
            chosen = op.Cast(op.Gather(codes.reshape(rows, -1), flat, axis=0), to=np.int32)
            digit = op.Cast(op.Gather(table, chosen, axis=0), to=np.float32)
            digit = op.Reshape(digit, np.array([-1, columns]))
            units = digit if units is None else op.Add(units, digit)
        if parts > 1:
            units = op.Reshape(units, np.array([-1, parts, columns // parts]))

        def column(array: Array) -> Value:
            own = picked(array)
            return own if parts == 1 else op.Reshape(own, np.array([-1, parts, 1]))

        if self.zero is not None:
            one = self._one_zero
            units = op.Sub(units, self._emit_zero(op, ()) if one else column(self.zero))
        weight = op.Mul(units, column(self.scale))
        weight = weight if dtype == np.float32 else op.Cast(weight, to=dtype)
        return op.Reshape(weight, op.Concat(op.Shape(indices), np.array([columns]), axis=0))

    def _emit_zero(self, op: Emitter, column: Shape) -> Array | Value:
        assert self.zero is not None
        if self._one_zero:
            return np.array(self.zero[0, 0], np.float32)
        return op.Cast(self.zero.reshape(column), to=np.float32)

    def _emit_units(self, op: Emitter, shape: Shape) -> Value:
        """The weight in units of the scale, without its zero points."""
        if not self.tables:
            return op.Cast(self.codes[0].reshape(shape), to=np.float32)
        if op.opset >= SUMS_BYTES or len(self.tables) == 1:
            total = self._emit_bytes(op, self.tables, prod(shape))
            return op.Cast(op.Reshape(total, np.array(shape)), to=np.float32)
        digits = self._emit_digits(op, self.tables, prod(shape))
        wide = (op.Cast(op.Reshape(digit, np.array(shape)), to=np.float32) for digit in digits)
        return reduce(op.Add, wide)

    def _emit_bytes(self, op: Emitter, tables: Sequence[Array], count: int) -> Value:
        """The sums of what digits stand for, as bytes.

        Whatever is computed on the way stays in memory until all layers are decoded: a product of
        matrices of bytes takes the least.  (QLinearMatMul gives bytes at once, but converters to
        float16 do not know that its scales stay float32.)
        """
        digits = self._emit_digits(op, tables, count)
        if len(digits) == 1:
            return digits[0]
        rows = op.Concat(*(op.Reshape(digit, np.array([1, -1])) for digit in digits), axis=0)
        ones = np.ones((1, len(digits)), np.int8)
        return op.Cast(op.MatMulInteger(ones, rows), to=np.int8)

    def _emit_digits(self, op: Emitter, tables: Sequence[Array], count: int) -> list[Value]:
        """What the digits of all numbers stand for, the first so many of them."""
        digits = []
        for codes, table in zip(self.codes, tables, strict=True):
            width = table.shape[1]
            if self.segment:
                rows = codes.reshape(-1, 1, self.segment, self.columns // width)
                table, index = emit_places(op, table, rows)
            else:
                index = op.Cast(codes, to=np.int32)
            digit = op.Gather(table, index, axis=0)
            if len(codes) * width != count:
                digit = op.Reshape(digit, np.array([-1]))
                digit = op.Slice(digit, np.array([0]), np.array([count]))
            digits.append(digit)
        return digits
