"""The model: the ONNX message, and what passes ask of its graph.

The message is the truth.  What is derived from it (who reads a tensor, what is constant) is
computed when somebody asks, and kept until the model is `changed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Generic, TypeVar

import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import one_line, shorten
from onnxcompress.graph import protobuf_wire
from onnxcompress.graph.nodes import (
    RANDOM,
    bodies,
    is_linear,
    is_standard,
    own_bodies,
    reads,
    values_of,
    walk,
)
from onnxcompress.graph.scopes import Scope, scopes_of
from onnxcompress.graph.spill import spilled
from onnxcompress.graph.tensors import HELD, in_file, is_external, location, tensor_bytes
from onnxcompress.graph.views import MOST_VIEWS, MOVES, VIEWS, viewed

T = TypeVar("T")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
LARGE_MODEL = 1 << 30  # With more bytes of weights, a model is neither run nor kept as a whole.


class kept(Generic[T]):  # noqa: N801 - a decorator, as property is
    """A property that is computed once, until the model is `changed`."""

    def __init__(self, compute: Callable[[Model], T]) -> None:
        self._compute, self._name, self.__doc__ = compute, compute.__name__, compute.__doc__

    def __get__(self, model: Model, owner: Any = None) -> T:
        if model is None:
            return self  # type: ignore[return-value] - asked of the class, by documentation tools
        if self._name not in model.seen:
            model.seen[self._name] = self._compute(model)
        return model.seen[self._name]


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX model.

    Nodes and tensors have a key: their name, in the body of a node after the path of that body,
    such as ``if/then_branch/conv``.

    To change a model, take a `copy`.  The functions of `onnxcompress.graph.edit` keep what is known
    of it up to date; whoever edits ``copy.graph`` directly calls `changed` before asking again.

    Attributes:
        proto: the truth; treat it as read only and change a `copy`.
        folder: where the external data lies.
        extensions: libraries of operators that onnxruntime is to know.
        file: the name of a large file in which raw data were left, as if they were external data.
        held: initializers of the main graph whose values are not in the proto, by name.
        costs: the bytes that running it took, as far as is known, of all its copies together.
        seen: what was derived from the proto.
    """

    proto: onnx.ModelProto
    folder: Path = field(default_factory=Path)
    extensions: tuple[str, ...] = ()
    file: str = ""
    held: dict[str, Array] = field(default_factory=dict)
    costs: dict[str, int] = field(default_factory=dict, repr=False)
    seen: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def copy(self) -> Model:
        """A model to change; external data stay where they are, and are not read."""
        copied = onnx.ModelProto()
        copied.CopyFrom(self.proto)
        return replace(self, proto=copied, held=dict(self.held))

    def changed(self) -> None:
        """Forget what was derived from the graph, which has been edited."""
        self.seen.clear()

    @property
    def graph(self) -> onnx.GraphProto:
        return self.proto.graph

    @property
    def opset(self) -> int:
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of what `save` writes, external data included."""
        tensors = self.graph.initializer
        apart = sum(tensor_bytes(t) for t in tensors if is_external(t) and not self.inside(t))
        if not any(map(self.inside, tensors)):
            return apart + self.proto.ByteSize()
        return apart + sum(
            len(piece) if isinstance(piece, bytes) else tensor_bytes(piece)
            for piece in protobuf_wire.pieces(self.proto, self.inside)
        )

    def inside(self, tensor: TensorProto) -> int | None:
        """The length of values that belong into the file, and are elsewhere until it is written.

        Of a model below `LARGE_MODEL` these are all external data, of a larger one those that were
        left in its own file or are new.
        """
        if not is_external(tensor):
            return None
        away = not self.large or location(tensor) in (HELD, self.file or HELD)
        return tensor_bytes(tensor) if away else None

    @kept
    def large(self) -> bool:
        """Whether it is kept and run in parts."""
        return self.weight_bytes > LARGE_MODEL

    def keep(self, array: Array) -> Array:
        """An array that becomes a part of it, in a temporary file if the model is large."""
        return spilled(array) if self.large else array

    @property
    def data_files(self) -> set[Path]:
        """The files that hold its external data."""
        places = {location(t) for t in self.graph.initializer if is_external(t)}
        return {self.folder / place for place in places - {HELD, self.file}}

    @kept
    def weight_bytes(self) -> int:
        """Bytes of all initializers and Constant nodes."""
        graphs = self.graph, *bodies(self.graph)
        stored = sum(tensor_bytes(t) for graph in graphs for t in graph.initializer)
        return stored + sum(tensor_bytes(t) for n in walk(self.graph) for t in values_of(n))

    @kept
    def initializers(self) -> dict[str, TensorProto]:
        """The initializers of the main graph."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @kept
    def scopes(self) -> list[Scope]:
        """The main graph and all bodies, each after the one that it lies in."""
        return scopes_of(self.graph, lambda: self.names)

    @kept
    def nodes(self) -> dict[str, tuple[Scope, NodeProto]]:
        """Every node by its key."""
        return {key: (scope, node) for scope in self.scopes
                for key, node in zip(scope.node_keys, scope.graph.node, strict=True)}  # fmt: skip

    @property
    def keys(self) -> list[str]:
        """The keys of the nodes of the main graph, in their order."""
        return self.scopes[0].node_keys

    @kept
    def constants(self) -> dict[str, TensorProto]:
        """Every tensor whose value the file gives, by its key."""
        tensors = {}
        for scope in self.scopes:
            tensors |= {scope.path + tensor.name: tensor for tensor in scope.graph.initializer}
            for node in scope.graph.node:
                for name, tensor in zip(node.output, values_of(node), strict=False):
                    tensors[scope.path + name] = tensor
        return tensors

    @kept
    def views(self) -> dict[str, tuple[Scope, NodeProto]]:
        """What `VIEWS` make of constants: key of the tensor -> the node that gives it."""
        result: dict[str, tuple[Scope, NodeProto]] = {}
        steps = dict.fromkeys(self.constants, 0)  # This counts the nodes that compute a tensor.
        for scope, node in self.nodes.values():
            if node.op_type not in VIEWS or not is_standard(node):
                continue
            keys = scope.keys(node)
            count = 1 + sum(steps.get(key, MOST_VIEWS) for key in keys)
            if keys and count <= MOST_VIEWS:
                steps[scope.path + node.output[0]] = count
                result[scope.path + node.output[0]] = scope, node
        return result

    @kept
    def roots(self) -> dict[str, str]:
        """The constant that each view shows: the largest of those that it is made of."""
        roots: dict[str, str] = {}
        for key, (scope, node) in self.views.items():
            constants = (roots.get(read, read) for read in scope.keys(node))
            roots[key] = max(constants, key=lambda c: prod(self.constants[c].dims))
        return roots

    def root(self, key: str) -> str:
        """The constant that a tensor shows, or that it is."""
        return self.roots.get(key, key)

    def shown(self, key: str) -> str:
        """What a view shows, of the tensors that its node reads."""
        scope, node = self.views[key]
        return next(read for read in scope.keys(node) if self.root(read) == self.roots[key])

    def made_of(self, key: str) -> set[str]:
        """The constants that a tensor is computed from, or the one that it is."""
        if key not in self.views:
            return {key}
        scope, node = self.views[key]
        return set().union(*map(self.made_of, scope.keys(node)))

    def stored_bytes(self, key: str) -> int:
        """Bytes in the file of a constant, or of those that a view is made of and alone reads."""
        parts = [part for part in self.made_of(key) if self.consumers[part] <= 1]
        return sum(tensor_bytes(self.constants[part]) for part in {*parts, self.root(key)})

    @kept
    def quantized(self) -> set[str]:
        """What comes out of a DequantizeLinear, perhaps through `MOVES`."""
        keys: set[str] = set()
        for scope, node in self.nodes.values():
            through = node.op_type in MOVES and any(scope.key(n) in keys for n in node.input[:1])
            if node.op_type == "DequantizeLinear" or through:
                keys.update(scope.path + name for name in node.output)
        return keys

    @kept
    def tied(self) -> set[str]:
        """Constants that are the weight of a layer, and are read by other nodes as well."""
        linear = [place for place in self.nodes.values() if is_linear(place[1])]
        weights = Counter(weight_of(self, *place) for place in linear)
        for key in reversed(self.views):
            if weights[key] and weights[key] == self.consumers[key]:
                weights[self.shown(key)] += 1
        roots = {weight_root(self, *place) for place in linear}
        return {key for key in roots & self.constants.keys() if weights[key] < self.consumers[key]}

    @kept
    def makers(self) -> dict[str, int]:
        """Tensors that the main graph computes from constants, the same every time, -> its node."""
        inputs = {value.name for value in self.graph.input}
        fixed = set(self.initializers)
        if self.proto.ir_version >= 4:  # A caller may give these instead.
            fixed -= inputs
        makers: dict[str, int] = {}
        for index, node in enumerate(self.graph.node):
            if not is_standard(node) or node.op_type in RANDOM or any(own_bodies(node)):
                continue
            sources = reads(node)
            if node.op_type == "Constant" or (sources and sources <= fixed):
                names = [name for name in node.output if name]
                fixed.update(names)
                makers.update(dict.fromkeys(names, index))
        return makers

    @kept
    def consumers(self) -> Counter[str]:
        """How often each tensor is read, by its key, as an output of a graph too."""
        counts: Counter[str] = Counter()
        for scope, node in self.nodes.values():
            counts.update(scope.keys(node))
        for scope in self.scopes:
            counts.update(scope.key(output.name) for output in scope.graph.output)
        return counts

    @kept
    def producers(self) -> dict[str, str]:
        """The key of the node that computes a tensor, by the key of the tensor."""
        return {
            scope.path + name: key
            for key, (scope, node) in self.nodes.items()
            for name in node.output
            if name
        }

    @kept
    def names(self) -> set[str]:
        """Every name in use: tensors and nodes, of all bodies."""
        taken = set()
        for node in walk(self.graph):
            taken.update((node.name, *node.input, *node.output))
        for graph in (self.graph, *bodies(self.graph)):
            values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
            taken |= {value.name for value in values}
            taken |= {sparse.values.name for sparse in graph.sparse_initializer}
        return taken

    def fixed(self, key: str) -> bool:
        """Whether a tensor is a constant, or what `VIEWS` make of one."""
        return key in self.constants or key in self.views

    def read(self, key: str) -> Array:
        """The value of such a tensor."""
        if key not in self.views:
            return self.value(self.constants[key])
        scope, node = self.views[key]
        return viewed(node, [self.read(part) for part in scope.keys(node)])

    def value(self, tensor: TensorProto) -> Array:
        """The value of a tensor, wherever it lies.

        Raises:
            ModelError: its file is missing or too short.
        """
        try:
            if not is_external(tensor):
                return numpy_helper.to_array(tensor)
            if location(tensor) == HELD:
                return self.held[tensor.name]
            return in_file(tensor, self.folder)
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"tensor {shorten(tensor.name)!r} cannot be read: {one_line(error)}"
            ) from None


