"""Nodes that multiply in 8 bits already, and the bytes of their weights."""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from onnxcompress.graph.model import Model, ancestors
from onnxcompress.graph.nodes import is_linear
from onnxcompress.graph.tensors import tensor_bytes

INTEGER = {"MatMulInteger": 1, "ConvInteger": 1, "QLinearConv": 3, "QLinearMatMul": 3}
SHARED = 64  # entries of a constant up to which other nodes are likely to need it too


def dequantized(model: Model, key: str) -> bool:
    """Whether a tensor of the main graph comes out of a DequantizeLinear."""
    maker = model.producers.get(key)
    return maker is not None and model.nodes[maker][1].op_type == "DequantizeLinear"


def in_8_bits(model: Model, node: NodeProto) -> bool:
    """Whether a node of the main graph multiplies bytes, or floats that runtimes fuse to that."""
    if node.op_type in INTEGER:
        return True
    return is_linear(node) and all(dequantized(model, name) for name in node.input[:2])


def int8_bytes(model: Model) -> dict[str, int]:
    """Node that multiplies in 8 bits -> bytes that its weight takes in the file."""
    result = {}
    for key, node in zip(model.keys, model.graph.node, strict=True):
        if not in_8_bits(model, node):
            continue
        weight = node.input[INTEGER.get(node.op_type, 1)]
        names = {weight}
        if weight in model.makers:
            chain = ancestors(model.graph.node, model.makers[weight], model.makers)
            names |= {name for index in chain for name in model.graph.node[index].input}
        stored = (model.constants[name] for name in names if name in model.constants)
        result[key] = sum(tensor_bytes(t) for t in stored if prod(t.dims) > SHARED)
    return result
