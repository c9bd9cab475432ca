"""Samples that say nothing, and samples that cannot be used.

A fit learns from the directions in which samples differ: copies of one sample show one direction,
however many they are.  Here they are counted, all inputs of a sample taken together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import cores, each
from onnxcompress.core.sample import Sample
from onnxcompress.data.checks import count_rows
from onnxcompress.data.samples import Samples, array_bytes


@dataclass(frozen=True)
class _Kind:
    """One sample: a digest of its values, and whether all values of each input are equal, or 0."""

    digest: bytes
    constant: bool
    zero: bool


def check_samples(samples: Samples) -> Samples:
    """The samples with their kinds, and notes on those that are repeated, constant or zero.

    Each is read once.

    Raises
    ------
    DataError
        One holds NaN; its number counts from 0.
    """
    if samples.kinds is not None:
        return samples
    starts = range(0, len(samples), samples.batch)
    views = (samples.index[start : start + samples.batch] for start in starts)
    kinds: list[_Kind] = []
    for batch in each(samples.read, views, cores()):
        kinds += map(_kind, _split(batch, samples, len(kinds)))
    numbers = np.unique([kind.digest for kind in kinds], return_inverse=True)[1]
    return replace(samples, notes=(*samples.notes, *_notes(kinds)), kinds=numbers)


def _split(batch: Sample, samples: Samples, first: int) -> Iterator[Sample]:
    """The samples in a batch: its rows, or all of it where the rows are no samples.

    Args:
        first: number of the first one.
    """
    rows = count_rows(batch)
    single = rows is None or (samples.whole and rows == 1)
    parts = [batch] if single else [{n: x[i] for n, x in batch.items()} for i in range(rows or 0)]
    for offset, part in enumerate(parts):
        for name, array in part.items():
            if any(_has_nan(x) for x in _arrays(array)):
                raise DataError(f"sample {first + offset} has NaN in the input {name!r}")
        yield part


def _arrays(value: Array | list[Array]) -> list[Array]:
    """A sequence is several arrays."""
    return value if isinstance(value, list) else [np.asarray(value)]


def _has_nan(array: Array) -> bool:
    return array.dtype.kind not in "OUSMm" and bool((array != array).any())


def _kind(sample: Mapping[str, Array]) -> _Kind:
    digest = sha256()
    arrays = [array for name in sorted(sample) for array in _arrays(sample[name])]
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(array_bytes(array))
    several = any(array.size > 1 for array in arrays)
    constant = several and all(bool((a == a.flat[0]).all()) for a in arrays if a.size)
    zero = constant and all(not np.any(array) for array in arrays)
    return _Kind(digest.digest(), constant, zero)


def _notes(kinds: list[_Kind]) -> Iterator[str]:
    """One sentence for each thing to be known."""
    total, distinct = len(kinds), len({kind.digest for kind in kinds})
    if distinct < total:
        yield (
            f"{total - distinct} of {total} samples repeat others: only {distinct} "
            f"{'is' if distinct == 1 else 'are'} different"
        )
    zero = sum(kind.zero for kind in kinds)
    constant = sum(kind.constant for kind in kinds) - zero
    for count, what in ((zero, "zero everywhere"), (constant, "the same value everywhere")):
        if count:
            yield f"{count} of {total} samples {'is' if count == 1 else 'are'} {what}"
