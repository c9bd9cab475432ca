"""BatchNormalization folded into the convolution before it."""

from __future__ import annotations

import numpy as np

from onnxcompress.graph.edit import add_constant, drop_constants
from onnxcompress.graph.find_layers import is_overridable
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import attributes_of, unique_name


def fold_batchnorm(model: Model) -> Model:
    """Fold every BatchNormalization that follows a Conv, its only reader, into that Conv."""
    result = model.copy()
    producers = {node.output[0]: node for node in result.graph.node if node.output}
    for norm in list(result.graph.node):
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or result.consumers[conv.output[0]] != 1:
            continue
        sources = [*conv.input[1:], *norm.input[1:]]
        if any(n not in result.initializers or is_overridable(result, n) for n in sources):
            continue
        if len(norm.output) > 1:
            continue
        if result.consumers[conv.input[1]] != 1:
            continue
        weight, *bias = [result.read(name) for name in conv.input[1:]]
        scale, shift, mean, variance = (result.read(name) for name in norm.input[1:5])
        gain = scale / np.sqrt(variance + attributes_of(norm).get("epsilon", 1e-5))
        shift = shift + gain * ((bias[0] if bias else 0) - mean)
        weight = (weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))).astype(weight.dtype)
        name = unique_name(f"{conv.input[1]}_folded", result.names)
        add_constant(result, name, weight)
        add_constant(result, f"{name}bias_of", shift.astype(weight.dtype))
        conv.input[:] = [conv.input[0], name, f"{name}bias_of"]
        between, conv.output[0] = conv.output[0], norm.output[0]
        result.graph.node.remove(norm)
        result.changed()
        drop_constants(result, {*sources, between})
        producers = {node.output[0]: node for node in result.graph.node if node.output}
    return result
