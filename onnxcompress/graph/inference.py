"""What onnx infers of the types of a model's tensors."""

from __future__ import annotations

import onnx
import onnx.shape_inference

from onnxcompress.graph.detach import detached
from onnxcompress.graph.model import Model


def inferred_types(model: Model) -> dict[str, onnx.TypeProto]:
    """The types of tensors by their keys; nothing where the model cannot be inferred.

    Those that the model declares are among them, as far as they say more.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(detached(model)[0], data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    return {
        scope.path + value.name: value.type
        for scope in Model(proto).scopes
        for value in (*scope.graph.input, *scope.graph.value_info, *scope.graph.output)
    }
