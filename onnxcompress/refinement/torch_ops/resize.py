"""Resizing: nearest and linear interpolation, which are separable, axis after axis.

An entry of the resized axis lies at a place on the original one, which ``coordinates`` says::

    half_pixel  (i + 1/2) / scale - 1/2     asymmetric  i / scale     align_corners  i (n-1) / (m-1)
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from onnxcompress.core.layer import Array
from onnxcompress.refinement.torch_ops.operator import (
    Node,
    Operator,
    along_axis,
    integers,
    pick,
    tensor,
)

LINEAR = ("linear", "bilinear", "trilinear")


@dataclass(frozen=True)
class _Interpolation:
    """How entries of a resized axis come from those of the original.

    Attributes:
        coordinates: where they lie on it, as ONNX names the rules.
        rounding: to the nearest, as ONNX names the rules; None for linear interpolation.
    """

    coordinates: str
    rounding: str | None


def _upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    factors = node.get("scales") if scales is None else scales.tolist()
    return _resize_by(x, factors, _interpolation(node, "asymmetric", "floor"))


def _resize(node: Node, x: Tensor, *rest: Tensor | None) -> Tensor:
    if node.opset < 11:
        assert rest[0] is not None
        how = _interpolation(node, "asymmetric", "simple")
        return _resize_by(x, rest[0].tolist(), how)
    _, scales, sizes, *_ = (*rest, None, None, None)
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("its policy for the aspect ratio is not supported")
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    factors, lengths = [1.0] * x.ndim, None
    if scales is not None and scales.numel():
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            factors[axis] = scale
    else:
        assert sizes is not None
        lengths = list(x.shape)
        for axis, size in zip(axes, integers(sizes), strict=True):
            lengths[axis], factors[axis] = size, size / x.shape[axis]
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    return _resize_by(x, factors, _interpolation(node, coordinates, rounding), lengths)


def _interpolation(node: Node, coordinates: str, rounding: str) -> _Interpolation:
    mode = node.get("mode", "nearest")
    if mode != "nearest" and mode not in LINEAR:
        raise ValueError(f"its mode {mode!r} is not supported")
    return _Interpolation(coordinates, rounding if mode == "nearest" else None)


def _resize_by(
    x: Tensor, scales: Sequence[float], how: _Interpolation, lengths: Sequence[int] | None = None
) -> Tensor:
    """Resize by these factors; to these lengths, where they are known."""
    for axis, scale in enumerate(scales):
        before = x.shape[axis]
        after = int(np.floor(before * scale)) if lengths is None else lengths[axis]
        if after == before and scale == 1:
            continue
        places = _places(before, after, scale, how.coordinates)
        if how.rounding is not None:
            nearest = _round(places, how.rounding, scale).clip(0, before - 1)
            x = pick(x, axis, nearest.astype(np.int64).tolist())
            continue
        low = np.floor(places.clip(0, before - 1)).astype(np.int64)
        share = tensor((places.clip(0, before - 1) - low).astype(np.float32), x.device)
        share = along_axis(share, x.ndim, axis)
        high = np.minimum(low + 1, before - 1)
        x = pick(x, axis, low.tolist()) * (1 - share) + pick(x, axis, high.tolist()) * share
    return x


def _places(before: int, after: int, scale: float, coordinates: str) -> Array:
    """Where the entries of a resized axis lie on the original."""
    place = np.arange(after, dtype=np.float64)
    if coordinates == "asymmetric":
        return place / scale
    if coordinates == "align_corners":
        return place * ((before - 1) / (after - 1) if after > 1 else 0.0)
    if coordinates == "pytorch_half_pixel" and after == 1:
        return np.zeros(1)
    if coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise ValueError(f"its coordinates {coordinates!r} are not supported")
    return (place + 0.5) / scale - 0.5


def _round(places: Array, rounding: str, scale: float) -> Array:
    if rounding == "simple":
        rounding = "ceil" if scale < 1 else "floor"
    if rounding in ("floor", "ceil"):
        return np.floor(places) if rounding == "floor" else np.ceil(places)
    down = rounding == "round_prefer_floor"
    return np.ceil(places - 0.5) if down else np.floor(places + 0.5)


OPERATORS = {
    "Resize": Operator(_resize, settings=(1, 2)),
    "Upsample": Operator(_upsample, settings=(1,)),
}
