"""The float32 twin of a model whose types onnxruntime has no kernels for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.inliner
from onnx import TensorProto, numpy_helper

from onnxcompress.graph.edit import held
from onnxcompress.graph.model import Model
from onnxcompress.graph.spill import spilled

WIDE = (TensorProto.BFLOAT16, TensorProto.DOUBLE)  # CPU kernels are missing for these.


def needs_float32(model: Model) -> bool:
    """Whether the model has types for which onnxruntime's CPU kernels are missing."""
    return any(tensor.data_type in WIDE for tensor in model.constants.values())


def has_bfloat16(model: Model) -> bool:
    """Whether some constant is a bfloat16, whose rounding the float32 twin leaves out."""
    return any(t.data_type == TensorProto.BFLOAT16 for t in model.constants.values())


def has_float16(model: Model) -> bool:
    """Whether some constant is a float16."""
    return any(t.data_type == TensorProto.FLOAT16 for t in model.constants.values())


def as_float32(model: Model) -> Model:
    """A twin that computes in float32 where the model computes in bfloat16 or float64."""
    result = model.copy()
    for tensor in result.graph.initializer if model.large else ():
        if tensor.data_type in WIDE:
            value = spilled(model.value(tensor).astype(np.float32))
            tensor.CopyFrom(held(result, tensor.name, value))
    _retype(result.proto, model)
    result.changed()
    return result


def _retype(message: Any, model: Model) -> None:
    """Turn every bfloat16 and float64 of a protobuf message into float32, in place."""
    if isinstance(message, TensorProto):
        if message.data_type in WIDE:
            value = model.value(message).astype(np.float32)
            message.CopyFrom(numpy_helper.from_array(value, message.name))
        return
    if isinstance(message, onnx.TypeProto.Tensor) and message.elem_type in WIDE:
        message.elem_type = TensorProto.FLOAT
    if isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype"):
        message.i = TensorProto.FLOAT if message.i in WIDE else message.i
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for item in value if not hasattr(value, "ListFields") else (value,):
            _retype(item, model)
