"""Ranges of tensors that become bytes, from what they hold with samples.

How much an error in channel c of a layer's input matters is the energy of the weights that read
that channel, sum_o W[o, c]^2.  Where no layer reads a tensor, all of its channels count alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.core.arithmetic import Seen
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.parallel import each
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, expose, layer_inputs

VALUES = 1 << 18  # About so many values of a tensor are looked at, per batch.
TOGETHER = 64  # At most so many tensors are read out of the model at a time.
LEAST = 1e-3  # A channel that hardly counts has this share of the mean weight.


def observe(
    model: Model,
    layers: Mapping[str, Layer],
    tensors: Sequence[str],
    batches: Sequence[Sample],
    jobs: int = 1,
) -> dict[str, Seen]:
    """What tensors hold, by name, each value by how much its error matters.

    Args:
        layers: which may read them.
        batches: calibration samples.
    """
    weights = _channel_weights(model, layers)
    result: dict[str, Seen] = {}
    inputs = {value.name for value in model.graph.input}
    for start in range(0, len(tensors), TOGETHER):
        names = tensors[start : start + TOGETHER]
        inner = [name for name in names if name not in inputs]
        session = Session(expose(model, inner)) if inner else None

        def look(batch: Sample, names=names, session=session) -> dict[str, Seen]:
            values = dict(batch)
            if session is not None:
                values |= dict(zip(session.outputs, session.run(batch), strict=True))
            return {name: _seen(values[name], weights.get(name)) for name in names}

        for histograms in each(look, batches, jobs):
            for name, seen in histograms.items():
                result[name] = result[name] + seen if name in result else seen
    return result


def _seen(x: Array, weight: tuple[int, Array] | None) -> Seen:
    """Of some of the values of a tensor, and all of its ends."""
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    axis, channels = weight or (-1, None)
    if channels is None or x.ndim < 2 or x.shape[axis] != len(channels):
        flat = x.ravel()
        some = flat[:: max(1, flat.size // VALUES)]
        histogram = Seen.of(some)
    else:
        rows = np.moveaxis(x, axis, -1).reshape(-1, len(channels))
        step = max(1, rows.size // VALUES)
        histogram = Seen.of(rows[::step], channels)
    return Seen(histogram.counts, low, high)


def _channel_weights(model: Model, layers: Mapping[str, Layer]) -> dict[str, tuple[int, Array]]:
    """Tensor -> its axis of channels, and the weight of each; the mean is 1."""
    result: dict[str, tuple[int, Array]] = {}
    for name, tensor in layer_inputs(model, layers).items():
        layer = layers[name]
        if layer.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        if layer.attributes.get("left") or layer.attributes.get("lead"):
            continue
        axis = 1 if layer.op_type == "Conv" else -1
        power = np.square(layer.grouped, dtype=np.float64).sum(1)  # Its shape is (groups, fan_in).
        power = power.reshape(layer.groups, layer.weight.shape[1], -1).sum(2).ravel()
        power = power / max(power.mean(), 1e-30)
        if tensor in result and len(result[tensor][1]) == len(power):
            power = power + result[tensor][1]
        result[tensor] = axis, np.maximum(power, LEAST * power.mean())
    return result
