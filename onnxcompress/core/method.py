"""What compresses a weight, and what comes out.

weight + Statistics -- Method.fit --> CompressedWeight -- emit --> subgraph
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.statistics import Statistics


@dataclass(frozen=True)
class Method(ABC):
    """A way to compress a weight.  The fields are settings; one left at None is open."""

    opset: ClassVar[int] = 7  # What it emits is valid from this opset on.
    faster: ClassVar[bool] = False  # This says whether what it makes needs fewer multiplications.
    auto: ClassVar[bool] = False  # This says whether ``auto`` tries it.
    # This says whether it makes a `DecodedWeight` of any float array.
    packs: ClassVar[bool] = False
    quick: ClassVar[bool] = False  # This says whether all its settings take few calls of numpy.
    sampled: ClassVar[bool] = False  # This says whether it fits nothing without samples.

    @abstractmethod
    def settings(self, layer: Layer) -> Sequence[Self]:
        """Settings to try on this layer, with nothing left open, smallest result first."""

    @abstractmethod
    def fit(self, layer: Layer, statistics: Statistics) -> CompressedWeight:
        """Approximate the layer's weight so that its output changes least."""

    def blank(self, layer: Layer) -> CompressedWeight:
        """A weight of this setting's structure; its values do not matter, but all differ."""
        return self.fit(layer.read(), Statistics.white(layer))

    def nbytes(self, layer: Layer) -> int:
        """Bytes of what this setting stores, about: scales may take more."""
        return self.blank(layer).nbytes

    def declined(self, layer: Layer) -> str | None:
        """Why no setting applies to this layer, or None."""
        return None if self.settings(layer) else "it cannot become smaller by this method"

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        """Every setting with its cost and error.  Override where the fits can share work."""
        for setting in self.settings(layer):
            fitted = setting.fit(layer, statistics)
            error = statistics.error(layer.weight, fitted.decode())
            yield Candidate(setting, fitted.nbytes, fitted.factors, error, fitted)

    @property
    def fixed(self) -> bool:
        """Whether the settings fix the size, so that no target is needed."""
        return False

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def __str__(self) -> str:
        """The setting as the command line spells it: ``basis:unfolding=spatial,rank=12``."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        pairs = [f"{key}={_spell(value)}" for key, value in settings.items() if value is not None]
        return ":".join([self.name, ",".join(pairs)] if pairs else [self.name])


def _spell(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, eq=False)
class CompressedWeight(ABC):
    """A fitted weight.  A subclass's array fields are what the compressed model stores."""

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> Iterator[Array]:
        """The stored arrays."""
        for f in fields(self):
            value = getattr(self, f.name)
            values = value if isinstance(value, tuple) else (value,)
            yield from (v for v in values if isinstance(v, Array))

    def shared_arrays(self) -> Iterator[Array]:
        """What is stored besides, once for all layers that need it."""
        yield from ()

    @property
    def factors(self) -> tuple[Shape, ...]:
        """Shapes of the chain of weights it computes with; just the layer's own if decoded."""
        return (self.decode().shape,)

    def astype(self, dtype: Any) -> Self:
        """The same with its floating-point arrays in another type."""
        return self.mapped(lambda a: a if a.dtype.kind in "iub" else a.astype(dtype, copy=False))

    def mapped(self, change: Callable[[Array], Array]) -> Self:
        """The same with every array changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(changed, value))
            if isinstance(value, CompressedWeight):
                return value.mapped(change)
            return change(value) if isinstance(value, Array) else value

        return replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})

    @abstractmethod
    def decode(self) -> Array:
        """The weight that the emitted subgraph computes with, in the layer's shape."""

    def integers(self) -> tuple[Array, Array] | None:
        """The weight as int8 numbers times a scale ``(out,)``, where it is exactly that.

        The numbers have the weight's shape; `decode` gives their products with the scales, in the
        weight's type.
        """
        return None

    def emit_integers(self, op: Emitter) -> Array | Value:
        """Nodes that compute these numbers, or the numbers themselves."""
        numbers = self.integers()
        assert numbers is not None
        return numbers[0]

    @abstractmethod
    def scaled(self, gain: Array) -> Self:
        """The same with output channel c multiplied by ``gain[c]``."""

    @abstractmethod
    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        """Emit the subgraph that replaces the layer, bias included, and return its output."""


@dataclass(frozen=True, eq=False)
class DecodedWeight(CompressedWeight):
    """A fitted weight that nodes put together again before the layer runs as it did."""

    @abstractmethod
    def emit_weight(self, op: Emitter, dtype: Any) -> Value:
        """Nodes that compute the weight, in its shape."""

    def emit_rows(self, op: Emitter, indices: Value, dtype: Any) -> Value | None:
        """Nodes that compute the rows of a matrix that a Gather with these indices would pick.

        None, with nothing emitted, where rows cannot be decoded one by one.
        """
        return None

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        return layer.apply(op, x, self.emit_weight(op, layer.weight.dtype), bias=layer.bias)


@dataclass(frozen=True, eq=False)
class Plain(DecodedWeight):
    """An array that stays as it is."""

    weight: Array

    def decode(self) -> Array:
        return self.weight

    def scaled(self, gain: Array) -> Plain:
        column = gain.reshape(-1, *(1,) * (self.weight.ndim - 1))
        return Plain((self.weight * column).astype(self.weight.dtype))

    def emit_weight(self, op: Emitter, dtype: Any) -> Value:
        return self.weight.astype(dtype)


@dataclass(frozen=True)
class Candidate:
    """A setting on a layer's rate-distortion curve.

    Attributes:
        setting: what to fit; None keeps the layer as it is.
        nbytes: of the stored arrays.
        factors: shapes of the weights it computes with, for counting multiplications.
        error: relative squared output error, see `Statistics`.
        weight: the fit, where it is at hand.
    """

    setting: Method | None
    nbytes: int
    factors: tuple[Shape, ...]
    error: float
    weight: CompressedWeight | None = None

    def fitted(self, layer: Layer, statistics: Statistics) -> CompressedWeight:
        """The weight of this setting, fitted anew only if it is not at hand."""
        assert self.setting is not None
        return self.weight or self.setting.fit(layer, statistics)


def all_candidates(job: tuple[Layer, Statistics, Sequence[Method]]) -> list[Candidate]:
    """Every setting of these methods on a layer, whatever process it is in."""
    layer, statistics, methods = job
    layer = layer.read()
    seen = replace(statistics)  # Fits derive more from it, which is let go with the copy.
    return [candidate for method in methods for candidate in method.candidates(layer, seen)]
