"""The model: a view on its graphs, in which every node and every tensor has a name of its own.

The main graph, the bodies of If, Loop and Scan and what they hold are one tree of scopes; a tensor
of a body is told from others by the path to it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto, TensorProto, numpy_helper

from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import one_line
from onnxcompress.graph import protobuf_wire
from onnxcompress.graph.spill import spilled
from onnxcompress.graph.tensors import HELD, in_file, is_external, location, tensor_bytes

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

RANDOM = (  # operators whose result is another one every time
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli", "Dropout"),
)

VIEWS = ("Identity", "Transpose", "Cast", "Reshape", "DequantizeLinear")  # of a constant

LARGE_MODEL = 1 << 30  # bytes of weights from which a model is neither run nor kept as a whole


@dataclass(frozen=True, eq=False)
class Scope:
    """A graph and what it sees: the main one, or the body of an If, Loop or Scan.

    Attributes:
        path: what the keys of its nodes and tensors begin with; "" for the main graph.
        node_keys: the keys of its nodes, in their order.
        outer: the graph that it lies in, whose tensors its nodes may read too.
    """

    path: str
    graph: onnx.GraphProto
    node_keys: list[str]
    outer: Scope | None = None

    @cached_property
    def names(self) -> set[str]:
        """The tensors that it defines."""
        graph = self.graph
        found = {value.name for value in (*graph.input, *graph.initializer)}
        found |= {sparse.values.name for sparse in graph.sparse_initializer}
        return found | {name for node in graph.node for name in node.output}

    def key(self, name: str) -> str:
        """The key of a tensor that it reads: its name after the path of the graph it is from."""
        inner = self.outer is None or name in self.names
        return self.path + name if inner or self.outer is None else self.outer.key(name)

    def keys(self, node: NodeProto) -> list[str]:
        """The keys of the tensors that a node reads."""
        return [self.key(name) for name in node.input if name]


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX model.

    Nodes and tensors have a key: their name, in the body of a node after the path of that body,
    such as ``if/then_branch/conv``.

    Attributes:
        proto: the truth; treat it as read only and change a `copy`.
        folder: where the external data lies.
        extensions: libraries of operators that onnxruntime is to know.
        file: the name of a large file in which raw data were left, as if they were external data.
        held: initializers of the main graph whose values are not in the proto, by name.

    What it computes of its graph it keeps: ``replace(model)`` is one that has seen nothing yet.
    """

    proto: onnx.ModelProto
    folder: Path = field(default_factory=Path)
    extensions: tuple[str, ...] = ()
    file: str = ""
    held: dict[str, Array] = field(default_factory=dict)
    seen: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def copy(self) -> Model:
        copied = onnx.ModelProto()
        copied.CopyFrom(self.proto)
        return replace(self, proto=copied, held=dict(self.held))

    @property
    def graph(self) -> onnx.GraphProto:
        return self.proto.graph

    @property
    def opset(self) -> int:
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the file, external data included."""
        tensors = self.graph.initializer
        apart = sum(tensor_bytes(t) for t in tensors if is_external(t) and not self.inside(t))
        if not any(map(self.inside, tensors)):
            return apart + self.proto.ByteSize()
        return apart + sum(
            len(piece) if isinstance(piece, bytes) else tensor_bytes(piece)
            for piece in protobuf_wire.pieces(self.proto, self.inside)
        )

    def inside(self, tensor: TensorProto) -> int | None:
        """The length of values that belong into the file, and are elsewhere while it is large."""
        away = is_external(tensor) and location(tensor) in (HELD, self.file or HELD)
        return tensor_bytes(tensor) if away else None

    @cached_property
    def large(self) -> bool:
        """Whether it is kept and run in parts."""
        return self.weight_bytes > LARGE_MODEL

    def keep(self, array: Array) -> Array:
        """An array that becomes a part of it, in a temporary file if the model is large."""
        return spilled(array) if self.large else array

    @property
    def data_files(self) -> set[Path]:
        """The files that hold its external data."""
        tensors = filter(is_external, self.graph.initializer)
        return {self.folder / location(t) for t in tensors if self.inside(t) is None}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers and Constant nodes."""
        return sum(tensor_bytes(t) for t in self.constants.values())

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The initializers of the main graph."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def scopes(self) -> list[Scope]:
        """The main graph and all bodies, each after the one that it lies in."""
        taken, names = {node.name for node in self.graph.node}, sorted(self.names)
        found = [Scope("", self.graph, _node_keys("", self.graph, taken))]
        for scope in found:
            for key, node in zip(scope.node_keys, scope.graph.node, strict=True):
                for name, body in _own_bodies(node):
                    path = _path(f"{key}/{name}/", names)
                    found.append(Scope(path, body, _node_keys(path, body, taken), scope))
        return found

    @cached_property
    def nodes(self) -> dict[str, tuple[Scope, NodeProto]]:
        """Every node by its key."""
        return {key: (scope, node) for scope in self.scopes
                for key, node in zip(scope.node_keys, scope.graph.node, strict=True)}  # fmt: skip

    @property
    def keys(self) -> list[str]:
        """The keys of the nodes of the main graph, in their order."""
        return self.scopes[0].node_keys

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """Every tensor that is given before the model runs, by its key."""
        found = {}
        for scope in self.scopes:
            found |= {scope.path + tensor.name: tensor for tensor in scope.graph.initializer}
            for node in scope.graph.node:
                for name, tensor in zip(node.output, values_of(node), strict=False):
                    found[scope.path + name] = tensor
        return found

    @cached_property
    def views(self) -> dict[str, tuple[Scope, NodeProto]]:
        """What a chain of `VIEWS` makes of constants: key of the tensor -> its last node."""
        found: dict[str, tuple[Scope, NodeProto]] = {}
        for scope, node in self.nodes.values():
            if node.op_type not in VIEWS or node.domain not in ("", "ai.onnx"):
                continue
            if all(key in self.constants or key in found for key in scope.keys(node)):
                found[scope.path + node.output[0]] = scope, node
        return found

    @cached_property
    def quantized(self) -> set[str]:
        """What comes out of a DequantizeLinear, perhaps through other `VIEWS`."""
        found: set[str] = set()
        for scope, node in self.nodes.values():
            through = node.op_type in VIEWS and any(scope.key(n) in found for n in node.input[:1])
            if node.op_type == "DequantizeLinear" or through:
                found.update(scope.path + name for name in node.output)
        return found

    @cached_property
    def tied(self) -> set[str]:
        """Constants that are the weight of a layer, and are read by other nodes as well."""
        linear = [place for place in self.nodes.values() if is_linear(place[1])]
        weights = Counter(weight_of(self, *place) for place in linear)
        for key, (scope, node) in reversed(self.views.items()):
            if weights[key] and weights[key] == self.consumers[key]:
                weights[scope.key(node.input[0])] += 1
        roots = {weight_root(self, *place) for place in linear}
        return {key for key in roots & self.constants.keys() if weights[key] < self.consumers[key]}

    @cached_property
    def makers(self) -> dict[str, int]:
        """What nodes of the main graph make of constants alone, the same every time."""
        return _constant_makers(self)

    @cached_property
    def consumers(self) -> Counter[str]:
        """How often each tensor is read, by its key, as an output of a graph too."""
        found: Counter[str] = Counter()
        for scope, node in self.nodes.values():
            found.update(scope.keys(node))
        for scope in self.scopes:
            found.update(scope.key(output.name) for output in scope.graph.output)
        return found

    @cached_property
    def names(self) -> set[str]:
        """Every name in use: tensors and nodes, of all bodies."""
        taken = {node.name for node in walk(self.graph)}
        taken |= {name for node in walk(self.graph) for name in (*node.input, *node.output)}
        for graph in (self.graph, *_bodies(self.graph)):
            values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
            taken |= {value.name for value in values}
            taken |= {sparse.values.name for sparse in graph.sparse_initializer}
        return taken

    def fixed(self, key: str) -> bool:
        """Whether a tensor is a constant, or what `VIEWS` make of one."""
        return key in self.constants or key in self.views

    def read(self, key: str) -> Array:
        """The value of such a tensor."""
        chain = []
        while key in self.views:
            chain.append(self.views[key])
            key = chain[-1][0].key(chain[-1][1].input[0])
        value = self.value(self.constants[key])
        for scope, node in reversed(chain):
            value = _viewed(node, [value, *map(self.read, scope.keys(node)[1:])])
        return value

    def value(self, tensor: TensorProto) -> Array:
        try:
            if not is_external(tensor):
                return numpy_helper.to_array(tensor)
            if location(tensor) == HELD:
                return self.held[tensor.name]
            return in_file(tensor, self.folder)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {one_line(error)}") from None

    def view(self) -> gs.Graph:
        """The graph as onnx-graphsurgeon shows it, for walking; changes do not reach the model."""
        return gs.import_onnx(self.copy().proto)


