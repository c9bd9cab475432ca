"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcompress.core.layer import Array


def conjugate_gradients(
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
