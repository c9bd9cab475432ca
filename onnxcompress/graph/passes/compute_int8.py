"""Layers that compute in int8.

With fixed ranges a tensor becomes bytes, and what reads it computes with what they stand for::

    x -> QuantizeLinear -> DequantizeLinear -> Conv -> QuantizeLinear -> DequantizeLinear
    codes -> int8 -> DequantizeLinear(scale of each output channel) -> (the same Conv)

which runtimes fuse to one convolution of bytes when they load the model, if the bias is int32 in
units of both scales.  With dynamic ranges the range is that of what comes in::

    x -> DynamicQuantizeLinear -> MatMulInteger(int8 weight) -> Cast -> Mul(both scales) -> Add
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import onnx
from onnx import NodeProto

from onnxcompress.core.arithmetic import Arithmetic, Range
from onnxcompress.core.layer import Array, Emitter, Layer, Value
from onnxcompress.core.method import CompressedWeight
from onnxcompress.graph.edit import copied
from onnxcompress.graph.emitter import Constants
from onnxcompress.graph.int8_region import Int8Region, int8_region
from onnxcompress.graph.model import Model
from onnxcompress.graph.rewrite import rewrite

STATIC_OPSET = 13  # DequantizeLinear has a scale for each channel from this opset on.
DYNAMIC_OPSET = 11  # There is DynamicQuantizeLinear from this opset on.
CAST_BYTES = 28  # A node that makes floats of float16 takes about so many.
BIAS = 2.0**30  # The largest bias in int32 leaves half the range to the products that are added.


@dataclass(frozen=True, eq=False)
class Int8Weight(CompressedWeight):
    """A weight whose integers are multiplied as they are.

    Attributes:
        inner: what is stored; it must have `integers`.
        arithmetic: static or dynamic.
    """

    inner: CompressedWeight
    arithmetic: Arithmetic

    def arrays(self) -> Any:
        return self.inner.arrays()

    def shared_arrays(self) -> Any:
        return self.inner.shared_arrays()

    def decode(self) -> Array:
        return self.inner.decode()

    def scaled(self, gain: Array) -> Self:
        return replace(self, inner=self.inner.scaled(gain))

    def emit(self, op: Emitter, x: Value, layer: Layer) -> Value:
        numbers = self.inner.integers()
        if numbers is None:
            raise ValueError("its weight is not made of whole numbers")
        integers, scale = self.inner.emit_integers(op), numbers[1]
        if self.arithmetic.kind == "static":
            assert self.arithmetic.reads is not None
            return _static(op, x, layer, integers, scale, self.arithmetic.reads)
        return _dynamic(op, x, layer, integers, scale)


def _static(
    op: Emitter, x: Value, layer: Layer, integers: Value, scale: Array, reads: Range
) -> Value:
    """The layer on dequantized tensors."""
    bias = layer.bias
    if isinstance(bias, Array):  # It is so large beside weights that hardly count.
        scale = np.maximum(scale, np.abs(bias) / np.float32(BIAS * reads.scale))
    steps = _narrow(op, scale)
    weight = op.DequantizeLinear(integers, steps, np.zeros(len(scale), np.int8), axis=0)
    if layer.op_type != "MatMul" and bias is not None:
        if not isinstance(bias, Array):
            raise ValueError("its bias is computed while the model runs")
        step = np.float32(reads.scale)
        whole = np.rint(bias.astype(np.float64) / (scale * step)).astype(np.int32)
        unit = op.Mul(steps, np.array(step))  # Computed when the model is loaded, not stored.
        bias = op.DequantizeLinear(whole, unit, np.zeros_like(whole), axis=0)
    plain = replace(layer, attributes={**layer.attributes, "beta": 1.0})
    return (plain if layer.op_type == "Gemm" else layer).apply(op, x, weight, bias=bias)


def _narrow(op: Emitter, scale: Array) -> Array | Value:
    """Scales as float16, where that holds them and takes fewer bytes."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    exact = len(scale) > CAST_BYTES // 2 and np.array_equal(half.astype(np.float32), scale)
    return op.Cast(half, to=np.float32) if exact else scale


def _dynamic(op: Emitter, x: Value, layer: Layer, integers: Value, scale: Array) -> Value:
    """A product of integers; the range of the input is found in every run."""
    whole, step, zero = _several(op, "DynamicQuantizeLinear", x, 3)
    product = op.MatMulInteger(whole, op.Transpose(integers, perm=[1, 0]), zero)
    y = op.Mul(op.Cast(product, to=np.float32), op.Mul(step, _narrow(op, scale)))
    return y if layer.bias is None else op.Add(y, layer.bias)


