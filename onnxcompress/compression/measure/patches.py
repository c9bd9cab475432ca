"""What the layers of a model read: input patches and their second moments.

A patch is all that one output position sees of one group's input, ordered as the weight is:
``(in // groups, *kernel)``, so that ``y = weight @ patch`` before the bias.  A transposed
convolution is read as the convolution it equals: zeros between the inputs, the kernel reversed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.padding import cropping, extents, padding

T = TypeVar("T", bound=Any)
# Between so many bytes of patches are multiplied at once, as many as their second moment has.
GATHERED_LEAST, GATHERED_BYTES = 2 << 20, 16 << 20


def patches(layer: Layer, x: Array, limit: int | None = None, seed: int = 0) -> Array:
    """``(groups, count, fan_in)``, float32 or float64."""
    x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
    if layer.op_type == "Einsum":
        flat = layer.attributes["contraction"].patches(x)
        return flat[:, _drawn(flat.shape[1], limit, seed)]
    if layer.op_type in ("Gemm", "MatMul", "Constant"):
        if layer.attributes.get("transA") or layer.attributes.get("left"):
            x = np.swapaxes(x, -1, -2)
        if layer.groups > 1:
            x = _by_group(x, layer.attributes.get("lead", (layer.groups,)))
        flat = x.reshape(len(x) if layer.groups > 1 else 1, -1, x.shape[-1])
        drawn = flat[:, _drawn(flat.shape[1], limit, seed)]
        return np.broadcast_to(drawn, (layer.groups, *drawn.shape[1:]))
    windows = _windows(layer, x)
    rank = len(layer.kernel)
    batch, channels, *rest = windows.shape
    size, kernel = rest[:rank], rest[rank:]
    places = _drawn(batch * prod(size), limit, seed)
    if isinstance(places, slice):
        taken = np.moveaxis(windows, 1, 1 + rank).reshape(-1, channels, *kernel)
    else:
        index = np.unravel_index(places, (batch, *size))
        taken = windows[index[0], :, *index[1:]]
    grouped = taken.reshape(len(taken), layer.groups, -1)
    return np.ascontiguousarray(grouped.swapaxes(0, 1))


def _by_group(x: Array, lead: Sequence[int]) -> Array:
    """Groups first: those of a stack of matrices, or directions; one where all see the same."""
    shape, count = (1,) * (len(lead) + 2 - x.ndim) + x.shape, len(lead)
    own = shape[-2 - count : -2]
    x = x.reshape(shape)
    if prod(own) > 1:  # Some of the axes may be broadcast.
        x = np.broadcast_to(x, (*shape[: -2 - count], *lead, *shape[-2:]))
    first = len(shape) - 2 - count
    moved = np.moveaxis(x, range(first, first + count), range(count))
    return moved.reshape(-1 if prod(own) > 1 else 1, *moved.shape[count:])


def gathered(parts: Iterable[T], fan_in: int) -> Iterator[list[T]]:
    """Groups of consecutive parts: few large products beat many small."""
    nbytes = min(max(GATHERED_LEAST, 4 * fan_in**2), GATHERED_BYTES)
    group: list[T] = []
    filled = 0
    for part in parts:
        group.append(part)
        filled += sum(array.nbytes for array in (part if isinstance(part, tuple) else (part,)))
        if filled >= nbytes:
            yield group
            group, filled = [], 0
    if group:
        yield group


def _drawn(count: int, limit: int | None, seed: int) -> slice | Array:
    if limit is None or count <= limit:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _windows(layer: Layer, x: Array) -> Array:
    """A view ``(batch, in, *output size, *kernel)`` of everything that each output sees."""
    rank, axes = len(layer.kernel), tuple(range(2, x.ndim))
    strides = layer.attributes.get("strides", [1] * rank)
    dilations = layer.attributes.get("dilations", [1] * rank)
    extent = extents(layer.attributes, layer.kernel)
    if layer.op_type == "ConvTranspose":
        cut = cropping(layer.attributes, x.shape[2:], layer.kernel)
        pads = [(e - 1 - a, e - 1 - b) for (a, b), e in zip(cut, extent, strict=True)]
        x, strides = _stretched(x, strides), [1] * rank
    else:
        pads = padding(layer.attributes, x.shape[2:], layer.kernel)
    x = _padded(x, pads)
    windows = sliding_window_view(x, extent, axis=axes)
    windows = windows[:, :, *(slice(None, None, s) for s in strides)]
    windows = windows[..., *(slice(None, None, d) for d in dilations)]
    return np.flip(windows, tuple(range(-rank, 0))) if layer.op_type == "ConvTranspose" else windows


def _padded(x: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """Zeros around the spatial axes; a negative number cuts off."""
    grown = np.pad(x, [(0, 0), (0, 0), *((max(a, 0), max(b, 0)) for a, b in pads)])
    cut = [
        slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(pads, grown.shape[2:], strict=True)
    ]
    return grown[:, :, *cut]


def _stretched(x: Array, strides: Sequence[int]) -> Array:
    """Zeros between neighbours, so that a transposed convolution becomes a convolution."""
    size = [s * (n - 1) + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    result = np.zeros((*x.shape[:2], *size), x.dtype)
    result[:, :, *(slice(None, None, s) for s in strides)] = x
    return result
