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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from math import prod
from typing import ClassVar, Literal
from zlib import crc32

import numpy as np
from einops import einsum, rearrange

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import Candidate, CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.cholesky import cholesky, inverse

INPUT_RANKS = 8  # tucker tries multiples of an eighth of the inputs
ALTERNATIONS = 2  # rounds in which both weights of a chain are fitted in turn
STEPS = 8  # of conjugate gradients in each round
ALTERNATION_WORK = 2**35  # multiplications spent on it for one layer, at most
WIDEST_INPUT_RANK = 5 / 8  # of the inputs: wider ones never were on any layer's frontier


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

    faster: ClassVar[bool] = True
    quick: ClassVar[bool] = True

    unfolding: Literal["filter", "spatial", "tucker"] | None = None
    rank: int | None = None
    first: tuple[int, ...] | None = None
    input_rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.unfolding not in (None, "filter", "spatial", "tucker"):
            raise ValueError(f"unfolding must be filter, spatial or tucker, not {self.unfolding}")
        for name in ("rank", "input_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy must be above 0 and at most 1, got {self.energy}")

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
        found = [
            setting
            for unfolded in self._unfoldings(layer)
            for setting in unfolded._ranks(layer)
            if sum(map(prod, setting._shapes(layer))) < layer.weight.size
        ]
        return sorted(found, key=lambda setting: sum(map(prod, setting._shapes(layer))))

    def fit(self, layer: Layer, statistics: Statistics) -> BasisWeight:
        assert self.rank is not None
        weight = layer.grouped.astype(np.result_type(layer.weight, np.float32))
        unfolding = _Unfolding(self, layer, weight, statistics)
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
            unfolding = _Unfolding(key, layer, weight, statistics)
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
        given = [self.input_rank] if self.input_rank else range(step, widest + 1, step)
        for input_rank in given:
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


