"""Which outputs of a model another version of it computes in another way."""

from __future__ import annotations

from onnx import NodeProto, TensorProto

from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import reads
from onnxcompress.graph.tensors import HELD, is_external, location


def changed_outputs(before: Model, after: Model) -> set[str]:
    """The outputs that some node or constant reaches which is not in both models alike.

    Where nothing is known to be alike, all are, as where nothing differs: there is no output that
    is of less interest than the others.
    """
    old = before.initializers
    changed = {n for n, t in after.initializers.items() if not _alike(old.get(n), t, before, after)}
    makers = {name: node for node in before.graph.node for name in node.output if name}
    for node in after.graph.node:
        twin = makers.get(next(filter(None, node.output), ""))
        if twin is None or _parts(twin) != _parts(node) or not changed.isdisjoint(reads(node)):
            changed.update(filter(None, node.output))
    outputs = {output.name for output in before.graph.output}
    return outputs & changed or outputs


def _parts(node: NodeProto) -> tuple[object, ...]:
    """What a node computes; names, doc strings and metadata are left out."""
    return node.op_type, node.domain, [*node.input], [*node.output], [*node.attribute]


def _alike(old: TensorProto | None, new: TensorProto, before: Model, after: Model) -> bool:
    """Whether two initializers hold the same."""
    if old is None or old != new:
        return False
    held = is_external(new) and location(new) == HELD
    return not held or before.held.get(new.name) is after.held.get(new.name)
