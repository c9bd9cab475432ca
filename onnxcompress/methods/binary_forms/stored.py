"""Bits, selections and scales in place of a weight, and the nodes that decode them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import CompressedWeight
from onnxcompress.methods.binary_forms.pieces import Form
from onnxcompress.methods.lookup.bits import emit_unpack, unpack
from onnxcompress.methods.lookup.tables import fits_half


@dataclass(frozen=True, eq=False)
class BinaryWeight(CompressedWeight):
    """Signs, selections and scales.

    Attributes:
        signs: the filters as bits, 1 for +1/2 and 0 for -1/2: ``(m, width)``, or where every
            piece has its own ``(stacks, out, parts * width)``.
        select: packed numbers ``(stacks, out, parts)``; empty where nothing is selected.
        scale: ``(stacks, out, parts)``, float16 where it fits, twice that of filters in {-1, 1}.
        form: the sizes.
        dtype: of the weight.
    """

    signs: Array
    select: Array
    scale: Array
    form: Form
    dtype: Any

    @property
    def factors(self) -> tuple[Shape, ...]:
        form, (out, _, *kernel) = self.form, self.form.shape
        if not form.feature:
            return (form.shape,)
        maps = form.parts * form.filters
        return (maps, form.channels, *kernel), (out, maps, *(1,) * len(kernel))

    def arrays(self) -> Iterator[Array]:
        yield from (array for array in (self.signs, self.select, self.scale) if array.size)

    def astype(self, dtype: Any) -> Self:
        return replace(self, dtype=np.dtype(dtype))

    def scaled(self, gain: Array) -> Self:
        both = self.scale.astype(np.float32) * gain[:, None]
        half = self.scale.dtype == np.float16 and fits_half(both)
        return replace(self, scale=both.astype(np.float16 if half else np.float32))

    def integers(self) -> tuple[Array, Array] | None:
        form = self.form
        if form.stacks > 1 or form.parts > 1 or form.feature:
            return None
        scale = self.scale[0, :, 0].astype(np.float32) / 2
        signs = np.sign(replace(self, scale=np.ones_like(self.scale)).decode())
        return signs.astype(np.int8), scale

    def decode(self) -> Array:
        form = self.form
        bits = unpack(self.signs, 1, form.bits[0]).astype(np.float32)
        signs = (bits - 0.5).reshape(-1, form.width)
        if form.filters:
            signs = signs[unpack(self.select, form.index_bits, form.scales)]
        terms = signs.reshape(form.stacks, -1, form.width) * self.scale.astype(np.float32).reshape(
            form.stacks, -1, 1
        )
        out, _, *kernel = form.shape
        weight = terms.sum(0).reshape(out, -1, *kernel)
        return np.ascontiguousarray(weight[:, : form.shape[1]]).astype(self.dtype)

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        form = self.form
        if form.feature:
            return self._merged(op, x, layer)
        pieces = (form.stacks, form.shape[0] * form.parts)
        stored = (form.filters, form.width) if form.filters else (*pieces, form.width)
        bits = op.Cast(emit_unpack(op, self.signs, 1, stored), to=np.float32)
        signs = op.Sub(bits, np.array(0.5, np.float32))
        if form.filters:
            picked = emit_unpack(op, self.select, form.index_bits, pieces)
            signs = op.Gather(signs, picked, axis=0)
        scale = op.Cast(self.scale.reshape(*pieces, 1), to=np.float32)
        weight = op.Mul(signs, scale)
        if form.stacks > 1:
            weight = op.ReduceSum(weight, np.array([0]), keepdims=0)
        out, inputs, *kernel = form.shape
        weight = op.Reshape(weight, np.array([out, form.parts * form.channels, *kernel]))
        if form.parts * form.channels > inputs:
            weight = op.Slice(weight, np.array([0]), np.array([inputs]), np.array([1]))
        if layer.weight.dtype != np.float32:
            weight = op.Cast(weight, to=layer.weight.dtype)
        return layer.apply(op, x, weight, bias=layer.bias)

    def _merged(self, op: Emitter, x: Value, layer: Layer) -> Value:
        """The feature form: the groups of channels are folded into the batch and back."""
        form, (out, _, *kernel) = self.form, self.form.shape
        size, point = (0,) * len(kernel), (1,) * len(kernel)  # 0 in a shape keeps a size.
        kind = layer.weight.dtype
        bits = emit_unpack(op, self.signs, 1, (form.filters, form.channels, *kernel))
        filters = op.Sub(op.Cast(bits, to=np.float32), np.array(0.5, np.float32))
        if kind != np.float32:
            filters = op.Cast(filters, to=kind)
        split = op.Reshape(x, np.array([-1, form.channels, *size]))
        maps = op.Conv(split, filters, **layer.attributes)
        maps = op.Reshape(maps, np.array([-1, form.parts * form.filters, *size]))
        picked = emit_unpack(op, self.select, form.index_bits, (form.stacks, out, form.parts, 1))
        chosen = op.Equal(picked, np.arange(form.filters, dtype=np.int32))
        scale = op.Cast(self.scale[..., None], to=np.float32)
        merge = op.Mul(op.Cast(chosen, to=np.float32), scale)
        if form.stacks > 1:
            merge = op.ReduceSum(merge, np.array([0]), keepdims=0)
        merge = op.Reshape(merge, np.array([out, form.parts * form.filters, *point]))
        if kind != np.float32:
            merge = op.Cast(merge, to=kind)
        return op.Conv(maps, merge, *(() if layer.bias is None else (layer.bias,)))
