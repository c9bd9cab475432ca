"""What layers read, wherever they lie, shown in the main graph.

What a layer in the body of a node reads leaves the body as one more output: of an If the other
branch gives an empty one; Loop and Scan stack those of all turns along a new first axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import NodeProto, helper

from onnxcompress.core.layer import Layer
from onnxcompress.graph.find_layers import layer_input
from onnxcompress.graph.model import Model
from onnxcompress.graph.multiplied import constant_inputs
from onnxcompress.graph.nodes import own_bodies, unique_name
from onnxcompress.graph.operations import linear_nodes
from onnxcompress.graph.scopes import Scope

# These stack what their body gives, of all turns along a new first axis.
STACKED = ("Loop", "Scan")


@dataclass(frozen=True)
class Shown:
    """A tensor of the main graph that has what a layer reads.

    Attributes:
        turns: axes before its own: one for each Loop or Scan around the layer.
        inner: whether the layer lies in the body of a node.
    """

    tensor: str
    turns: int = 0
    inner: bool = False


def show_inputs(
    model: Model, layers: Mapping[str, Layer], bodies: bool = True
) -> tuple[Model, dict[str, list[Shown]]]:
    """A model whose main graph has what these layers read, and where it is.

    Args:
        bodies: whether layers in the bodies of nodes are among them.
    """
    shown: dict[str, list[Shown]] = {}
    inner: dict[str, list[tuple[Scope, str]]] = {}
    outer = linear_nodes(model)
    for name, layer in layers.items():
        if name in outer:
            shown[name] = [Shown(layer_input(outer[name], layer))]
        elif name in model.nodes and model.nodes[name][0].outer is not None:
            scope, node = model.nodes[name]
            inner[name] = [(scope, layer_input(node, layer))]
    for name, read in constant_inputs(model).items():
        if "group" in (layers[name].attributes if name in layers else ()):
            main = [tensor for scope, tensor in read.places if scope.outer is None]
            within = [place for place in read.places if place[0].outer is not None]
            shown |= {name: [*map(Shown, main)]} if main else {}
            inner |= {name: within} if within and not main else {}
    if not inner or not bodies:
        return model, shown
    copy = model.copy()
    scopes = {scope.path: scope for scope in copy.scopes}
    for name, places in inner.items():
        kind = helper.np_dtype_to_tensor_dtype(layers[name].weight.dtype)
        led = [_led_out(copy, scopes[s.path], tensor, kind) for s, tensor in places]
        shown |= {name: [one for one in led if one]} if any(led) else {}
    copy.changed()
    return copy, shown


def _led_out(model: Model, scope: Scope, tensor: str, kind: int) -> Shown | None:
    """Lead a tensor of a body out to the main graph, in place; None where its node cannot."""
    owners, within = [], scope
    while within.outer is not None:
        owners.append((_owner(within), within))
        if owners[-1][0].op_type not in ("If", *STACKED):
            return None
        within = within.outer
    name = _new(model, tensor)
    scope.graph.node.append(helper.make_node("Identity", [tensor], [name]))
    for owner, around in owners:
        name = _body_output(model, owner, around.graph, name, kind)
    return Shown(name, sum(owner.op_type in STACKED for owner, _ in owners), inner=True)


def _owner(scope: Scope) -> NodeProto:
    """The node that a body belongs to."""
    assert scope.outer is not None
    return next(
        node
        for key, node in zip(scope.outer.node_keys, scope.outer.graph.node, strict=False)
        for name, _ in own_bodies(node)
        if scope.path.rstrip("~").startswith(f"{key}/{name}/")
    )


def _body_output(
    model: Model, owner: NodeProto, body: onnx.GraphProto, name: str, kind: int
) -> str:
    """Let a node give a tensor of one of its bodies as another output, which is named."""
    for _, other in own_bodies(owner):
        ended = name
        if other is not body and owner.op_type == "If":
            ended = _new(model, name)
            nothing = helper.make_tensor(ended, kind, [0], b"", raw=True)
            other.node.append(helper.make_node("Constant", [], [ended], value=nothing))
        value = onnx.ValueInfoProto(name=ended)
        value.type.tensor_type.elem_type = kind
        other.output.append(value)
    for attribute in owner.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)
    output = _new(model, name)
    owner.output.append(output)
    return output


def _new(model: Model, base: str) -> str:
    name = unique_name(f"{base}/read", model.names)
    model.names.add(name)
    return name
