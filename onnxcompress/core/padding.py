"""Padding of convolutions and pools, as the ONNX operators define it.

Along one axis of n entries, where a kernel reaches over ``extent = dilation (kernel - 1) + 1``::

    convolution, pool       output = (before + n + after - extent) // stride + 1
    transposed convolution  output = stride (n - 1) + extent - before - after

``auto_pad`` SAME means an output of ``ceil(n / stride)`` entries, or of ``n stride`` where the
convolution is transposed.  An odd entry goes to the end with SAME_UPPER, else to the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

Pads = list[tuple[int, int]]  # There is a number before and one after each axis.


def extents(attributes: Mapping[str, Any], kernel: Sequence[int]) -> list[int]:
    """Entries of each axis that a kernel reaches over."""
    dilations = attributes.get("dilations", [1] * len(kernel))
    return [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]


def padding(attributes: Mapping[str, Any], size: Sequence[int], kernel: Sequence[int]) -> Pads:
    """Zeros around each axis of a convolution's input; of a pool's too.

    Args:
        attributes: of the node.
        size: lengths of the input's spatial axes.
        kernel: lengths of the kernel's.
    """
    if not _automatic(attributes).startswith("SAME"):
        return _explicit(attributes, len(kernel))
    axes = zip(size, extents(attributes, kernel), _strides(attributes, kernel), strict=True)
    totals = [max((ceil(n / stride) - 1) * stride + extent - n, 0) for n, extent, stride in axes]
    return [_halves(attributes, total) for total in totals]


def cropping(attributes: Mapping[str, Any], size: Sequence[int], kernel: Sequence[int]) -> Pads:
    """What a transposed convolution cuts off each axis of ``stride (n - 1) + extent`` entries.

    A negative number stands for zeros that are added: those of ``output_padding``, and what is
    missing to a larger ``output_shape``.  The arguments are those of `padding`.
    """
    rank, same = len(kernel), _automatic(attributes).startswith("SAME")
    strides, extra = _strides(attributes, kernel), attributes.get("output_padding", [0] * rank)
    pads = _explicit(attributes, rank)
    shape = attributes.get("output_shape")
    if shape or same:
        target = shape[-rank:] if shape else [n * s for n, s in zip(size, strides, strict=True)]
        axes = zip(size, extents(attributes, kernel), strides, extra, target, strict=True)
        totals = [s * (n - 1) + extent + more - length for n, extent, s, more, length in axes]
        pads = [_halves(attributes, max(total, 0)) for total in totals]
        missing = [min(total, 0) if shape else 0 for total in totals]
        pads = [(low, high + less) for (low, high), less in zip(pads, missing, strict=True)]
    return [(low, high - more) for (low, high), more in zip(pads, extra, strict=True)]


def output_size(
    attributes: Mapping[str, Any], size: Sequence[int], kernel: Sequence[int], transposed: bool
) -> list[int]:
    """Lengths of the output's spatial axes; the arguments are those of `padding`."""
    pads = (cropping if transposed else padding)(attributes, size, kernel)
    axes = zip(size, pads, extents(attributes, kernel), _strides(attributes, kernel), strict=True)
    if transposed:
        return [s * (n - 1) + extent - low - high for n, (low, high), extent, s in axes]
    return [(low + n + high - extent) // s + 1 for n, (low, high), extent, s in axes]


def _automatic(attributes: Mapping[str, Any]) -> str:
    return attributes.get("auto_pad", "NOTSET")


def _strides(attributes: Mapping[str, Any], kernel: Sequence[int]) -> Sequence[int]:
    return attributes.get("strides", [1] * len(kernel))


def _explicit(attributes: Mapping[str, Any], rank: int) -> Pads:
    """The attribute ``pads``, which lists all beginnings first."""
    pads = attributes.get("pads", [0] * 2 * rank)
    if _automatic(attributes) == "VALID":
        pads = [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _halves(attributes: Mapping[str, Any], total: int) -> tuple[int, int]:
    """The two ends' parts of an automatic padding."""
    less, more = total // 2, total - total // 2
    return (less, more) if _automatic(attributes) == "SAME_UPPER" else (more, less)
