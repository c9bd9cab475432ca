"""Conjugate gradients for the least squares of what a fit stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcompress.core.layer import Array


def conjugate_gradients(
    image: Callable[[Array], Array],
    residual: Array,
    start: Array,
    steps: int,
    *,
    diagonal: Array | float = 1.0,
    least: Array | float = 0.0,
    enough: tuple[float, float] = (np.inf, 0.0),
) -> Array:
    """Lower ``x image(x) / 2 - x right`` from a start (Hestenes, Stiefel 1952).

    Args:
        residual: ``right - image(start)``, like the start: ``(groups, ...)``, each group by itself.
        diagonal: about that of the quadratic form: a Jacobi preconditioner.
        least: squared norms of residuals, where a group is done.
        enough: the error at the start, and the share of it by which a step must lower it.
    """

    def dot(a: Array, b: Array) -> Array:
        flat = a.reshape(len(a), -1), b.reshape(len(b), -1)
        product = np.einsum("gn,gn->g", *flat, dtype=np.float64)
        return product.reshape(-1, *(1,) * (start.ndim - 1))

    kind, (error, share) = start.dtype, enough
    x, direction = start, residual / diagonal
    square = dot(residual, direction)
    for _ in range(steps):
        product = image(direction)
        curve = dot(direction, product)
        going = (square > least) & (curve > 0)
        if not going.any():
            break
        length = np.where(going, square / np.where(going, curve, 1), 0)
        x = (x + length * direction).astype(kind)
        residual = (residual - length * product).astype(kind)
        error -= (gained := float(np.sum(length * square)))
        if gained < share * error:
            break
        ready = residual / diagonal
        previous, square = square, dot(residual, ready)
        turn = np.where(going, square / np.where(going, previous, 1), 0)
        direction = (ready + turn * direction).astype(kind)
    return x
