"""Constants with other values."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import helper, numpy_helper

from onnxcompress.core.layer import Array
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import values_of


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """A copy in which these constants have other values."""
    result = model.copy()
    for name, tensor in zip(model.initializers, result.graph.initializer, strict=True):
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], name))
    for node in result.graph.node:
        if values_of(node) and node.output[0] in values:
            value = numpy_helper.from_array(values[node.output[0]], values_of(node)[0].name)
            node.attribute[0].CopyFrom(helper.make_attribute("value", value))
    return result
