"""Metrics of labelled samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from onnxcompress.compression.validate.fidelity import has_class_scores, scores
from onnxcompress.core.errors import MetricError
from onnxcompress.core.foreign import contain_errors, import_function
from onnxcompress.core.layer import Array

Metric = Callable[[Array, Array], Array]  # It turns (outputs, labels) into one score a sample.


def top(k: int) -> Metric:
    """Percentage of samples whose label is among the k highest scores."""

    def metric(output: Array, labels: Array) -> Array:
        if not has_class_scores(output):
            raise MetricError(f"top{k} needs class scores, but the output is {output.shape}")
        if labels.size != len(output):
            raise MetricError(f"top{k} needs one class number a sample, not {labels.shape[1:]}")
        best = np.argsort(-scores(output)[0], 1, kind="stable")[:, :k]
        return 100.0 * (best == labels.reshape(len(best), 1)).any(1)

    return metric


def psnr(output: Array, labels: Array) -> Array:
    """Peak signal-to-noise ratio in dB of images with values from 0 to 1."""
    if output.shape != labels.shape:
        raise MetricError(f"psnr needs targets of shape {output.shape}, not {labels.shape}")
    axes = tuple(range(1, output.ndim))
    error = np.mean(np.square(np.clip(output, 0, 1).astype(np.float64) - labels), axis=axes)
    return 10 * np.log10(1 / np.maximum(error, 1e-12))


METRICS: Mapping[str, Metric] = {"top1": top(1), "top5": top(5), "psnr": psnr}


def find_metric(name: str) -> Metric:
    """A metric by name, or ``module:function`` called with (outputs, labels).

    Raises:
        MetricError: there is no such metric; the function raises what it meets too, as one, and
            where the scores are not one a sample.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise MetricError(f"unknown metric {name!r}; there are top1, top5, psnr, module:function")
    function = import_function(name, MetricError)

    def metric(output: Array, labels: Array) -> Array:
        with contain_errors(f"the metric {name!r} failed", MetricError):
            result = np.asarray(function(output, labels))
        if result.shape != output.shape[:1] or result.dtype.kind not in "fiub":
            raise MetricError(
                f"the metric {name!r} must give one number a sample, of shape ({len(output)},), "
                f"but gave {result.dtype} of shape {result.shape}"
            )
        return result

    return metric
