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

T = TypeVar("T", bound=Any)

GATHERED_BYTES = 16 << 20


def patches(layer: Layer, x: Array, limit: int | None = None, seed: int = 0) -> Array:
    """``(groups, count, fan_in)``, float32 or float64."""
    x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
    if layer.op_type in ("Gemm", "MatMul", "Constant"):
        if layer.attributes.get("transA") or layer.attributes.get("left"):
            x = np.swapaxes(x, -1, -2)
        states = np.moveaxis(x, -3, 0) if layer.groups > 1 else x  # of several directions
        flat = states.reshape(layer.groups, -1, x.shape[-1])
        return flat[:, _drawn(flat.shape[1], limit, seed)]
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


def gathered(parts: Iterable[T], nbytes: int = GATHERED_BYTES) -> Iterator[list[T]]:
    """Groups of consecutive parts of about so many bytes: few large products beat many small."""
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
    rank = len(layer.kernel)
    strides = layer.attributes.get("strides", [1] * rank)
    dilations = layer.attributes.get("dilations", [1] * rank)
    extent = [d * (k - 1) + 1 for k, d in zip(layer.kernel, dilations, strict=True)]
    pads = _pads(layer, x.shape[2:], strides, extent)
    axes = tuple(range(2, 2 + rank))
    if layer.op_type == "ConvTranspose":
        x = _stretched(x, strides)
        pads = [(e - 1 - a, e - 1 - b) for (a, b), e in zip(pads, extent, strict=True)]
        strides = [1] * rank
    x = _padded(x, pads)
    windows = sliding_window_view(x, extent, axis=axes)
    windows = windows[:, :, *(slice(None, None, s) for s in strides)]
    windows = windows[..., *(slice(None, None, d) for d in dilations)]
    return np.flip(windows, tuple(range(-rank, 0))) if layer.op_type == "ConvTranspose" else windows


def _pads(
    layer: Layer, size: Sequence[int], strides: Sequence[int], extent: Sequence[int]
) -> list[tuple[int, int]]:
    """Padding before and after each axis; for a transposed convolution, what it cuts off."""
    rank = len(size)
    automatic = layer.attributes.get("auto_pad", "NOTSET")
    given = layer.attributes.get("pads", [0] * 2 * rank)
    explicit = list(zip(given[:rank], given[rank:], strict=True))
    extra = layer.attributes.get("output_padding", [0] * rank)
    wanted = layer.attributes.get("output_shape")
    if automatic == "VALID":
        explicit = [(0, 0)] * rank
    result = []
    for axis, n in enumerate(size):
        if layer.op_type == "ConvTranspose":
            full = strides[axis] * (n - 1) + extra[axis] + extent[axis]
            target = wanted[axis] if wanted else n * strides[axis]
            if wanted or automatic.startswith("SAME"):
                total = max(0, full - target)
                half = (total - total // 2, total // 2)
                before, after = half[::-1] if automatic == "SAME_UPPER" else half
                if wanted:
                    after += min(0, full - target)  # zeros at the end fill what is missing
            else:
                before, after = explicit[axis]
            result.append((before, after - extra[axis]))
            continue
        if automatic.startswith("SAME"):
            total = max(0, (-(-n // strides[axis]) - 1) * strides[axis] + extent[axis] - n)
            half = (total // 2, total - total // 2)
            result.append(half if automatic == "SAME_UPPER" else half[::-1])
        else:
            result.append(explicit[axis])
    return result


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
