"""Cholesky factors of Gram matrices.

A Gram matrix of samples, or one that was rounded, may be slightly indefinite.  It is scaled to a
diagonal of 1, and just enough is added to that diagonal for the factorisation to exist::

    S⁻¹ G S⁻¹ + noise I = L Lᵀ        S = diag(G)^½
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cholesky, get_lapack_funcs

from onnxcompress.core.layer import Array


def gram_root(gram: Array, noise: float) -> Array:
    """The lower triangular L with ``L Lᵀ`` about the Gram matrix ``(n, n)``, float64.

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
            root = cholesky(gram, lower=True, check_finite=False)
        except LinAlgError:
            noise *= 10
        else:
            root *= size[:, None]
            return root


def triangular_inverse(root: Array) -> Array:
    """The inverse of a lower triangular matrix ``(n, n)``, float64."""
    (trtri,) = get_lapack_funcs(("trtri",), (root,))
    return trtri(root, lower=1)[0]
