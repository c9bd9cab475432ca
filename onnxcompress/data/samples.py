"""Samples: what calibration and evaluation feed to a model, read when it is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample

# The inputs of a batch take so many bytes at most: what a model makes of them is many times larger.
BATCH_BYTES = 16 << 20
BATCH_SAMPLES = 64  # A batch has at most so many samples, however small they are.
LEAST_BATCHES = 4  # If there are enough samples, so many batches leave work for several threads.


@dataclass(frozen=True, eq=False)
class Samples:
    """A view of samples that are read, decoded and preprocessed batch by batch, each time anew.

    ``for batch in samples`` gives dictionaries input name -> array; ``samples[:100]`` and
    ``take`` give views.  Where batches are whole (one per yield of a function, per
    ``test_data_set`` folder, or per image of a set of several sizes) a sample is such a batch.

    Attributes
    ----------
    read : callable
        Indices to the batch of those samples.
    index : int array
        The samples of this view, in order.
    batch : int
        Samples per batch: at most, or exactly.
    exact : bool
        Every batch has exactly ``batch`` samples; what fills no batch is left out of the view.
    read_labels : callable or None
        Indices to the labels of those samples.
    notes : tuple of str
        What the user should know, such as samples left out; one sentence each.
    whole : bool
        A sample is a whole batch, of as many rows as it likes.
    kinds : int array or None
        For every sample, or every row of whole batches, a number that equal ones share, as
        `check_samples` leaves them; None where it has not looked.
    """

    read: Callable[[Array], Sample]
    index: Array
    batch: int = 1
    exact: bool = True
    read_labels: Callable[[Array], Array] | None = None
    notes: tuple[str, ...] = ()
    whole: bool = False
    kinds: Array | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Sample]:
        return self.batches()

    def __getitem__(self, rows: slice) -> Samples:
        return self.take(np.arange(len(self))[rows])

    @property
    def labels(self) -> Array | None:
        """Labels in the order of the batches, or None."""
        return self.read_labels(self.index) if self.read_labels else None

    @property
    def digest(self) -> str:
        """SHA-256 of the first batch, as the model reads it."""
        digest = hashlib.sha256()
        for name, array in sorted(next(iter(self)).items()):
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(array_bytes(array))
        return digest.hexdigest()

    @property
    def content(self) -> str:
        """SHA-256 of all samples, as the model reads them."""
        digest = hashlib.sha256()
        for start in range(0, len(self), self.batch):
            digest.update(self[start : start + self.batch].digest.encode())
        return digest.hexdigest()

    @property
    def distinct(self) -> int:
        """How many are different; all, where nothing has looked at them."""
        return len(self) if self.kinds is None else len(np.unique(self.kinds))

    def unrepeated(self) -> Samples:
        """A view of the first of each kind; of all where these do not fill a batch."""
        if self.kinds is None or len(self.kinds) != len(self) or self.distinct < self._unit:
            return self
        return self.take(np.sort(np.unique(self.kinds, return_index=True)[1]))

    @property
    def even(self) -> int:
        """Samples per batch that leave work for several threads, however many there are."""
        return max(1, min(self.batch, -(-len(self) // LEAST_BATCHES)))

    def batches(self, size: int | None = None) -> Iterator[Sample]:
        """Batches of at most ``size`` samples (default ``batch``; no effect where exact)."""
        step = size if size and not self.exact else self.batch
        for start in range(0, len(self), step):
            yield self.read(self.index[start : start + step])

    def take(self, rows: Sequence[int] | Array) -> Samples:
        """A view of these samples, counted from this view's first.

        Raises
        ------
        DataError
            They are too few for one batch of the model's fixed size.
        """
        index = self.index[np.asarray(rows, np.intp)]
        rest = len(index) % self.batch if self.exact else 0
        if not rest:
            return replace(self, index=index, kinds=None)
        if rest == len(index):
            raise DataError(f"{rest} samples do not fill the model's fixed batch of {self.batch}")
        note = f"{rest} of {len(index)} samples are left out: the model's batch is {self.batch}"
        return replace(self, index=index[:-rest], notes=(*self.notes, note), kinds=None)

    def spread(self, count: int) -> Samples:
        """A view of ``count`` samples, evenly spread over this one; whole batches where exact."""
        return self.take(self._rows(spread(len(self) // self._unit, -(-count // self._unit))))

    def split(self, held_out: int | None = None, sequence: bool = False) -> tuple[Samples, Samples]:
        """Samples to fit with, and samples to validate with, evenly spread between them.

        Parameters
        ----------
        held_out : int
            Samples to validate with, by default a quarter, but 16 to 256 and not above a half;
            rounded up to whole batches where exact.  A single batch serves for both.
        sequence : bool
            The samples to validate with are the last ones, which follow one another.
        """
        total = len(self) // self._unit
        if total < 2:
            note = "the only batch of samples serves for fitting and for validation"
            both = replace(self, notes=(*self.notes, note))
            return both, both
        most = total // 2 if held_out is None else total - 1
        count = min(max(len(self) // 4, 16), 256) if held_out is None else held_out
        count = min(-(-count // self._unit), most)
        held = np.arange(total - count, total) if sequence else spread(total, count)
        kept = np.setdiff1d(np.arange(total), held)
        return self.take(self._rows(kept)), self.take(self._rows(held))

    @property
    def _unit(self) -> int:
        return self.batch if self.exact else 1

    def _rows(self, units: Array) -> Array:
        return (units[:, None] * self._unit + np.arange(self._unit)).ravel()


def array_bytes(array: Array) -> bytes:
    """What tells an array's values from others; strings have no bytes of their own."""
    return array.tobytes() if array.dtype.kind != "O" else repr(array.tolist()).encode()


def spread(total: int, count: int) -> Array:
    """``count`` of ``range(total)``, one from each of as many equal parts; all if too few.

    The place within a part follows the golden ratio: equal steps would fall into step with
    data that repeats, and take every sample from one class.
    """
    if count >= total:
        return np.arange(total)
    i = np.arange(count)
    start, stop = i * total // count, (i + 1) * total // count
    return start + (i * 0.6180339887498949 % 1 * (stop - start)).astype(np.intp)


def from_batches(batches: Sequence[Sample]) -> Samples:
    """Samples that are in memory already: each dictionary is one whole batch."""
    return Samples(lambda rows: batches[int(rows[0])], np.arange(len(batches)), whole=True)
