"""Frequent: a table of which the rows that samples look up have more bits.  Smaller files.

A network reads a few rows of an embedding again and again, and most of them hardly ever: words
follow Zipf's law.  Every row is rounded to numbers of few levels, as in `Integer`.  Frequent rows
have a second set of numbers, for the error of the first::

    T[v] = A[v] + B[place[v]]            place[v] = 0 and B[0] = 0 for all other rows

A row costs by its bits, and errs by how often it is read, so that bits follow the frequency (the
reverse water-filling of rate-distortion theory).  Other samples read a row about as often as these
do, less ``n1 / (n1 + 2 n2)`` times, with n1 rows that one of these reads, and n2 rows that two do
(absolute discounting); what is left of all reads is of rows that none of these reads.  A table of
places in a text, of which the first so many rows are read, is such a table too.

References:
    Ginart et al. Mixed dimension embeddings. 2019. https://arxiv.org/abs/1909.11810
    Ney, Essen, Kneser. On structuring probabilistic dependences in stochastic language modelling.
    Computer Speech and Language 8, 1994.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Array, Emitter, Layer, Shape, Value
from onnxcompress.core.method import Candidate, DecodedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.integer import Integer
from onnxcompress.methods.lookup.coded import JUDGED
from onnxcompress.methods.lookup.tables import DIGITS, LEVELS
from onnxcompress.methods.lookup.weight import CodedWeight

FIRST = (2, 3, 4, 6, 8, 12, 16, 24, 32)  # These levels of all rows are tried where it is open,
SECOND = (16, 256)  # with these of what they leave of the frequent ones.
# Places that no sample has are those of all longer inputs, not of a rare word: they have more.
LEAST_OF_PLACES = 8
BYTE = 255  # The places of so many frequent rows take a byte each.
MOST = 8  # At most one part in so many of the rows is frequent.


@dataclass(frozen=True)
class Frequent(Method):
    """Give more bits to rows of a table that samples look up: a smaller file, the same speed.

    Attributes:
        levels: of the numbers of all rows.
        second: levels of the second numbers.
        rows: how many rows have them, the most frequent ones; by default all that samples look up,
            or as many as have places of a byte, if levels are open.
    """

    auto: ClassVar[bool] = True
    quick: ClassVar[bool] = True
    sampled: ClassVar[bool] = True

    levels: int | None = None
    second: int | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("levels", "second"):
            value = getattr(self, name)
            if value is not None and value not in LEVELS:
                raise MethodError(f"{name} must be one of {', '.join(map(str, LEVELS))}")
        if self.rows is not None and self.rows < 1:
            raise MethodError(f"rows must be at least 1, got {self.rows}")

    @property
    def fixed(self) -> bool:
        return self.levels is not None and self.second is not None

    def settings(self, layer: Layer) -> Sequence[Self]:
        frequent = _frequent(layer)
        if not len(frequent):
            return []
        counts = {min(self.rows or len(layer.weight), len(frequent))}
        counts |= set() if self.rows or self.fixed else {min(BYTE, len(frequent))}
        least = LEAST_OF_PLACES if "ends" in layer.attributes else 0
        tried = [
            replace(self, levels=first, second=second, rows=count)
            for first in ([self.levels] if self.levels else [n for n in FIRST if n >= least])
            for second in ([self.second] if self.second else SECOND)
            for count in sorted(counts)
            if all(layer.weight.shape[1] % DIGITS[radix] == 0 for radix in LEVELS[first])
        ]
        sizes = {setting: setting.nbytes(layer) for setting in tried}
        return sorted((s for s in tried if sizes[s] < layer.nbytes), key=sizes.__getitem__)

    def declined(self, layer: Layer) -> str | None:
        """Which rows are read is not known before samples are."""
        known = "indices" in layer.attributes or "ends" in layer.attributes
        return None if known else "it is no large table that is looked up"

    def nbytes(self, layer: Layer) -> int:
        first, second = self._numbers()
        place = len(layer.weight) * np.min_scalar_type(self._count(layer)).itemsize
        return first.nbytes(layer) + place + second.nbytes(self._more(layer))

    def blank(self, layer: Layer) -> FrequentWeight:
        first, second = self._numbers()
        count = self._count(layer)
        place = np.arange(len(layer.weight)) % (count + 1)
        kept = place.astype(np.min_scalar_type(count))
        return FrequentWeight(first.blank(layer), kept, second.blank(self._more(layer)))

    def fit(self, layer: Layer, statistics: Statistics) -> FrequentWeight:
        white, chosen = Statistics.white(layer), self._chosen(layer)
        first, second = self._numbers()
        rows = first.fit(layer, white)
        left = layer.weight[chosen] - rows.decode()[chosen]
        left = np.concatenate([np.zeros_like(left[:1]), left])
        place = np.zeros(len(layer.weight), np.min_scalar_type(len(chosen)))
        place[chosen] = np.arange(1, len(chosen) + 1)
        return FrequentWeight(rows, place, second.fit(replace(layer, weight=left), white))

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        """Errors of a read, from some of the rows that none is known to look up."""
        settings, frequent = self.settings(layer), _frequent(layer)
        if not settings:
            return
        step = max(1, layer.weight.size // JUDGED)
        some = np.concatenate([frequent, np.arange(step // 2, len(layer.weight), step)])
        some, reads = layer.weight[some], layer.attributes["reads"][frequent]
        energy = np.square(some, dtype=np.float64).sum(1)
        count, off = len(frequent), dict[tuple[int | None, int | None], Array]()
        for setting in settings:
            key = setting.levels, setting.second
            if (setting.levels, None) not in off:
                off[setting.levels, None] = setting._left(layer, some, setting._numbers()[0])
            left = off[setting.levels, None]
            if key not in off:
                off[key] = setting._left(layer, left[:count], setting._numbers()[1])
            own = slice(setting._count(layer))
            share = _share(off[key][own], energy[own], reads[own])
            rest, seen = _share(left[count:], energy[count:]), setting._seen(layer)
            error = seen * share + (1 - seen) * rest
            yield Candidate(setting, setting.nbytes(layer), (layer.weight.shape,), error)

    def _left(self, layer: Layer, rows: Array, numbers: Integer) -> Array:
        """What numbers leave of some rows."""
        table = replace(layer, weight=rows)
        return rows - numbers.fit(table, Statistics.white(table)).decode()

    def _numbers(self) -> tuple[Integer, Integer]:
        plain = Integer(zero_point="none")
        return replace(plain, levels=self.levels), replace(plain, levels=self.second)

    def _count(self, layer: Layer) -> int:
        return min(self.rows or len(layer.weight), len(_frequent(layer)))

    def _more(self, layer: Layer) -> Layer:
        """A table of zeros for the second numbers."""
        shape = self._count(layer) + 1, *layer.weight.shape[1:]
        return replace(layer, weight=np.broadcast_to(layer.weight.dtype.type(0), shape))

    def _chosen(self, layer: Layer) -> Array:
        """The rows that have second numbers, in order."""
        return np.sort(_frequent(layer)[: self._count(layer)])

    def _seen(self, layer: Layer) -> float:
        """The share of reads, by other samples, of rows that have second numbers.

        Every row counts a little less often than it was read, which leaves something to the others.
        """
        reads = layer.attributes["reads"]
        once, twice = (max(int((reads == times).sum()), 1) for times in (1, 2))
        less = once / (once + 2 * twice)
        return float((reads[self._chosen(layer)] - less).sum()) / max(int(reads.sum()), 1)


def _frequent(layer: Layer) -> Array:
    """The rows that samples look up, the most frequent first; none where that is not known."""
    reads = layer.attributes.get("reads", np.zeros(0, int))
    read = np.flatnonzero(reads)
    order = read[np.argsort(-reads[read], kind="stable")]
    return order[: max(len(reads) // MOST, 1)]


def _share(off: Array, energy: Array, reads: Array | None = None) -> float:
    """The energy of errors as a share of that of their rows, which are read so often."""
    errors = np.average(np.square(off, dtype=np.float64).sum(1), weights=reads)
    return float(errors / (np.average(energy, weights=reads) + 1e-30))


@dataclass(frozen=True, eq=False)
class FrequentWeight(DecodedWeight):
    """Numbers of all rows, and second ones of the frequent rows.

    Attributes:
        place: of every row, that of its second numbers; those in place 0 are zeros.
    """

    rows: CodedWeight
    place: Array
    more: CodedWeight

    def arrays(self) -> Iterator[Array]:
        yield from self.rows.arrays()
        yield self.place
        yield from self.more.arrays()

    def shared_arrays(self) -> Iterator[Array]:
        yield from self.rows.shared_arrays()
        yield from self.more.shared_arrays()

    @property
    def factors(self) -> tuple[Shape, ...]:
        return self.rows.factors

    def astype(self, dtype: object) -> Self:
        return replace(self, rows=self.rows.astype(dtype), more=self.more.astype(dtype))

    def decode(self) -> Array:
        return self.rows.decode() + self.more.decode()[self.place]

    def scaled(self, gain: Array) -> Self:
        gains = np.ones(self.more.shape[0], gain.dtype)
        gains[self.place] = gain
        return replace(self, rows=self.rows.scaled(gain), more=self.more.scaled(gains))

    def emit_weight(self, op: Emitter, dtype: object) -> Value:
        place = op.Cast(self.place, to=np.int32)
        more = op.Gather(self.more.emit_weight(op, dtype), place, axis=0)
        return op.Add(self.rows.emit_weight(op, dtype), more)

    def emit_rows(self, op: Emitter, indices: Value, dtype: object) -> Value | None:
        rows = self.rows.emit_rows(op, indices, dtype)
        if rows is None:
            return None
        place = op.Cast(op.Gather(self.place, indices, axis=0), to=np.int32)
        more = self.more.emit_rows(op, place, dtype)
        return None if more is None else op.Add(rows, more)
