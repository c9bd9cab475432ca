"""What passes do to a model: add constants, drop nodes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxcompress.core.layer import Array
from onnxcompress.graph.model import VIEWS, Model
from onnxcompress.graph.spill import is_spilled
from onnxcompress.graph.tensors import HELD


def add_constant(model: Model, name: str, array: Array) -> None:
    """A new initializer, in place."""
    array = np.asarray(array, order="C")  # scalars stay scalars
    made = held(model, name, array) if is_spilled(array) else numpy_helper.from_array(array, name)
    model.graph.initializer.append(made)
    if model.proto.ir_version < 4:  # there, every initializer is an input too
        value = onnx.helper.make_tensor_value_info(name, made.data_type, array.shape)
        model.graph.input.append(value)


def held(model: Model, name: str, array: Array) -> TensorProto:
    """An initializer whose value is not in it, but noted in the model."""
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, dims=array.shape, data_type=kind)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=HELD)
    model.held[name] = array
    return tensor


def drop_nodes(model: Model, keys: Iterable[str], replaced: AbstractSet[str] = frozenset()) -> None:
    """Remove constants that nothing reads any more, and what `VIEWS` made of them, in place.

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
    for scope in model.scopes:
        names = {key.removeprefix(scope.path) for key in dead if key.startswith(scope.path)}
        views = {name for name in names if scope.path + name in model.views.keys() - replaced}
        gone = {"Constant": names, **dict.fromkeys(VIEWS, views)}
        keep_only(
            scope.graph.node,
            lambda n, gone=gone: n.output[:1] and n.output[0] not in gone.get(n.op_type, ()),
        )
        _forget(scope.graph, names, older=model.proto.ir_version < 4)


def _forget(graph: onnx.GraphProto, dead: Container[str], older: bool) -> None:
    """Remove initializers, and what is noted of these tensors, in place.

    An input that one of them was the default of stays, unless it is ``older`` than IR 4, where
    every initializer has to be an input: its default is empty then.
    """
    given = {tensor.name for tensor in graph.initializer if tensor.name in dead}
    kept = [] if older else [value for value in graph.input if value.name in given]
    keep_only(graph.initializer, lambda tensor: tensor.name not in dead)
    keep_only(graph.input, lambda value: value.name not in given or not older)
    keep_only(graph.value_info, lambda value: value.name not in dead)
    keep_only(graph.quantization_annotation, lambda note: note.tensor_name not in dead)
    for value in kept:
        kind = value.type.tensor_type
        graph.initializer.add(
            name=value.name, data_type=kind.elem_type, dims=[0] * len(kind.shape.dim)
        )
        for dim in kind.shape.dim:
            dim.ClearField("dim_value")


def keep_only(items: Any, wanted: Callable[[Any], bool]) -> None:
    for index in reversed([i for i, item in enumerate(items) if not wanted(item)]):
        del items[index]
