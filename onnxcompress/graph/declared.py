"""What a model declares of its inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcompress.core.errors import ModelError
from onnxcompress.graph.model import Model
from onnxcompress.graph.tensors import DATA_TYPES

# These are name, dtype and shape, in which None is open.
Declared = tuple[str, Any, list[int | str | None] | None]


def declared_inputs(model: Model) -> list[Declared]:
    """What the model declares of every input that a caller must give; of a sequence, its items."""
    values = [value for value in model.graph.input if value.name not in model.initializers]
    for value in values:
        if not _tensor_type(value.type).elem_type:
            raise ModelError(f"the input {value.name!r} is no tensor")
    return list(map(_declared, values))


def declared_outputs(model: Model) -> list[Declared]:
    """What the model declares of its outputs; the dtype of what is no tensor is object."""
    return list(map(_declared, model.graph.output))


def sequences(model: Model) -> set[str]:
    """The inputs that are sequences of tensors."""
    return {value.name for value in model.graph.input if _is_sequence(value.type)}


def _is_sequence(kind: onnx.TypeProto) -> bool:
    return kind.HasField("sequence_type") or (
        kind.HasField("optional_type") and _is_sequence(kind.optional_type.elem_type)
    )


def _tensor_type(kind: onnx.TypeProto) -> onnx.TypeProto.Tensor:
    """Of a tensor, of what is optional, or of the items of a sequence."""
    for of in ("sequence_type", "optional_type"):
        if kind.HasField(of):
            return _tensor_type(getattr(kind, of).elem_type)
    return kind.tensor_type


def _declared(value: onnx.ValueInfoProto) -> Declared:
    kind = _tensor_type(value.type)
    if kind.elem_type and kind.elem_type not in DATA_TYPES:
        raise ModelError(f"{value.name!r} is of no known type")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else object
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    return value.name, np.dtype(dtype), dims if kind.HasField("shape") else None
