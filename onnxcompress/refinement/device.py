"""Where torch computes, and on how many threads."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onnxcompress.core.errors import RefineError


def pick_device(name: str) -> str:
    """The device of that name; for ``auto`` a GPU where there is one.

    Raises:
        RefineError: torch has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RefineError(f"torch has no device {name!r}: {str(error).splitlines()[0]}") from None
    return name


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
