"""Passes: functions ``Model -> Model``, applied one after the other by a ``for`` loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import NodeProto, TensorProto, numpy_helper

from onnxcompress.core import Array
from onnxcompress.graph.files import detached
from onnxcompress.graph.layers import SMALL, is_overridable
from onnxcompress.graph.model import (
    FLOATS,
    Model,
    add_constant,
    ancestors,
    attributes_of,
    drop_nodes,
    held,
    is_linear,
    keep_only,
    read_while_running,
    unique_name,
    values_of,
    walk,
)
from onnxcompress.graph.pieces import in_steps, segment
from onnxcompress.graph.spill import spilled

WEIGHTS = (*FLOATS, TensorProto.INT8, TensorProto.UINT8)  # what is wider are shapes and indices
WIDE = (TensorProto.BFLOAT16, TensorProto.DOUBLE)  # for which CPU kernels are missing
MOST_NODES = 200_000  # that inlining may lead to


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """A copy in which these constants have other values."""
    result = model.copy()
    tensors = [*result.graph.initializer, *(t for n in result.graph.node for t in values_of(n))]
    names = [
        *model.initializers,
        *(n.output[0] for n in model.graph.node for _ in values_of(n)),
    ]
    for name, tensor in zip(names, tensors, strict=True):
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], tensor.name))
    return replace(result)


def needs_float32(model: Model) -> bool:
    """Whether the model has types for which onnxruntime's CPU kernels are missing."""
    return any(tensor.data_type in WIDE for tensor in model.constants.values())


def has_bfloat16(model: Model) -> bool:
    """Whether some constant is a bfloat16, whose rounding the float32 twin leaves out."""
    return any(t.data_type == TensorProto.BFLOAT16 for t in model.constants.values())


def inline_functions(model: Model) -> Model:
    """Put the nodes of local functions that hold layers in the place of the calls.

    Equal constants that several calls bring along are kept once.
    """
    wanted = _functions_with_layers(model)
    if not wanted:
        return model
    given = set(model.constants)
    result = replace(model, proto=onnx.inliner.inline_selected_functions(model.proto, wanted))
    first: dict[bytes, str] = {}
    for node in [n for n in result.graph.node if values_of(n) and n.output[0] not in given]:
        content = node.attribute[0].SerializeToString()
        name = first.setdefault(content, node.output[0])
        if name != node.output[0] and len(content) > SMALL:
            for reader in walk(result.graph):
                reader.input[:] = [
                    name if read == node.output[0] else read for read in reader.input
                ]
            result.graph.node.remove(node)
    return replace(result)


def _functions_with_layers(model: Model) -> list[tuple[str, str]]:
    """Domains and names of local functions with linear nodes, in what they call too.

    None of them where they call themselves, or where inlining them would give too many nodes.
    """
    every = {(f.domain, f.name): [*walk(f)] for f in model.proto.functions}
    found: set[tuple[str, str]] = set()
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(len(every) + 2):
        known = set(found), dict(sizes)
        for key, nodes in every.items():
            calls = [(node.domain, node.op_type) for node in nodes]
            sizes[key] = sum(sizes.get(call, 1) for call in calls)
            if any(map(is_linear, nodes)) or found.intersection(calls):
                found.add(key)
        whole = sum(sizes.get((node.domain, node.op_type), 1) for node in walk(model.graph))
        if whole > MOST_NODES:
            return []
        if (found, sizes) == known:
            return sorted(found)
    return []


def name_nodes(model: Model) -> Model:
    """Give every unnamed node of the main graph the unique name that it has in reports."""
    result = model.copy()
    for node, key in zip(result.graph.node, model.keys, strict=True):
        node.name = key
    return result


def drop_dead(model: Model, names: Iterable[str]) -> Model:
    """Remove those of the named constants that nothing reads any more."""
    result = model.copy()
    drop_nodes(result, set(names))
    return result


