"""Signs of its own for every piece: the levels of a row are all sums of ± its scales.

In turn: signs by error feedback and coordinate descent, scales by least squares in the metric; of
a few rounds the best for each row.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.methods.binary_forms.pieces import Block, Form
from onnxcompress.methods.lookup.error_feedback import (
    Picker,
    descend,
    feedback,
    feedback_factor,
    row_errors,
)
from onnxcompress.methods.lookup.tables import stored

ROUNDS = 4  # Signs and scales are fitted in turn for so many rounds.
SWEEPS = 2  # Each round has so many sweeps of coordinate descent.
BLIND_ROUNDS = 5  # So many rounds come before the inputs are looked at.


def fit_own(rows: Array, fits: list[list[Block]], form: Form) -> tuple[Array, Array]:
    """Signs ``(stacks, out, fan_in)`` and scales ``(stacks, out, parts)``."""
    signs, scales = [], []
    for weight, blocks in zip(rows, fits, strict=True):
        results = [_own_block(weight[:, part], metric, form) for part, metric in blocks]
        signs.append(np.concatenate([s for s, _ in results], axis=2))
        scales.append(np.concatenate([a for _, a in results], axis=2))
    return np.concatenate(signs, axis=1), np.concatenate(scales, axis=1)


def _own_block(weight: Array, metric: Array | None, form: Form) -> tuple[Array, Array]:
    """Signs ``(stacks, rows, n)`` and scales ``(stacks, rows, parts)`` of some columns."""
    patterns = np.array(list(product((-1, 1), repeat=form.stacks)), np.int8)
    scale = _first_scales(weight, form)
    signs = np.ones((form.stacks, *weight.shape), np.int8)
    for _ in range(BLIND_ROUNDS):
        levels, turn = _levels(scale, patterns)
        signs = _signs(_nearest(weight, levels), turn, patterns)
        scale = _least_squares(weight, signs, scale, None)
    if metric is None:
        return signs, stored(scale)
    order = np.argsort(-np.diagonal(metric), kind="stable")  # The order is within each piece.
    order = order[np.argsort(order // form.width, kind="stable")]
    signs, scale = _aware(weight[:, order], metric[np.ix_(order, order)], scale, patterns)
    return signs[:, :, np.argsort(order)], stored(scale)


def _aware(weight: Array, metric: Array, scale: Array, patterns: Array) -> tuple[Array, Array]:
    """The same in the metric, from the scales that the weight alone gives."""
    factor, width = feedback_factor(metric), weight.shape[1] // scale.shape[2]
    best_signs = np.ones((len(scale), *weight.shape), np.int8)
    best_scale, best = scale, np.full(len(weight), np.inf)
    for turn_of in range(ROUNDS + 1):
        levels, turn = _levels(scale, patterns)
        if turn_of:
            codes = feedback(weight[None], _picker(levels, width), factor[None])[0][0]
        else:
            codes = _nearest(weight, levels)
        for sweep in range(SWEEPS + 1):
            signs = _signs(codes, turn, patterns)
            scale = stored(_least_squares(weight, signs, scale, metric))
            error = row_errors(weight - _combined(signs, scale), metric)
            better = error < best
            best = np.where(better, error, best)
            best_signs[:, better], best_scale = (
                signs[:, better],
                np.where(better[:, None], scale, best_scale),
            )
            if sweep < SWEEPS:
                sorted_levels, turn_next = _levels(scale, patterns)
                codes = _recoded(codes, turn, turn_next)
                turn = turn_next
                values = _decoded(codes, sorted_levels)
                state = (codes[None], values[None], ((values - weight) @ metric)[None])
                codes = descend(*state, _picker(sorted_levels, width), metric[None])[0][0]
    return best_signs, best_scale


def _first_scales(weight: Array, form: Form) -> Array:
    """Greedy: the mean magnitude of what the stacks before have left, ``(stacks, rows, parts)``."""
    left = weight.reshape(len(weight), -1, form.width)
    scales = []
    for _ in range(form.stacks):
        scales.append(np.abs(left).mean(2))
        left = left - np.sign(left) * scales[-1][:, :, None]
    return np.stack(scales)


def _levels(scale: Array, patterns: Array) -> tuple[Array, Array]:
    """All sums of ± the scales in ascending order, ``(rows, parts, 2**stacks)``, and that order."""
    sums = np.einsum("ps,srq->rqp", patterns, scale)
    turn = np.argsort(sums, axis=2, kind="stable")
    return np.take_along_axis(sums, turn, 2), turn


def _nearest(weight: Array, levels: Array) -> Array:
    """Codes of the nearest levels, without a look at the inputs."""
    rows, parts, _ = levels.shape
    split = weight.reshape(rows, parts, -1, 1)
    codes = (split > ((levels[:, :, 1:] + levels[:, :, :-1]) / 2)[:, :, None]).sum(3)
    return codes.reshape(weight.shape).astype(np.uint8)


def _picker(levels: Array, width: int) -> Picker:
    """Rounds entries to the nearest level ``(rows, parts, k)`` of their row and piece."""

    def pick(target: Array, column: int) -> tuple[Array, Array]:
        own = levels[:, column // width]
        codes = (target[0, 0, :, None] > (own[:, 1:] + own[:, :-1]) / 2).sum(1)
        return codes[None], own[np.arange(len(own)), codes][None, None]

    return lambda _: pick


def _decoded(codes: Array, levels: Array) -> Array:
    """The levels that the codes stand for, ``(rows, n)``."""
    rows, parts, _ = levels.shape
    split = codes.reshape(rows, parts, -1).astype(np.intp)
    return np.take_along_axis(levels, split, 2).reshape(rows, -1)


def _recoded(codes: Array, before: Array, after: Array) -> Array:
    """The codes of the same patterns in another order."""
    rows, parts, _ = before.shape
    split = codes.reshape(rows, parts, -1).astype(np.intp)
    pattern = np.take_along_axis(before, split, 2)
    return np.take_along_axis(np.argsort(after, axis=2), pattern, 2).reshape(codes.shape)


def _signs(codes: Array, turn: Array, patterns: Array) -> Array:
    """``(stacks, rows, n)`` in ±1."""
    rows, parts, _ = turn.shape
    pattern = np.take_along_axis(turn, codes.reshape(rows, parts, -1).astype(np.intp), 2)
    return patterns.T[:, pattern.reshape(codes.shape)]


def _combined(signs: Array, scale: Array) -> Array:
    """``sum over s of a_s z_s``, ``(rows, n)``."""
    stacks, rows, parts = scale.shape
    split = signs.reshape(stacks, rows, parts, -1)
    return np.einsum("srqd,srq->rqd", split, scale).reshape(rows, -1)


def _least_squares(weight: Array, signs: Array, scale: Array, metric: Array | None) -> Array:
    """The scales with the least output error, one piece after the other."""
    stacks, _, parts = scale.shape
    width = weight.shape[1] // parts
    scale = scale.copy()
    for p in range(parts):
        own = slice(p * width, (p + 1) * width)
        z = signs[:, :, own].astype(np.float64)
        target = weight - _combined(signs, scale)
        target[:, own] += np.einsum("srd,sr->rd", z, scale[:, :, p])
        images = z if metric is None else z @ metric[own, own]
        gram = np.einsum("srd,trd->rst", images, z)
        seen = target[:, own] if metric is None else target @ metric[:, own]
        right = np.einsum("srd,rd->rs", z, seen)
        gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(stacks)
        scale[:, :, p] = np.linalg.solve(gram, right[:, :, None])[:, :, 0].T
    return scale
