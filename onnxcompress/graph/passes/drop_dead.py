"""Nodes and constants that nothing reads, dropped."""

from __future__ import annotations

from collections.abc import Iterable

from onnxcompress.graph.edit import drop_constants, keep_only
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import reads


def drop_dead(model: Model, names: Iterable[str]) -> Model:
    """Remove those of the named constants that nothing reads any more."""
    result = model.copy()
    drop_constants(result, set(names))
    return result


def drop_unread(model: Model) -> Model:
    """Remove all nodes of the main graph that lead to no output, and the constants of these.

    Initializers that are inputs too stay: a caller may give them.
    """
    result = model.copy()
    needed = {output.name for output in result.graph.output}
    dead: set[int] = set()
    for index, node in reversed([*enumerate(result.graph.node)]):
        if needed.intersection(node.output):
            needed |= reads(node)
        else:
            dead.add(index)
    places = iter(range(len(result.graph.node)))
    keep_only(result.graph.node, lambda _: next(places) not in dead)
    result.changed()
    inputs = {value.name for value in result.graph.input} if result.proto.ir_version >= 4 else ()
    unread = [name for name in result.initializers if not result.consumers[name]]
    drop_constants(result, [name for name in unread if name not in inputs])
    return result
