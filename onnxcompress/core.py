"""The types the rest of the package is written in.  Imports numpy and nothing else.

    weight + Statistics ── Method.fit ──► CompressedWeight ── emit ──► subgraph

A layer is linear: it multiplies input patches p with a weight, ``y = W p + bias``.  Its error is
measured in the *metric* H, the centred second moment of the patches it reads::

    error = tr((W - Ŵ) H (W - Ŵ)ᵀ) / tr(W H Wᵀ)         H = E[p pᵀ] - E[p] E[p]ᵀ + ridge I

The mean is left out because the bias can absorb it; the ridge stands for inputs not yet seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import ceil, prod
from typing import Any, ClassVar, Protocol, Self

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]
Value = Any  # a tensor of the graph being built; only graph looks inside

RIDGE = 0.003  # share of the mean input variance that is added in every direction
SKETCH_ABOVE = 8192  # fan-in from which a second moment is kept as a sketch
SKETCH_ROWS = 2048  # of one that is,
SKETCH_BYTES = 1 << 28  # or fewer, so that they take no more than this


def sketch_rows(fan_in: int) -> int:
    """Rows of the sketch of a second moment: fewer where they are long."""
    return max(1, min(SKETCH_ROWS, SKETCH_BYTES // (4 * fan_in)))


def moment_bytes(layer: Layer) -> int:
    """Bytes that the `Statistics` of a layer take at most."""
    fan_in = layer.fan_in
    rows = fan_in if fan_in <= SKETCH_ABOVE else 2 * sketch_rows(fan_in)
    return 4 * layer.groups * fan_in * rows


class Emitter(Protocol):
    """Adds ONNX nodes: ``y = op.Conv(x, weight, strides=[2, 2])``.  Arrays become initializers."""

    def __getattr__(self, op_type: str) -> Any: ...


@dataclass(frozen=True, eq=False)
class Unread:
    """A weight that stays in its file until `Layer.read`; of an array it has what says its size."""

    shape: Shape
    dtype: Any
    load: Callable[[], Array]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.load().astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear node with a constant weight, detached from its graph.

    Attributes:
        name: of the node; the key of every dictionary of the pipe.
        op_type: Conv, ConvTranspose, Gemm or MatMul; Constant for a large constant that other
            nodes read, whose rows (out, in) are often all that is known of it.
        weight: output first, however the node stores it: ``(out, in // groups, *kernel)`` for
            the convolutions, ``(out, in)`` for Gemm (alpha included) and MatMul.  Of a large one
            in a file only shape and type are known, see `Unread`; methods are given layers that
            are read.
        bias: ``(out,)``; a Value where the model computes it; None where there is none.
        attributes: the node's: strides, pads, dilations, group, auto_pad, output_padding,
            transA, beta (of a computed bias); ``left=1`` for a MatMul that computes ``W @ x``;
            ``shape`` of a Constant, and ``group`` where it is known what it is multiplied with.
        shared: name of the first layer that reads an equal weight, itself where there is no other.
        stored: bytes that the weight takes in the file; 0 where they are those of the array.
    """

    name: str
    op_type: str
    weight: Array
    bias: Array | Value | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shared: str = ""
    stored: int = 0

    def read(self) -> Self:
        """The layer with its weight in memory."""
        weight: Any = self.weight
        return replace(self, weight=weight.load()) if isinstance(weight, Unread) else self

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in the file."""
        return self.stored or self.weight.nbytes

    @property
    def correctable(self) -> bool:
        """Whether there is a bias that can be changed, or a place for one."""
        return isinstance(self.bias, Array | None) and self.op_type != "Constant"

    @property
    def fan_in(self) -> int:
        """Entries of a patch of one group."""
        return prod(self.weight.shape[1:])

    @property
    def groups(self) -> int:
        return self.attributes.get("group", 1)

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight.shape[2:]

    @property
    def grouped(self) -> Array:
        """The weight as one matrix a group, ``(groups, out // groups, fan_in)``."""
        return self.weight.reshape(self.groups, len(self.weight) // self.groups, -1)

    def apply(
        self,
        op: Emitter,
        x: Value,
        *weights: Array | Value,
        bias: Any = None,
        shapes: Sequence[Shape] = (),
    ) -> Value:
        """Emit this layer with another weight, or as a chain of layers with these weights.

        In a chain, the stride, dilation and padding of a kernel axis go to the weight that
        spans this axis, and the bias to the last.

        Args:
            shapes: of the weights of a chain, where nodes compute them.
        """
        known = [weight.shape for weight in weights if isinstance(weight, Array)]
        shapes = shapes or (known if len(known) == len(weights) else [self.weight.shape])
        steps = zip(weights, shapes, self._axes(shapes), strict=True)
        for position, (weight, shape, axes) in enumerate(steps):
            last = bias if position == len(weights) - 1 else None
            x = self._emit(op, x, weight, shape, axes, last, first=position == 0)
        return x

    def macs(self, input_shape: Sequence[int], *shapes: Shape) -> int:
        """Multiplications of the layer, or of a chain of layers with weights of these shapes."""
        shapes = shapes or (self.weight.shape,)
        if self.op_type == "Constant":
            return 0
        if self.op_type in ("Gemm", "MatMul"):
            rows = prod(input_shape) // self.weight.shape[1]
            return rows * sum(map(prod, shapes))
        batch, _, *size = input_shape
        total = 0
        for shape, axes in zip(shapes, self._axes(shapes), strict=True):
            out = [self._length(n, a, shape[2 + a], a in axes) for a, n in enumerate(size)]
            places = size if self.op_type == "ConvTranspose" else out
            total += batch * prod(places) * prod(shape)
            size = out
        return total

    def _axes(self, shapes: Sequence[Shape]) -> list[set[int]]:
        """For every weight of a chain, the kernel axes whose attributes it takes."""
        if len(shapes) == 1:
            return [set(range(len(self.kernel)))]
        owner = {
            axis: next(i for i, shape in enumerate(shapes) if shape[2 + axis] == length)
            for axis, length in enumerate(self.kernel)
        }
        return [{axis for axis in owner if owner[axis] == i} for i in range(len(shapes))]

    def _emit(
        self,
        op: Emitter,
        x: Value,
        weight: Array | Value,
        shape: Shape,
        axes: set[int],
        bias: Any,
        first: bool,
    ) -> Value:
        extra = () if bias is None else (bias,)
        if self.op_type == "Constant":
            return op.Reshape(weight, np.array(self.attributes["shape"]))
        if self.op_type == "Gemm":
            attributes = {"transA": self.attributes.get("transA", 0)} if first else {}
            if bias is not None and not isinstance(bias, Array):
                attributes["beta"] = self.attributes.get("beta", 1.0)
            return op.Gemm(x, weight, *extra, **attributes, transB=1)
        if self.op_type == "MatMul":
            left = self.attributes.get("left")
            y = op.MatMul(weight, x) if left else op.MatMul(x, _swap(op, weight))
            if bias is None:
                return y
            return op.Add(y, bias[:, None] if left else bias)
        if self.op_type == "ConvTranspose":
            weight = _input_first(op, weight, self.groups, shape)
        return getattr(op, self.op_type)(x, weight, *extra, **self._attributes(axes))

    def _attributes(self, axes: set[int]) -> dict[str, Any]:
        """The attributes of a convolution that spans only these kernel axes."""
        rank = len(self.kernel)
        if len(axes) == rank:
            return dict(self.attributes)
        neutral = {"strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
        result = {}
        for key, value in self.attributes.items():
            if key == "output_shape":
                continue  # says nothing of a single axis
            if key in neutral:
                value = [v if i % rank in axes else neutral[key] for i, v in enumerate(value)]
            result[key] = value
        return result

    def _length(self, length: int, axis: int, kernel: int, spans: bool) -> int:
        """Output size on one axis."""
        if not spans:
            return length

        def of(key: str, default: int, index: int = axis) -> int:
            return self.attributes.get(key, [default] * 2 * len(self.kernel))[index]

        stride, extent = of("strides", 1), of("dilations", 1) * (kernel - 1) + 1
        automatic = self.attributes.get("auto_pad", "NOTSET")
        pads = of("pads", 0) + of("pads", 0, axis + len(self.kernel))
        if self.op_type == "ConvTranspose":
            if "output_shape" in self.attributes:
                return self.attributes["output_shape"][axis]
            full = stride * (length - 1) + of("output_padding", 0) + extent
            if automatic.startswith("SAME"):
                return min(full, length * stride)
            return full - (0 if automatic == "VALID" else pads)
        if automatic.startswith("SAME"):
            return ceil(length / stride)
        return (length + (0 if automatic == "VALID" else pads) - extent) // stride + 1


def _swap(op: Emitter, weight: Array | Value) -> Any:
    """A matrix transposed: at once where it is an array, by a node where it is computed."""
    if isinstance(weight, Array):
        return np.ascontiguousarray(weight.T)
    return op.Transpose(weight, perm=[1, 0])


def _input_first(op: Emitter, weight: Array | Value, groups: int, shape: Sequence[int]) -> Any:
    """``(out, in // groups, *kernel)`` as ConvTranspose stores it: ``(in, out // groups, ...)``."""
    if isinstance(weight, Array):
        out, inputs, *kernel = weight.shape
        split = weight.reshape(groups, out // groups, inputs, *kernel)
        return np.ascontiguousarray(split.swapaxes(1, 2).reshape(-1, out // groups, *kernel))
    out, inputs, *kernel = shape
    split = op.Reshape(weight, np.array([groups, out // groups, inputs, *kernel]))
    swapped = op.Transpose(split, perm=[0, 2, 1, *range(3, 3 + len(kernel))])
    return op.Reshape(swapped, np.array([-1, out // groups, *kernel]))


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
        derived: what fits have computed from these, for the next fit; a copy starts without it.
    """

    count: int
    total: Array
    moment: Array | None = None
    rows: Array | None = None
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
        if not self.count or not other.count:
            return self if self.count else other
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
            for row, sign in enumerate(signs):  # without another copy
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
        if self.rows is not None:  # which are centred
            energy, variance = 2 * energy - variance, energy
        rounding = 4 * np.finfo(self.total.dtype).eps * energy / self.total.size**0.5
        trace, square = max(variance, 0.0) / groups, self._square() / groups
        spread = (self.count + 1 - 2 / fan_in) * (square - trace**2 / fan_in)
        wanted = (1 - 2 / fan_in) * square + trace**2
        share = min(1.0, wanted / spread) if spread > 0 else float(trace > 0)
        return max(max(RIDGE, share) * variance / self.total.size, float(rounding)) + 1e-12

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


@dataclass(frozen=True)
class Method(ABC):
    """A way to compress a weight.  The fields are settings; one left at None is open."""

    opset: ClassVar[int] = 7  # the least in which what it emits is valid
    faster: ClassVar[bool] = False  # whether what it makes needs fewer multiplications
    auto: ClassVar[bool] = True  # whether it is one of those that ``auto`` stands for
    quick: ClassVar[bool] = False  # whether all its settings take but a few calls of numpy

    @abstractmethod
    def settings(self, layer: Layer) -> Sequence[Self]:
        """Settings to try on this layer, with nothing left open, smallest result first."""

    @abstractmethod
    def fit(self, layer: Layer, statistics: Statistics) -> CompressedWeight:
        """Approximate the layer's weight so that its output changes least."""

    def blank(self, layer: Layer) -> CompressedWeight:
        """A weight of this setting's structure; its values do not matter, but all differ."""
        return self.fit(layer.read(), Statistics.white(layer))

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
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        pairs = [f"{key}={_spell(value)}" for key, value in given.items() if value is not None]
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
    seen = replace(statistics)  # fits derive more from it, which is let go with the copy
    return [found for method in methods for found in method.candidates(layer, seen)]
