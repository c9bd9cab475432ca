"""The methods that are worth trying for a target."""

from __future__ import annotations

from onnxcompress.compression.target import Target
from onnxcompress.core.method import Method
from onnxcompress.methods import METHODS
from onnxcompress.methods.composed import Packed
from onnxcompress.methods.integer import Integer


def auto(target: Target | None) -> list[Method]:
    """The methods that are worth trying for a target.

    Fewer multiplications need chains of smaller layers, smaller files need fewer bits, and both
    together need chains of few bits.  On no layer that we measured did a chain make the better
    small file.
    """
    methods = [method() for method in METHODS.values() if method.auto]
    faster = [method for method in methods if method.faster]
    smaller = [method for method in methods if not method.faster]
    if target is None or not target.faster:
        return smaller
    if target.ratio is None:
        return faster
    packed = [Packed(f, outer) for f in faster for outer in (Integer(bits=8), Integer(bits=4))]
    return [*packed, *smaller]
