"""Weights of a model outside of its bytes, and what these are."""

from __future__ import annotations

import hashlib
import os
from math import prod

import numpy as np
import onnx
from onnx import TensorProto

from onnxcompress.core.layer import Array
from onnxcompress.graph.edit import keep_only
from onnxcompress.graph.functions import in_full
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import bodies, walk
from onnxcompress.graph.protobuf_wire import assign

DETACHED_BYTES = 4096  # Weights of at least so many bytes go to onnxruntime without a copy.


def sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def detached(model: Model) -> tuple[bytes, dict[str, Array]]:
    """The serialized model without its large weights, and these, as views of the model's memory.

    Constants that nothing reads are left out: onnxruntime takes long to drop many of them.  Whole
    numbers in a row stay, since shapes, which it infers while it loads, depend on them.
    """
    result = shell(model)
    read = {value.name for value in (*model.graph.input, *model.graph.output)}
    read.update(name for node in walk(model.graph) for name in node.input)
    read.update(value.name for body in bodies(model.graph) for value in body.output)
    keep_only(
        result.graph.node,
        lambda node: node.op_type != "Constant" or not read.isdisjoint(node.output),
    )
    weights: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.name not in read:
            continue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if model.inside(tensor) is not None:
            weights[tensor.name] = model.value(tensor)
            result.graph.initializer.append(_stub(tensor))
            continue
        packed = len(tensor.raw_data) < prod(tensor.dims) * dtype.itemsize
        shape = tensor.data_type == TensorProto.INT64 and len(tensor.dims) < 2
        if len(tensor.raw_data) < DETACHED_BYTES or packed or shape:
            result.graph.initializer.append(tensor)
            continue
        weights[tensor.name] = np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
        result.graph.initializer.append(_stub(tensor))
    return in_full(result).SerializeToString(), weights


def _stub(tensor: TensorProto) -> TensorProto:
    stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="memory")
    return stub


def shell(model: Model) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    result = onnx.ModelProto()
    for descriptor, value in model.proto.ListFields():
        if descriptor.name != "graph":
            assign(result, descriptor.name, value)
    for descriptor, value in model.graph.ListFields():
        if descriptor.name != "initializer":
            assign(result.graph, descriptor.name, value)
    return result
