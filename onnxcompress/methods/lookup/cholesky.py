"""Cholesky factors of Gram matrices, and their inverses.

A Gram matrix of samples, or one that was rounded, may be slightly indefinite.  It is scaled to a
diagonal of 1, and as much is added to that as the factorisation needs::

    S⁻¹ G S⁻¹ + noise I = L Lᵀ        S = diag(G)^½

The inverse is found block row by block row: that of ``[A 0; B C]`` is ``[A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹]``.
"""

from __future__ import annotations

import numpy as np

from onnxcompress.core.layer import Array

BLOCK = 64  # rows of an inverse that are found at a time


def cholesky(gram: Array, noise: float) -> Array:
    """The lower triangular L with ``L Lᵀ`` about the Gram matrix ``(n, n)``, in its dtype.

    The matrix itself is overwritten.

    Args:
        noise: what is added to each diagonal entry at first, relative to it; entries below this
            share of the largest one count as this share.
    """
    diagonal = np.diagonal(gram)
    size = np.sqrt(np.maximum(diagonal, max(noise * diagonal.max(), 1e-30)))
    gram /= size[:, None]
    gram /= size
    while True:
        gram[np.diag_indices_from(gram)] = 1 + noise
        try:
            root = np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            noise *= 10
        else:
            root *= size[:, None]
            return root


def inverse(root: Array) -> Array:
    """The inverse of a lower triangular matrix ``(n, n)``."""
    result = np.zeros_like(root)
    for start in range(0, len(root), BLOCK):
        rows = slice(start, start + BLOCK)
        own = np.linalg.inv(root[rows, rows])
        result[rows, :start] = -own @ (root[rows, :start] @ result[:start, :start])
        result[rows, rows] = np.tril(own)
    return result
