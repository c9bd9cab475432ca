"""Nodes that give what they read, bypassed."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import NodeProto

from onnxcompress.graph.edit import bypass
from onnxcompress.graph.inference import inferred_types
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import attributes_of, is_standard
from onnxcompress.graph.scopes import Scope


def drop_identities(model: Model) -> Model:
    """Remove Identity, Cast to the type that it reads, and Dropout that drops nothing."""
    result = model.copy()
    types = inferred_types(model)
    places = result.nodes.items()
    bypass(result, [key for key, place in places if _is_identity(result, *place, types)])
    return result


def _is_identity(
    model: Model, scope: Scope, node: NodeProto, types: Mapping[str, onnx.TypeProto]
) -> bool:
    if not is_standard(node) or not node.input:
        return False
    key = scope.key(node.input[0])
    if node.op_type == "Cast":
        known = types[key].tensor_type.elem_type if key in types else 0
        return bool(known) and known == attributes_of(node)["to"]
    if node.op_type == "Dropout":
        return _drops_nothing(model, scope, node)
    return node.op_type == "Identity"


def _drops_nothing(model: Model, scope: Scope, node: NodeProto) -> bool:
    """Whether a Dropout is used as when a network is: by default it is."""
    if model.opset < 7:  # There, an attribute says so.
        return bool(attributes_of(node).get("is_test"))
    trains = node.input[2] if len(node.input) > 2 else ""
    key = scope.key(trains)
    return not trains or (key in model.constants and not model.read(key).any())
