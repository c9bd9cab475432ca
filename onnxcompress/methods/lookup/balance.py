"""Rounding errors that cancel, where nothing is known of the inputs.

Inputs behind a rectifier have a mean, and neighbours in an image are alike.  So the output feels
the sum of a filter's errors more than each of them.  A weight that lies almost halfway between two
values errs about as much with either: some are rounded the other way, so that the errors of each
kernel, and then those of the whole filter, add up to about 0.

References:
    Guo et al. SQuant: on-the-fly data-free quantization via diagonal Hessian approximation.
    ICLR 2022. https://arxiv.org/abs/2202.07471
"""

from __future__ import annotations

import numpy as np

from onnxcompress.core.layer import Array

HALFWAY = 0.4  # From this rounding error on, in steps, the other value is nearly as good.
NEARER = 0.45  # It is nearly as good from this one on in a kernel, which has few weights.
CHUNK = 2**20  # About so many weights are looked at together, which bounds the memory.


def balanced(exact: Array, codes: Array, levels: int, kernel: int) -> Array:
    """Codes ``(rows, n)`` whose errors add up to about 0 in each row.

    Args:
        exact: what was rounded to them, in steps.
        kernel: consecutive weights of a row that read neighbouring inputs; 1 if none do.
    """
    result = np.empty_like(codes)
    height = max(1, CHUNK // codes.shape[1])
    for start in range(0, len(codes), height):
        rows = slice(start, start + height)
        some, target = codes[rows], exact[rows]
        if 1 < kernel < some.shape[1]:
            pairs = some.reshape(-1, kernel), target.reshape(-1, kernel)
            some = _balanced(*pairs, levels, NEARER).reshape(some.shape)
        result[rows] = _balanced(some, target, levels, HALFWAY)
    return result


def _balanced(codes: Array, exact: Array, levels: int, least: float) -> Array:
    left = exact - codes
    total = np.rint(left.sum(1))
    direction = np.sign(total)[:, None]
    toward = left * direction
    moved = codes + direction
    able = (toward >= least) & (toward <= 0.5) & (moved >= 0) & (moved < levels)
    order = np.argsort(np.where(able, -toward, np.inf), axis=1, kind="stable")
    first = np.arange(codes.shape[1]) < np.minimum(np.abs(total), able.sum(1))[:, None]
    chosen = np.zeros(codes.shape, bool)
    np.put_along_axis(chosen, order, first, axis=1)
    return np.where(chosen, moved, codes).astype(codes.dtype)
