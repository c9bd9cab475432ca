"""Tables that are read by rows alone, such as embeddings: any rows, or the first so many."""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from onnxcompress.graph.model import Model, is_overridable
from onnxcompress.graph.nodes import attributes_of, is_standard

# From so many values on, a table is looked up as codes: decoded as a whole it takes much memory.
# Few constants have as many, so that all nodes can be looked at for each.
LARGE_TABLE = 1 << 18


def lookups(model: Model, key: str) -> dict[str, NodeProto]:
    """Every node that reads a large table, by name; empty where it is not only looked up by rows.

    Args:
        key: of a constant.
    """
    if len(_large_table(model, key)) != 2:
        return {}
    found = {
        name: node
        for name, (scope, node) in model.nodes.items()
        if node.op_type == "Gather" and is_standard(node) and scope.key(node.input[0]) == key
    }
    by_rows = not any(attributes_of(node).get("axis", 0) for node in found.values())
    return found if by_rows and len(found) == model.consumers[key] else {}


def _large_table(model: Model, key: str) -> list[int]:
    """The shape of a large constant that stays as it is; empty where it is none."""
    tensor = model.constants.get(key)
    if tensor is None or key in model.views or is_overridable(model, key):
        return []
    return list(tensor.dims) if prod(tensor.dims) >= LARGE_TABLE else []


def row_indices(model: Model, key: str) -> list[str]:
    """The tensors of the main graph with the rows that are looked up; empty where some are not."""
    found = lookups(model, key)
    places = [(model.nodes[name][0], node.input[1]) for name, node in found.items()]
    known = model.initializers  # An input with a default may be missing from samples.
    if any(s.outer is not None or model.fixed(name) or name in known for s, name in places):
        return []
    return sorted({name for _, name in places})


def row_ends(model: Model, key: str, rows: int) -> list[str]:
    """The tensors of the main graph that say how many first rows are read; empty where others are.

    So networks look up the places of words in a text.

    Args:
        key: of a large constant, a matrix of so many rows, perhaps with axes of length 1 before.
    """
    dims = _large_table(model, key)
    if len(dims) < 2 or dims[-2] != rows or prod(dims[:-2]) != 1:
        return []
    readers = [
        (scope, node)
        for scope, node in model.nodes.values()
        if key in map(scope.key, filter(None, node.input))
    ]
    if any(scope.outer is not None for scope, _ in readers):
        return []
    ends = [_end(model, node, len(dims)) for _, node in readers]
    return sorted({end for end in ends if end}) if all(ends) else []


def _end(model: Model, node: NodeProto, rank: int) -> str:
    """The tensor that says where a node ends to read the last axis but one; empty if it is other.

    Args:
        rank: of what the node reads.
    """

    def says(name: str, *values: int) -> bool:
        return model.fixed(name) and model.read(name).ravel().tolist() in [[v] for v in values]

    start, end, axes, step = [*node.input[1:], *[""] * 4][:4]
    slices = node.op_type == "Slice" and is_standard(node) and says(start, 0)
    whole = not step or says(step, 1)
    along = says(axes, rank - 2, -2) if axes else rank == 2
    varies = not model.fixed(end) and end not in model.initializers
    return end if slices and whole and along and varies else ""