def weight_of(model: Model, scope: Scope, node: NodeProto) -> str:
    """The key of a linear node's weight; of its second factor where none is constant."""
    left = node.op_type in ("MatMul", "Einsum") and not model.fixed(scope.key(node.input[1]))
    return scope.key(node.input[0 if left else 1])


def weight_root(model: Model, scope: Scope, node: NodeProto) -> str:
    """The key of the constant that the weight is made of."""
    return model.root(weight_of(model, scope, node))


def is_overridable(model: Model, key: str) -> bool:
    """Whether a caller may give a tensor instead of the initializer."""
    is_input = any(key == value.name for value in model.graph.input)
    return is_input and model.proto.ir_version >= 4


def read_while_running(model: Model, makers: Mapping[str, int]) -> set[str]:
    """Names of the outputs, and of all that is read by nodes which are no part of ``makers``."""
    constant = set(makers.values())
    names = {output.name for output in model.graph.output}
    for index, node in enumerate(model.graph.node):
        if index not in constant:
            names |= reads(node)
    return names


def ancestors(nodes: Sequence[NodeProto], last: int, makers: Mapping[str, int]) -> list[int]:
    """A node and all that compute what it reads, in the order of the graph."""
    chain, open_ = {last}, [last]
    while open_:
        sources = {makers[name] for name in nodes[open_.pop()].input if name in makers}
        open_ += sources - chain
        chain |= sources
    return sorted(chain)
