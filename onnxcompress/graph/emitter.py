"""Nodes added to a model by writing them down: ``op.Conv(x, weight)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto

from onnxcompress.core.layer import Array
from onnxcompress.graph.edit import add_constant
from onnxcompress.graph.find_layers import SMALL
from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import unique_name

ONCE = ("Tile",)  # These make a large array of a small one.


class Emitter:
    """Adds nodes to a fragment; every ONNX operator is a method: ``y = op.Conv(x, weight)``.

    Arrays become initializers, shared by value: an array emitted twice is stored once.  What makes
    a large array of a small one, see `ONCE`, is computed once for all that read it.
    """

    def __init__(self, prefix: str, store: Constants) -> None:
        self.opset, self.nodes = store.opset, list[gs.Node]()
        self._constant: dict[str, gs.Variable] = {}
        self._prefix = prefix
        self._store = store

    def __getattr__(self, op_type: str) -> Callable[..., gs.Variable]:
        def emit(*inputs: gs.Tensor | Array | str, **attributes: object) -> gs.Variable:
            constant = all(isinstance(x, Array) or self._folds(x) for x in inputs)
            tensors: list[Any] = [self._tensor(x, constant) for x in inputs]
            if constant and op_type in ONCE:
                output = gs.Variable(self._store.once(op_type, [x.name for x in tensors]))
                return self._constant.setdefault(output.name, output)
            name = self._store.unique("" if constant else f"{self._prefix}/{op_type}")
            output = gs.Variable(name if constant else self._store.unique(f"{name}_out"))
            # It folds away when the model is loaded: no name needs to be read.
            if constant:
                self._constant[output.name] = output
                name = ""
            kind: Any = attributes.get("to", 0)
            if not isinstance(kind, int):  # It is a type as numpy names it.
                attributes["to"] = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
            self.nodes.append(gs.Node(op_type, name, attributes, tensors, [output]))
            return output

        return emit

    def _folds(self, x: Any) -> bool:
        return not isinstance(x, str) and x.name in self._constant

    def _tensor(self, x: gs.Tensor | Array | str, folds: bool) -> gs.Tensor:
        if isinstance(x, gs.Tensor):
            return x
        if isinstance(x, str):
            return gs.Variable(x)
        name = self._store.add(x, "" if folds else f"{self._prefix}/weight")
        return self._constant.setdefault(name, gs.Variable(name))


class Constants:
    """New initializers of a model, each array once, under names that nothing else has."""

    def __init__(self, model: Model, keep: Callable[[Array], Array]) -> None:
        self.opset, self._model, self._keep = model.opset, model, keep
        self._taken = set(model.names)
        self._known: dict[tuple[Any, ...], list[str]] = {}
        self.arrays: dict[str, Array] = {}
        self.replaced: set[str] = set()  # Nodes compute the constants of these keys instead.
        self._count = 0
        self.first: dict[tuple[str, ...], NodeProto] = {}  # Nodes that several fragments may read.

    def unique(self, base: str) -> str:
        """A name that nothing else has: a short one where nothing is to be said."""
        while not base:
            self._count += 1
            if f"~{self._count:x}" not in self._taken:
                base = f"~{self._count:x}"
        name = unique_name(base, self._taken)
        self._taken.add(name)
        return name

    def add(self, array: Array, base: str) -> str:
        small = array.size <= SMALL
        alike = (array.flat[:SMALL].tobytes(), array.dtype, array.shape)
        known = self._known.setdefault(alike, [])
        for name in known:
            if small or np.array_equal(self.arrays[name], array):
                return name
        known.append(self.unique("" if small else base))
        self.arrays[known[-1]] = self._keep(array)
        return known[-1]

    def once(self, op_type: str, inputs: Sequence[str]) -> str:
        """The output of a node that computes something of constants, the same for all."""
        key = (op_type, *inputs)
        if key not in self.first:
            made = onnx.helper.make_node(op_type, inputs, [self.unique("")])
            self.first[key] = made
        return self.first[key].output[0]

    def commit(self, nodes: Iterable[NodeProto]) -> list[NodeProto]:
        """Store what these nodes read; a fragment that failed half way leaves nothing.

        Returns:
            The nodes that are there once of which these read the outputs.
        """
        used = {name for node in nodes for name in node.input}
        shared = [node for node in self.first.values() if node.output[0] in used]
        used.update(name for node in shared for name in node.input)
        for name, array in self.arrays.items():
            if name in used:
                add_constant(self._model, name, array)
        return shared
