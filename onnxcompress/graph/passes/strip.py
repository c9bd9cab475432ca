"""What no runtime reads, dropped: notes of the exporter, and types that can be inferred."""

from __future__ import annotations

from typing import Any

import onnx

from onnxcompress.graph.inference import inferred_types
from onnxcompress.graph.model import Model


def strip(model: Model) -> Model:
    """Drop doc strings, the metadata of nodes, tensors and graphs, and inferable value_info.

    The model's own metadata_props stay: applications read them.  So does value_info that says more
    than onnx infers without it, such as the types of what operators of other domains compute.
    """
    result = model.copy()
    _drop_notes(result.proto)
    for scope in result.scopes:
        del scope.graph.value_info[:]
    known = inferred_types(result)
    for scope, before in zip(result.scopes, model.scopes, strict=True):
        scope.graph.value_info.extend(
            value
            for value in before.graph.value_info
            if not _says_less(value, known.get(scope.path + value.name))
        )
        for value in scope.graph.value_info:
            _drop_notes(value)
    result.changed()
    return result


def _drop_notes(message: Any) -> None:
    """Clear every doc string and, below the model, all metadata of a message and its parts."""
    for descriptor, value in message.ListFields():
        if descriptor.name == "doc_string" or (
            descriptor.name == "metadata_props" and not isinstance(message, onnx.ModelProto)
        ):
            message.ClearField(descriptor.name)
        elif descriptor.message_type is not None:
            for part in value if not hasattr(value, "ListFields") else (value,):
                _drop_notes(part)


def _says_less(value: onnx.ValueInfoProto, inferred: onnx.TypeProto | None) -> bool:
    """Whether a declared type says nothing that is not inferred; names of dimensions do not count.

    Types of sequences, maps and optional values are never taken for the same.
    """
    if inferred is None or not value.type.HasField("tensor_type"):
        return False
    declared, known = value.type.tensor_type, inferred.tensor_type
    if declared.elem_type != known.elem_type:
        return False
    if not declared.HasField("shape"):
        return True
    sizes, others = ([dim.dim_value for dim in kind.shape.dim] for kind in (declared, known))
    if len(sizes) != len(others) or not known.HasField("shape"):
        return False
    return all(a in (0, b) for a, b in zip(sizes, others, strict=True))
