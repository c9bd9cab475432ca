"""Settings that no price near the budget's would take, so that they need not be fitted.

The whole numbers of `Integer`, which are fitted quickly, show the price λ of a byte at which the
file has its size.  Another setting, of b bytes, is of use only if, at a price near that one,

    error + λ b  <  the least of (error + λ bytes) among the numbers of this layer

Its error is unknown, but numbers of as many bytes err e, by interpolation, and no table errs less
than `GAIN` e: fixed-rate codes of normal values are 2.8 to 4.7 dB from what is possible at all,
at 2 to 4 bits (Gersho and Gray, Vector Quantization, 1992, section 9.9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.compression.job import Job
from onnxcompress.compression.search.knapsack import HIGHEST, Option, byte_price
from onnxcompress.compression.target import Target
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Candidate, Method
from onnxcompress.graph import overhead
from onnxcompress.methods.integer import Integer

GAIN = 0.3  # Other settings may come down to this share of the error of whole numbers.
NEAR = 3.0  # The price may be so many times the one that is known in the end, or one part of that.
PRICES = 9  # So many prices in between are looked at.
BIT = 0.25  # A bit more leaves this share of an error, for settings smaller than all numbers.


def by_numbers(job: Job, targets: Sequence[Target]) -> bool:
    """Whether a price can be known from whole numbers: sizes alone are asked for."""
    sizes = all(target.ratio and target == Target(ratio=target.ratio) for target in targets)
    return bool(targets) and sizes and not job.model.large


def is_first(method: Method) -> bool:
    """Whether a method is fitted before the price is known."""
    return method.quick or isinstance(method, Integer)


def worth_fitting(
    job: Job,
    targets: Sequence[Target],
    numbers: Mapping[str, Sequence[Candidate]],
    sensitivities: Mapping[str, float],
    others: Mapping[str, Sequence[Method]],
) -> dict[str, list[Method]]:
    """Of each layer the other settings that may be taken.

    Args:
        numbers: what was fitted, of every layer.
        others: methods that were not.
    """
    options = {
        name: _options(job, name, some, sensitivities[name]) for name, some in numbers.items()
    }
    outside = job.model.nbytes - sum(job.layers[name].nbytes for name in options)
    limits = [job.model.nbytes / (target.ratio or 1) - outside for target in targets]
    known = [byte_price(options, limit) for limit in limits]
    low = min(price or HIGHEST for price in known) / NEAR
    high = HIGHEST if None in known else max(price or 0.0 for price in known) * NEAR
    prices = np.geomspace(low, high, PRICES)
    return {
        name: _useful(job.layers[name], options.get(name, ()), own, prices)
        for name, own in others.items()
    }


def _options(job: Job, name: str, numbers: Sequence[Candidate], sensitivity: float) -> list[Option]:
    """The numbers of a weight, with what their nodes take about, and the weight as it is."""
    layer, nodes = job.layers[name], 0
    if numbers and numbers[0].setting is not None:
        blank = numbers[0].setting.blank(layer)
        nodes = sum(overhead(job.model, job.layers[r], blank) for r in job.readers(name))
    kept = Option(layer.nbytes, 0.0, Candidate(None, 0, (), 0.0))
    return [*(Option(c.nbytes + nodes, sensitivity * c.error, c) for c in numbers), kept]


def _useful(
    layer: Layer, numbers: Sequence[Option], methods: Sequence[Method], prices: np.ndarray
) -> list[Method]:
    settings = [setting for method in methods for setting in method.settings(layer)]
    fitted = sorted((o.candidate.nbytes, o.error) for o in numbers if o.error > 0)
    if not fitted or not settings:
        return settings
    costs, errors = np.array(fitted).T
    best = np.min([o.error + prices * o.cost for o in numbers], axis=0)
    nodes = numbers[0].cost - numbers[0].candidate.nbytes
    sizes = np.array([setting.nbytes(layer) for setting in settings])
    expected = np.exp(np.interp(sizes, costs, np.log(errors)))
    fewer = np.maximum(costs[0] - sizes, 0) * 8 / layer.weight.size  # bits for each weight
    least = GAIN * expected * BIT**-fewer
    useful = (least[:, None] + prices * (sizes + nodes)[:, None] < best).any(1)
    return [setting for setting, use in zip(settings, useful, strict=True) if use]