class _Unfolding:
    """The nested basis of one unfolding of one layer, shared by the fits of all its ranks.

    A row of the basis is a *seed*, which spans some axes of the patch, put at one place of the
    others; a block is all rows of one seed.

    Attributes, one entry a group:
        seeds: ``(n, kept)``, the chain's first weight, most useful first.
        root: the Cholesky factor L of the module's formulas, for all blocks.
        z: ``(n * block, out)``, Z of the module's formulas.
    """

    def __init__(self, setting: Basis, layer: Layer, weight: Array, statistics: Statistics) -> None:
        patch = (layer.weight.shape[1], *layer.kernel)
        keep = {
            "filter": tuple(range(len(patch))),
            "spatial": (0, *(1 + axis for axis in setting.first or ())),
            "tucker": (0,),
        }[setting.unfolding or "filter"]
        rest = [axis for axis in range(len(patch)) if axis not in keep]
        self.block = prod(patch[axis] for axis in rest)
        places = np.arange(prod(patch)).reshape(patch).transpose(*keep, *rest)
        self._places = places.reshape(-1, self.block)  # of a seed's entries, in each row of a block
        self._weight, self._statistics = weight, statistics
        if setting.unfolding == "filter":
            seeds = self._responses()
        else:
            seeds = self._directions(statistics.partial(patch, keep))
        self._solve(seeds[:, : _largest(setting, layer)])

    def _responses(self) -> Array:
        """Filter: the principal components of the layer's responses."""
        weight = self._weight
        groups, out, fan_in = weight.shape
        if fan_in < out:  # the same components from the smaller side of the same matrix
            identity = np.broadcast_to(np.eye(fan_in, dtype=weight.dtype), (groups, fan_in, fan_in))
            metric = self._statistics.times(identity).astype(np.float64)
            roots = np.stack([cholesky(h, 1e-9) for h in metric])
            weight = roots.swapaxes(1, 2) @ (weight.swapaxes(1, 2) @ weight)
            moment = weight @ roots
        else:
            moment = self._statistics.times(weight) @ weight.swapaxes(1, 2)
        _, vectors = np.linalg.eigh(moment.astype(np.float64))  # ascending order
        rows = vectors[:, :, ::-1].swapaxes(1, 2) @ weight
        size = np.sqrt(np.sum(np.square(rows), 2, keepdims=True))
        return (rows / np.maximum(size, 1e-30)).astype(self._weight.dtype)

    def _directions(self, metrics: Array) -> Array:
        """Spatial, tucker: what of the kept axes the weight uses, in their own metric."""
        result = []
        for w, metric in zip(self._weight, metrics, strict=True):
            root = cholesky(metric.copy(), 1e-9)
            seen = root.T @ w[:, self._places].swapaxes(0, 1).reshape(len(metric), -1)
            _, vectors = np.linalg.eigh(seen @ seen.T)
            result.append((vectors.T @ inverse(root))[::-1])
        return np.stack(result).astype(self._weight.dtype)

    def _solve(self, seeds: Array) -> None:
        """Least squares of the coefficients for these seeds."""
        images = self._images(seeds)
        grams = self._products(images, seeds)
        self.seeds, self.whitening, self.z = seeds, [], []
        for h, gram, w in zip(images, grams, self._weight, strict=True):
            noise = 1e-13 if h.dtype == np.float64 else 1e-7
            whitening = inverse(cholesky(gram.astype(np.float64), noise))
            self.whitening.append(whitening)
            self.z.append(whitening @ (h @ w.T).astype(np.float64))
        self._spectra: dict[int, list[tuple[Array, Array]]] = {}

    def _images(self, seeds: Array) -> Array:
        """``A H``, ``(groups, n * block, fan_in)``, A being every seed at every place."""
        parts = [self._statistics.times(seeds, columns) for columns in self._places.T]
        return np.stack(parts, axis=2).reshape(len(seeds), -1, self._places.size)

    def _products(self, images: Array, seeds: Array) -> Array:
        """``images Aᵀ``, ``(groups, rows, n * block)``."""
        parts = [images[:, :, columns] @ seeds.swapaxes(1, 2) for columns in self._places.T]
        return np.stack(parts, axis=3).reshape(*images.shape[:2], -1)

    def _gathered(self, rows: Array) -> Array:
        """``rows`` at every place, summed: ``(groups, n, kept)``."""
        rows = rows.reshape(len(rows), -1, self.block, self._places.size)
        parts = [rows[:, :, place, columns] for place, columns in enumerate(self._places.T)]
        return np.sum(parts, axis=0, dtype=rows.dtype)

    def alternate(self, setting: Basis) -> None:
        """Fit the seeds to the coefficients, then the coefficients to the seeds, and again.

        The error is quadratic in the seeds; a few conjugate gradient steps lower it.
        """
        if self.block == 1:
            return  # the filter unfolding is optimal already
        rows = self.seeds.shape[1] * self.block
        step = len(self._weight) * rows * self._weight.shape[2] * (rows + self.seeds.shape[2])
        steps = min(STEPS, ALTERNATION_WORK // (ALTERNATIONS * step))
        for _ in range(ALTERNATIONS if steps > 1 else 0):
            w = np.stack(list(self._coefficients(setting))).astype(self._weight.dtype)
            turned = w.swapaxes(1, 2) / np.maximum(
                np.sum(np.square(w), (1, 2), keepdims=True), 1e-30
            )
            gram = turned @ w
            wanted = turned @ self._weight

            def image(seeds: Array, gram: Array = gram) -> Array:
                return self._gathered(gram @ self._images(seeds))

            right = self._gathered(self._statistics.times(wanted))
            self._solve(_conjugate_gradients(image, right, self.seeds, steps))

    def explained(self, setting: Basis) -> float:
        """Output variance that the chain of this rank reproduces."""
        if setting.unfolding == "tucker":
            return sum(float(values[: setting.rank].sum()) for values, _ in self._spectrum(setting))
        count = _blocks(setting) * self.block
        return sum(float(np.sum(np.square(z[:count]))) for z in self.z)

    def factors(self, setting: Basis) -> Iterator[list[Array]]:
        """The weights of the chain, for every group, flat."""
        count = _blocks(setting)
        for g, w in enumerate(self._coefficients(setting)):
            basis, r = _orthonormal(self.seeds[g, :count])
            w = np.einsum("rs,osb->orb", r, w.reshape(len(w), count, self.block))
            if setting.unfolding != "tucker":
                yield [basis, w]
                continue
            _, vectors = self._spectrum(setting)[g]
            top = vectors[:, : setting.rank]
            core, r = _orthonormal(top.T @ w.reshape(len(w), -1))
            yield [basis, core, top @ r.T]

    def _coefficients(self, setting: Basis) -> Iterator[Array]:
        """What the rows of the basis are multiplied with, ``(out, blocks * block)``, by group."""
        n = _blocks(setting) * self.block
        for g, (whitening, z) in enumerate(zip(self.whitening, self.z, strict=True)):
            w = z[:n].T @ whitening[:n, :n]
            if setting.unfolding == "tucker":
                top = self._spectrum(setting)[g][1][:, : setting.rank]
                w = top @ (top.T @ w)
            yield w

    def _spectrum(self, setting: Basis) -> list[tuple[Array, Array]]:
        """Tucker: output variances and directions that the input rank leaves, largest first."""
        count = _blocks(setting)
        if count not in self._spectra:
            parts = [z[: count * self.block] for z in self.z]
            pairs = [np.linalg.eigh(z.T @ z) for z in parts]
            self._spectra[count] = [(values[::-1], vectors[:, ::-1]) for values, vectors in pairs]
        return self._spectra[count]


def _blocks(setting: Basis) -> int:
    """How many seeds this setting uses."""
    count = setting.input_rank if setting.unfolding == "tucker" else setting.rank
    assert count is not None
    return count


def _conjugate_gradients(
    image: Callable[[Array], Array], right: Array, start: Array, steps: int
) -> Array:
    """Lower ``x image(x) / 2 - x right`` from ``start``, each group by itself (Hestenes 1952)."""

    def dot(a: Array, b: Array) -> Array:
        return np.einsum("gnk,gnk->g", a, b, dtype=np.float64)[:, None, None]

    x, residual = start, right - image(start)
    direction, square = residual, dot(residual, residual)
    least = (4 * np.finfo(start.dtype).eps) ** 2 * dot(right, right)  # what rounding leaves
    for _ in range(steps):
        product = image(direction)
        curve = dot(direction, product)
        going = (square > least) & (curve > 0)
        length = np.where(going, square / np.where(going, curve, 1), 0)
        x = (x + length * direction).astype(start.dtype)
        residual = (residual - length * product).astype(start.dtype)
        previous, square = square, dot(residual, residual)
        turn = np.where(going, square / np.where(going, previous, 1), 0)
        direction = (residual + turn * direction).astype(start.dtype)
    return x


def _largest(setting: Basis, layer: Layer) -> int:
    """The most seeds that any rank of this unfolding uses."""
    tucker = setting.unfolding == "tucker"
    if given := setting.input_rank if tucker else setting.rank:
        return given
    settings = replace(setting, rank=None, input_rank=None).settings(layer)
    return max(map(_blocks, settings), default=1)


def _orthonormal(rows: Array) -> tuple[Array, Array]:
    """Orthonormal rows q and the r with ``rows = rᵀ q`` that the next weight takes in."""
    q, r = np.linalg.qr(rows.T.astype(np.float64))
    return q.T, r


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
    pairs = " ".join(f"({x} {y})" for x, y in zip(a, b, strict=True))  # one of the two is 1
    pattern = f"g o i ({' '.join(a)}) ({' '.join(b)}) -> (g o) i {pairs}"
    return rearrange(product, pattern, **lengths)
