"""Parts of a model as models of their own, and tensors shown as outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import NodeProto, TensorProto

from onnxcompress.core import Array
from onnxcompress.graph.model import Model, ancestors, reads, unique_name, walk

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # of operators that everybody knows


def custom_operators(model: Model) -> list[str]:
    """Operators that are neither in the domains that onnxruntime knows nor local functions."""
    local = {(function.domain, function.name) for function in model.proto.functions}
    nodes = [n for part in (model.graph, *model.proto.functions) for n in walk(part)]
    found = {(n.domain, n.op_type) for n in nodes if n.domain not in DOMAINS} - local
    return sorted(map(".".join, found))


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
    wanted, open_ = set[int](), [output]
    while open_:
        node = makers.get(open_.pop())
        if node is not None and id(node) not in wanted:
            wanted.add(id(node))
            open_ += reads(node) - inputs.keys()
    nodes = [node for node in [*model.graph.node, *nodes] if id(node) in wanted]
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
    for name in tensors:
        outputs[name] = unique_name(f"{name}/shape", result.names)
        result.names.add(outputs[name])
        result.graph.node.append(onnx.helper.make_node("Shape", [name], [outputs[name]]))
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
