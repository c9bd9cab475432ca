"""What was computed before, by what it was computed from.

An entry is one file: the SHA-256 of the rest, then the pickled value.  It is written beside its
place and moved there, so that two runs may share a folder; a damaged entry counts as missing.
The folder is trusted as the program itself is: pickles run code.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar

T = TypeVar("T")
HEAD = 32  # bytes of the checksum


class Cache:
    """A folder of values; without one nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The value of this key, made and kept if it is not there.

        Args:
            key: anything whose repr says what the value depends on.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{sha256(repr(key).encode()).hexdigest()}.pickle"
        try:
            stored = path.read_bytes()
            if sha256(stored[HEAD:]).digest() == stored[:HEAD]:
                return pickle.loads(stored[HEAD:])
        except (OSError, pickle.UnpicklingError, AttributeError, ImportError, EOFError):
            pass
        value = make()
        self._keep(path, pickle.dumps(value))
        return value

    def _keep(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, delete=False) as stream:
            try:
                stream.write(sha256(data).digest())
                stream.write(data)
                stream.flush()
                os.replace(stream.name, path)
            except BaseException:
                os.unlink(stream.name)
                raise
