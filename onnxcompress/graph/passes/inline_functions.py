"""Local functions written out."""

from __future__ import annotations

from dataclasses import replace

import onnx.inliner

from onnxcompress.graph.edit import keep_only
from onnxcompress.graph.find_layers import SMALL
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import is_linear, values_of, walk

MOST_NODES = 200_000  # Functions stay where inlining leads to more nodes: some grow without bound.


def inline_functions(model: Model) -> Model:
    """Put the nodes of local functions that hold layers in the place of the calls.

    Equal constants that several calls bring along are kept once.
    """
    selected = _functions_with_layers(model)
    if not selected:
        return model
    before = set(model.constants)
    result = replace(model, proto=onnx.inliner.inline_selected_functions(model.proto, selected))
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    for node in [n for n in result.graph.node if values_of(n) and n.output[0] not in before]:
        content = node.attribute[0].SerializeToString()
        name = first.setdefault(content, node.output[0])
        if name != node.output[0] and len(content) > SMALL:
            same[node.output[0]] = name
    for reader in walk(result.graph) if same else ():
        reader.input[:] = [same.get(name, name) for name in reader.input]
    keep_only(result.graph.node, lambda node: not {*node.output} & same.keys())
    return result


def _functions_with_layers(model: Model) -> list[tuple[str, str]]:
    """Domains and names of local functions with linear nodes, in what they call too.

    None of them where they call themselves, or where inlining them would give too many nodes.
    """
    every = {(f.domain, f.name): [*walk(f)] for f in model.proto.functions}
    selected: set[tuple[str, str]] = set()
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(len(every) + 2):
        known = set(selected), dict(sizes)
        for key, nodes in every.items():
            calls = [(node.domain, node.op_type) for node in nodes]
            sizes[key] = sum(sizes.get(call, 1) for call in calls)
            if any(map(is_linear, nodes)) or selected.intersection(calls):
                selected.add(key)
        whole = sum(sizes.get((node.domain, node.op_type), 1) for node in walk(model.graph))
        if whole > MOST_NODES:
            return []
        if (selected, sizes) == known:
            return sorted(selected)
    return []
