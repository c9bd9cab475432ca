"""The methods that are worth trying for a target."""

from __future__ import annotations

from dataclasses import replace

from onnxcompress.compression.target import Target, check_target
from onnxcompress.core.errors import MethodError
from onnxcompress.core.method import Method
from onnxcompress.methods import METHODS
from onnxcompress.methods.codebook import Codebook
from onnxcompress.methods.composed import Packed
from onnxcompress.methods.frequent import Frequent
from onnxcompress.methods.integer import Integer

WHOLE = 1 << 20  # No layer has more input channels, so all of them share a scale.


def auto(target: Target | None, compute: str = "float") -> list[Method]:
    """The methods that are worth trying for a target.

    Fewer multiplications need chains of smaller layers, smaller files need fewer bits, and both
    together need chains of few bits.  On no layer that we measured did a chain make the better
    small file.  In int8, where neither size nor quality is asked for, numbers of 8 bits serve.
    """
    # There, a layer multiplies whole numbers by one scale for each channel.
    if compute == "int8":
        whole = Integer(zero_point="none", group=WHOLE)
        if target is None or not (target.ratio or target.faithful):
            return [replace(whole, bits=8)]
        return [whole, Codebook(), Frequent()]
    methods = [method() for method in METHODS.values() if method.auto]
    faster = [method for method in methods if method.faster]
    smaller = [method for method in methods if not method.faster]
    if target is None or not target.faster:
        return smaller
    if target.ratio is None:
        return faster
    packed = [Packed(f, outer) for f in faster for outer in (Integer(bits=8), Integer(bits=4))]
    return [*packed, *smaller]


def arithmetic(compute: str, target: Target | None) -> str:
    """float or int8; where it is left open, int8 if time is asked for.

    Raises:
        MethodError: it is none of these.
        TargetError: the target is none.
    """
    check_target(target)
    if compute not in ("float", "int8", "auto"):
        raise MethodError(f"compute must be float, int8 or auto, got {compute!r}")
    if compute == "auto":
        return "int8" if target is not None and target.latency else "float"
    return compute
