"""Parts of a model as models of their own, and tensors shown as outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx
from onnx import NodeProto, TensorProto

from onnxcompress.core.layer import Array
from onnxcompress.graph.detach import detached
from onnxcompress.graph.model import LARGE_MODEL, Model, ancestors
from onnxcompress.graph.nodes import reads, unique_name, walk
from onnxcompress.graph.tensors import tensor_bytes

# The constants of a step have so many bytes at most, if one node allows it: onnxruntime takes them
# several times.
STEP = 1 << 27
# onnxruntime itself knows the operators of these domains.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


def custom_operators(model: Model) -> list[str]:
    """Operators that are neither in the domains that onnxruntime knows nor local functions."""
    local = {(function.domain, function.name) for function in model.proto.functions}
    nodes = [n for part in (model.graph, *model.proto.functions) for n in walk(part)]
    operators = {(n.domain, n.op_type) for n in nodes if n.domain not in DOMAINS} - local
    return sorted(map(".".join, operators))


def part(model: Model, key: str, inputs: Mapping[str, Array], output: str) -> Model:
    """A model of what computes a tensor of one graph from these tensors and from constants.

    Args:
        key: of any node of that graph.
    """
    chain, scope = [], model.nodes[key][0] if key in model.nodes else model.scopes[0]
    while scope.outer is not None:
        chain, scope = [scope, *chain], scope.outer
    nodes = [node for scope in chain for node in scope.graph.node]
    makers = {name: node for node in [*model.graph.node, *nodes] for name in node.output}
    needed_nodes, open_ = set[int](), [output]
    while open_:
        node = makers.get(open_.pop())
        if node is not None and id(node) not in needed_nodes:
            needed_nodes.add(id(node))
            open_ += reads(node) - inputs.keys()
    nodes = [node for node in [*model.graph.node, *nodes] if id(node) in needed_nodes]
    result = segment(model, nodes, inputs, [output])
    needed = {name for node in nodes for name in reads(node)} - inputs.keys()
    for scope in chain:
        result.graph.initializer.extend(t for t in scope.graph.initializer if t.name in needed)
    return result


def expose(model: Model, tensors: Sequence[str]) -> Model:
    """A copy whose outputs are these tensors."""
    result = model.copy()
    del result.graph.output[:]
    for name in tensors:
        result.graph.output.add(name=name)
    return result


def expose_shapes(model: Model, tensors: Sequence[str]) -> tuple[Model, dict[str, str]]:
    """A copy whose outputs are the shapes of these tensors, and tensor -> output name."""
    result = model.copy()
    del result.graph.output[:]
    outputs = {}
    makers = {name: i for i, node in enumerate(result.graph.node) for name in node.output}
    for name in sorted(tensors, key=lambda name: makers.get(name, -1), reverse=True):
        outputs[name] = unique_name(f"{name}/shape", result.names)
        result.names.add(outputs[name])
        node = onnx.helper.make_node("Shape", [name], [outputs[name]])
        result.graph.node.insert(makers.get(name, -1) + 1, node)  # So it need not be kept.
        result.graph.output.add(name=outputs[name])
    return result, outputs


def segment(
    model: Model, nodes: Sequence[NodeProto], inputs: Mapping[str, Array], outputs: Sequence[str]
) -> Model:
    """A model of just these nodes, with the constants that they read and what computes these."""
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in reads(node)} - made - set(inputs)
    chains = {i for name in needed if name in model.makers
              for i in ancestors(model.graph.node, model.makers[name], model.makers)}  # fmt: skip
    nodes = [*(model.graph.node[i] for i in sorted(chains)), *nodes]
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in reads(node)} - made - set(inputs)
    result = onnx.ModelProto()
    result.ir_version = max(model.proto.ir_version, 4)
    result.opset_import.extend(model.proto.opset_import)
    result.functions.extend(model.proto.functions)
    graph = result.graph
    graph.name = "segment"
    graph.node.extend(nodes)
    graph.input.extend(_value_info(name, value) for name, value in inputs.items())
    graph.initializer.extend(t for name, t in model.initializers.items() if name in needed)
    graph.sparse_initializer.extend(
        sparse for sparse in model.graph.sparse_initializer if sparse.values.name in needed
    )
    for name in outputs:
        graph.output.add(name=name)
    return replace(model, proto=result)


def _value_info(name: str, value: Array | Sequence[Array]) -> onnx.ValueInfoProto:
    """The type of an array, or of a sequence of arrays."""
    items = [value] if isinstance(value, Array) else [*value]
    kind = onnx.helper.np_dtype_to_tensor_dtype(items[0].dtype) if items else TensorProto.FLOAT
    if isinstance(value, Array):
        return onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim)
    item = onnx.helper.make_tensor_type_proto(kind, None)
    return onnx.helper.make_value_info(name, onnx.helper.make_sequence_type_proto(item))


@dataclass(frozen=True, eq=False)
class Step:
    """Consecutive nodes of the main graph, and what later ones or the caller want of them."""

    nodes: list[NodeProto]
    outputs: list[str]


def in_steps(model: Model) -> list[Step]:
    """What a model has to do that is too large to be loaded as a whole; else nothing.

    Of a large model, a part too is loaded in steps: onnxruntime takes weights several times.
    Nodes that lead to no output are left out, as are those that compute with constants alone.
    """
    sizes = _dense(model)
    if sum(sizes.values()) <= (STEP if model.large else LARGE_MODEL):
        return []
    steps: list[Step] = []
    filled, counted = 0, set[str]()
    for node in _running(model):
        own = (reads(node) & sizes.keys()) - counted
        filled += sum(sizes[name] for name in own)
        if not steps or filled > STEP:
            steps.append(Step([], []))
            own = reads(node) & sizes.keys()
            filled, counted = sum(sizes[name] for name in own), set()
        counted |= own
        steps[-1].nodes.append(node)
    needed = {output.name for output in model.graph.output}
    for step in reversed(steps):
        made = {name for node in step.nodes for name in node.output if name}
        step.outputs.extend(sorted(made & needed))
        needed |= {name for node in step.nodes for name in reads(node)}
    return steps


def _running(model: Model) -> list[NodeProto]:
    """The nodes that lead to an output, without what only computes constants for others."""
    needed = {output.name for output in model.graph.output}
    folded = set(model.makers.values())
    folded -= {model.makers[name] for name in needed if name in model.makers}
    running = []
    for index, node in reversed([*enumerate(model.graph.node)]):
        if index not in folded and needed.intersection(node.output):
            running.append(node)
            needed |= reads(node)
    return running[::-1]


def _dense(model: Model) -> dict[str, int]:
    """Bytes of the constants that running nodes read: those that nodes compute as they then are."""
    if model.weight_bytes <= LARGE_MODEL // 32:  # A bit can become a float.
        return {}
    read = {name for node in _running(model) for name in reads(node)}
    sizes = {name: tensor_bytes(t) for name, t in model.initializers.items() if name in read}
    computed = read & model.makers.keys()
    if computed:
        inferred = onnx.shape_inference.infer_shapes(detached(model)[0], data_prop=True)
        for value in inferred.graph.value_info:
            kind = value.type.tensor_type
            if value.name in computed and kind.elem_type:
                size = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
                sizes[value.name] = size * prod(dim.dim_value for dim in kind.shape.dim)
    return sizes
