"""The nodes of a model, and what linear ones read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import NodeProto, TensorProto

from onnxcompress.graph.detach import detached
from onnxcompress.graph.model import Model, ancestors, weight_of
from onnxcompress.graph.nodes import attributes_of, is_linear, reads


@dataclass(frozen=True, eq=False)
class Operation:
    """A node in plain Python.

    Attributes:
        op_type: with the domain before it where that is not ONNX's own.
        inputs: names; an empty one stands for an input that is left out.
        attributes: tensors as arrays, types as numpy names them; bodies are left out.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def operations(model: Model) -> list[Operation]:
    """The nodes of the main graph, in order."""
    return [
        Operation(
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
            tuple(node.input),
            tuple(node.output),
            {key: _plain(model, key, value) for key, value in attributes_of(node).items()},
        )
        for node in model.graph.node
    ]


def _plain(model: Model, key: str, value: Any) -> Any:
    if key == "to":
        return onnx.helper.tensor_dtype_to_np_dtype(value).name
    if isinstance(value, TensorProto):
        return model.value(value)
    return None if isinstance(value, onnx.GraphProto) else value


def linear_inputs(model: Model, key: str) -> list[str]:
    """The names of what a linear node reads and no constant gives."""
    scope, node = model.nodes[key]
    return [name for name in node.input if name and not model.fixed(scope.key(name))]


def linear_nodes(model: Model) -> dict[str, NodeProto]:
    """The Conv, ConvTranspose, Gemm and MatMul nodes of the main graph that run every time.

    Those that compute with nothing but constants run once, when the model is loaded.
    """
    result, folded = {}, set(model.constants)
    for key, node in zip(model.keys, model.graph.node, strict=True):
        if node.domain in ("", "ai.onnx") and reads(node) and reads(node) <= folded:
            folded.update(node.output)
        elif is_linear(node):
            result[key] = node
    return result


def weight_parts(model: Model, name: str) -> set[str]:
    """The constants that the weight of a linear node is made of, or a constant of that name."""
    linear = name in model.nodes and is_linear(model.nodes[name][1])
    key = weight_of(model, *model.nodes[name]) if linear else name
    return model.made_of(key) if model.fixed(key) else set()


def constants_of(model: Model, name: str) -> set[str]:
    """All constants that a node reads, or from which nodes compute what it reads."""
    scope, node = model.nodes[name]
    parts = set[str]()
    for key in scope.keys(node):
        if model.fixed(key):
            parts |= model.made_of(key)
        elif key in model.makers:
            chain = ancestors(model.graph.node, model.makers[key], model.makers)
            names = {name for index in chain for name in reads(model.graph.node[index])}
            parts |= names & model.constants.keys()
    return parts


def inner_nodes(model: Model) -> dict[str, tuple[NodeProto, list[str]]]:
    """The same of the bodies of nodes, each with the keys of what it reads and makes."""
    return {
        key: (node, [*map(scope.key, (*node.input[:2], node.output[0]))])
        for key, (scope, node) in model.nodes.items()
        if scope.outer is not None and is_linear(node)
    }


def inner_shapes(model: Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors in the bodies of nodes, by key, as far as onnx can infer them.

    Args:
        inputs: name -> shape.
    """
    if len(model.scopes) == 1:
        return {}
    stub = onnx.ModelProto()
    stub.ParseFromString(detached(model)[0])
    for value in stub.graph.input:
        if value.name in inputs:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, inputs[value.name]))
    try:
        inferred = Model(onnx.shape_inference.infer_shapes(stub, data_prop=True))
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    shapes = {key: tuple(tensor.dims) for key, tensor in model.constants.items()}
    for scope in inferred.scopes:
        for value in (*scope.graph.input, *scope.graph.value_info, *scope.graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(d.dim_value for d in dims):
                shapes[scope.path + value.name] = tuple(d.dim_value for d in dims)
    return shapes
