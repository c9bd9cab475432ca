"""A table of the layer's own: the least squares of given codes, by conjugate gradients.

A row of the table that no code picks is moved to the piece that errs most.
"""

from __future__ import annotations

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.methods.lookup.conjugate_gradients import conjugate_gradients
from onnxcompress.methods.lookup.kmeans import largest
from onnxcompress.methods.lookup.row_fit import RowFit, State
from onnxcompress.methods.lookup.tables import in_bytes

STEPS = 12  # Conjugate gradients take so many steps.


def learn_table(fit: RowFit, state: State) -> State:
    """Change the table of a fit to the best one for these codes, and the state with it."""
    codes = [c.ravel() for c in state.codes]
    sizes = [state.scale[:, :, b.columns].reshape(-1, fit.width) for b in fit.blocks]
    pairs = zip(codes, sizes, strict=True)
    weights = sum(np.bincount(c, s[:, 0] ** 2, len(fit.table)) for c, s in pairs)
    unused = np.flatnonzero(weights == 0)
    weights = np.maximum(weights, 1e-12 * np.max(weights))[:, None]
    table = _least_squares(fit, state, codes, sizes, weights)
    if fit.width > 1:  # Single values stay in order.
        anew = _worst_pieces(fit, state, sizes, len(unused), np.abs(table).max())
        table[unused[: len(anew)]] = anew
    fit.table = in_bytes(table)
    return fit.rescaled(state.codes, fit.decoded(state.codes, state.scale), state.scale)


def _least_squares(
    fit: RowFit, state: State, codes: list[Array], sizes: list[Array], weights: Array
) -> Array:
    """The table from which the error falls no more; ``weights`` is about the diagonal."""
    table = fit.table.copy()

    def gathered(images: list[Array]) -> Array:
        total = np.zeros(table.shape)
        for c, y, size in zip(codes, images, sizes, strict=True):
            y = y.reshape(-1, fit.width) * size
            for i in range(fit.width):
                total[:, i] += np.bincount(c, y[:, i], len(table))
        return total

    def image(direction: Array) -> Array:
        moved = [
            (direction[0].astype(table.dtype)[c] * s).reshape(v.shape)
            for c, s, v in zip(codes, sizes, state.values, strict=True)
        ]
        return gathered([m @ b.metric.values for m, b in zip(moved, fit.blocks, strict=True)])[None]

    residual = gathered([-g for g in state.gradients])[None]
    return conjugate_gradients(image, residual, table[None], STEPS, diagonal=weights)[0]


def _worst_pieces(fit: RowFit, state: State, sizes: list[Array], count: int, most: float) -> Array:
    """Pieces with the largest errors, at most so many: as they are, within a table's range."""
    errors, targets = [], []
    for w, v, g, size in zip(fit.weights, state.values, state.gradients, sizes, strict=True):
        errors.append(((v - w) * g).reshape(-1, fit.width).sum(1))
        targets.append(w.reshape(-1, fit.width) / np.maximum(size, 1e-30))
    worst = largest(np.concatenate(errors), count)
    return np.clip(np.concatenate(targets)[worst], -most, most)