def fold_batchnorm(model: Model) -> Model:
    """Fold every BatchNormalization that follows a Conv, its only reader, into that Conv."""
    result = model.copy()
    producers = {node.output[0]: node for node in result.graph.node if node.output}
    for norm in list(result.graph.node):
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or result.consumers[conv.output[0]] != 1:
            continue
        sources = [*conv.input[1:], *norm.input[1:]]
        if any(n not in result.initializers or is_overridable(result, n) for n in sources):
            continue
        if len(norm.output) > 1:
            continue
        if result.consumers[conv.input[1]] != 1:
            continue
        weight, *bias = [result.read(name) for name in conv.input[1:]]
        scale, shift, mean, variance = (result.read(name) for name in norm.input[1:5])
        gain = scale / np.sqrt(variance + attributes_of(norm).get("epsilon", 1e-5))
        shift = shift + gain * ((bias[0] if bias else 0) - mean)
        weight = (weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))).astype(weight.dtype)
        name = unique_name(f"{conv.input[1]}_folded", result.names)
        result.names.update((name, f"{name}bias_of"))
        add_constant(result, name, weight)
        add_constant(result, f"{name}bias_of", shift.astype(weight.dtype))
        conv.input[:] = [conv.input[0], name, f"{name}bias_of"]
        between, conv.output[0] = conv.output[0], norm.output[0]
        result.graph.node.remove(norm)
        result = replace(result)
        drop_nodes(result, {*sources, between})
        result = replace(result)
        producers = {node.output[0]: node for node in result.graph.node if node.output}
    return result


def fold_pads(model: Model) -> Model:
    """Let every Conv that alone reads the result of a Pad add these zeros itself."""
    result = model.copy()
    readers = {node.input[0]: node for node in result.graph.node if node.op_type == "Conv"}
    for pad in [node for node in result.graph.node if node.op_type == "Pad"]:
        conv, around = readers.get(pad.output[0]), _zeros_around(result, pad)
        if conv is None or around is None or result.consumers[pad.output[0]] != 1:
            continue
        attributes, axes = attributes_of(conv), len(around) // 2 - 2
        if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        if any(around[i] for i in (0, 1, axes + 2, axes + 3)) or min(around) < 0:
            continue
        own = attributes.get("pads", [0] * 2 * axes)
        both = [a + b for a, b in zip(own, around[2 : 2 + axes] + around[-axes:], strict=True)]
        keep_only(conv.attribute, lambda a: a.name not in ("pads", "auto_pad"))
        conv.attribute.append(onnx.helper.make_attribute("pads", both))
        conv.input[0] = pad.input[0]
        result.graph.node.remove(pad)
        result = replace(result)
        drop_nodes(result, {*pad.input[1:], pad.output[0]})
        result = replace(result)
    return result


def _zeros_around(model: Model, pad: NodeProto) -> list[int] | None:
    """The zeros that a Pad puts before, and then after, every axis; None where that is not all."""
    attributes, given = attributes_of(pad), [name for name in pad.input[1:] if name]
    if attributes.get("mode", "constant") != "constant" or attributes.get("value", 0) != 0:
        return None
    if any(name not in model.constants or is_overridable(model, name) for name in given):
        return None
    around, *rest = [*pad.input[1:], "", "", ""][:3]
    if any(rest[1:]) or (rest[0] and model.read(rest[0]).any()):
        return None
    return model.read(around).tolist() if around else attributes.get("pads")


def fold_constants(model: Model, run: Callable[[Model], Sequence[Any]]) -> Model:
    """Store the weights that nodes compute from constants alone.

    Every such tensor of floats or bytes that is read while the model runs, or is an output, becomes
    an initializer of the same name.  What served nothing but its computation is removed.  A
    DequantizeLinear counts as running: what it reads is stored.

    Args:
        run: the outputs of a model that takes no inputs; called for one tensor at a time.
    """
    result = model.copy()
    nodes, makers = model.graph.node, _undequantized(model)
    wanted, large = read_while_running(model, makers), bool(in_steps(model))
    folded: set[int] = set()
    used: set[int] = set()
    for index in sorted({makers[name] for name in wanted if name in makers}):
        if nodes[index].op_type == "Constant":
            continue
        chain = ancestors(nodes, index, makers)
        names = [name for name in nodes[index].output if model.consumers[name]]
        values = _computed(model, [nodes[i] for i in chain], names, run)
        if not any(name in wanted and _is_weight(value) for name, value in values.items()):
            continue
        for name, value in values.items():  # all of them: the node goes as a whole
            add_constant(result, name, spilled(value) if large else value)
        folded.add(index)
        used.update(chain)
        del values
    _remove_chains(result, folded, used)
    return replace(result)


