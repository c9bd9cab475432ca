"""Nodes and constants that nothing reads, dropped."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcompress.graph.edit import drop_constants
from onnxcompress.graph.model import Model


def drop_dead(model: Model, names: Iterable[str]) -> Model:
    """Remove those of the named constants that nothing reads any more."""
    result = model.copy()
    drop_constants(result, set(names))
    return result
