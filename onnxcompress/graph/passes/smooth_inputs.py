"""Matrix products that read channels of like size: each is divided by a scale, the weight takes it.

    x -> Mul(1 / s) -> MatMul(s W)          the same as x -> MatMul(W)

References:
    Xiao, Lin, Seznec, Wu, Demouth, Han. SmoothQuant. ICML 2023. https://arxiv.org/abs/2211.10438
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from onnxcompress.core.layer import Array, Emitter, Layer, Value
from onnxcompress.core.method import CompressedWeight
from onnxcompress.graph.find_layers import find_layers
from onnxcompress.graph.model import Model
from onnxcompress.graph.rewrite import rewrite


@dataclass(frozen=True, eq=False)
class _Smoothed(CompressedWeight):
    """A weight ``(out, in)`` that has taken the scales ``(in,)`` of its inputs."""

    weight: Array
    scales: Array

    def decode(self) -> Array:
        return self.weight / self.scales

    def scaled(self, gain: Array) -> Self:
        return type(self)(self.weight * gain[:, None], self.scales)

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        return layer.apply(op, op.Mul(x, 1 / self.scales), self.weight, bias=layer.bias)


def smooth_inputs(model: Model, scales: Mapping[str, Array]) -> Model:
    """A copy in which these matrix products read smoothed inputs.

    Args:
        scales: layer -> of its input channels ``(in,)``; a weight that several layers read must
            have the same for all.
    """
    layers, _ = find_layers(model, scales)
    weights: dict[str, CompressedWeight] = {}
    for name, own in scales.items():
        weight = layers[name].read().weight
        own = own.astype(weight.dtype)
        weights[name] = _Smoothed(weight * own, own)
    return rewrite(model, weights)
