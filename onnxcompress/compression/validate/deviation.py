"""The largest difference of two models' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxcompress.compression.measure.unfit import blaming
from onnxcompress.data.samples import Samples
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import session_of
from onnxcompress.graph import Model, has_bfloat16

ROUNDING = 1e-5  # Models that differ by this share of the largest output compute the same.
# This is the share where weights are bfloat16, which has 8 bits; `simplify` allows it for float16.
COARSE_ROUNDING = 2.0**-6


def rounding(model: Model) -> float:
    """The `deviation` up to which a model that stores the same weights computes the same."""
    return COARSE_ROUNDING if has_bfloat16(model) else ROUNDING


def deviation(original: Model, model: Model, samples: Samples, real: bool = True) -> float:
    """The largest difference of two models' outputs, as a share of that output's largest entry.

    It is infinite where shapes differ, or NaN and infinities lie elsewhere.  One model is loaded
    at a time.

    Args:
        real: whether the samples are somebody's, and not made up.
    """
    with blaming(original, samples, real):
        expected = outputs_of(original, samples)
    return distance(expected, outputs_of(model, samples))


def distance(first: Sequence[Any], second: Sequence[Any]) -> float:
    """The same of their outputs, as `outputs_of` gives them."""
    return max((_distance(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def outputs_of(model: Model, samples: Samples) -> list[Any]:
    """All outputs for all samples, one after the other."""
    session = session_of(runnable(model))
    return [y for batch in samples.batches(samples.even) for y in session.run(batch)]


def _distance(a: Any, b: Any) -> float:
    """Of one output; what is no array of numbers has to be the same."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):  # This is a sequence.
        return max(map(_distance, a, b), default=0.0)
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else np.inf
    if a.shape != b.shape:
        return np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    known = np.isfinite(a)
    if not np.array_equal(a[~known], b[~known], equal_nan=True):
        return np.inf
    scale = np.abs(a[known]).max(initial=0)
    error = np.abs(a[known] - b[known]).max(initial=0)
    if not np.isfinite(error):
        return np.inf
    return float(error / scale) if scale else (np.inf if error else 0.0)
