"""Files that are made beside their place, and moved there when they are complete.

They are made in a folder that its owner locks.  The lock goes with the process, however that ends:
so the next run to the same place knows the folders of killed runs, and removes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from onnxcompress.core.errors import OutputError
from onnxcompress.core.messages import printable

try:
    import fcntl
except ImportError:  # On Windows nothing is swept.
    fcntl = None

TAG = "oc-"  # It tells our folders from those of others.


def check_cache(folder: Path | None) -> None:
    """Find out before the work whether a cache could be kept in a folder, as `check_place` does."""
    if folder is not None:
        check_place(folder / "entry", (), force=False)


def check_place(output: Path, inputs: Collection[Path], force: bool) -> None:
    """Find out before the work whether a file could be written.

    Raises:
        OutputError: it could not, or is one of the inputs and nothing forces that.
    """
    if any(part != printable(part) for part in output.parts):
        raise OutputError(f"{output} cannot be written: its name is no plain text")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output} is not a regular file; with output=None nothing is written")
    if output.exists() and any(map(output.samefile, inputs)) and not force:
        raise OutputError(f"{output} is an input; force=True allows that")
    try:
        parent = output.resolve(strict=False).parent
    except (OSError, RuntimeError):  # Links form a circle.
        raise OutputError(f"{output} cannot be written: it is a link to itself") from None
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{output} cannot be written: {parent} is not a writable folder")


@contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A folder beside this file, for what will become it; it is removed in the end.

    Raises:
        OSError: the folder cannot be made.
    """
    sweep(place)
    folder, lock = _locked(place)
    try:
        yield folder
    finally:
        rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(place: Path) -> None:
    """Remove what killed runs to the same place have left."""
    name = re.compile(re.escape(f".{place.name}.{TAG}") + r"\w+")
    for folder in [f for f in place.parent.glob(f".*.{TAG}*") if name.fullmatch(f.name)]:
        with suppress(OSError):
            lock = _lock(folder)
            if lock is not None:
                rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(place: Path) -> tuple[Path, int | None]:
    """A new folder and its lock; another run may sweep it before it is locked."""
    while True:
        folder = Path(mkdtemp(dir=place.parent, prefix=f".{place.name}.{TAG}"))
        try:
            lock = _lock(folder)
        except OSError:  # It is swept already, or nothing can be locked there.
            lock = None
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A handle that keeps the folder locked; None where somebody else does, or nothing can be."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
