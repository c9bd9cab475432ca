"""The nested basis of one unfolding of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.conjugate_gradients import conjugate_gradients
from onnxcompress.methods.lookup.gram import gram_root, triangular_inverse

if TYPE_CHECKING:
    from onnxcompress.methods.basis import Basis

ALTERNATIONS = 2  # In so many rounds, both weights of a chain are fitted in turn.
STEPS = 8  # Each round has at most so many steps of conjugate gradients.
# All rounds take at most so many multiplications for one layer, which bounds the time.
ALTERNATION_WORK = 2**35


class Unfolding:
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
        # These are the places of a seed's entries, in each row of a block.
        self._places = places.reshape(-1, self.block)
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
        if fan_in < out:  # The smaller side of the same matrix gives the same components.
            identity = np.broadcast_to(np.eye(fan_in, dtype=weight.dtype), (groups, fan_in, fan_in))
            metric = self._statistics.times(identity).astype(np.float64)
            roots = np.stack([gram_root(h, 1e-9) for h in metric])
            weight = roots.swapaxes(1, 2) @ (weight.swapaxes(1, 2) @ weight)
            moment = weight @ roots
        else:
            moment = self._statistics.times(weight) @ weight.swapaxes(1, 2)
        _, vectors = np.linalg.eigh(moment.astype(np.float64))  # Their eigenvalues ascend.
        rows = vectors[:, :, ::-1].swapaxes(1, 2) @ weight
        size = np.sqrt(np.sum(np.square(rows), 2, keepdims=True))
        return (rows / np.maximum(size, 1e-30)).astype(self._weight.dtype)

    def _directions(self, metrics: Array) -> Array:
        """Spatial, tucker: what of the kept axes the weight uses, in their own metric."""
        result = []
        for w, metric in zip(self._weight, metrics, strict=True):
            root = gram_root(metric.copy(), 1e-9)
            seen = root.T @ w[:, self._places].swapaxes(0, 1).reshape(len(metric), -1)
            _, vectors = np.linalg.eigh(seen @ seen.T)
            result.append((vectors.T @ triangular_inverse(root))[::-1])
        return np.stack(result).astype(self._weight.dtype)

    def _solve(self, seeds: Array) -> None:
        """Least squares of the coefficients for these seeds."""
        images = self._images(seeds)
        grams = self._products(images, seeds)
        self.seeds, self.whitening, self.z = seeds, [], []
        for h, gram, w in zip(images, grams, self._weight, strict=True):
            noise = 1e-13 if h.dtype == np.float64 else 1e-7
            whitening = triangular_inverse(gram_root(gram.astype(np.float64), noise))
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
            return  # The filter unfolding is optimal already.
        rows = self.seeds.shape[1] * self.block
        step = len(self._weight) * rows * self._weight.shape[2] * (rows + self.seeds.shape[2])
        steps = min(STEPS, ALTERNATION_WORK // (ALTERNATIONS * step))
        for _ in range(ALTERNATIONS if steps > 1 else 0):
            w = np.stack(list(self._coefficients(setting))).astype(self._weight.dtype)
            turned = w.swapaxes(1, 2) / np.maximum(
                np.sum(np.square(w), (1, 2), keepdims=True), 1e-30
            )
            gram = turned @ w
            rows = turned @ self._weight

            def image(seeds: Array, gram: Array = gram) -> Array:
                return self._gathered(gram @ self._images(seeds))

            right = self._gathered(self._statistics.times(rows))
            rounding = (4 * np.finfo(right.dtype).eps) ** 2 * np.square(right, dtype=np.float64)
            least = rounding.sum((1, 2), keepdims=True)  # Rounding leaves this of a residual.
            residual = right - image(self.seeds)
            self._solve(conjugate_gradients(image, residual, self.seeds, steps, least=least))

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


def _largest(setting: Basis, layer: Layer) -> int:
    """The most seeds that any rank of this unfolding uses."""
    tucker = setting.unfolding == "tucker"
    if rank := setting.input_rank if tucker else setting.rank:
        return rank
    settings = replace(setting, rank=None, input_rank=None).settings(layer)
    return max(map(_blocks, settings), default=1)


def _orthonormal(rows: Array) -> tuple[Array, Array]:
    """Orthonormal rows q and the r with ``rows = rᵀ q`` that the next weight takes in."""
    q, r = np.linalg.qr(rows.T.astype(np.float64))
    return q.T, r
