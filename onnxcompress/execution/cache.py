"""What was computed before, by what it was computed from.

An entry is one file: the SHA-256 of the rest, then the pickled value or other bytes.  It is
written beside its place and moved there, so that two runs may share a folder; a damaged entry
counts as missing.
The folder is trusted as the program itself is: pickles run code.
"""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from onnxcompress.core.scratch import scratch_folder

HEAD = 32  # The checksum, a SHA-256, has so many bytes.


class Cache:
    """A folder of values; without one nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def find(self, key: Any) -> Any:
        """The value kept under this key, None where there is none.

        Args:
            key: anything whose repr says what the value depends on.
        """
        stored = self.load(key)
        with suppress(pickle.UnpicklingError, AttributeError, ImportError, EOFError):
            return None if stored is None else pickle.loads(stored)
        return None

    def store(self, key: Any, value: Any) -> None:
        """Keep a value under this key."""
        if self.folder is not None:
            self.keep(key, pickle.dumps(value))

    def load(self, key: Any, kind: str = "pickle") -> bytes | None:
        """The bytes kept under this key; None where there are none, or not all of them."""
        if self.folder is None:
            return None
        try:
            stored = self._path(self.folder, key, kind).read_bytes()
        except OSError:
            return None
        return stored[HEAD:] if sha256(stored[HEAD:]).digest() == stored[:HEAD] else None

    def keep(self, key: Any, data: bytes, kind: str = "pickle") -> None:
        """Keep bytes under this key, in place of what was there.

        Where that fails, as on a full disk, the next run has to compute them again.

        Args:
            kind: ends the file's name, and keeps apart what is stored in different forms.
        """
        if self.folder is None:
            return
        path = self._path(self.folder, key, kind)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch_folder(path.with_name("entry")) as scratch:
                made = scratch / path.name
                made.write_bytes(sha256(data).digest() + data)
                os.replace(made, path)

    def _path(self, folder: Path, key: Any, kind: str) -> Path:
        return folder / f"{sha256(repr(key).encode()).hexdigest()}.{kind}"
