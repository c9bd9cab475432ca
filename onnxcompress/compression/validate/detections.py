"""Detections that two models have in common, of an output before non-maximum suppression.

An output ``[N, 4 + K, boxes]`` holds for every box its centre, its size and a score of each of K
classes.  A box is found where a score is above `SCORE`; it matches if the other model finds one
of the same class, and both overlap by more than `OVERLAP` of what they cover together (IoU).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcompress.core.layer import Array

SCORE = 0.25  # Detectors are usually shown with boxes that score more than this.
# Detectors are judged by this share (Pascal VOC, Everingham et al. 2010, section 4.2).
OVERLAP = 0.5
BOXES = 64  # Fewer boxes are no grid of candidates.
# At most so many boxes of an image, the best ones, are looked at: all pairs are compared.
MOST = 1024


def looks_like_detections(output: Any) -> bool:
    """Whether an output is ``[N, 4 + K, boxes]``: scores up to 1 below boxes in pixels."""
    if not isinstance(output, np.ndarray) or output.ndim != 3 or output.dtype.kind != "f":
        return False
    if output.shape[1] < 5 or output.shape[2] < max(BOXES, output.shape[1]) or not output.size:
        return False
    boxes, scores = parts(output)
    scored = float(scores.min()) >= 0 and float(scores.max()) <= 1
    return scored and float(boxes.max()) > 2 and float(boxes[:, 2:].min()) >= 0


def parts(output: Array) -> tuple[Array, Array]:
    """The boxes and the scores of an output."""
    return output[:, :4], output[:, 4:]


def matches(a: Array, b: Array) -> tuple[int, int]:
    """Detections of either output that the other one has too, and all, over the images."""
    agreed = total = 0
    for first, second in zip(a, b, strict=True):
        ours, theirs = _boxes(first), _boxes(second)
        overlapping = _overlaps(ours[0], theirs[0]) > OVERLAP
        same = overlapping & (ours[1][:, None] == theirs[1][None])
        agreed += int(same.any(1).sum() + same.any(0).sum())
        total += len(ours[1]) + len(theirs[1])
    return agreed, total


def _boxes(output: Array) -> tuple[Array, Array]:
    """The corners of the boxes that are found, and their classes."""
    scores = output[4:].max(0)
    best = np.argsort(-scores, kind="stable")[:MOST]
    best = best[scores[best] > SCORE]
    x, y, width, height = output[:4, best].astype(np.float64)
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return corners, output[4:, best].argmax(0)


def _overlaps(a: Array, b: Array) -> Array:
    """The area that two boxes share, of the area that they cover together; for every pair."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(one[:, 2:] - one[:, :2], -1) for one in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
