"""Compressed weights in place of layers.

The ModelProto is the truth: nodes are replaced or inserted in a copy of it, and every other byte
stays.  onnx-graphsurgeon builds the fragments; its round trip loses metadata, so it never becomes
the output.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto

from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array, Layer, Value
from onnxcompress.core.messages import one_line
from onnxcompress.core.method import CompressedWeight, DecodedWeight
from onnxcompress.graph.edit import copied, drop_constants, keep_only
from onnxcompress.graph.emitter import Constants, Emitter
from onnxcompress.graph.find_layers import SMALL, find_constants, find_layers
from onnxcompress.graph.lookups import lookups
from onnxcompress.graph.model import Model, is_overridable, weight_root
from onnxcompress.graph.nodes import walk
from onnxcompress.graph.scopes import Scope
from onnxcompress.graph.tensors import HEADER


def rewrite(
    model: Model,
    weights: Mapping[str, CompressedWeight],
    biases: Mapping[str, Array] | None = None,
    failed: dict[str, str] | None = None,
) -> Model:
    """A copy in which every named layer is replaced by the subgraph of its compressed weight.

    Args:
        weights: layer name -> what to emit; layers that share a weight share the stored arrays.
        biases: layer name -> a new bias ``(out,)``.
        failed: filled with layer -> reason for layers that could not be replaced and stay as
            they are; without it the first failure is raised.
    """
    layers, _ = find_layers(model, weights)
    constants = {n: w for n, w in weights.items() if model.fixed(n) and n not in layers}
    _check_names(model, set(weights) - set(constants))
    result = model.copy()
    store = Constants(result, model.keep)
    fragments, freed = _looked_up(model, constants, store)
    others = {key: weight for key, weight in constants.items() if key not in freed}
    decoders = _restored(result, others, store, failed)
    freed |= others.keys()
    for key, layer in layers.items():
        scope, node = model.nodes[key]
        bias = (biases or {}).get(key, layer.bias)
        if isinstance(bias, Array):
            bias = bias.astype(layer.weight.dtype)
        try:
            prefix, corrected = _prefix(scope, key), replace(layer, bias=bias)
            made = _fragment(node, prefix, corrected, weights[key], store)
        except Exception as error:
            if failed is None:
                raise
            failed[key] = f"it could not be rewritten: {one_line(error)}"
            continue
        if scope.outer is not None:  # What decodes the weight runs once, outside.
            outside, made = _split(made, store)
            decoders += outside
        fragments[key] = made
        freed.update(map(scope.key, node.input))
    decoders = [*store.commit([*decoders, *chain(*fragments.values())]), *decoders]
    before = result.scopes
    _insert(result, fragments, decoders)
    keys = _renewed(before, result.scopes)
    drop_constants(
        result, [keys.get(key, key) for key in freed], {keys[key] for key in store.replaced}
    )
    return result


def _renewed(before: Sequence[Scope], after: Sequence[Scope]) -> dict[str, str]:
    """Keys of tensors as they were -> as they are: those in unnamed nodes have their number."""
    return {
        old.path + name: new.path + name
        for old, new in zip(before, after, strict=True)
        for name in old.names
    }


def _insert(
    model: Model, fragments: Mapping[str, list[NodeProto]], first: Sequence[NodeProto]
) -> None:
    """Put nodes in the place of others, and some before all of the main graph, in place."""
    changed = {id(model.nodes[key][0].graph) for key in fragments}
    for scope in reversed(model.scopes):  # A body comes before the graph that it lies in.
        nodes = [] if scope.outer else [*first]
        if id(scope.graph) not in changed and not nodes:
            continue
        for key, node in zip(scope.node_keys, scope.graph.node, strict=True):
            nodes += fragments.get(key, [node])
        copies = [*map(copied, nodes)]
        del scope.graph.node[:]
        scope.graph.node.extend(copies)
    model.changed()


def _prefix(scope: Scope, key: str) -> str:
    """What new names begin with; none is mistaken for a key of something in a body."""
    return key.replace("/", ".") if scope.outer else key


def _split(nodes: Sequence[NodeProto], store: Constants) -> tuple[list[NodeProto], list[NodeProto]]:
    """Those that compute with nothing but constants, and the others."""
    known, constant, others = set(store.arrays), [], []
    known.update(node.output[0] for node in store.first.values())
    for node in nodes:
        if known.issuperset(node.input):
            known.update(node.output)
            constant.append(node)
        else:
            others.append(node)
    return constant, others


def _restored(
    model: Model,
    weights: Mapping[str, CompressedWeight],
    store: Constants,
    failed: dict[str, str] | None,
) -> list[NodeProto]:
    """Nodes of the main graph that compute the named constants instead."""
    nodes: list[NodeProto] = []
    layers = find_constants(model, {}, weights) if weights else {}
    for key, weight in weights.items():
        scope = next(s for s in reversed(model.scopes) if key in map(s.path.__add__, s.names))
        name = key.removeprefix(scope.path)
        taken = scope.outer is not None or key in model.views
        taken = taken or is_overridable(model, key)  # It stays an input.
        output = store.unique(name) if taken else name
        try:
            made = _fragment(NodeProto(output=[output]), key, layers[key], weight, store)
        except Exception as error:
            if failed is None:
                raise
            failed[key] = f"it could not be rewritten: {one_line(error)}"
            continue
        if output != name:
            for node in walk(scope.graph):
                node.input[:] = [output if read == name else read for read in node.input]
        nodes += made
        if key not in model.views:
            store.replaced.add(key)
    model.changed()
    return nodes


def _looked_up(
    model: Model, weights: Mapping[str, CompressedWeight], store: Constants
) -> tuple[dict[str, list[NodeProto]], set[str]]:
    """Nodes that decode the rows of tables that are looked up, in the place of each Gather.

    Returns:
        The nodes by the key of the Gather, and the keys of these tables.
    """
    fragments: dict[str, list[NodeProto]] = {}
    tables: set[str] = set()
    for key, weight in weights.items():
        made = _rows(model, key, weight, store) if isinstance(weight, DecodedWeight) else None
        if made:
            fragments |= made
            tables.add(key)
    return fragments, tables


def _rows(
    model: Model, key: str, weight: DecodedWeight, store: Constants
) -> dict[str, list[NodeProto]] | None:
    """Nodes for every reader of a large table; None where it is not only looked up by rows."""
    found = lookups(model, key)
    if not found:
        return None
    kind = onnx.helper.tensor_dtype_to_np_dtype(model.constants[key].data_type)
    result = {}
    for name, node in found.items():
        op = Emitter(_prefix(model.nodes[name][0], name), store)
        rows = weight.emit_rows(op, gs.Variable(node.input[1]), kind)
        if rows is None:
            return None
        result[name] = _exported(op, node, rows, store, kind)
    return result


def _is_wide(array: Array) -> bool:
    """Whether an array is of a type for which float32 twins exist."""
    return array.dtype == np.float64 or array.dtype.name == "bfloat16"


def _check_names(model: Model, names: Iterable[str]) -> None:
    unknown = set(names) - model.nodes.keys()
    if unknown:
        raise ModelError(f"the model has no layer {min(unknown)!r}")


def _fragment(
    node: NodeProto, key: str, layer: Layer, weight: CompressedWeight, store: Constants
) -> list[NodeProto]:
    """The nodes that replace a node; the last one keeps its name, output and metadata."""
    if layer.weight.dtype == np.float32 and any(map(_is_wide, weight.arrays())):
        weight = weight.astype(np.float32)  # The model is a twin of one in that type.
    op = Emitter(key, store)
    left = layer.op_type in ("MatMul", "Einsum") and layer.attributes.get("left")
    x = gs.Variable(node.input[1 if left else 0]) if node.input else None
    return _exported(op, node, weight.emit(op, x, layer), store, layer.weight.dtype)


def _exported(
    op: Emitter, node: NodeProto, y: Value, store: Constants, dtype: Any
) -> list[NodeProto]:
    """What was emitted in the place of a node, which gives its name and its output."""
    y.name = node.output[0]
    graph = gs.Graph(nodes=op.nodes, outputs=[y], opset=store.opset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = list(gs.export_onnx(graph, do_type_check=False).graph.node)
    for made in nodes:
        if made.op_type == "Gemm" and len(made.input) == 2 and store.opset < 11:
            made.input.append(store.add(np.zeros(1, dtype), ""))  # It is not optional there.
        if made.op_type == "Slice" and store.opset < 10:  # Its ranges are attributes there.
            _attribute_slice(made, store)
    last = nodes[-1]
    last.name = node.name
    last.doc_string = node.doc_string
    last.metadata_props.extend(node.metadata_props)
    for configuration in getattr(node, "device_configurations", ()):  # onnx has them since 1.18.
        last.device_configurations.append(configuration)
        known = (*last.input, *last.output)
        specs = last.device_configurations[-1].sharding_spec
        keep_only(specs, lambda spec, known=known: spec.tensor_name in known)
    return nodes


def _attribute_slice(node: NodeProto, store: Constants) -> None:
    """A Slice of constant ranges as it was before opset 10."""
    for key, name in zip(("starts", "ends", "axes"), node.input[1:], strict=False):
        node.attribute.append(onnx.helper.make_attribute(key, store.arrays[name].tolist()))
    del node.input[1:]


def overhead(model: Model, layer: Layer, weight: CompressedWeight) -> int:
    """Bytes of nodes and headers by which the file grows for a layer, stored arrays apart."""
    place = model.nodes.get(layer.name)
    node = place[1] if place else NodeProto(output=[layer.name])
    store = Constants(model, lambda array: array)
    prefix = _prefix(place[0], layer.name) if place else layer.name
    rows = None if place else _looked_up(model, {layer.name: weight}, store)[0]
    made = [*chain(*rows.values())] if rows else _fragment(node, prefix, layer, weight, store)
    headers = sum(HEADER + len(name) for name, a in store.arrays.items() if a.size > SMALL)
    tensor = weight_root(model, *place) if place else layer.name
    freed = HEADER + len(tensor) + node.ByteSize()
    return sum(n.ByteSize() + 3 for n in made) + headers - freed
