"""Arrays in temporary files: what is stored of a large model, until it is written.

They are mapped read only, so that they are arrays like any other; `rest` lets go of the pages that
were looked at, which count as memory of the process as long as they are there.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from tempfile import TemporaryFile
from threading import Lock
from weakref import WeakSet

import numpy as np

from onnxcompress.core.layer import Array

LEAST = 1 << 16  # An array of fewer bytes is not worth a place in a file.
FILE = 1 << 28  # A file has at least so many bytes, and goes with the last array in it.


class _Spill:
    """The file that is being filled, and all whose arrays somebody still holds."""

    def __init__(self) -> None:
        self._lock, self._file, self._end = Lock(), None, 0
        self._map: mmap.mmap | None = None
        self._maps: WeakSet[mmap.mmap] = WeakSet()

    def put(self, array: Array) -> Array:
        with self._lock:
            if self._map is None or self._end + array.nbytes > len(self._map):
                self._begin(max(FILE, array.nbytes))
            assert self._map is not None and self._file is not None
            self._file.seek(self._end)
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._file.flush()
            stored = np.ndarray(array.shape, array.dtype, self._map, self._end)
            self._end += -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
            return stored

    def _begin(self, size: int) -> None:
        if self._file is not None:
            self._file.close()  # Its arrays keep the map, and that keeps what it holds.
        self._map, self._file, self._end = None, TemporaryFile(), 0  # noqa: SIM115
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        self._maps.add(self._map)

    def rest(self) -> None:
        with self._lock:
            for mapped in self._maps:
                with suppress(AttributeError, ValueError):  # Some systems cannot be advised.
                    mapped.madvise(mmap.MADV_DONTNEED)


_spill = _Spill()


def spilled(array: Array) -> Array:
    """The same array in a temporary file; small ones, and those that are there, as they are.

    Raises:
        OSError: the disk is full.
    """
    return array if array.nbytes < LEAST or is_spilled(array) else _spill.put(array)


def is_spilled(array: Array) -> bool:
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


def rest() -> None:
    """Let go of the memory in which arrays of `spilled` were read; they are read again."""
    _spill.rest()
