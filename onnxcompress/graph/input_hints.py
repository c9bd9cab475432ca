"""What a graph itself tells of the values that its inputs take.

A model that normalizes its pictures starts with ``y = a x + b``: pictures that it was trained with
have their mean near ``-b / a``.  A model that looks rows up reads indices below their number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
from onnx import NodeProto, TensorProto

from onnxcompress.core.errors import ModelError
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import attributes_of

# Types of whole numbers that nodes look something up by.
WHOLE = {TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8}
# What these give holds the values that they read, in another order, shape or type, or padded.
MOVED = {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Pad"}
# These cut an input or put it together with others.
PIECES = {"Slice", "Concat", "Split"}
# What these read is likely to be a signal.
FILTERS = {"Conv", "STFT", "DFT"}
# These may scale or shift an input.
FACTORS = {"Add", "Sub", "Mul", "Div", "BatchNormalization"}


def first_scaling(model: Model, name: str) -> tuple[float, float] | None:
    """The ``(a, b)`` with which the model first scales an input, as means over the channels.

    None where it does not, or where several nodes do something else with the input.
    """
    a, b, scaled = 1.0, 0.0, False
    for node, tensor in _line(_readers(model), name):
        if node.op_type not in FACTORS:
            continue
        step = _scaling(model, node, tensor)
        if step is None:
            break
        a, b, scaled = step[0] * a, step[0] * b + step[1], True
    return (a, b) if scaled and a else None


def index_ranges(model: Model) -> dict[str, tuple[int, int]]:
    """0 and the rows of what an input of whole numbers chooses from, for every such input."""
    ranges: dict[str, tuple[int, int]] = {}
    whole = [v for v in model.graph.input if v.type.tensor_type.elem_type in WHOLE]
    readers = _readers(model) if whole else {}
    for value in whole:
        rows = [
            _rows(model, node)
            for tensor in _copies(readers, value.name, MOVED)
            for node in readers[tensor]
            if tensor == _indices(node)
        ]
        known = [count for count in rows if count]
        if known:
            ranges[value.name] = 0, min(known)
    return ranges


def convolved_inputs(model: Model) -> set[str]:
    """The inputs that convolutions or Fourier transforms read, moved, cut and scaled at most."""
    readers = _readers(model)
    return {
        value.name
        for value in model.graph.input
        for tensor in _copies(readers, value.name, MOVED | FACTORS | PIECES)
        if any(node.op_type in FILTERS and node.input[0] == tensor for node in readers[tensor])
    }


def _readers(model: Model) -> Mapping[str, list[NodeProto]]:
    """Tensor -> the nodes of the graph itself that read it."""
    readers = defaultdict[str, list[NodeProto]](list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
    return readers


def _line(readers: Mapping[str, list[NodeProto]], tensor: str) -> Iterator[tuple[NodeProto, str]]:
    """The nodes after an input, each with the tensor it reads, as long as there is one alone."""
    while len(readers[tensor]) == 1 and readers[tensor][0].op_type in MOVED | FACTORS:
        [node] = readers[tensor]
        yield node, tensor
        tensor = node.output[0]


def _copies(readers: Mapping[str, list[NodeProto]], name: str, operators: set[str]) -> list[str]:
    """A tensor, and what these operators make of it, and so on."""
    names = {name: None}
    for tensor in (line := [name]):
        made = [node.output[0] for node in readers[tensor] if node.op_type in operators]
        line += [other for other in made if other not in names]
        names |= dict.fromkeys(made)
    return list(names)


def _indices(node: NodeProto) -> str | None:
    """The tensor that holds indices, of nodes that look something up."""
    place = {"Gather": 1, "OneHot": 0}.get(node.op_type)
    return None if place is None else node.input[place]


def _rows(model: Model, node: NodeProto) -> int:
    """How many rows such a node chooses from; 0 where that is not constant."""
    if node.op_type == "OneHot":
        return int(model.read(node.input[1]).item()) if model.fixed(node.input[1]) else 0
    if not model.fixed(node.input[0]):
        return 0
    tensor = model.constants.get(node.input[0])
    shape = model.read(node.input[0]).shape if tensor is None else tuple(tensor.dims)
    axis = attributes_of(node).get("axis", 0)
    return shape[axis] if shape else 0


def _scaling(model: Model, node: NodeProto, tensor: str) -> tuple[float, float] | None:
    """The ``(a, b)`` of one node; None where what it reads besides is not constant."""
    try:
        values = [model.read(n).astype(float) for n in node.input if n and n != tensor]
    except (KeyError, ModelError):
        return None
    if node.op_type == "BatchNormalization":
        factor, shift, mean, variance = values
        a = factor / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
        return float(a.mean()), float((shift - a * mean).mean())
    if len(values) != 1 or not values[0].size:
        return None
    value, first = float(values[0].mean()), node.input[0] == tensor
    if node.op_type == "Add":
        return 1.0, value
    if node.op_type == "Sub":
        return (1.0, -value) if first else (-1.0, value)
    if node.op_type == "Mul":
        return value, 0.0
    return (1 / value, 0.0) if first and value else None
