"""Basis: a layer becomes a chain of smaller layers, so the model is smaller and faster.

Every unfolding writes the weight W (out, fan_in) as ``coefficients @ basis`` and differs only in
what a row of the basis may look like::

    filter   any filter (paper)                      k x k to rank, 1x1 to out
    spatial  shifts of rank one-dimensional filters  k x 1 to rank, 1 x k to out; or axes exchanged
    tucker   filters of a few input combinations     1x1 to input_rank, k x k to rank, 1x1 to out

The rows of the basis come in nested blocks A_1, A_2, ..., most useful first.  Given the first r
blocks A, the best coefficients in the metric H of the inputs are least squares, and with
``A H Aᵀ = L Lᵀ`` one triangular solve gives the error of every r at once::

    Z = L⁻¹ A H Wᵀ        coefficients = Zᵀ L⁻¹        error(r) = 1 - |first r blocks of Z|² / |W|²

* filter: the blocks are ``uᵀ W``, u the eigenvectors of ``W H Wᵀ`` (optimal: Zhang et al. 2016).
* spatial: the left singular vectors of ``Mᵀ W'``, W' (in * k_y, out * k_x) and ``M Mᵀ`` the metric
  of the one-dimensional patches, shifted to every place on the other axis.
* tucker: the same for the input channels alone, then the filter unfolding of ``Zᵀ L⁻¹``.

Without calibration data H is the identity: truncated singular value decompositions of W.

References:
    Tayyab, Khan, Mahalanobis. Compressing deep CNNs using basis representation and spectral
    fine-tuning. ICIP 2021. https://arxiv.org/abs/2105.10436 (filter, and the energy rule)
    Zhang, Zou, He, Sun. Accelerating very deep convolutional networks for classification and
    detection. TPAMI 2016. https://arxiv.org/abs/1505.06798 (the fit on the responses)
    Jaderberg, Vedaldi, Zisserman. BMVC 2014. https://arxiv.org/abs/1405.3866 (spatial)
    Kim et al. ICLR 2016. https://arxiv.org/abs/1511.06530 (tucker)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from math import prod
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np
from einops import einsum, rearrange

from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import Candidate, CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.basis_forms.unfolding import Unfolding

INPUT_RANKS = 8  # tucker tries multiples of an eighth of the inputs.
WIDEST_INPUT_RANK = 5 / 8  # A larger share of the inputs never was on any layer's frontier.


@dataclass(frozen=True)
class Basis(Method):
    """Share a few basis filters between all the outputs of a layer.  Smaller and faster.

    Attributes:
        unfolding: filter, spatial or tucker.
        rank: basis filters (of a group); for tucker, outputs of the k x k layer.
        first: for spatial, the kernel axes of the first layer: 0 vertical, 1 horizontal.
        input_rank: for tucker, inputs of the k x k layer.
        energy: the paper's rule: the smallest rank of the filter unfolding that keeps this share
            of the squared singular values of the weight.
    """

    auto: ClassVar[bool] = True
    faster: ClassVar[bool] = True
    quick: ClassVar[bool] = True

    unfolding: Literal["filter", "spatial", "tucker"] | None = None
    rank: int | None = None
    first: tuple[int, ...] | None = None
    input_rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.unfolding not in (None, "filter", "spatial", "tucker"):
            raise MethodError(f"unfolding must be filter, spatial or tucker, not {self.unfolding}")
        for name in ("rank", "input_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MethodError(f"{name} must be at least 1, got {value}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise MethodError(f"energy must be above 0 and at most 1, got {self.energy}")

    @property
    def fixed(self) -> bool:
        return self.rank is not None or self.energy is not None

    def declined(self, layer: Layer) -> str | None:
        groups, out, fan_in = layer.grouped.shape
        if layer.op_type == "Constant":
            return "it is a constant that does not multiply an input by itself"
        if groups > 1 and out == 1:
            return "it is a depthwise convolution, which has no filters to share"
        if min(out, fan_in) == 1:
            return "it has a single input or output"
        return super().declined(layer)

    def settings(self, layer: Layer) -> list[Basis]:
        settings = [
            setting
            for unfolded in self._unfoldings(layer)
            for setting in unfolded._ranks(layer)
            if sum(map(prod, setting._shapes(layer))) < layer.weight.size
        ]
        return sorted(settings, key=lambda setting: sum(map(prod, setting._shapes(layer))))

    def fit(self, layer: Layer, statistics: Statistics) -> BasisWeight:
        assert self.rank is not None
        weight = layer.grouped.astype(np.result_type(layer.weight, np.float32))
        unfolding = Unfolding(self, layer, weight, statistics)
        unfolding.alternate(self)
        factors = [np.concatenate(parts) for parts in zip(*unfolding.factors(self), strict=True)]
        shapes = self._shapes(layer)
        return BasisWeight(
            tuple(
                np.ascontiguousarray(f.reshape(s).astype(layer.weight.dtype))
                for f, s in zip(factors, shapes, strict=True)
            )
        )

    def blank(self, layer: Layer) -> BasisWeight:
        rng = np.random.default_rng([crc32(layer.name.encode()), layer.weight.size])
        shapes = self._shapes(layer)
        return BasisWeight(
            tuple(rng.random(s, np.float32).astype(layer.weight.dtype) for s in shapes)
        )

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        weight = layer.grouped.astype(np.result_type(layer.weight, np.float32))
        energy = statistics.energy(layer.weight.astype(weight.dtype))
        by_unfolding: dict[Basis, list[Basis]] = {}
        for setting in self.settings(layer):
            key = replace(setting, rank=None, input_rank=None)
            by_unfolding.setdefault(key, []).append(setting)
        for key, settings in by_unfolding.items():
            unfolding = Unfolding(key, layer, weight, statistics)
            for setting in settings:
                shapes = setting._shapes(layer)
                error = max(0.0, 1 - unfolding.explained(setting) / energy) if energy else 0.0
                nbytes = layer.weight.itemsize * sum(map(prod, shapes))
                yield Candidate(setting, nbytes, shapes, error)

    def _unfoldings(self, layer: Layer) -> Iterator[Basis]:
        """Every unfolding that this setting leaves open and the layer allows."""
        _, out, fan_in = layer.grouped.shape
        if min(out, fan_in) == 1 or layer.op_type == "Constant":
            return
        wide = [axis for axis, length in enumerate(layer.kernel) if length > 1]
        if self.energy is not None or self.unfolding in (None, "filter"):
            yield replace(self, unfolding="filter")
        if self.energy is not None or not wide or "output_shape" in layer.attributes:
            return
        if self.unfolding in (None, "spatial"):
            for size in range(1, len(wide)):
                for first in combinations(wide, size):
                    if self.first in (None, first):
                        yield replace(self, unfolding="spatial", first=first)
        if self.unfolding in (None, "tucker") and layer.weight.shape[1] > 1:
            yield replace(self, unfolding="tucker")

    def _ranks(self, layer: Layer) -> Iterator[Basis]:
        """Every rank that this setting leaves open."""
        _, out, fan_in = layer.grouped.shape
        if self.energy is not None:
            yield replace(self, rank=_rank_of_energy(layer.grouped, self.energy), energy=None)
            return
        inputs = layer.weight.shape[1]
        limit = min(out, fan_in)
        if self.unfolding == "spatial":
            assert self.first is not None
            first = prod(layer.kernel[axis] for axis in self.first)
            limit = min(inputs * first, out * prod(layer.kernel) // first)
        ranks = [self.rank] if self.rank else _steps(limit, len(layer.weight))
        if self.unfolding != "tucker":
            yield from (replace(self, rank=rank) for rank in ranks if rank <= limit)
            return
        step = max(1, inputs // INPUT_RANKS)
        widest = max(step, int(inputs * WIDEST_INPUT_RANK))
        input_ranks = [self.input_rank] if self.input_rank else range(step, widest + 1, step)
        for input_rank in input_ranks:
            for rank in ranks:
                if rank <= min(out, input_rank * prod(layer.kernel)):
                    yield replace(self, rank=rank, input_rank=input_rank)

    def _shapes(self, layer: Layer) -> tuple[Shape, ...]:
        """Shapes of the weights of the chain."""
        assert self.rank is not None
        groups, (out, inputs, *kernel) = layer.groups, layer.weight.shape
        point = (1,) * len(kernel)
        if self.unfolding == "filter":
            return (groups * self.rank, inputs, *kernel), (out, self.rank, *point)
        if self.unfolding == "spatial":
            first = [k if a in (self.first or ()) else 1 for a, k in enumerate(kernel)]
            second = [1 if a in (self.first or ()) else k for a, k in enumerate(kernel)]
            return (groups * self.rank, inputs, *first), (out, self.rank, *second)
        assert self.input_rank is not None
        return (
            (groups * self.input_rank, inputs, *point),
            (groups * self.rank, self.input_rank, *kernel),
            (out, self.rank, *point),
        )


def _steps(limit: int, out: int) -> Sequence[int]:
    """Ranks to try: all in small layers, multiples of 4, 8 or 16 in wide ones."""
    step = max(1, min(16, 1 << max(0, (out // 16).bit_length() - 1)))
    return range(step, limit + 1, step)


def _rank_of_energy(weight: Array, energy: float) -> int:
    """Smallest rank that keeps this share of the squared singular values in every group."""
    ranks = []
    for w in weight:
        values = np.square(np.linalg.svd(w.astype(np.float64), compute_uv=False))
        ranks.append(1 + int(np.searchsorted(np.cumsum(values) / values.sum(), energy - 1e-12)))
    return min(max(ranks), min(weight.shape[1:]))


@dataclass(frozen=True, eq=False)
class BasisWeight(CompressedWeight):
    """A chain of weights, each mapping its inputs to fewer or more channels.

    Attributes:
        chain: ``(out_i, in_i // groups, *kernel_i)``; a kernel axis is spanned by one of them and
            has length 1 in the others.
    """

    chain: tuple[Array, ...]

    @property
    def factors(self) -> tuple[Shape, ...]:
        return tuple(weight.shape for weight in self.chain)

    def decode(self) -> Array:
        return reduce(_compose, self.chain)

    def scaled(self, gain: Array) -> BasisWeight:
        *rest, last = self.chain
        shape = (-1, *(1,) * (last.ndim - 1))
        return BasisWeight((*rest, (last * gain.reshape(shape)).astype(last.dtype)))

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        return layer.apply(op, x, *self.chain, bias=layer.bias)


def _compose(inner: Array, outer: Array) -> Array:
    """The weight that equals two in a row: ``W[o] = sum over r of outer[o, r] inner[r]``."""
    groups = inner.shape[0] // outer.shape[1]
    product = einsum(
        rearrange(outer, "(g o) r ... -> g o r (...)", g=groups),
        rearrange(inner, "(g r) i ... -> g r i (...)", g=groups),
        "g o r b, g r i a -> g o i a b",
    )
    lengths = {f"a{n}": k for n, k in enumerate(inner.shape[2:])}
    lengths |= {f"b{n}": k for n, k in enumerate(outer.shape[2:])}
    a, b = ([f"{name}{n}" for n in range(inner.ndim - 2)] for name in "ab")
    pairs = " ".join(f"({x} {y})" for x, y in zip(a, b, strict=True))  # One of the two is 1.
    pattern = f"g o i ({' '.join(a)}) ({' '.join(b)}) -> (g o) i {pairs}"
    return rearrange(product, pattern, **lengths)
