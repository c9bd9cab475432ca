"""Constants with other values."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import numpy_helper

from onnxcompress.core.layer import Array
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import values_of


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """A copy in which these constants have other values."""
    result = model.copy()
    tensors = [*result.graph.initializer, *(t for n in result.graph.node for t in values_of(n))]
    names = [
        *model.initializers,
        *(n.output[0] for n in model.graph.node for _ in values_of(n)),
    ]
    for name, tensor in zip(names, tensors, strict=True):
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], tensor.name))
    return result
