"""The main graph and the bodies of nodes, each with keys for its nodes and tensors.

ONNX lets two bodies use the same names.  A key is a name after the path of the graph that it is
from, such as ``if/then_branch/conv``, so that no two things of a model have the same one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import onnx
from onnx import NodeProto

from onnxcompress.graph.nodes import own_bodies, unique_name


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
        names = {value.name for value in (*self.graph.input, *self.graph.initializer)}
        names |= {sparse.values.name for sparse in self.graph.sparse_initializer}
        return names | {name for node in self.graph.node for name in node.output}

    def key(self, name: str) -> str:
        """The key of a tensor that it reads: its name after the path of the graph it is from."""
        inner = self.outer is None or name in self.names
        return self.path + name if inner or self.outer is None else self.outer.key(name)

    def keys(self, node: NodeProto) -> list[str]:
        """The keys of the tensors that a node reads."""
        return [self.key(name) for name in node.input if name]


def scopes_of(graph: onnx.GraphProto, names: Callable[[], Collection[str]]) -> list[Scope]:
    """The main graph and all bodies, each after the one that it lies in.

    Args:
        names: gives every name that the model uses, where there are bodies.
    """
    taken, in_order = {node.name for node in graph.node}, cache(lambda: sorted(names()))
    scopes = [Scope("", graph, _node_keys("", graph, taken))]
    for scope in scopes:
        for key, node in zip(scope.node_keys, scope.graph.node, strict=True):
            for name, body in own_bodies(node) if node.attribute else ():
                path = _path(f"{key}/{name}/", in_order())
                scopes.append(Scope(path, body, _node_keys(path, body, taken), scope))
    return scopes


def _node_keys(path: str, graph: onnx.GraphProto, taken: set[str]) -> list[str]:
    """A key for every node of a graph: its own name, or one that is made for it."""
    counts = Counter(node.name for node in graph.node)
    keys = []
    for index, node in enumerate(graph.node):
        named = bool(node.name) and counts[node.name] == 1
        key = path + (node.name if named else f"{node.op_type}_{index}")
        keys.append(key if named and not path else unique_name(key, taken))
        taken.add(keys[-1])
    return keys


def _path(base: str, names: Sequence[str]) -> str:
    """A path that none of the names, which are sorted, begins with."""
    while names[(place := bisect_left(names, base)) : place + 1] and names[place].startswith(base):
        base = f"{base}~"
    return base
