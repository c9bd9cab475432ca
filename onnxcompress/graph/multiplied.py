"""What constants are multiplied with, where that is known: recurrent weights, and whole numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from onnxcompress.graph.int8_nodes import find_integers
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import attributes_of
from onnxcompress.graph.scopes import Scope

RECURRENT = ("GRU", "LSTM", "RNN")


@dataclass(frozen=True, eq=False)
class Multiplied:
    """What a constant is multiplied with.

    Attributes:
        places: tensors, and the graphs in which they are read.
        groups: each with rows of its own.
        uses: how often nodes read the constant on the way.
    """

    places: Sequence[tuple[Scope, str]]
    groups: int
    uses: int = 1

    @property
    def tensor(self) -> str:
        """The first of the main graph, "" where there is none."""
        return next((tensor for scope, tensor in self.places if scope.outer is None), "")


def constant_inputs(model: Model) -> dict[str, Multiplied]:
    """What constants are multiplied with, where that is known of all that read them."""
    integers = {key: own.reads for key, own in find_integers(model).items() if own.reads}
    main = model.scopes[0]
    known = {key: Multiplied([(main, tensor)], 1) for key, tensor in integers.items()}
    for scope, node in model.nodes.values():
        for key, by in _recurrent_inputs(model, scope, node):
            if key in known:
                other = known[key]
                places, uses = [*other.places, *by.places], other.uses + by.uses
                by = Multiplied(places, by.groups, uses)
            known[key] = by
    return {key: by for key, by in known.items() if by.uses == model.consumers[key]}


def _recurrent_inputs(
    model: Model, scope: Scope, node: NodeProto
) -> Iterator[tuple[str, Multiplied]]:
    """What the weights of a recurrent node are multiplied with.

    The first weight reads the input, in all directions.  The second reads the states, each
    direction its own: of these the node gives all but the first as Y, or the last as Y_h.
    """
    if node.op_type not in RECURRENT or node.domain or attributes_of(node).get("layout"):
        return
    states = next(filter(None, node.output[:2]), "")
    for name, tensor in zip(node.input[1:3], (node.input[0], states), strict=True):
        key, uses = _source(model, scope, name)
        if key and tensor and not model.fixed(scope.key(tensor)):
            dims = model.constants[key].dims
            directions = dims[0] if tensor == states and len(dims) == 3 else 1
            yield key, Multiplied([(scope, tensor)], directions, uses)


def _source(model: Model, scope: Scope, name: str) -> tuple[str, int]:
    """The constant whose rows a tensor has in some order, and how often it is read; or ""."""
    key = scope.key(name)
    if key in model.constants:
        return key, 1
    if key not in model.producers:
        return "", 0
    around, node = model.nodes[model.producers[key]]
    attributes, axes = attributes_of(node), [0]
    parts = [*node.input[:1]]
    if node.op_type == "Concat":
        parts, axes = [*node.input], [attributes["axis"]]
    elif node.op_type in ("Unsqueeze", "Slice"):
        place = 1 if node.op_type == "Unsqueeze" else 3
        axes = attributes.get("axes", [])
        if len(node.input) > place and model.fixed(read := around.key(node.input[place])):
            axes = model.read(read).tolist()
    elif node.op_type != "Identity":
        return "", 0
    sources = [_source(model, around, part) for part in parts]
    same = len({source for source, _ in sources}) == 1 and axes == [0]
    return (sources[0][0], sum(uses for _, uses in sources)) if same else ("", 0)
