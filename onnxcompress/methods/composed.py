"""Packed: what one method stores, stored again by another.  ``basis+integer:bits=8``.

The weights of a chain are packed in order.  Each one is rounded in the metric of what it reads in
the chain as it has become; E expands what it reads from patches of the layer::

    G = E H Eᵀ

and the last one is fitted anew to the packed ones before it, by least squares, before it is
rounded itself: ``W H Eᵀ G⁻¹``.  Other float arrays are rounded as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import Candidate, CompressedWeight, Method, Plain
from onnxcompress.core.statistics import SKETCH_ABOVE, Statistics
from onnxcompress.methods.basis import BasisWeight
from onnxcompress.methods.integer import Integer

LEAST = 64  # An array of no more entries is not packed.
TRIED = 24  # So many settings of the inner method are tried, or up to twice as many.


@dataclass(frozen=True)
class Packed(Method):
    """The arrays of one method in the form of another.

    Attributes:
        inner: what compresses the layer.
        outer: what its arrays are stored with: integer, codebook or half.
    """

    inner: Method
    outer: Method

    @property
    def opset(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return max(self.inner.opset, self.outer.opset)

    @property
    def fixed(self) -> bool:
        return self.inner.fixed and self.outer.fixed

    @property
    def name(self) -> str:
        return f"{self.inner.name}+{self.outer.name}"

    def __str__(self) -> str:
        return f"{self.inner}+{self.outer}"

    def declined(self, layer: Layer) -> str | None:
        return self.inner.declined(layer) or super().declined(layer)

    def settings(self, layer: Layer) -> list[Packed]:
        settings = [Packed(i, o) for i in self.inner.settings(layer) for o in self._outer(layer)]
        return sorted(settings, key=lambda s: s.blank(layer).nbytes)

    def _outer(self, layer: Layer) -> Sequence[Method]:
        return [self.outer] if self.outer.fixed else self.outer.settings(layer)

    def fit(self, layer: Layer, statistics: Statistics) -> PackedWeight:
        inner = self.inner.fit(layer, statistics)
        if isinstance(inner, BasisWeight):
            return self._chain(inner, layer, statistics)
        return self._arrays(inner, layer)

    def blank(self, layer: Layer) -> PackedWeight:
        inner = self.inner.blank(layer)
        if not isinstance(inner, BasisWeight):
            return self._arrays(inner, layer)
        stages = _stages(inner.chain, layer)
        return PackedWeight(inner, tuple(map(self._blank, stages)))

    def _blank(self, stage: Layer) -> CompressedWeight:
        return self.outer.blank(stage) if self._useful(stage) else Plain(stage.weight)

    def _useful(self, stage: Layer) -> bool:
        return stage.weight.size > LEAST and bool(self.outer.settings(stage))

    @property
    def _foreseen(self) -> Method:
        """The outer method, without zero points that its blank does not count."""
        open_ended = isinstance(self.outer, Integer) and self.outer.zero_point is None
        return replace(self.outer, zero_point="none") if open_ended else self.outer

    def _packed(self, stage: Layer, statistics: Statistics) -> Any:
        return self._foreseen.fit(stage, statistics) if self._useful(stage) else Plain(stage.weight)

    def _chain(self, inner: BasisWeight, layer: Layer, statistics: Statistics) -> PackedWeight:
        parts: list[Any] = []
        stages = _stages(inner.chain, layer)
        known = layer.fan_in <= SKETCH_ABOVE
        for index, stage in enumerate(stages):
            reads = Statistics.white(stage)
            if known:
                before = [part.decode() for part in parts]
                expanded, metric = _expanded(before, stage, layer, statistics)
                if index == len(stages) - 1:
                    stage = _refitted(stage, layer, expanded, metric)
                if statistics.count:
                    moment = expanded @ metric @ expanded.swapaxes(1, 2)
                    reads = Statistics(1, reads.total, moment)
            parts.append(self._packed(stage, reads))
        chain = tuple(part.decode().astype(layer.weight.dtype) for part in parts)
        return PackedWeight(BasisWeight(chain), tuple(parts))

    def _arrays(self, inner: CompressedWeight, layer: Layer) -> PackedWeight:
        """Every large float array by itself."""
        parts, changed = [], {}
        for f in fields(inner):
            array = getattr(inner, f.name)
            if not isinstance(array, Array) or array.dtype.kind != "f" or array.size <= LEAST:
                continue
            flat = array.reshape(len(array), -1) if array.ndim > 1 else array[None]
            stage = Layer(f"{layer.name}/{f.name}", "MatMul", flat)
            part = self._packed(stage, Statistics.white(stage))
            changed[f.name] = np.array(part.decode().astype(array.dtype).reshape(array.shape))
            parts.append(part)
        stored = tuple(changed)
        return PackedWeight(replace(inner, **changed), tuple(parts), stored)

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        """Errors as if those of the methods added up, and those of the chain's weights too."""
        outer = [Packed(self.inner, o) for o in self._outer(layer)]
        candidates = list(self.inner.candidates(layer, statistics))
        candidates = candidates[:: max(1, len(candidates) // TRIED)]
        for packed in outer:
            [alone] = [c.error for c in packed.outer.candidates(layer, statistics)][:1] or [0.0]
            for c in candidates:
                assert c.setting is not None
                setting = Packed(c.setting, packed.outer)
                blank = setting.blank(layer)
                error = c.error + len(c.factors) * alone
                if blank.nbytes < layer.nbytes:
                    yield Candidate(setting, blank.nbytes, c.factors, error)


def _stages(chain: Sequence[Array], layer: Layer) -> list[Layer]:
    """The weights of a chain as layers."""
    kind = {"group": layer.groups}
    return [
        Layer(f"{layer.name}/{index}", "Conv", weight, None, kind)
        for index, weight in enumerate(chain)
    ]


def _expanded(
    before: Sequence[Array], stage: Layer, layer: Layer, statistics: Statistics
) -> tuple[Array, Array]:
    """E of the module's formulas, ``(groups, fan_in, n)``, and the metric of the n entries."""
    groups, _, fan_in = stage.grouped.shape
    inputs, *kernel = stage.weight.shape[1:]
    identity = np.eye(fan_in).reshape(fan_in, inputs, *kernel)
    whole = BasisWeight((*before, np.concatenate([identity] * groups))).decode()
    spanned = [1 + a for a, length in enumerate(whole.shape[2:]) if length > 1]
    metric = statistics.partial(layer.weight.shape[1:], [0, *spanned])
    return whole.reshape(groups, fan_in, -1).astype(np.float64), metric


def _refitted(stage: Layer, layer: Layer, expanded: Array, metric: Array) -> Layer:
    """The last weight of a chain as the least squares of what the others have become."""
    images = expanded @ metric
    gram = images @ expanded.swapaxes(1, 2)
    gram += 1e-7 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[1])
    cross = layer.grouped.astype(np.float64) @ images.swapaxes(1, 2)
    solved = np.linalg.solve(gram, cross.swapaxes(1, 2)).swapaxes(1, 2)
    return replace(stage, weight=solved.reshape(stage.weight.shape).astype(np.float32))


@dataclass(frozen=True, eq=False)
class PackedWeight(CompressedWeight):
    """Packed arrays, and the weight that they belong to.

    Attributes:
        inner: the weight, with the arrays as they decode.
        parts: the packed arrays; all weights of a chain, in order.
        stored: names of the arrays of ``inner`` that they are; empty for a chain.
    """

    inner: CompressedWeight
    parts: tuple[Any, ...]
    stored: tuple[str, ...] = ()

    def arrays(self) -> Iterator[Array]:
        for part in self.parts:
            yield from part.arrays()
        packed = [getattr(self.inner, name) for name in self.stored]
        if self.stored or not isinstance(self.inner, BasisWeight):
            yield from (a for a in self.inner.arrays() if not any(a is p for p in packed))

    def shared_arrays(self) -> Iterator[Array]:
        for part in (*self.parts, self.inner):
            yield from part.shared_arrays()

    @property
    def factors(self) -> tuple[Shape, ...]:
        return self.inner.factors

    def astype(self, dtype: Any) -> Self:
        parts = tuple(part.astype(dtype) for part in self.parts)
        return replace(self, inner=self.inner.astype(dtype), parts=parts)

    def decode(self) -> Array:
        return self.inner.decode()

    def scaled(self, gain: Array) -> Self:
        if not isinstance(self.inner, BasisWeight):
            return replace(self, inner=self.inner.scaled(gain))
        *rest, last = self.parts
        last = last.scaled(gain)
        chain = (*self.inner.chain[:-1], last.decode().astype(self.inner.chain[-1].dtype))
        return replace(self, inner=BasisWeight(chain), parts=(*rest, last))

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        kind = layer.weight.dtype
        if isinstance(self.inner, BasisWeight):
            weights = [part.emit_weight(op, kind) for part in self.parts]
            return layer.apply(op, x, *weights, bias=layer.bias, shapes=self.inner.factors)
        arrays = [getattr(self.inner, name) for name in self.stored]
        known = list(zip(arrays, self.parts, strict=True))
        return self.inner.emit(_Unpacking(op, known), x, layer)


class _Unpacking:
    """An emitter that puts the nodes which unpack an array in the place of the array."""

    def __init__(self, op: Emitter, known: Sequence[tuple[Array, Any]]) -> None:
        self.opset, self._op, self._known = op.opset, op, known

    def __getattr__(self, op_type: str) -> Any:
        def emit(*inputs: Any, **attributes: Any) -> Value:
            unpacked = [self._unpacked(x) if isinstance(x, Array) else x for x in inputs]
            return getattr(self._op, op_type)(*unpacked, **attributes)

        return emit

    def _unpacked(self, x: Array) -> Any:
        for array, part in self._known:
            if (x is array or x.base is array) and x.size == array.size:
                weight = part.emit_weight(self._op, array.dtype)
                return self._op.Reshape(weight, np.array(x.shape))
        return x
