"""Tables that are read by rows alone, such as embeddings."""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from onnxcompress.graph.model import Model, is_overridable
from onnxcompress.graph.nodes import attributes_of, is_standard

# From so many values on, a table is looked up as codes: decoded as a whole it takes much memory.
LARGE_TABLE = 1 << 18


def lookups(model: Model, key: str) -> dict[str, NodeProto]:
    """Every node that reads a large table, by name; empty where it is not only looked up by rows.

    Args:
        key: of a constant.
    """
    tensor = model.constants.get(key)
    if tensor is None or key in model.views or is_overridable(model, key):
        return {}
    if len(tensor.dims) != 2 or prod(tensor.dims) < LARGE_TABLE:
        return {}
    found = {
        name: node
        for name, (scope, node) in model.nodes.items()
        if node.op_type == "Gather" and is_standard(node) and scope.key(node.input[0]) == key
    }
    by_rows = not any(attributes_of(node).get("axis", 0) for node in found.values())
    return found if by_rows and len(found) == model.consumers[key] else {}


def row_indices(model: Model, key: str) -> list[str]:
    """The tensors of the main graph with the rows that are looked up; empty where some are not."""
    found = lookups(model, key)
    places = [(model.nodes[name][0], node.input[1]) for name, node in found.items()]
    known = model.initializers  # An input with a default may be missing from samples.
    if any(s.outer is not None or model.fixed(name) or name in known for s, name in places):
        return []
    return sorted({name for _, name in places})
