"""How the inputs of matrix products are smoothed, so that one dynamic range serves all channels.

In transformers a few input channels are far larger than the others, which a range for all then
rounds to nothing.  A scale for each channel moves a part of that to the weight::

    s = max|x|^a / max|W|^(1 - a)          geometric mean 1, one for all layers that read x

with the exponent a with which the layers err least when both are rounded, none where none pays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.core.arithmetic import Rounded, rounded_by_sample
from onnxcompress.core.layer import Array, Layer
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, expose, layer_input, linear_nodes

POWERS = (0.5, 0.6, 0.7, 0.8)
PAYS = 0.7  # Scales are worth a node if they leave less than this share of the error.
SAMPLES = 16  # At most so many samples decide.
ROWS = 64  # Errors are taken over at most so many rows of each sample.
# No channel counts as less than this share of the largest: other samples may show more of it.
SMALLEST = 1e-3


def smoothing(
    model: Model, layers: Mapping[str, Layer], batches: Sequence[Sample]
) -> dict[str, Array]:
    """Layer -> scales of its input channels, where they pay.

    Args:
        layers: matrix products, none of which shares its weight.
        batches: calibration samples, one by one.
    """
    nodes = linear_nodes(model)
    readers: dict[str, list[str]] = {}
    for name, layer in layers.items():
        readers.setdefault(layer_input(nodes[name], layer), []).append(name)
    inner = sorted(readers.keys() - {value.name for value in model.graph.input})
    session = Session(expose(model, inner)) if inner else None
    seen: dict[str, list[Array]] = {name: [] for name in readers}
    for batch in batches[:SAMPLES]:
        values = dict(batch)
        if session is not None:
            values |= dict(zip(session.outputs, session.run(batch), strict=True))
        for name, kept in seen.items():
            kept.append(values[name].reshape(-1, values[name].shape[-1]))
    result: dict[str, Array] = {}
    for tensor, names in readers.items():
        weights = [layers[name].read().weight for name in names]
        scales = _best(seen[tensor], weights)
        if scales is not None:
            result |= dict.fromkeys(names, scales)
    return result


def _best(inputs: Sequence[Array], weights: Sequence[Array]) -> Array | None:
    """The scales with which the products err least; None where they hardly help."""
    largest = np.max([np.abs(x).max(0) for x in inputs], axis=0)
    heaviest = np.max([np.abs(w).max(0) for w in weights], axis=0)
    if not largest.max() > 0 or not heaviest.max() > 0:
        return None
    largest, heaviest = (np.maximum(v, SMALLEST * v.max()) for v in (largest, heaviest))
    best, least = None, PAYS * _error(inputs, weights, np.ones_like(largest))
    for power in POWERS:
        scales = largest**power / heaviest ** (1 - power)
        scales = (scales / np.exp(np.log(scales).mean())).astype(np.float32)
        error = _error(inputs, weights, scales)
        if error < least:
            best, least = scales, error
    return best


def _error(inputs: Sequence[Array], weights: Sequence[Array], scales: Array) -> float:
    """Relative squared errors of the products when both factors are rounded, summed."""
    total = 0.0
    rounded = [Rounded.of(w * scales).decode() for w in weights]
    parts = [(x, rounded_by_sample((x / scales)[None])[0]) for x in inputs]
    steps = [slice(None, None, -(-len(x) // ROWS)) for x in inputs]
    for w, near in zip(weights, rounded, strict=True):
        pairs = [(x[s] @ w.T, q[s] @ near.T) for (x, q), s in zip(parts, steps, strict=True)]
        noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
        total += noise / max(sum(float(np.square(a).sum()) for a, _ in pairs), 1e-30)
    return total