def _undequantized(model: Model) -> dict[str, int]:
    """`Model.makers` without what dequantizes for nodes that run: they may compute in 8 bits."""
    makers = dict(model.makers)
    while stay := read_while_running(model, makers) & model.quantized & makers.keys():
        for name in stay:
            del makers[name]
    return makers


def _computed(
    model: Model,
    nodes: Sequence[NodeProto],
    names: Sequence[str],
    run: Callable[[Model], Sequence[Any]],
) -> dict[str, Array]:
    """The values of what these nodes compute; empty where one is no array, or none a weight."""
    part = segment(model, nodes, {}, names)
    kinds = _output_types(part)
    if all(kind and kind not in WEIGHTS for kind in kinds):
        return {}
    for output, kind in zip(part.graph.output, kinds, strict=True):
        if kind == TensorProto.BFLOAT16:  # arrays of it do not come out of onnxruntime
            name, output.name = output.name, unique_name(f"{output.name}/float", part.names)
            cast = onnx.helper.make_node("Cast", [name], [output.name], to=TensorProto.FLOAT)
            part.graph.node.append(cast)
    values = {}
    for name, kind, value in zip(names, kinds, run(part), strict=True):
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return {}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else value.dtype
        values[name] = value.astype(dtype, copy=False)  # a float32 twin may have run
    return values


def _output_types(model: Model) -> list[int]:
    """The element types of the outputs as far as onnx can tell; 0 is unknown, or no tensor."""
    inferred = onnx.shape_inference.infer_shapes(detached(model)[0])
    return [output.type.tensor_type.elem_type for output in inferred.graph.output]


def _is_weight(value: Array) -> bool:
    return onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in WEIGHTS


def _remove_chains(model: Model, folded: set[int], used: set[int]) -> None:
    """Remove the folded nodes, and of those that led to them what nothing else needs, in place."""
    graph, left = model.graph, model.consumers.copy()
    touched: set[str] = set()
    for index in sorted(used, reverse=True):
        node = graph.node[index]
        if index in folded or not any(left[name] for name in node.output):
            left.subtract(node.input)
            touched.update(node.input, node.output)
            del graph.node[index]
    drop_nodes(replace(model), touched)


def annotate(model: Model, properties: Mapping[str, str]) -> Model:
    """Set entries of the model's metadata_props."""
    result = model.copy()
    keep_only(result.proto.metadata_props, lambda entry: entry.key not in properties)
    for key, value in properties.items():
        result.proto.metadata_props.add(key=key, value=value)
    return result


def as_float32(model: Model) -> Model:
    """A twin that computes in float32 where the model computes in bfloat16 or float64."""
    result = model.copy()
    for tensor in result.graph.initializer if model.large else ():
        if tensor.data_type in WIDE:
            value = spilled(model.value(tensor).astype(np.float32))
            tensor.CopyFrom(held(result, tensor.name, value))
    _retype(result.proto, model)
    return replace(result)


def _retype(message: Any, model: Model) -> None:
    """Turn every bfloat16 and float64 of a protobuf message into float32, in place."""
    if isinstance(message, TensorProto):
        if message.data_type in WIDE:
            value = model.value(message).astype(np.float32)
            message.CopyFrom(numpy_helper.from_array(value, message.name))
        return
    if isinstance(message, onnx.TypeProto.Tensor) and message.elem_type in WIDE:
        message.elem_type = TensorProto.FLOAT
    if isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype"):
        message.i = TensorProto.FLOAT if message.i in WIDE else message.i
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for item in value if not hasattr(value, "ListFields") else (value,):
            _retype(item, model)
