"""Binary: a layer's filters become stacks of ±1 filters with a few scales.  Smaller files.

Every filter (a row of the weight) is cut along its input channels into pieces of c channels.
The layer has m filters B_1 ... B_m of that size in {-1, +1}; a piece p selects one of them for
each of S stacks and adds them up with scales a (stored as float16)::

    W_p = sum over s of a[p, s] B[select[p, s]]

Where every piece has its own S filters nothing is selected and nothing shared: S bits a weight.
Shared, a layer takes ``m c k² + pieces S log2(m)`` bits, which reaches far below one.

Shared filters have two forms with the same weight.  The *weight form* puts the weight together
and convolves: it folds when the model is loaded, so speed is the original's.  The *feature form*
convolves every group of c channels with the m filters, then adds up what was selected by a 1x1
layer (split, transform, merge)::

    multiplications, feature / weight form = m (k² + out / c) / (out k²)

Both are fitted to the output error in the metric H of the inputs (see `rounding`):

* own: the levels of a row are all 2^S sums of its scales.  In turn: signs by error feedback and
  coordinate descent, scales by least squares in H; of a few rounds the best for each row.
* shared: pieces are coded in order in the metric that counts on the later ones to take back the
  error, which is fed to them; filters by coordinate descent given the pieces that select them.

References:
    Lan, Lan. Compressing deep convolutional neural networks by stacking low-dimensional binary
    convolution filters. AAAI 2021. https://arxiv.org/abs/2010.02778 (shared filters)
    Guo, Yao, Zhao, Chen. Network sketching. CVPR 2017. https://arxiv.org/abs/1706.02021 (stacks)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import log2, prod
from typing import Any, ClassVar, Literal, Self

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.bits import emit_unpack, pack, unpack
from onnxcompress.methods.lookup.error_feedback import (
    WIDEST,
    Pick,
    descend,
    feedback,
    feedback_factor,
    row_errors,
)

MOST_STACKS = 4
ROUNDS = 4  # of signs and scales in turn
SWEEPS = 2  # of coordinate descent in each
BLIND_ROUNDS = 5  # before the inputs are looked at
SHARED_ROUNDS = 5  # of selections and filters in turn
SHARED = ((2, 4, 0.5), (1, 4, 0.5), (1, 8, 0.5), (1, 8, 0.25))  # stacks, parts, share
FASTER = 0.6  # of the multiplications, from which the feature form is faster (measured)
SMALL = 64  # weights for which sharing is not tried


@dataclass(frozen=True)
class Binary(Method):
    """Store signs and a few scales instead of weights: a smaller file, the original's speed.

    Attributes:
        stacks: binary filters that are added up for each piece, 1 to 4.
        channels: input channels of a piece, c; by default all of them, or so many that a piece
            has at most 4096 weights.
        parts: the same as pieces of a filter.
        share: filters of the layer for each of its pieces, rounded to a power of two of them;
            at 1, the default, every piece has filters of its own.
        filters: the same as a number, a power of two.
        form: weight or feature; by default feature where it is likely to be faster.
    """

    opset: ClassVar[int] = 13
    auto: ClassVar[bool] = False  # codebook errs less at any size, on every layer that we measured

    stacks: int | None = None
    channels: int | None = None
    parts: int | None = None
    share: float | None = None
    filters: int | None = None
    form: Literal["weight", "feature"] | None = None

    def __post_init__(self) -> None:
        if self.stacks is not None and not 1 <= self.stacks <= MOST_STACKS:
            raise ValueError(f"stacks must be 1 to {MOST_STACKS}, got {self.stacks}")
        for name in ("channels", "parts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.channels is not None and self.parts is not None:
            raise ValueError("give channels or parts, not both")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")
        if self.filters is not None and (self.filters < 2 or self.filters & self.filters - 1):
            raise ValueError(f"filters must be a power of two, got {self.filters}")
        if self.form not in (None, "weight", "feature"):
            raise ValueError(f"form must be weight or feature, not {self.form}")
        if self.filters is not None and self.share is not None:
            raise ValueError("give share or filters, not both")

    @property
    def fixed(self) -> bool:
        return self.stacks is not None

    def settings(self, layer: Layer) -> list[Binary]:
        """Own filters with each number of stacks; where nothing is given, some shared ones too."""
        stacks = [self.stacks] if self.stacks else range(1, MOST_STACKS + 1)
        found = [self._complete(layer, replace(self, stacks=count)) for count in stacks]
        if self == Binary() and layer.weight.size > SMALL:
            found += [
                self._complete(layer, Binary(count, parts=parts, share=share))
                for count, parts, share in SHARED
            ]
        sizes = {setting: setting._nbytes(layer) for setting in found}
        useful = {setting: size for setting, size in sizes.items() if size < layer.weight.nbytes}
        return sorted(useful, key=lambda setting: useful[setting])

    def _complete(self, layer: Layer, setting: Binary) -> Binary:
        """The setting with its defaults, and with filters instead of a share below 1."""
        inputs = layer.weight.shape[1]
        widest = max(1, WIDEST // prod(layer.kernel))
        parts = setting.parts or -(-inputs // widest)
        channels = min(setting.channels or -(-inputs // parts), inputs)
        pieces = len(layer.weight) * -(-layer.weight.shape[1] // channels)
        filters = setting.filters
        if filters is None and (setting.share or 1) < 1:
            filters = 1 << max(1, round(log2(max(2, pieces * (setting.share or 1)))))
        share = None if filters else 1.0
        whole = Binary(setting.stacks, channels, share=share, filters=filters)
        return replace(whole, form=self._form(layer, channels, filters))

    def _form(self, layer: Layer, channels: int, filters: int | None) -> Any:
        """The form asked for, where this layer allows it; else the one that is likely faster."""
        out, inputs, *kernel = layer.weight.shape
        possible = layer.op_type == "Conv" and layer.groups == 1 and filters
        if not possible or inputs % channels or self.form == "weight":
            return "weight"
        share = (filters or 0) * (prod(kernel) + out / channels) / (out * prod(kernel))
        return "feature" if self.form or share < FASTER else "weight"

    def _nbytes(self, layer: Layer) -> int:
        form = _Form.of(layer, self)
        return sum(-(-bits // 8) for bits in form.bits) + 2 * form.scales

    def fit(self, layer: Layer, statistics: Statistics) -> BinaryWeight:
        form = _Form.of(layer, self)
        rows = form.split(layer.grouped.astype(np.float64))
        fits = [_metric_blocks(statistics, g, form, rows.shape[2]) for g in range(layer.groups)]
        if self.filters:
            signs, select, scale = _shared(rows, fits, form)
            packed = pack(select, form.index_bits)
        else:
            signs, scale = _own(rows, fits, form)
            packed = np.zeros(0, np.uint8)
        scale = (2 * scale).astype(np.float16)
        return BinaryWeight(pack(signs > 0, 1), packed, scale, form, layer.weight.dtype)


@dataclass(frozen=True)
class _Form:
    """How a layer's weight is cut up: sizes alone.

    Attributes:
        shape: of the weight.
        groups, stacks: of the layer, and of binary filters.
        channels: of a piece; ``parts`` of them make a filter, the last one padded.
        filters: m; 0 where every piece has its own.
        feature: whether it is emitted in the feature form.
    """

    shape: Shape
    groups: int
    stacks: int
    channels: int
    filters: int
    feature: bool

    @classmethod
    def of(cls, layer: Layer, setting: Binary) -> Self:
        assert setting.stacks and setting.channels
        given = (setting.stacks, setting.channels, setting.filters or 0)
        return cls(layer.weight.shape, layer.groups, *given, setting.form == "feature")

    @property
    def parts(self) -> int:
        return -(-self.shape[1] // self.channels)

    @property
    def width(self) -> int:
        """Weights of a piece."""
        return self.channels * prod(self.shape[2:])

    @property
    def scales(self) -> int:
        return self.stacks * self.shape[0] * self.parts

    @property
    def index_bits(self) -> int:
        return self.filters.bit_length() - 1

    @property
    def bits(self) -> tuple[int, int]:
        """Of the signs and of the selections."""
        if not self.filters:
            return self.scales * self.width, 0
        return self.filters * self.width, self.scales * self.index_bits

    def split(self, grouped: Array) -> Array:
        """``(groups, out, fan_in)`` with zeros after the last channel, so that pieces fit."""
        missing = self.parts * self.width - grouped.shape[2]
        return np.pad(grouped, ((0, 0), (0, 0), (0, missing)))


_Block = tuple[slice, Array | None]  # columns, and their metric; None where nothing is known


def _metric_blocks(statistics: Statistics, group: int, form: _Form, columns: int) -> list[_Block]:
    """The metric of one group: in one block, or in several where it would be too wide."""
    if not statistics.count:
        return [(slice(0, columns), None)]
    inside = statistics.total.shape[1]
    step = max(1, WIDEST // form.width) * form.width
    blocks = []
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        metric = np.eye(stop - start)
        known = statistics.block(start, min(stop, inside))[group]
        metric *= np.trace(known) / len(known)
        metric[: len(known), : len(known)] = known
        blocks.append((slice(start, stop), metric))
    return blocks


# ------------------------------------------------------------------------------- filters of its own


def _own(rows: Array, fits: list[list[_Block]], form: _Form) -> tuple[Array, Array]:
    """Signs ``(stacks, out, fan_in)`` and scales ``(stacks, out, parts)``."""
    signs, scales = [], []
    for weight, blocks in zip(rows, fits, strict=True):
        found = [_own_block(weight[:, part], metric, form) for part, metric in blocks]
        signs.append(np.concatenate([s for s, _ in found], axis=2))
        scales.append(np.concatenate([a for _, a in found], axis=2))
    return np.concatenate(signs, axis=1), np.concatenate(scales, axis=1)


def _own_block(weight: Array, metric: Array | None, form: _Form) -> tuple[Array, Array]:
    """Signs ``(stacks, rows, n)`` and scales ``(stacks, rows, parts)`` of some columns."""
    patterns = np.array(list(product((-1, 1), repeat=form.stacks)), np.int8)
    scale = _first_scales(weight, form)
    signs = np.ones((form.stacks, *weight.shape), np.int8)
    for _ in range(BLIND_ROUNDS):
        levels, turn = _levels(scale, patterns)
        signs = _signs(_nearest(weight, levels), turn, patterns)
        scale = _least_squares(weight, signs, scale, None)
    if metric is None:
        return signs, scale.astype(np.float16)
    order = np.argsort(-np.diagonal(metric), kind="stable")  # within each piece
    order = order[np.argsort(order // form.width, kind="stable")]
    signs, scale = _aware(weight[:, order], metric[np.ix_(order, order)], scale, patterns)
    return signs[:, :, np.argsort(order)], scale.astype(np.float16)


def _aware(weight: Array, metric: Array, scale: Array, patterns: Array) -> tuple[Array, Array]:
    """The same in the metric, from the scales that the weight alone gives."""
    factor, width = feedback_factor(metric), weight.shape[1] // scale.shape[2]
    best_signs = np.ones((len(scale), *weight.shape), np.int8)
    best_scale, best = scale, np.full(len(weight), np.inf)
    for turn_of in range(ROUNDS + 1):
        levels, turn = _levels(scale, patterns)
        if turn_of:
            codes = feedback(weight[None], _pick(levels, width), factor[None])[0][0]
        else:
            codes = _nearest(weight, levels)
        for sweep in range(SWEEPS + 1):
            signs = _signs(codes, turn, patterns)
            scale = _least_squares(weight, signs, scale, metric).astype(np.float16)
            scale = scale.astype(np.float64)
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
                given = (codes[None], values[None], ((values - weight) @ metric)[None])
                codes = descend(*given, _pick(sorted_levels, width), metric[None])[0][0]
    return best_signs, best_scale


def _first_scales(weight: Array, form: _Form) -> Array:
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


def _pick(levels: Array, width: int) -> Pick:
    """Rounds entries to the nearest level ``(rows, parts, k)`` of their row and piece."""

    def pick(target: Array, column: int, _: Array) -> tuple[Array, Array]:
        own = levels[:, column // width]
        codes = (target[0] > (own[:, 1:] + own[:, :-1]) / 2).sum(1)
        return codes[None], own[np.arange(len(own)), codes][None, :, None]

    return pick


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
        wanted = weight - _combined(signs, scale)
        wanted[:, own] += np.einsum("srd,sr->rd", z, scale[:, :, p])
        images = z if metric is None else z @ metric[own, own]
        gram = np.einsum("srd,trd->rst", images, z)
        seen = wanted[:, own] if metric is None else wanted @ metric[:, own]
        right = np.einsum("srd,rd->rs", z, seen)
        gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(stacks)
        scale[:, :, p] = np.linalg.solve(gram, right[:, :, None])[:, :, 0].T
    return scale


# ----------------------------------------------------------------------------------- shared filters


def _shared(rows: Array, fits: list[list[_Block]], form: _Form) -> tuple[Array, Array, Array]:
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
    found = [_rounds(rows, places, start, form, rng) for start in starts]
    _, filters, select, scale = min(found, key=lambda result: result[0])
    shape = (form.stacks, form.shape[0], form.parts)
    return filters, select.reshape(shape), scale.reshape(shape)


def _rounds(
    rows: Array,
    places: list[tuple[int, _Place]],
    filters: Array,
    form: _Form,
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
    rows: Array, places: list[tuple[int, _Place]], filters: Array, form: _Form
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
        wanted = left[g][:, place.own]
        targets.append(wanted.copy())
        picked, a = _picked(wanted, filters, place.metric, form.stacks)
        select[:, g, :, part], scale[:, g, :, part] = picked, a
        off = wanted - np.einsum("srd,sr->rd", filters[picked], a)
        error += float(row_errors(off, place.metric).sum())
        left[g][:, place.later] -= off @ place.spread
    return select, scale, targets, error


def _picked(wanted: Array, filters: Array, metric: Array, stacks: int) -> tuple[Array, Array]:
    """The best filter for each stack and the scales, ``(stacks, rows)`` both."""
    images = filters @ metric
    sizes = np.maximum(np.einsum("md,md->m", images, filters), 1e-30)
    picked = np.zeros((stacks, len(wanted)), np.int64)
    scale = np.zeros(picked.shape)
    for turn in range(stacks if stacks == 1 else 2 * stacks):  # again, given the later stacks
        s = turn % stacks
        others = [t for t in range(stacks) if t != s]
        left = wanted - np.einsum("srd,sr->rd", filters[picked[others]], scale[others])
        match = left @ images.T
        picked[s] = np.argmax(np.square(match) / sizes, axis=1)
        scale[s] = match[np.arange(len(wanted)), picked[s]] / sizes[picked[s]]
    z = filters[picked]
    gram = np.einsum("srd,trd->rst", images[picked], z)
    gram += 1e-9 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(stacks)
    right = np.einsum("srd,rd->rs", images[picked], wanted)
    scale = np.linalg.solve(gram, right[:, :, None])[:, :, 0].T
    return picked, scale.astype(np.float16).astype(np.float64)


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
    weights = np.zeros((len(places), m))  # of a place's metric, for each filter
    linear = np.zeros((m, width))
    parts = select.shape[3]
    for index, (g, place) in enumerate(places):
        part = index % parts
        a, picked = scale[:, g, :, part], select[:, g, :, part]
        off = targets[index] - np.einsum("srd,sr->rd", filters[picked], a)
        for chosen, size in zip(picked, a, strict=True):
            wanted = off + size[:, None] * filters[chosen]  # given the other stacks
            np.add.at(weights[index], chosen, np.square(size))
            np.add.at(linear, chosen, (size[:, None] * wanted) @ place.metric)
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


# ----------------------------------------------------------------------------------- what is stored


@dataclass(frozen=True, eq=False)
class BinaryWeight(CompressedWeight):
    """Signs, selections and scales.

    Attributes:
        signs: the filters as bits, 1 for +1/2 and 0 for -1/2: ``(m, width)``, or where every
            piece has its own ``(stacks, out, parts * width)``.
        select: packed numbers ``(stacks, out, parts)``; empty where nothing is selected.
        scale: float16 ``(stacks, out, parts)``, twice that of filters in {-1, 1}.
        form: the sizes.
        dtype: of the weight.
    """

    signs: Array
    select: Array
    scale: Array
    form: _Form
    dtype: Any

    @property
    def factors(self) -> tuple[Shape, ...]:
        form, (out, _, *kernel) = self.form, self.form.shape
        if not form.feature:
            return (form.shape,)
        maps = form.parts * form.filters
        return (maps, form.channels, *kernel), (out, maps, *(1,) * len(kernel))

    def arrays(self) -> Iterator[Array]:
        yield from (array for array in (self.signs, self.select, self.scale) if array.size)

    def astype(self, dtype: Any) -> Self:
        return replace(self, dtype=np.dtype(dtype))

    def scaled(self, gain: Array) -> Self:
        return replace(self, scale=(self.scale * gain[:, None]).astype(np.float16))

    def decode(self) -> Array:
        form = self.form
        bits = unpack(self.signs, 1, form.bits[0]).astype(np.float32)
        signs = (bits - 0.5).reshape(-1, form.width)
        if form.filters:
            signs = signs[unpack(self.select, form.index_bits, form.scales)]
        terms = signs.reshape(form.stacks, -1, form.width) * self.scale.astype(np.float32).reshape(
            form.stacks, -1, 1
        )
        out, _, *kernel = form.shape
        weight = terms.sum(0).reshape(out, -1, *kernel)
        return np.ascontiguousarray(weight[:, : form.shape[1]]).astype(self.dtype)

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        form = self.form
        if form.feature:
            return self._merged(op, x, layer)
        pieces = (form.stacks, form.shape[0] * form.parts)
        stored = (form.filters, form.width) if form.filters else (*pieces, form.width)
        bits = op.Cast(emit_unpack(op, self.signs, 1, stored), to=np.float32)
        signs = op.Sub(bits, np.array(0.5, np.float32))
        if form.filters:
            picked = emit_unpack(op, self.select, form.index_bits, pieces)
            signs = op.Gather(signs, picked, axis=0)
        scale = op.Cast(self.scale.reshape(*pieces, 1), to=np.float32)
        weight = op.Mul(signs, scale)
        if form.stacks > 1:
            weight = op.ReduceSum(weight, np.array([0]), keepdims=0)
        out, inputs, *kernel = form.shape
        weight = op.Reshape(weight, np.array([out, form.parts * form.channels, *kernel]))
        if form.parts * form.channels > inputs:
            weight = op.Slice(weight, np.array([0]), np.array([inputs]), np.array([1]))
        if layer.weight.dtype != np.float32:
            weight = op.Cast(weight, to=layer.weight.dtype)
        return layer.apply(op, x, weight, bias=layer.bias)

    def _merged(self, op: Emitter, x: Value, layer: Layer) -> Value:
        """The feature form: the groups of channels are folded into the batch and back."""
        form, (out, _, *kernel) = self.form, self.form.shape
        size, point = (0,) * len(kernel), (1,) * len(kernel)  # 0 in a shape: as it is
        kind = layer.weight.dtype
        bits = emit_unpack(op, self.signs, 1, (form.filters, form.channels, *kernel))
        filters = op.Sub(op.Cast(bits, to=np.float32), np.array(0.5, np.float32))
        if kind != np.float32:
            filters = op.Cast(filters, to=kind)
        split = op.Reshape(x, np.array([-1, form.channels, *size]))
        maps = op.Conv(split, filters, **layer.attributes)
        maps = op.Reshape(maps, np.array([-1, form.parts * form.filters, *size]))
        picked = emit_unpack(op, self.select, form.index_bits, (form.stacks, out, form.parts, 1))
        chosen = op.Equal(picked, np.arange(form.filters, dtype=np.int32))
        scale = op.Cast(self.scale[..., None], to=np.float32)
        merge = op.Mul(op.Cast(chosen, to=np.float32), scale)
        if form.stacks > 1:
            merge = op.ReduceSum(merge, np.array([0]), keepdims=0)
        merge = op.Reshape(merge, np.array([out, form.parts * form.filters, *point]))
        if kind != np.float32:
            merge = op.Cast(merge, to=kind)
        return op.Conv(maps, merge, *(() if layer.bias is None else (layer.bias,)))
