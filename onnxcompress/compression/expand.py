"""Compressed models with their weights written out again, for runtimes that fold no constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, fold_constants


def expand(model: Model) -> Model:
    """A copy in which stored weights take the place of the nodes that decode them.

    Every tensor of floats or bytes that depends on constants alone becomes an initializer under its
    own name, wherever it comes from; what a DequantizeLinear reads, not what it makes of that.
    Other whole numbers, random ones, nodes with bodies and what a caller may override are left
    alone, and all else stays byte for byte.

    Raises:
        ModelError: onnxruntime cannot compute one of them.
    """
    return fold_constants(model, _run)


def _run(part: Model) -> Sequence[Any]:
    """The outputs of a model without inputs; as each node runs once, nothing is gained by folding
    them first, and each tensor would be held twice."""
    return Session(part, optimize=False).run({})
