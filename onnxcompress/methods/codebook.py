"""Codebook: neighbouring weights are replaced together by one of 256 vectors.  Smaller files.

A filter is cut into pieces of d weights; a byte says which of 256 vectors each one becomes, times
the scale of the filter (see `coded`): 8 / d bits a weight.

* *shared*: the vectors are those that represent normal random numbers best, the same for every
  layer of every model, and are stored once.  At equal bits they err less than a grid does, since
  256 points fill a sphere in d dimensions better than a box.
* *own*: they are fitted to the layer, in turn with the codes, by least squares on the output
  error.  That takes ``256 d`` bytes, which pays in wide layers.
* *memory*: the byte of the channel before chooses which shared table a byte looks into.  At equal
  bytes that errs about a decibel less (see `trellis`).
* *levels*: one number at a time, a palette of so many values of the layer's own.

References:
    Stock, Joulin, Gribonval, Graham, Jégou. And the bit goes down. ICLR 2020.
    https://arxiv.org/abs/1907.05686
    van Baalen et al. GPTVQ. 2024. https://arxiv.org/abs/2402.15319 (feedback between vectors)
    Linde, Buzo, Gray. An algorithm for vector quantizer design. 1980.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np

from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.method import Candidate, CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.integer import largest_within, or_integer
from onnxcompress.methods.lookup.coded import Coded, Grid, Rows, grouped_for_fit
from onnxcompress.methods.lookup.error_feedback import GRANULE, NARROW
from onnxcompress.methods.lookup.fit import encode
from onnxcompress.methods.lookup.kmeans import k_means, sizes
from onnxcompress.methods.lookup.tables import DIGITS, fits_half, levels_of, shared, some_codes
from onnxcompress.methods.lookup.trellis import MOST, WIDTHS, WORDS, normal_tables, segment_of
from onnxcompress.methods.lookup.uniform import Uniform
from onnxcompress.methods.lookup.weight import CodedWeight

ROWS = 256  # A table has so many rows: a byte picks one.
VECTORS = (12, 8, 6, 5, 4, 3, 2)  # Vectors of so many weights are tried where the size is open.
FITTED = (12, 6, 3, 2)  # Errors of the others are read between those of these.
WIDEST_VECTOR = 24  # A byte may stand for at most so many weights.
OWN = 2**19  # From so many weights on, a table of the layer's own costs next to nothing.
# First scales are spread by these factors; heavier tails want larger ones.
SPREADS = (0.75, 0.9, 1.0, 1.15, 1.35, 1.6)
DRAWN = 1 << 14  # A shared table is made from so many normal vectors.
ITERATIONS = 30  # It is made by so many rounds of k-means.
# From so many weights on, memory is worth its nodes and its tables, which all layers share.
REMEMBERING = 2**16
# A fit without memory, of more rounds than its trial, errs less than that; one with memory has no
# more, so that its trial is ahead by this factor.
AHEAD = 1.1
PALETTES = (3, 4, 6, 16)  # Digits of so many levels fill a byte with little left over.


@dataclass(frozen=True)
class Codebook(Method):
    """Store a byte for several weights, which says which of 256 vectors they are.

    Attributes:
        vector: weights that a byte stands for, 2 to 24: 8 / vector bits a weight.
        table: shared (the same vectors for every layer) or own (fitted to the layer).
        memory: bits of the byte before that choose the table, 0 to 3, of vectors of 2 to 4 weights
            and shared tables; by default 3 where it pays.
        levels: instead of vectors, single weights with so many values of the layer's own:
            3, 4, 6 or 16.
    """

    auto: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    vector: int | None = None
    table: Literal["shared", "own"] | None = None
    memory: int | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        if self.vector is not None and not 2 <= self.vector <= WIDEST_VECTOR:
            raise MethodError(f"vector must be 2 to {WIDEST_VECTOR}, got {self.vector}")
        if self.table not in (None, "shared", "own"):
            raise MethodError(f"table must be shared or own, not {self.table}")
        if self.levels is not None and self.levels not in PALETTES:
            raise MethodError(f"levels must be 3, 4, 6 or 16, got {self.levels}")
        if self.memory is not None and not 0 <= self.memory <= MOST:
            raise MethodError(f"memory must be 0 to {MOST}, got {self.memory}")
        if self.memory and (self.table == "own" or self.vector not in (None, *WIDTHS)):
            raise MethodError("memory is for shared tables and vectors of 2 to 4 weights")
        if self.levels is not None and (self.vector or self.table or self.memory):
            raise MethodError("levels are for single weights: leave vector, table and memory out")

    @property
    def fixed(self) -> bool:
        return self.vector is not None or self.levels is not None

    def settings(self, layer: Layer) -> list[Codebook]:
        if self.levels:
            settings = [self]
        else:
            wide = layer.fan_in > NARROW  # There, metrics for other widths cost much.
            vectors: Any = [d for d in VECTORS if not wide or GRANULE % d == 0]
            vectors = [self.vector] if self.vector else vectors
            tables: Any = [self.table] if self.table else ("shared", "own")
            settings = [s for kind in tables for d in vectors for s in self._of(kind, d, layer)]
            # Pinned to a size, it takes the table that suits the layer.
            if self.vector and len(settings) > 1:
                remembering = [s for s in settings if s.memory]
                settings = remembering or settings[: 1 if self._own_costs(layer) else 2]
                settings = settings[-1:]
        sizes = {s: s.nbytes(layer) for s in settings}
        useful = [s for s in settings if sizes[s] < layer.nbytes]
        return sorted(useful, key=lambda s: sizes[s])

    def _of(self, table: Any, vector: int, layer: Layer) -> Iterator[Codebook]:
        """The settings with this table: a large layer has one of its own, but for memory."""
        usual = table == "own" or self.table or self.memory or layer.weight.size < OWN
        able = table == "shared" and vector in WIDTHS and _remembers(layer)
        if not able:
            kept = 0 if table == "shared" and vector in WIDTHS else None
            yield from [Codebook(vector, table, kept)] if usual else []
        elif self.memory is not None:
            yield Codebook(vector, table, self.memory)
        else:
            yield from [Codebook(vector, table, 0)] if usual else []
            yield from [Codebook(vector, table, MOST)] if layer.weight.size >= REMEMBERING else []

    def _own_costs(self, layer: Layer) -> bool:
        """Whether a table of the layer's own would take more than an eighth of the codes."""
        return ROWS * (self.vector or 1) * 8 > layer.weight.size / (self.vector or 1)

    @property
    def _width(self) -> int:
        return DIGITS[self.levels] if self.levels else self.vector or 1

    def nbytes(self, layer: Layer) -> int:
        fan_in = layer.fan_in
        codes = len(layer.weight) * -(-fan_in // self._width)
        if self.levels:
            codes = -(-layer.weight.size // self._width)
        own = (self.levels or ROWS) ** (self._width if self.levels else 1) * self._width
        return codes + 2 * len(layer.weight) + (0 if self.table == "shared" else own)

    def fit(self, layer: Layer, statistics: Statistics) -> CompressedWeight:
        fitted = self._encoded(layer, statistics)
        if self.memory:
            fitted = self._remembering(fitted.scale, layer, statistics)
        weight = self._weight(fitted, layer)
        return or_integer(weight, layer, statistics)

    def blank(self, layer: Layer) -> CodedWeight:
        levels = self.levels or (WORDS if self.memory else ROWS)
        codes, scale = some_codes(layer, 1 if self.levels else self._width, levels=levels)
        drawn = np.random.default_rng(codes.ravel()[:8]).uniform(-1, 1, (levels, 1))
        table = np.repeat(np.sort(drawn, axis=0), 1 if self.levels else self._width, axis=1)
        return self._weight(Coded(codes, scale, table, 0.0), layer)

    def _weight(self, fitted: Coded, layer: Layer) -> CodedWeight:
        if self.memory:
            tables, unit = normal_tables(self._width, self.memory)
            codes, segment = fitted.codes % WORDS, _segment(layer)
            return CodedWeight.of(codes, fitted.scale * unit, [tables], layer, segment)
        unit = _unit(fitted)
        if self.levels:
            return _palette(fitted, unit, self.levels, layer)
        table = np.rint(fitted.table / unit).astype(np.int8)
        if self.table == "shared":
            table = normal_vectors(self._width)
        return CodedWeight.of(fitted.codes, fitted.scale * unit, [table], layer)

    def _encoded(self, layer: Layer, statistics: Statistics, trial: bool = False) -> Coded:
        weight = grouped_for_fit(layer)
        if self.memory and trial:
            return self._remembering(sizes(weight, 1), layer, statistics, trial)
        starts = tuple(sizes(weight, 1) * spread for spread in SPREADS)
        rows = Rows(weight, starts, usual=len(starts) // 2)
        if self.levels:
            grid = Grid(_normal_levels(self.levels), learn=True)
        else:
            vectors, unit = _normal_centers(self._width)
            grid = Grid(vectors.astype(np.float64) * unit, learn=self.table == "own")
        # With memory it is for the scales, which more rounds leave as they are.
        return encode(layer, statistics, rows, grid, trial, *((1,) if self.memory else ()))

    def _remembering(
        self, scale: Array, layer: Layer, statistics: Statistics, trial: bool = False
    ) -> Coded:
        """The fit with memory, from the scales of one without."""
        weight, (tables, unit) = grouped_for_fit(layer), normal_tables(self._width, self.memory)
        rows = Rows(weight, (scale.reshape(*weight.shape[:2], 1).astype(weight.dtype),))
        grid = Grid(tables.astype(np.float64) * unit, segment=_segment(layer))
        return encode(layer, statistics, rows, grid, trial)

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        """Errors from some of the filters, where there are many.

        Where whole numbers in no more bytes err less, these.
        """
        settings, shape = self.settings(layer), (layer.weight.shape,)
        fitted = {
            setting: setting._encoded(layer, statistics, trial=True)
            for setting in settings
            if setting._is_fitted(settings)
        }
        wider = max(map(_wider, fitted.values()), default=0)
        for setting in settings:
            known = fitted.get(setting)
            error = known.error if known else setting._between(fitted)
            error *= AHEAD if setting.memory else 1
            nbytes, more = setting.nbytes(layer), _wider(known) if known else wider
            plain = largest_within(nbytes, layer)
            if plain is not None and plain.plain_error(layer, statistics) < error:
                yield from plain.candidates(layer, statistics)
            else:
                yield Candidate(setting, nbytes + more, shape, error)

    @property
    def _kind(self) -> tuple[str | None, int]:
        """What settings whose errors depend on the bits alone have in common."""
        return self.table, self.memory or 0

    def _is_fitted(self, settings: Sequence[Codebook]) -> bool:
        """Whether the setting is to be fitted: the first, the last, or one of `FITTED`."""
        alike = [s.vector for s in settings if s._kind == self._kind]
        return self.vector in (None, alike[0], alike[-1], *(() if self.memory else FITTED))

    def _between(self, fitted: Mapping[Codebook, Coded]) -> float:
        """The error read between those of others: its logarithm is nearly linear in the bits."""
        errors = {8 / (s.vector or 1): c.error for s, c in fitted.items() if s._kind == self._kind}
        bits, logs = zip(
            *sorted((b, np.log(max(e, 1e-30))) for b, e in errors.items()), strict=True
        )
        return float(np.exp(np.interp(8 / (self.vector or 1), bits, logs)))


def _unit(fitted: Coded) -> float:
    """What 1 stands for in a table that is stored as int8."""
    return np.abs(fitted.table).max() / 127


def _wider(fitted: Coded) -> int:
    """Bytes that the scales take more where float16 does not hold them."""
    half = fits_half(fitted.scale * _unit(fitted), levels_of([fitted.table]))
    return 0 if half else 2 * fitted.scale.size


def _palette(fitted: Coded, unit: float, levels: int, layer: Layer) -> CodedWeight:
    """Several palette numbers in a byte: the table holds all their combinations."""
    values = np.rint(fitted.table[:, 0] / unit).astype(np.int8)
    table = np.array(list(product(values, repeat=DIGITS[levels])), np.int8)
    scaled = replace(fitted, scale=fitted.scale * unit)
    return replace(CodedWeight.of_numbers(scaled, Uniform(levels, "odd"), layer), tables=(table,))


def _segment(layer: Layer) -> int:
    return segment_of(len(layer.weight) // layer.groups)


def _remembers(layer: Layer) -> bool:
    """Whether rows are decoded together and can be cut into segments."""
    return "indices" not in layer.attributes and _segment(layer) > 0


@cache
def _normal_centers(d: int) -> tuple[Array, float]:
    """256 vectors for normal random numbers as int8, and what 1 stands for."""
    drawn = np.random.default_rng(d).standard_normal((DRAWN, d), np.float32)
    centers = k_means(drawn, drawn[:ROWS].astype(np.float64), ITERATIONS)
    unit = float(np.abs(centers).max() / 127)
    return shared(np.rint(centers / unit).astype(np.int8)), unit


def normal_vectors(d: int) -> Array:
    """The shared table ``(256, d)``, int8."""
    return _normal_centers(d)[0]


@cache
def _normal_levels(levels: int) -> Array:
    """The best values for normal random numbers (Max 1960), ``(levels, 1)``."""
    drawn = np.sort(np.random.default_rng(0).standard_normal(DRAWN))
    start = np.quantile(drawn, (np.arange(levels) + 0.5) / levels)
    return k_means(drawn[:, None], start[:, None], ITERATIONS)
