"""Integer: every weight becomes one of a few evenly spaced values.  Smaller files.

With L levels, a scale s and perhaps a zero point z for each output channel (or for each group of
its inputs)::

    W[o, i] = s[o] * (u[o, i] - z[o])

The numbers u are whole ones around zero, -L/2 ... L/2 - 1, or odd ones that lie symmetrically
around it, ``2 k - (L - 1)``, whichever errs less (see `uniform`); a zero point is there where it
pays.  Numbers are rounded with error feedback in the metric of the inputs, scales are least
squares (see `fit`); without data they are the nearest.  First scales come from a line search that
starts at the range of each filter, and plain rounding is among what the best is taken of.

References:
    Frantar, Ashkboos, Hoefler, Alistarh. GPTQ. ICLR 2023. https://arxiv.org/abs/2210.17323
    Frantar, Alistarh. Optimal brain compression. NeurIPS 2022. https://arxiv.org/abs/2208.11580
    Jacob et al. Quantization and training of neural networks for efficient integer-arithmetic-only
    inference. CVPR 2018. https://arxiv.org/abs/1712.05877 (zero points)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log10, prod
from typing import ClassVar, Literal

import numpy as np

from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.method import Candidate, CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.balance import balanced
from onnxcompress.methods.lookup.blind import fit_blind
from onnxcompress.methods.lookup.coded import JUDGED, Coded, Grid, Rows, grouped_for_fit
from onnxcompress.methods.lookup.error_feedback import cautious
from onnxcompress.methods.lookup.fit import encode
from onnxcompress.methods.lookup.kmeans import sizes
from onnxcompress.methods.lookup.tables import DIGITS, LEVELS, fits_half, some_codes
from onnxcompress.methods.lookup.uniform import MANY, SAMPLE, Kind, Uniform, best_kinds, search
from onnxcompress.methods.lookup.weight import CodedWeight

OPEN = (4, 8, 16, 32, 64, 128, 256)  # These numbers of levels are tried where the number is open.
FITTED = (4, 8, 32)  # Only these are fitted; what the others err is read between them.
# Filters with no more inputs are fitted with all: that takes little, and chance is large there.
NARROWEST = 32
# First scales are the best one for normal weights, times these.
SPREADS = (0.75, 0.9, 1.0, 1.1, 1.3)
NORMAL = {  # Max (1960) gives half the best step for normal weights of deviation 1.
    2: 0.798, 3: 0.612, 4: 0.498, 6: 0.367, 8: 0.293, 12: 0.211, 16: 0.168, 24: 0.119, 32: 0.094,
}  # fmt: skip
# Another kind of grid is worth its bytes and nodes if its error is less than this share.
PAYS = 0.95
# For zero points of bytes the share is less, a decibel: a smaller gain is lost in how the roundings
# happen to add up.
PAYS_ZERO = 0.8
# An error below this share of the energy shows what float16 rounds off scales: they are float32.
EXACT = 1e-6
ROOM = 2.0  # Fits and corrections may change a scale by this factor, either way.
GROUP = 64  # Groups of so many input channels, which share a scale, are tried where this is open.
GROUPED = (8, 16, 32)  # Such groups are tried with these numbers of levels.
PLAIN: tuple[Kind, ...] = ("odd", "signed")  # These grids have no zero points.
# Two roundings are compared on filters for so many multiplications, but on no fewer than these.
COMPARED, FEWEST = 2**31, 32
BIT = 20 * log10(2)  # A bit more for each weight is worth so many dB.


@dataclass(frozen=True)
class _Trial:
    """What a setting gives.

    Attributes:
        decided: the setting with all that was open in it.
        plain: relative squared error of the weight with plain rounding.
    """

    decided: Integer
    plain: float
    candidate: Candidate


@dataclass(frozen=True)
class Integer(Method):
    """Store whole numbers of few bits and a scale per channel: a smaller file, the same speed.

    Attributes:
        bits: of a number, 2 to 8.
        levels: the same as a number of levels: 3 takes 1.6 bits, 6 takes 2.67, 12 takes 3.67.
        group: input channels that share a scale; by default all of them.
        zero_point: none or channel (each scale has one); by default the better one.
        scales: half (16-bit floats) or single (32-bit); by default half where it serves.
    """

    auto: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    bits: int | None = None
    levels: int | None = None
    group: int | None = None
    zero_point: Literal["none", "channel"] | None = None
    scales: Literal["half", "single"] | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise MethodError(f"bits must be 2 to 8, got {self.bits}")
        if self.bits is not None and self.levels is not None:
            raise MethodError("give bits or levels, not both")
        if self.levels is not None and self.levels not in LEVELS:
            raise MethodError(f"levels must be one of {', '.join(map(str, LEVELS))}")
        if self.group is not None and self.group < 1:
            raise MethodError(f"group must be at least 1, got {self.group}")
        if self.zero_point not in (None, "none", "channel"):
            raise MethodError(f"zero_point must be none or channel, not {self.zero_point}")
        if self.scales not in (None, "half", "single"):
            raise MethodError(f"scales must be half or single, not {self.scales}")

    @property
    def fixed(self) -> bool:
        return self.count is not None

    @property
    def count(self) -> int | None:
        """Levels."""
        return 2**self.bits if self.bits else self.levels

    def settings(self, layer: Layer) -> list[Integer]:
        tried = [replace(self, **_spelled(n)) for n in ([self.count] if self.count else OPEN)]
        return [s for s in tried if s.nbytes(layer) < layer.nbytes]

    def nbytes(self, layer: Layer) -> int:
        size = layer.weight.size
        numbers = sum(-(-size // DIGITS[radix]) for radix in LEVELS[self.count or 256])
        each = (4 if self.scales == "single" else 2) + (self.zero_point == "channel")
        return numbers + each * len(layer.weight) * self._parts(layer)

    def _parts(self, layer: Layer) -> int:
        """Scales of a filter: groups of inputs are equal, so one may be smaller than asked for."""
        inputs = layer.weight.shape[1]
        most = min(self.group or inputs, inputs)
        return inputs // max(n for n in range(1, most + 1) if inputs % n == 0)

    def fit(self, layer: Layer, statistics: Statistics) -> CodedWeight:
        weight = grouped_for_fit(layer)
        grid, rows, _ = self._start(weight, self._parts(layer))
        fitted = encode(layer, statistics, rows, Grid(grid.table))
        if not statistics.count:
            fitted = _balanced(fitted, grid, layer)
        return CodedWeight.of_numbers(fitted, grid, layer, rows.single)

    def blank(self, layer: Layer) -> CodedWeight:
        levels = self.count or 256
        usual = "odd" if levels < 256 else "signed"  # This is what fits take.
        grid = Uniform(levels, "shifted" if self.zero_point == "channel" else usual)
        codes, scale = some_codes(layer, 1, self._parts(layer), grid.levels)
        zero = np.rint(scale) if grid.kind == "shifted" else None
        fitted = Coded(codes, scale, grid.table, 0.0, zero)
        return CodedWeight.of_numbers(fitted, grid, layer, self.scales == "single")

    def _start(self, weight: Array, parts: int) -> tuple[Uniform, Rows, float]:
        """The grid that suits a weight ``(groups, rows, n)``, and what its fit starts from.

        Last comes the relative squared error of the weight if that is rounded to the nearest.
        """
        groups, count, n = weight.shape
        flat = weight.reshape(groups * count * parts, n // parts)
        grid = self._grid(flat)
        searched = search(flat, grid)
        shape = (groups, count, parts)
        best, widest = searched.scale.reshape(shape), searched.widest.reshape(shape)
        starts = [widest.astype(weight.dtype), best.astype(weight.dtype)]
        if grid.levels < MANY:
            step = NORMAL[grid.levels] * (1 if grid.odd else 2)
            starts += [sizes(weight, parts) * (step * spread) for spread in SPREADS]
        zero = None if searched.zero is None else searched.zero.reshape(shape)
        energy = float(np.square(flat).sum(dtype=np.float64))
        plain = float(searched.error.sum(dtype=np.float64)) / max(energy, 1e-30)
        single = plain < EXACT or not fits_half(searched.scale, grid.levels, ROOM)
        single = single if self.scales is None else self.scales == "single"
        return grid, Rows(weight, tuple(starts), usual=1, zero=zero, single=single), plain

    def _grid(self, flat: Array) -> Uniform:
        """The grid that errs least on rows, with zero points only where they pay."""
        levels = self.count or 256
        if self.zero_point == "channel":
            return Uniform(levels, "shifted")
        # With 256 levels, numbers are bytes as they are.
        plain: tuple[Kind, ...] = ("signed",) if levels == 256 else ("odd",)
        more: tuple[Kind, ...] = ("signed",) if levels % 2 == 0 and 2 < levels < 256 else ()
        if self.zero_point is None:
            more = (*more, "shifted")
        [(least, grid)] = best_kinds(flat, levels, plain)
        for error, other in best_kinds(flat, levels, more):
            pays = PAYS_ZERO if other.kind == "shifted" and levels == 256 else PAYS
            if error < pays * least:
                least, grid = error, other
        return grid

    def plain_error(self, layer: Layer, statistics: Statistics) -> float:
        """Relative squared output error of the nearest values, on `_compared` filters."""
        layer = replace(layer, weight=layer.weight[_compared(layer)])
        grid, rows, _ = self._start(grouped_for_fit(layer), self._parts(layer))
        nearest = fit_blind(rows.starting(rows.usual), Grid(grid.table))
        return cautious(statistics).error(layer.weight, nearest.decoded(layer))

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        """Errors from some of the filters, where there are many.

        What a setting leaves open is tried too where it may be the better choice.  Of many settings
        some are fitted: what error feedback leaves of the error of plain rounding depends on little
        but that error, so that the others can be read between these.
        """
        weight, settings = grouped_for_fit(layer), self.settings(layer)
        if not statistics.count:
            weight = weight[:, :: max(1, weight.size // JUDGED)]
        known = [s for s in settings if s.count in FITTED] if layer.fan_in > NARROWEST else settings
        trials = {s: s._trial(layer, statistics, weight) for s in known or settings}
        shares = sorted((t.plain, t.candidate.error / t.plain) for t in trials.values() if t.plain)
        for setting in settings:
            first = trials.get(setting) or setting._trial(layer, statistics, weight, shares)
            tried = [replace(first.candidate, setting=setting) if self.fixed else first.candidate]
            if not self.fixed:
                more = setting._more(layer, weight, first.decided)
                others = (other._trial(layer, statistics, weight, shares) for other in more)
                tried += [other.candidate for other in others]
            yield from (c for c in tried if c.nbytes < layer.nbytes)

    def _more(self, layer: Layer, weight: Array, decided: Integer) -> Iterator[Integer]:
        """Other forms of a setting that was decided so, which may be the better choice."""
        if self.zero_point != decided.zero_point:
            yield replace(self, zero_point="none")
        if self.count in GROUPED:
            yield from self._grouped(layer, weight)

    def _trial(
        self,
        layer: Layer,
        statistics: Statistics,
        weight: Array,
        shares: Sequence[tuple[float, float]] = (),
    ) -> _Trial:
        """The setting with its zero points and scales decided, and what it gives.

        Args:
            shares: of settings that were fitted, the error of plain rounding and what share of it
                they have; without any this one is fitted.
        """
        grid, rows, plain = self._start(weight, self._parts(layer))
        decided = replace(self, zero_point="channel") if grid.kind == "shifted" else self
        if rows.single:
            decided = replace(decided, scales="single")
        if shares and plain > 0:
            known, left = np.log(np.maximum(np.array(shares), 1e-30)).T
            error = plain * float(np.exp(np.interp(np.log(plain), known, left)))
        else:
            error = encode(layer, statistics, rows, Grid(grid.table), trial=True).error
        nbytes, shape = decided.nbytes(layer), (layer.weight.shape,)
        return _Trial(decided, plain, Candidate(decided, nbytes, shape, error))

    def _grouped(self, layer: Layer, weight: Array) -> Iterator[Integer]:
        """The same with more scales, where these lower the error by more than their bits would."""
        grouped = replace(self, group=self.group or GROUP)
        parts = grouped._parts(layer)
        if self.group or parts == 1:
            return
        some = weight[:, :: max(1, weight.size // SAMPLE)]
        errors = [
            min(error for error, _ in best_kinds(some.reshape(-1, n), self.count or 256, PLAIN))
            for n in (layer.fan_in, layer.fan_in // parts)
        ]
        more = 16 * (parts - 1) / layer.fan_in  # These are bits for each weight.
        if errors[0] > errors[1] * 10 ** (more * BIT / 10):
            yield grouped


def _balanced(fitted: Coded, grid: Uniform, layer: Layer) -> Coded:
    """The fit with errors that add up to about 0, see `balance`."""
    count = fitted.scale.size
    rows = layer.weight.reshape(count, -1).astype(np.float32)
    exact = rows / np.maximum(fitted.scale, 1e-30).reshape(count, 1)
    exact += 0 if fitted.zero is None else fitted.zero.reshape(count, 1)
    exact = (exact - grid.table[0, 0]) / (2 if grid.odd else 1)
    codes = fitted.codes.reshape(count, -1).astype(np.int16)
    codes = balanced(exact, codes, grid.levels, prod(layer.kernel))
    return replace(fitted, codes=codes.astype(np.uint8).reshape(fitted.codes.shape))


def or_integer(weight: CompressedWeight, layer: Layer, statistics: Statistics) -> CompressedWeight:
    """The weight, or whole numbers in no more bytes (but for zero points) where these err less."""
    setting = largest_within(weight.nbytes, layer)
    if setting is None:
        return weight
    statistics, some, decoded = cautious(statistics), _compared(layer), weight.decode()
    if setting.plain_error(layer, statistics) >= statistics.error(
        layer.weight[some], decoded[some]
    ):
        return weight
    other = setting.fit(layer, statistics)
    error = statistics.error(layer.weight, decoded)
    return other if statistics.error(layer.weight, other.decode()) < error else weight


def _compared(layer: Layer) -> slice:
    """Filters enough to tell which of two roundings errs less."""
    enough = max(FEWEST, COMPARED // layer.fan_in**2)
    return slice(None, None, -(-len(layer.weight) // enough) if layer.groups == 1 else None)


def largest_within(nbytes: int, layer: Layer) -> Integer | None:
    """The most levels that take no more bytes, zero points not counted; None if even two do."""
    fitting = [n for n in LEVELS if Integer(levels=n).nbytes(layer) <= nbytes]
    return replace(Integer(), **_spelled(max(fitting))) if fitting else None


def _spelled(levels: int) -> dict[str, int | None]:
    """Bits where they say it, else levels."""
    bits = levels.bit_length() - 1
    if levels == 1 << bits and bits > 1:
        return {"bits": bits, "levels": None}
    return {"bits": None, "levels": levels}
