"""Single nodes: what they read, the bodies they hold, their attributes in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

# Layers are nodes of these operators, and of Einsum, which `is_linear` looks at more closely.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DECODED = "~[0-9a-f]+"  # Decoders have these names for their tensors: short, as there are many.
RANDOM = (  # The result of these operators is another one every time.
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli", "Dropout"),
)

# A Constant node may have these attributes, of numbers of this type, instead of a tensor.
SPELLED = {
    **dict.fromkeys(("value_float", "value_floats"), np.float32),
    **dict.fromkeys(("value_int", "value_ints"), np.int64),
}


def is_standard(node: NodeProto) -> bool:
    """Whether the operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def is_linear(node: NodeProto) -> bool:
    known = node.op_type in OPERATORS or (node.op_type == "Einsum" and len(node.input) == 2)
    return known and is_standard(node)


def own_bodies(node: NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs among the attributes of a node, and where they stand."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        yield from ((f"{attribute.name}{i}", body) for i, body in enumerate(attribute.graphs))


def walk(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[NodeProto]:
    """Every node, those in bodies included."""
    for node in graph.node:
        yield node
        if node.attribute:  # Most nodes have none, and there may be very many.
            for _, body in own_bodies(node):
                yield from walk(body)


def bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graphs in the nodes of a graph, at any depth."""
    for node in graph.node:
        for _, body in own_bodies(node) if node.attribute else ():
            yield body
            yield from bodies(body)


def reads(node: NodeProto) -> set[str]:
    """Names of the tensors that a node reads, its bodies included."""
    names = set(node.input)
    for _, body in own_bodies(node) if node.attribute else ():
        for inner in body.node:
            names |= reads(inner)
        names |= {output.name for output in body.output}
    names.discard("")
    return names


def values_of(node: NodeProto) -> list[TensorProto]:
    """The tensor of a Constant node of numbers, however it is spelled; nothing of other nodes.

    One that is spelled as plain numbers is made here: to change it does not change the node.
    """
    if node.op_type != "Constant" or not is_standard(node):
        return []
    return [
        a.t if a.name == "value" else _spelled(a)
        for a in node.attribute
        if a.name in ("value", *SPELLED)
    ]


def _spelled(attribute: onnx.AttributeProto) -> TensorProto:
    """The tensor that is meant by numbers which are an attribute of a Constant node."""
    value = onnx.helper.get_attribute_value(attribute)
    return numpy_helper.from_array(np.array(value, SPELLED[attribute.name]))


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The attributes by name: text as str, repeated ones as lists."""
    result = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        result[attribute.name] = (
            list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        )
    return result


def unique_name(base: str, taken: set[str]) -> str:
    """The name itself, or with the first number that makes it one that is not taken."""
    if base not in taken:
        return base
    number = 1
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}"
