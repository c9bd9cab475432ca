"""Names for nodes without one."""

from __future__ import annotations

from onnxcompress.graph.model import Model


def name_nodes(model: Model) -> Model:
    """Give every unnamed node of the main graph the unique name that it has in reports."""
    result = model.copy()
    for node, key in zip(result.graph.node, model.keys, strict=True):
        node.name = key
    return result
