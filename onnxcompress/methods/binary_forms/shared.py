"""Few filters for all pieces: every piece selects some of them.

Pieces are coded in order, in the metric that counts on the later ones to take back the error, which
is fed to them; filters by coordinate descent given the pieces that select them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.methods.binary_forms.pieces import Block, Form
from onnxcompress.methods.lookup.error_feedback import feedback_factor, row_errors
from onnxcompress.methods.lookup.tables import stored

SHARED_ROUNDS = 5  # Selections and filters are fitted in turn for so many rounds.


def fit_shared(rows: Array, fits: list[list[Block]], form: Form) -> tuple[Array, Array, Array]:
    """Filters ``(m, width)``, selections and scales ``(stacks, out, parts)``."""
    rng = np.random.default_rng(0)
    places = [
        (g, place)
        for g, blocks in enumerate(fits)
        for span, metric in blocks
        for place in _places(span, metric, form.width)
    ]
    pieces = rows.reshape(-1, form.width)
    chosen = rng.permutation(len(pieces))[: form.filters]
    filters = np.sign(pieces[chosen]) + (pieces[chosen] == 0)
    extra = form.filters - len(filters)
    filters = np.concatenate([filters, rng.choice([-1.0, 1.0], (extra, form.width))])
    blind = [(g, _blind(place)) for g, place in places]
    starts = [filters, _rounds(rows, blind, filters, form, rng)[1]]
    results = [_rounds(rows, places, start, form, rng) for start in starts]
    _, filters, select, scale = min(results, key=lambda result: result[0])
    shape = (form.stacks, form.shape[0], form.parts)
    return filters, select.reshape(shape), scale.reshape(shape)


def _rounds(
    rows: Array,
    places: list[tuple[int, _Place]],
    filters: Array,
    form: Form,
    rng: np.random.Generator,
) -> tuple[float, Array, Array, Array]:
    """Selections and filters in turn; the best error with its filters, selections and scales."""
    best = (np.inf, filters, np.zeros(0), np.zeros(0))
    for turn in range(SHARED_ROUNDS):
        select, scale, targets, error = _coded(rows, places, filters, form)
        if error < best[0]:
            best = (error, filters, select, scale)
        if turn < SHARED_ROUNDS - 1:
            filters = _improved(filters, places, select, scale, targets, rng)
    return best


@dataclass(frozen=True)
class _Place:
    """Where in a filter a piece sits, and how an error there counts and is taken back.

    Attributes:
        own: columns of the piece; ``later`` of those that take back its error.
        metric: ``(width, width)``, given that they do.
        spread: ``(width, later columns)``, what an error adds to the later columns.
    """

    own: slice
    later: slice
    metric: Array
    spread: Array


def _blind(place: _Place) -> _Place:
    """The place where nothing is known of the inputs."""
    return replace(place, metric=np.eye(len(place.metric)), spread=0 * place.spread)


def _places(span: slice, metric: Array | None, width: int) -> Iterator[_Place]:
    if metric is None:
        for start in range(span.start, span.stop, width):
            own, later = slice(start, start + width), slice(start + width, start + width)
            yield _Place(own, later, np.eye(width), np.zeros((width, 0)))
        return
    factor = feedback_factor(metric)
    for start in range(0, len(metric), width):
        stop = start + width
        corner = factor[start:stop, start:stop]
        inverse = np.linalg.inv(corner)
        own = slice(span.start + start, span.start + stop)
        later = slice(span.start + stop, span.stop)
        yield _Place(own, later, inverse @ inverse.T, inverse @ factor[start:stop, stop:])


def _coded(
    rows: Array, places: list[tuple[int, _Place]], filters: Array, form: Form
) -> tuple[Array, Array, list[Array], float]:
    """Select for every piece, in order.

    Returns:
        Selections and scales ``(stacks, groups, rows, parts)``, what each place was to become
        ``(rows, width)``, and the error.
    """
    left, error = rows.copy(), 0.0
    groups, count, _ = rows.shape
    select = np.zeros((form.stacks, groups, count, form.parts), np.int64)
    scale = np.zeros(select.shape)
    targets = []
    for g, place in places:
        part = place.own.start // form.width
        target = left[g][:, place.own]
        targets.append(target.copy())
        picked, a = _picked(target, filters, place.metric, form.stacks)
        select[:, g, :, part], scale[:, g, :, part] = picked, a
        off = target - np.einsum("srd,sr->rd", filters[picked], a)
        error += float(row_errors(off, place.metric).sum())
        left[g][:, place.later] -= off @ place.spread
    return select, scale, targets, error


def _picked(rows: Array, filters: Array, metric: Array, stacks: int) -> tuple[Array, Array]:
    """The best filter for each stack and the scales, ``(stacks, rows)`` both."""
    images = filters @ metric
    sizes = np.maximum(np.einsum("md,md->m", images, filters), 1e-30)
    picked = np.zeros((stacks, len(rows)), np.int64)
    scale = np.zeros(picked.shape)
    # Each stack is picked again, given the later ones.
    for turn in range(stacks if stacks == 1 else 2 * stacks):
        s = turn % stacks
        others = [t for t in range(stacks) if t != s]
        left = rows - np.einsum("srd,sr->rd", filters[picked[others]], scale[others])
        match = left @ images.T
        picked[s] = np.argmax(np.square(match) / sizes, axis=1)
        scale[s] = match[np.arange(len(rows)), picked[s]] / sizes[picked[s]]
    z = filters[picked]
    gram = np.einsum("srd,trd->rst", images[picked], z)
    gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(stacks)
    right = np.einsum("srd,rd->rs", images[picked], rows)
    scale = np.linalg.solve(gram, right[:, :, None])[:, :, 0].T
    return picked, stored(scale)


def _improved(
    filters: Array,
    places: list[tuple[int, _Place]],
    select: Array,
    scale: Array,
    targets: list[Array],
    rng: np.random.Generator,
) -> Array:
    """Every filter by coordinate descent for the pieces that select it; unused ones anew."""
    m, width = filters.shape
    weights = np.zeros((len(places), m))  # Each filter has a weight for a place's metric.
    linear = np.zeros((m, width))
    parts = select.shape[3]
    for index, (g, place) in enumerate(places):
        part = index % parts
        a, picked = scale[:, g, :, part], select[:, g, :, part]
        off = targets[index] - np.einsum("srd,sr->rd", filters[picked], a)
        for chosen, size in zip(picked, a, strict=True):
            target = off + size[:, None] * filters[chosen]  # The other stacks are given.
            np.add.at(weights[index], chosen, np.square(size))
            np.add.at(linear, chosen, (size[:, None] * target) @ place.metric)
    result = filters.copy()
    metrics = np.stack([place.metric for _, place in places])
    for start in range(0, m, 64):
        some = slice(start, start + 64)
        gram = np.einsum("pm,pde->mde", weights[:, some], metrics)
        b = result[some]
        pull = linear[some] - np.einsum("mde,me->md", gram, b)
        for _ in range(2):
            for j in range(width):
                diagonal = gram[:, j, j]
                flipped = np.where(pull[:, j] + diagonal * b[:, j] >= 0, 1.0, -1.0)
                step = flipped - b[:, j]
                pull -= step[:, None] * gram[:, :, j]
                b[:, j] = flipped
    dead = np.flatnonzero(weights.sum(0) == 0)
    pool = np.concatenate(targets)
    seeds = pool[rng.integers(len(pool), size=len(dead))]
    result[dead] = np.sign(seeds) + (seeds == 0)
    return result
