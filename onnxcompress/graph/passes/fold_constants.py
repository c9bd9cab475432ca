"""Nodes that compute constants, replaced by these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import NodeProto, TensorProto

from onnxcompress.core.layer import Array
from onnxcompress.graph.detach import detached
from onnxcompress.graph.edit import add_constant, drop_constants
from onnxcompress.graph.model import FLOATS, Model, ancestors, read_while_running
from onnxcompress.graph.nodes import unique_name
from onnxcompress.graph.spill import spilled
from onnxcompress.graph.subgraphs import in_steps, segment
from onnxcompress.graph.tensors import HEADER, tensor_bytes

UNKNOWN = 1 << 62  # What is not folded counts as so many bytes, more than any node frees.
WEIGHTS = (*FLOATS, TensorProto.INT8, TensorProto.UINT8)  # Wider integers are shapes and indices.


def fold_constants(
    model: Model,
    run: Callable[[Model], Sequence[Any]],
    chosen: Callable[[NodeProto], bool] = lambda node: True,
) -> Model:
    """Store the weights that nodes compute from constants alone.

    Every such tensor of floats or bytes that is read while the model runs, or is an output, becomes
    an initializer of the same name.  What served nothing but its computation is removed.  A
    DequantizeLinear counts as running: what it reads is stored.

    Args:
        run: the outputs of a model that takes no inputs; called for one tensor at a time.
        chosen: which nodes may go, Constant nodes apart; the others count as running.
    """
    result = model.copy()
    nodes, makers = model.graph.node, _undequantized(model, _makers(model, chosen))
    needed, large = read_while_running(model, makers), bool(in_steps(model))
    folded: set[int] = set()
    used: set[int] = set()
    for index in sorted({makers[name] for name in needed if name in makers}):
        if nodes[index].op_type == "Constant":
            continue
        chain = ancestors(nodes, index, makers)
        names = [name for name in nodes[index].output if model.consumers[name]]
        values = _computed(model, [nodes[i] for i in chain], names, run)
        if not any(name in needed and _is_weight(value) for name, value in values.items()):
            continue
        for name, value in values.items():  # All of them are added: the node goes as a whole.
            add_constant(result, name, spilled(value) if large else value)
        folded.add(index)
        used.update(chain)
        del values
    _remove_chains(result, folded, used)
    return result


def fold_smaller(model: Model, run: Callable[[Model], Sequence[Any]]) -> Model:
    """Store what nodes compute from constants, of any type, where that takes no more bytes.

    Args:
        run: the outputs of a model that takes no inputs; called for one tensor at a time.
    """
    result, nodes = model.copy(), model.graph.node
    makers = _undequantized(model, dict(model.makers))
    needed = read_while_running(model, makers)
    folded, used = set[int](), set[int]()
    for index in sorted({makers[name] for name in needed if name in makers}):
        if nodes[index].op_type == "Constant":
            continue
        chain = ancestors(nodes, index, makers)
        names = [name for name in nodes[index].output if model.consumers[name]]
        part, freed = segment(model, [nodes[i] for i in chain], {}, names), _freed(model, chain)
        if _least_bytes(part) > freed:
            continue
        values = dict(zip(names, run(part), strict=True))
        if any(not isinstance(v, np.ndarray) or v.dtype == object for v in values.values()):
            continue
        if sum(v.nbytes + len(name) + HEADER for name, v in values.items()) <= freed:
            for name, value in values.items():
                add_constant(result, name, value)
            folded.add(index)
            used.update(chain)
    _remove_chains(result, folded, used)
    return result


def _freed(model: Model, chain: Sequence[int]) -> int:
    """Bytes of the nodes of a chain, and of what they read, that nothing else needs."""
    left, total = model.consumers.copy(), 0
    for index in reversed(chain):
        node = model.graph.node[index]
        if index != chain[-1] and any(left[name] for name in node.output):
            continue
        total += node.ByteSize() + 3
        left.subtract(node.input)
        for name in {*node.input}:
            if not left[name] and name in model.initializers:
                tensor = model.initializers[name]
                total += tensor_bytes(tensor) + len(name) + HEADER
    return total


def _least_bytes(part: Model) -> int:
    """Bytes of the outputs as far as onnx can tell; infinite for types that arrays do not have."""
    total = 0
    for output in onnx.shape_inference.infer_shapes(detached(part)[0]).graph.output:
        kind = output.type.tensor_type
        if kind.elem_type in (TensorProto.UNDEFINED, TensorProto.BFLOAT16):
            return UNKNOWN
        total += tensor_bytes(
            TensorProto(data_type=kind.elem_type, dims=[d.dim_value for d in kind.shape.dim])
        )
    return total


def _makers(model: Model, chosen: Callable[[NodeProto], bool]) -> dict[str, int]:
    """Those of `Model.makers` that compute with nothing but chosen ones of them."""
    makers: dict[str, int] = {}
    for name, index in model.makers.items():
        node = model.graph.node[index]
        sources = (n for n in node.input if n in model.makers)
        if node.op_type == "Constant" or (chosen(node) and all(n in makers for n in sources)):
            makers[name] = index
    return makers


def _undequantized(model: Model, makers: dict[str, int]) -> dict[str, int]:
    """Makers without what dequantizes for nodes that run: they may compute in 8 bits."""
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
        if kind == TensorProto.BFLOAT16:  # Arrays of it do not come out of onnxruntime.
            name, output.name = output.name, unique_name(f"{output.name}/float", part.names)
            cast = onnx.helper.make_node("Cast", [name], [output.name], to=TensorProto.FLOAT)
            part.graph.node.append(cast)
    values = {}
    for name, kind, value in zip(names, kinds, run(part), strict=True):
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return {}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else value.dtype
        values[name] = value.astype(dtype, copy=False)  # A float32 twin may have run.
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
    model.changed()
    drop_constants(model, touched)