def walk(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[NodeProto]:
    """Every node, those in bodies included."""
    for node in graph.node:
        yield node
        for _, body in _own_bodies(node):
            yield from walk(body)


def _own_bodies(node: NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs among the attributes of a node, and where they stand."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        yield from ((f"{attribute.name}{i}", body) for i, body in enumerate(attribute.graphs))


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in walk(graph):
        yield from (body for _, body in _own_bodies(node))


def _node_keys(path: str, graph: onnx.GraphProto, taken: set[str]) -> list[str]:
    """A key for every node of a graph: its own name, or one that is made for it."""
    given = Counter(node.name for node in graph.node)
    keys = []
    for index, node in enumerate(graph.node):
        named = bool(node.name) and given[node.name] == 1
        key = path + (node.name if named else f"{node.op_type}_{index}")
        keys.append(key if named and not path else unique_name(key, taken))
        taken.add(keys[-1])
    return keys


def _path(base: str, names: Sequence[str]) -> str:
    """A path that none of the names, which are sorted, begins with."""
    while names[(place := bisect_left(names, base)) : place + 1] and names[place].startswith(base):
        base = f"{base}~"
    return base


def reads(node: NodeProto) -> set[str]:
    """Names of the tensors that a node reads, its bodies included."""
    found = set(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                found |= reads(inner)
            found |= {output.name for output in body.output}
    return found - {""}


def is_linear(node: NodeProto) -> bool:
    return node.op_type in OPERATORS and node.domain in ("", "ai.onnx")


def values_of(node: NodeProto) -> list[TensorProto]:
    """The tensor of a Constant node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return []
    return [a.t for a in node.attribute if a.name == "value"]


def weight_of(model: Model, scope: Scope, node: NodeProto) -> str:
    """The key of a linear node's weight; of its second factor where none is constant."""
    left = node.op_type == "MatMul" and not model.fixed(scope.key(node.input[1]))
    return scope.key(node.input[0 if left else 1])


def weight_root(model: Model, scope: Scope, node: NodeProto) -> str:
    """The key of the constant that the weight is made of."""
    key = weight_of(model, scope, node)
    while key in model.views:
        scope, node = model.views[key]
        key = scope.key(node.input[0])
    return key


def _viewed(node: NodeProto, inputs: Sequence[Array]) -> Array:
    """What a node of `VIEWS` makes of its inputs."""
    x, *rest = inputs
    attributes = attributes_of(node)
    if node.op_type == "Transpose":
        return x.transpose(attributes.get("perm"))
    if node.op_type == "Cast":
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if node.op_type == "Reshape":
        keep = not attributes.get("allowzero")
        return x.reshape([x.shape[i] if keep and not n else n for i, n in enumerate(rest[0])])
    if node.op_type == "DequantizeLinear":
        kind = attributes.get("output_dtype")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else rest[0].dtype
        axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
        scale, *zero = (_along(part.astype(np.float32), x, axis, block) for part in rest)
        return ((x.astype(np.float32) - (zero[0] if zero else 0)) * scale).astype(dtype)
    return x


def _along(part: Array, x: Array, axis: int, block: int) -> Array:
    """Scales or zero points in the shape of what they belong to."""
    if block:
        return part.repeat(block, axis)[tuple(map(slice, x.shape))]
    if part.size == 1:
        return part.reshape(())
    return part.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def attributes_of(node: NodeProto) -> dict[str, Any]:
    result = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        result[attribute.name] = (
            list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        )
    return result


def _constant_makers(model: Model) -> dict[str, int]:
    """Tensors that the main graph computes from constants, the same every time: name -> node."""
    given = {value.name for value in model.graph.input}
    fixed = set(model.initializers)
    if model.proto.ir_version >= 4:  # a caller may give these instead
        fixed -= given
    makers: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        bodies = any(a.HasField("g") or a.graphs for a in node.attribute)
        if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM or bodies:
            continue
        sources = reads(node)
        if node.op_type == "Constant" or (sources and all(n in fixed for n in sources)):
            names = [name for name in node.output if name]
            fixed.update(names)
            makers.update(dict.fromkeys(names, index))
    return makers


def read_while_running(model: Model, makers: Mapping[str, int]) -> set[str]:
    """Names of the outputs, and of all that is read by nodes which are no part of ``makers``."""
    constant = set(makers.values())
    found = {output.name for output in model.graph.output}
    for index, node in enumerate(model.graph.node):
        if index not in constant:
            found |= reads(node)
    return found


def ancestors(nodes: Sequence[NodeProto], last: int, makers: Mapping[str, int]) -> list[int]:
    """A node and all that compute what it reads, in the order of the graph."""
    found, open_ = {last}, [last]
    while open_:
        sources = {makers[name] for name in nodes[open_.pop()].input if name in makers}
        open_ += sources - found
        found |= sources
    return sorted(found)


def unique_name(base: str, taken: set[str]) -> str:
    if base not in taken:
        return base
    number = 1
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}"
