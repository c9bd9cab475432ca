"""Rounding a weight to a few levels so that the layer's output, not the weight, changes least.

A row w of the weight is to become q, every entry one of a few levels, with the least
``(w - q) H (w - q)ᵀ``; H is the metric of the layer's inputs.  A row may be cut into pieces of
equal width with levels of their own.

* *Error feedback* (Optimal Brain Surgeon, blocked as in GPTQ: Frantar et al. 2022,
  https://arxiv.org/abs/2210.17323): columns are rounded in turn, and what the rounding of one
  does to the output is taken back by the ones still to come.  With ``H⁻¹ = Uᵀ U``, U upper::

      e = (w_j - q_j) / U_jj        w_k -= e U_jk        for k > j

* *Coordinate descent*: given all others, the best place of column j before rounding is
  ``q_j - G_j / H_jj`` with ``G = (q - w) H``.  Entries move only where that lowers the error.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky, solve_triangular

from onnxcompress.core import Array

BLOCK = 128  # columns between two updates of all the others


def feedback_factor(metric: Array) -> Array:
    """The upper triangular U with ``metric⁻¹ = Uᵀ U``."""
    size = np.sqrt(np.maximum(np.diagonal(metric), 1e-30))
    scaled = metric / size[:, None] / size
    noise = 1e-8
    while True:
        scaled[np.diag_indices_from(scaled)] = 1 + noise
        try:  # metric = A Aᵀ with A upper is a Cholesky factor from the other end
            upper = cholesky(scaled[::-1, ::-1], lower=True, check_finite=False)[::-1, ::-1]
        except np.linalg.LinAlgError:
            noise *= 10
        else:
            identity = np.eye(len(upper))
            return solve_triangular(upper, identity, lower=False, check_finite=False) / size


def feedback(weight: Array, levels: Array, factor: Array) -> Array:
    """Codes of a weight rounded with error feedback.

    Args:
        weight: ``(rows, n)``.
        levels: ``(rows, pieces, k)``, ascending.
        factor: of `feedback_factor`, ``(n, n)``.

    Returns:
        ``(rows, n)``, which level every entry takes.
    """
    left, n, width = weight.copy(), weight.shape[1], weight.shape[1] // levels.shape[1]
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = np.empty((len(weight), stop - start))
        for j in range(start, stop):
            codes[:, j], value = nearest(left[:, j], levels[:, j // width])
            off = left[:, j] - value
            errors[:, j - start] = off = off / factor[j, j]
            left[:, j:stop] -= off[:, None] * factor[j, j:stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def descend(codes: Array, weight: Array, levels: Array, metric: Array) -> Array:
    """One sweep of coordinate descent over the columns; arguments as for `feedback`."""
    codes, width = codes.copy(), weight.shape[1] // levels.shape[1]
    values = decoded(codes, levels)
    gradient = (values - weight) @ metric
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        moved = np.zeros((len(weight), stop - start))
        near = gradient[:, start:stop].copy()
        for j in range(start, stop):
            wanted = values[:, j] - near[:, j - start] / metric[j, j]
            codes[:, j], value = nearest(wanted, levels[:, j // width])
            moved[:, j - start] = step = value - values[:, j]
            near += step[:, None] * metric[j, start:stop]
        gradient += moved @ metric[start:stop]
    return codes


def nearest(values: Array, levels: Array) -> tuple[Array, Array]:
    """Which of its row's levels each value ``(rows,)`` is closest to, and that level."""
    codes = (values[:, None] > (levels[:, 1:] + levels[:, :-1]) / 2).sum(1)
    return codes, levels[np.arange(len(levels)), codes]


def decoded(codes: Array, levels: Array) -> Array:
    """The levels that the codes stand for, ``(rows, n)``."""
    rows, pieces, _ = levels.shape
    parts = codes.reshape(rows, pieces, -1).astype(np.intp)
    return np.take_along_axis(levels, parts, 2).reshape(rows, -1)


def row_errors(difference: Array, metric: Array) -> Array:
    """``(w - q) H (w - q)ᵀ`` of every row."""
    return np.einsum("rn,rn->r", difference @ metric, difference)