def _several(op: Any, op_type: str, x: Value, count: int) -> tuple[Any, ...]:
    """All outputs of a node."""
    first = getattr(op, op_type)(x)
    node = op.nodes[-1]
    kind = type(first)
    node.outputs = [first, *(kind(f"{first.name}_{i}") for i in range(1, count))]
    return tuple(node.outputs)


def compute_int8(
    model: Model,
    weights: Mapping[str, CompressedWeight],
    arithmetic: Mapping[str, Arithmetic],
    ranges: Mapping[str, Range],
    biases: Mapping[str, Array] | None = None,
    failed: dict[str, str] | None = None,
    region: Int8Region | None = None,
) -> Model:
    """A copy in which these layers compute in int8.

    Args:
        weights: layer name -> what is stored; with integers, where the layer is in int8.
        arithmetic: layer name -> what it computes in; float where nothing is said.
        ranges: of the tensors that `int8_region` names for the static layers.
        biases, failed: as `rewrite` takes them.
    """
    static = [name for name, kind in arithmetic.items() if kind.kind == "static"]
    region = int8_region(model, static) if region is None else region
    result = with_bytes(model, region, ranges) if static else model
    stored = dict(weights)
    for name, kind in arithmetic.items():
        if kind.kind != "float" and name in stored:
            stored[name] = Int8Weight(stored[name], kind)
    return rewrite(result, stored, biases, failed)


def with_bytes(model: Model, region: Int8Region, ranges: Mapping[str, Range]) -> Model:
    """A copy whose tensors of the region are rounded to bytes, and read so by its nodes."""
    result = model.copy()
    store = Constants(result, result.keep)
    nodes: list[NodeProto] = []
    renamed: dict[str, str] = {}  # Nodes of the region read the rounded twin of a tensor.

    def rounded(name: str, source: str, output: str) -> None:
        steps = ranges[region.source[name]]
        scale = store.add(np.array(steps.scale, np.float32), "")
        zero = store.add(np.array(steps.zero, np.uint8), "")
        whole = store.unique("")
        nodes.append(onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [whole]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", [whole, scale, zero], [output]))

    def start(name: str) -> None:
        """A tensor of the region that is computed in floats, or given."""
        if name in region.source and name not in region.made:
            renamed[name] = store.unique("")
            rounded(name, name, renamed[name])

    for value in result.graph.input:
        start(value.name)
    for index, node in enumerate(result.graph.node):
        inside = index in region.nodes
        if inside:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        outputs = list(node.output)
        made = {name: store.unique("") for name in outputs if name in region.made}
        node.output[:] = [made.get(name, name) for name in outputs]
        nodes.append(node)
        for name in outputs:
            if name in made:
                rounded(name, made[name], name)
            else:
                start(name)
    copies = [copied(node) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    store.commit(copies)
    return replace(result)


def bytes_only(model: Model) -> Model:
    """A copy that takes and gives bytes where `with_bytes` rounds what it takes and gives."""
    result = model.copy()
    graph = result.graph
    made = {name: node for node in graph.node for name in node.output}
    inputs = {value.name: value for value in graph.input}
    ends = [made.get(output.name) for output in graph.output]
    for output, end in zip(graph.output, ends, strict=True):
        if end is not None and end.op_type == "DequantizeLinear":
            output.name = end.input[0]
            graph.node.remove(end)
    for node in list(graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] in inputs:
            value = inputs[node.input[0]]
            value.name = node.output[0]
            value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
            graph.node.remove(node)
    return replace(result)


def border(op_type: str) -> Model:
    """A model that rounds a vector to bytes, or restores one from bytes."""
    kinds = [onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8]
    kinds = kinds if op_type == "QuantizeLinear" else kinds[::-1]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, ["x", "scale", "zero"], ["y"])],
        "border",
        [onnx.helper.make_tensor_value_info("x", kinds[0], [None])],
        [onnx.helper.make_tensor_value_info("y", kinds[1], [None])],
        [
            onnx.numpy_helper.from_array(np.array(0.05, np.float32), "scale"),
            onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero"),
        ],
    )
    opset = onnx.helper.make_opsetid("", STATIC_OPSET)
    return Model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))
