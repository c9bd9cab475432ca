"""onnx.checker on models of any size."""

from __future__ import annotations

import os

import onnx
from onnx import TensorProto

from onnxcompress.core.errors import ModelError
from onnxcompress.core.messages import one_line
from onnxcompress.graph.detach import DETACHED_BYTES, shell
from onnxcompress.graph.model import Model
from onnxcompress.graph.tensors import is_external


def check(model: Model, path: str | os.PathLike[str] = "the model") -> None:
    """Run onnx.checker; large weights count as inputs, so that none of them is copied.

    Raises:
        ModelError: the model is invalid.
    """
    proto = shell(model)
    known = {value.name for value in proto.graph.input}
    for value in filter(_is_unranked, (*proto.graph.input, *proto.graph.output)):
        value.type.tensor_type.shape.SetInParent()  # onnx.checker asks for some shape.
    for tensor in model.graph.initializer:
        if not _is_heavy(tensor):
            proto.graph.initializer.append(tensor)
        elif tensor.name not in known:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(value)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {one_line(error)}") from None


def _is_unranked(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return value.type.HasField("tensor_type") and not kind.HasField("shape")


def _is_heavy(tensor: TensorProto) -> bool:
    outside = is_external(tensor)
    return outside or len(tensor.raw_data) >= DETACHED_BYTES
