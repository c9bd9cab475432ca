"""Changes of a model in place: constants added, nodes bypassed, what nothing reads removed.

All of them tell the model that it is `changed`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from onnxcompress.core.layer import Array
from onnxcompress.graph.model import Model
from onnxcompress.graph.scopes import Scope
from onnxcompress.graph.spill import is_spilled
from onnxcompress.graph.tensors import HELD
from onnxcompress.graph.views import VIEWS


def add_constant(model: Model, name: str, array: Array) -> None:
    """A new initializer of the main graph."""
    array = np.asarray(array, order="C")  # Scalars stay scalars.
    made = held(model, name, array) if is_spilled(array) else numpy_helper.from_array(array, name)
    model.graph.initializer.append(made)
    if model.proto.ir_version < 4:  # There, every initializer is an input too.
        value = onnx.helper.make_tensor_value_info(name, made.data_type, array.shape)
        model.graph.input.append(value)
    model.changed()


def held(model: Model, name: str, array: Array) -> TensorProto:
    """An initializer whose value is not in it, but noted in the model."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, dims=array.shape, data_type=kind)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=HELD)
    model.held[name] = array
    return tensor


def bypass(model: Model, keys: Iterable[str]) -> list[str]:
    """Remove nodes whose first output is their first input, such as Dropout or Identity.

    What read the output reads the input instead, in bodies too.  A node that gives an output of its
    graph goes where the node before it can give that output; else it becomes an Identity.  A node
    stays if something reads another of its outputs.

    Args:
        keys: of nodes, as in `Model.nodes`.

    Returns:
        The keys of the nodes that are gone.
    """
    names = _Names(model)
    places = [(key, *model.nodes[key]) for key in _in_order(model, keys)]
    served = {scope.key(n) for _, scope, node in places for n in node.input[1:] if n}
    gone: dict[str, list[str]] = {}
    for key, scope, node in places:
        if any(model.consumers[scope.path + name] for name in node.output[1:]):
            continue
        if names.join(scope, node.input[0], node.output[0]):
            gone.setdefault(scope.path, []).append(key)
        elif node.op_type != "Identity":
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
    scopes = model.scopes
    names.apply()
    for scope in scopes:
        dead = set(gone.get(scope.path, ()))
        if dead:
            stay = iter([key not in dead for key in scope.node_keys])
            keep_only(scope.graph.node, lambda _, stay=stay: next(stay))
    model.changed()
    drop_constants(model, served)
    return [key for keys in gone.values() for key in keys]


def _in_order(model: Model, keys: Iterable[str]) -> list[str]:
    chosen = set(keys)
    return [key for key in model.nodes if key in chosen]


class _Names:
    """Tensors that become one: key of a tensor -> the name that its readers are to use."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._new: dict[str, str] = {}
        self._outputs = {s.path: {o.name for o in s.graph.output} for s in model.scopes}
        self._several = {
            name
            for name, count in Counter(n for s in model.scopes for n in s.names).items()
            if count > 1
        }
        self._from_bodies = {
            key
            for scope, node in model.nodes.values()
            for name, key in zip(filter(None, node.input), scope.keys(node), strict=True)
            if key != scope.path + name
        }

    def join(self, scope: Scope, source: str, target: str) -> bool:
        """Let readers of the target read the source, or give the source the target's name.

        Returns:
            Whether that is possible.
        """
        source = self._resolved(scope, source)
        key, new = scope.path + target, scope.key(source)
        outputs = self._outputs[scope.path]
        hidden = self._several & {source, target} and self._from_bodies & {key, new}
        if not source or hidden:  # In some body the name may stand for another tensor.
            return False
        if target not in outputs:
            self._new[key] = source
            return True
        made_here = new == scope.path + source and new in self._model.producers
        if source in outputs or not made_here:
            return False
        self._new[new] = target
        return True

    def _resolved(self, scope: Scope, name: str) -> str:
        while (key := scope.key(name)) in self._new:
            name = self._new[key]
        return name

    def apply(self) -> None:
        """Rename in every node; what was noted of names that are gone is dropped."""
        for scope, node in self._model.nodes.values():
            for field in (node.input, node.output):
                for i, name in enumerate(field):
                    if name and scope.key(name) in self._new:
                        field[i] = self._resolved(scope, name)
        for scope in self._model.scopes:
            gone = {key.removeprefix(scope.path) for key in self._new}
            keep_only(scope.graph.value_info, lambda value, gone=gone: value.name not in gone)


def drop_constants(
    model: Model, keys: Iterable[str], replaced: AbstractSet[str] = frozenset()
) -> None:
    """Remove constants that nothing reads any more, and what `VIEWS` made of them.

    Args:
        replaced: of these keys, those that nodes compute instead.
    """
    left, dead, open_ = model.consumers.copy(), set[str](), [*keys]
    while open_:
        key = open_.pop()
        if not key or key in dead or (left[key] and key not in replaced):
            continue
        dead.add(key)
        if key in model.views and key not in replaced:
            scope, node = model.views[key]
            left.subtract(scope.keys(node))
            open_ += scope.keys(node)
    if not dead:
        return
    for scope in model.scopes:
        names = {key.removeprefix(scope.path) for key in dead if key.startswith(scope.path)}
        views = {n for n in names if (key := scope.path + n) in model.views and key not in replaced}
        gone = {"Constant": names, **dict.fromkeys(VIEWS, views)}
        keep_only(
            scope.graph.node,
            lambda n, gone=gone: n.output[:1] and n.output[0] not in gone.get(n.op_type, ()),
        )
        _forget(scope.graph, names, older=model.proto.ir_version < 4)
    model.changed()


def _forget(graph: onnx.GraphProto, dead: Container[str], older: bool) -> None:
    """Remove initializers, and what is noted of these tensors.

    An input that one of them was the default of stays, unless it is ``older`` than IR 4, where
    every initializer has to be an input: its default is empty then.
    """
    defaults = {tensor.name for tensor in graph.initializer if tensor.name in dead}
    kept = [] if older else [value for value in graph.input if value.name in defaults]
    keep_only(graph.initializer, lambda tensor: tensor.name not in dead)
    keep_only(graph.input, lambda value: value.name not in defaults or not older)
    keep_only(graph.value_info, lambda value: value.name not in dead)
    keep_only(graph.quantization_annotation, lambda note: note.tensor_name not in dead)
    for value in kept:
        kind = value.type.tensor_type
        graph.initializer.add(
            name=value.name, data_type=kind.elem_type, dims=[0] * len(kind.shape.dim)
        )
        for dim in kind.shape.dim:
            dim.ClearField("dim_value")


def keep_only(items: Any, keep: Callable[[Any], bool]) -> None:
    """Delete the other items of a repeated field, neighbours at once."""
    gone = [i for i, item in enumerate(items) if not keep(item)]
    while gone:
        stop = gone.pop() + 1
        start = stop - 1
        while gone and gone[-1] == start - 1:
            start = gone.pop()
        del items[start:stop]


def copied(node: NodeProto) -> NodeProto:
    result = NodeProto()
    result.CopyFrom(node)
    return result
