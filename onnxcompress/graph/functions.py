"""Local functions: how large a graph their calls stand for, and that graph."""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter

import onnx.inliner
from onnx import ModelProto, NodeProto

from onnxcompress.core.errors import ModelError
from onnxcompress.graph.nodes import walk

# With more nodes, onnxruntime takes long to write functions out itself: over a minute for 131,072.
SLOW = 10_000


def nodes_in_full(proto: ModelProto) -> int:
    """How many nodes the graph has with its functions written out; 0 where there are none.

    Raises:
        ModelError: a function calls itself.
    """
    calls = {
        (f.domain, f.name, f.overload): Counter(_called(node) for node in walk(f))
        for f in proto.functions
    }
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            within = calls.get(key, {})
            sizes[key] = 1 + sum(sizes[other] * count for other, count in within.items())
    except CycleError:
        raise ModelError("a function in it calls itself") from None
    return sum(sizes.get(_called(node), 1) for node in walk(proto.graph)) if calls else 0


def _called(node: NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def in_full(proto: ModelProto) -> ModelProto:
    """The same with its functions written out where onnxruntime takes long over that."""
    slow = nodes_in_full(proto) > SLOW
    return onnx.inliner.inline_local_functions(proto) if slow else proto
