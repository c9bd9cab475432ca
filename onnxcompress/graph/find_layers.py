"""What can be compressed: the layers of a model, and its large constants."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from onnxcompress.core.contraction import Contraction
from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array, Layer, Unread
from onnxcompress.core.messages import one_line
from onnxcompress.graph.int8_nodes import (
    Integers,
    find_integers,
    in_8_bits,
    is_integer,
    packed_weight,
)
from onnxcompress.graph.lookups import row_ends, row_indices
from onnxcompress.graph.model import FLOATS, Model, is_overridable, weight_of, weight_root
from onnxcompress.graph.multiplied import Multiplied, constant_inputs
from onnxcompress.graph.nodes import DECODED, attributes_of, is_linear
from onnxcompress.graph.operations import linear_nodes
from onnxcompress.graph.scopes import Scope
from onnxcompress.graph.tensors import is_external

LARGE = 1024  # A constant of fewer entries is not worth compressing.
LARGEST = 1e4  # A constant of a larger magnitude is likely to be no weight but a mask.
ROW = 16  # Last axes of a constant are joined until a row has so many entries.
SMALL = 64  # Several layers are likely to share a constant of no more entries.
STRIP = 8  # So many rows are transposed together: longer ways through memory take longer.
# A weight of at least so many bytes is not kept in memory, where it can be read again.
UNREAD = 1 << 20
IN_8_BITS = "it computes in 8 bits: its input and its weight are quantized"
PACKED = "several numbers of its weight share a byte already"
LARGEST_WEIGHT = 1e15  # With larger magnitudes, squares in errors overflow float32.


def find_layers(
    model: Model, only: Container[str] | None = None
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that can be compressed, and for every other linear node the reason why not.

    Args:
        only: look at these nodes alone.
    """
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    alike: dict[tuple[Any, ...], list[str]] = {}
    runs = linear_nodes(model)
    for key, (scope, node) in model.nodes.items():
        if only is not None and key not in only:
            continue
        if is_integer(node):
            skipped[key] = IN_8_BITS
        if packed_weight(node) is not None:
            skipped[key] = PACKED
        if not is_linear(node):
            continue
        if scope.outer is None and key not in runs:
            skipped[key] = "it runs once, when the model is loaded"
            continue
        try:
            layer, likeness = _look_up(model, key, scope, node)
            if layer.groups < 1 or layer.weight.shape[0] % layer.groups:
                raise ValueError("its outputs do not fall into so many groups")
        except _SkippedError as reason:
            skipped[key] = str(reason)
            continue
        except ModelError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError):
            skipped[key] = "its weight and its attributes do not belong together"
            continue
        same = alike.setdefault(likeness, [])
        first = next((n for n in same if np.array_equal(layers[n].weight, layer.weight)), key)
        same += [key] if first == key else []
        layers[key] = replace(layer, weight=layers.get(first, layer).weight, shared=first)
    for function in model.proto.functions:
        for node in filter(is_linear, function.node):
            key = f"{function.name}/{node.name or node.output[0]}"
            skipped[key] = "it lies in a local function"
    return layers, skipped


def _look_up(
    model: Model, key: str, scope: Scope, node: NodeProto
) -> tuple[Layer, tuple[Any, ...]]:
    """A layer and its likeness; one whose weight is not kept is looked at once."""
    known = ("layer", key)
    if known not in model.seen:
        layer = _layer(model, key, scope, node)
        weight, root = weight_of(model, scope, node), weight_root(model, scope, node)
        left = bool(layer.attributes.get("left"))
        contraction = layer.attributes.get("contraction")

        def read() -> Array:
            value = model.read(weight)
            return contraction.rows(value) if contraction else _output_first(node, value, left)

        light = _light(model, root, layer, read)
        if light is layer:
            return layer, _likeness(layer)
        model.seen[known] = light, _likeness(layer)
    return model.seen[known]


def _light(model: Model, root: str, layer: Layer, load: Callable[[], Array]) -> Layer:
    """The layer without its weight if that is large and its tensor is not in the proto."""
    weight: Any = layer.weight
    if not is_external(model.constants[root]) or weight.nbytes < UNREAD:
        return layer
    return replace(layer, weight=Unread(weight.shape, weight.dtype, load))


def _likeness(layer: Layer) -> tuple[Any, ...]:
    """What layers have in common that may share a weight."""
    weight, left = layer.weight, (layer.attributes.get("left"), layer.attributes.get("lead"))
    sample = weight.ravel()[:: max(1, weight.size // SMALL)]
    return layer.groups, left, weight.shape, weight.dtype, sample.tobytes()


def find_constants(
    model: Model, layers: Mapping[str, Layer], only: Container[str] | None = None
) -> dict[str, Layer]:
    """Large constants that are no layer's weight, by name: embeddings, recurrent weights, ...

    They are seen as weights whose rows are their last axis, or a few of the last ones.

    Args:
        only: look at these alone.
    """
    used = {weight_root(model, *model.nodes[name]) for name in layers}
    used |= {scope.key(o.name) for scope in model.scopes for o in scope.graph.output}
    read, integers = constant_inputs(model), find_integers(model)
    taken, forms = {*model.nodes, *layers}, float_forms(model, integers)
    constants = {}
    for root, tensor in model.constants.items():
        key = forms.get(root, root)
        if (only is not None and key not in only) or key in taken or {key, root} & used:
            continue
        if len(tensor.dims) < 2 or prod(tensor.dims) < LARGE or not model.consumers[key]:
            continue
        if tensor.data_type not in FLOATS and key == root and key not in integers:
            continue
        if re.fullmatch(DECODED, key):
            continue  # What our decoders read is small already.
        layer = model.seen.get(("constant", key))
        if layer is None and key in integers:
            layer = _integers(model, key, integers[key])
        layer = layer or _constant(model, key, read.get(key))
        if layer is not None:
            constants[key] = layer
    return constants


def _integers(model: Model, key: str, integers: Integers) -> Layer:
    """A constant of bytes as a weight of floats."""
    value = model.read(key)
    attributes = integers.attributes(value)
    rows = integers.rows(value)
    layer = Layer(key, "Constant", rows, None, attributes, key, value.nbytes)
    return _remembered(model, layer, lambda: integers.rows(model.read(key)))


def _remembered(model: Model, constant: Layer, load: Callable[[], Array]) -> Layer:
    """A constant without its weight where that is large and in a file: it is looked at once."""
    light = _light(model, model.root(constant.name), constant, load)
    if light is not constant:
        model.seen["constant", constant.name] = light
    return light


def float_forms(model: Model, integers: Container[str]) -> dict[str, str]:
    """Constants of whole numbers -> the last of the `VIEWS` that alone show them.

    Args:
        integers: those that are multiplied as they are.
    """
    shown = {model.shown(key): key for key in model.views}
    forms = {}
    for root, tensor in model.constants.items():
        key = root
        if root in integers:
            continue
        while tensor.data_type not in FLOATS and key in shown and model.consumers[key] == 1:
            forms[root] = key = shown[key]
    return forms


def _constant(model: Model, key: str, read: Multiplied | None) -> Layer | None:
    """A large constant as a weight; None where it hardly is one.

    Args:
        read: what it is multiplied with, see `constant_inputs`.
    """
    value = _value(model, key)
    if value is None:
        return None
    flat = _rows(value)
    largest = np.abs(value.astype(np.float32)).max()
    if min(flat.shape) < 2 or not largest < LARGEST:
        return None  # Infinities and their like are masks.
    attributes: dict[str, Any] = {"shape": value.shape}
    if read and flat.shape[1] == value.shape[-1]:
        attributes["group"] = read.groups
    if indices := row_indices(model, key):
        attributes["indices"] = indices
    elif ends := row_ends(model, key, len(flat)):
        attributes["ends"] = ends
    stored = min(value.nbytes, model.stored_bytes(key))
    layer = Layer(key, "Constant", flat, None, attributes, key, stored)
    return _remembered(model, layer, lambda: _rows(model.read(key)))


def _value(model: Model, key: str) -> Array | None:
    """A constant of floats, or what `VIEWS` make of one; None where that is none."""
    try:
        value = model.read(key)
    except ModelError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None
    wide = value.ndim > 1 and onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in FLOATS
    return value if wide else None


def _rows(value: Array) -> Array:
    """A matrix whose rows are the last axis, or so many of the last ones as make a row long."""
    axis = value.ndim - 1
    while axis > 1 and prod(value.shape[axis:]) < ROW:
        axis -= 1
    return np.ascontiguousarray(value.reshape(prod(value.shape[:axis]), -1))


class _SkippedError(Exception):
    """Completes the sentence "layer X was skipped: ..."."""


def layer_input(node: NodeProto, layer: Layer) -> str:
    """The name of the tensor that a layer multiplies with its weight."""
    return node.input[1 if layer.attributes.get("left") else 0]


def layer_inputs(model: Model, layers: Mapping[str, Layer]) -> dict[str, str]:
    """The same of all layers of the main graph, and of constants for which it is known."""
    nodes, read = linear_nodes(model), constant_inputs(model)
    inputs = {n: layer_input(nodes[n], layer) for n, layer in layers.items() if n in nodes}
    known = {n: by.tensor for n, by in read.items() if n in layers and by.tensor}
    return inputs | {n: t for n, t in known.items() if "group" in layers[n].attributes}


def _layer(model: Model, key: str, scope: Scope, node: NodeProto) -> Layer:
    tensor, root = weight_of(model, scope, node), weight_root(model, scope, node)
    if in_8_bits(model, scope, node):
        raise _SkippedError(IN_8_BITS)
    if not model.fixed(tensor):
        raise _SkippedError("its weight is computed while the model runs")
    try:
        weight, attributes = model.read(tensor), attributes_of(node)
    except ModelError:
        raise
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise _SkippedError(f"its weight cannot be computed: {one_line(error)}") from None
    if onnx.helper.np_dtype_to_tensor_dtype(weight.dtype) not in FLOATS:
        raise _SkippedError(f"its weight is of type {weight.dtype.name}")
    if not weight.size or not np.isfinite(weight.astype(np.float32, copy=False)).all():
        raise _SkippedError("its weight is empty or not finite")
    if float(np.abs(weight).max()) > LARGEST_WEIGHT:  # float16 does not hold this limit.
        raise _SkippedError("its weight is so large that squares of it overflow")
    if root in model.tied:
        name = float_forms(model, ()).get(root, root)
        raise _SkippedError(f"other nodes read its weight too: see the constant {name}")
    if node.op_type == "Einsum":
        return _contraction(model, key, scope, node, weight)
    fewest = 2 if node.op_type in ("Gemm", "MatMul") else 3
    if weight.ndim < fewest or (node.op_type == "Gemm" and weight.ndim > 2):
        expected = "2" if node.op_type == "Gemm" else f"{fewest} or more"
        raise _SkippedError(f"its weight has {weight.ndim} dimensions instead of {expected}")
    stored = min(weight.nbytes, model.stored_bytes(tensor))
    bias, kept = None, {}
    if node.op_type != "MatMul":
        bias = bias_of(model, scope, node, weight)
        kept = {name: value for name, value in attributes.items() if name != "kernel_shape"}
    elif tensor == scope.key(node.input[0]) and not model.fixed(scope.key(node.input[1])):
        kept = {"left": 1}
    if node.op_type == "MatMul" and weight.ndim > 2:
        kept |= {"lead": weight.shape[:-2], "group": prod(weight.shape[:-2])}
    if node.op_type == "Gemm":
        kept = {"transA": attributes.get("transA", 0), "beta": attributes.get("beta", 1.0)}
    weight = _output_first(node, weight, bool(kept.get("left")))
    return Layer(key, node.op_type, weight, bias, kept, stored=stored)


def _contraction(model: Model, key: str, scope: Scope, node: NodeProto, weight: Array) -> Layer:
    """The layer of an Einsum."""
    read = weight_of(model, scope, node)
    left = read == scope.key(node.input[0]) and not model.fixed(scope.key(node.input[1]))
    known = Contraction.of(attributes_of(node).get("equation", ""), left, weight.shape)
    if known is None:
        raise _SkippedError("its equation is no product of an input and a weight")
    kept = {"left": 1} if left else {}
    kept |= {"contraction": known, "group": known.length(known.groups)}
    stored = min(weight.nbytes, model.stored_bytes(read))
    return Layer(key, "Einsum", known.rows(weight), None, kept, stored=stored)


def _output_first(node: NodeProto, weight: Array, left: bool) -> Array:
    """The weight of a node as `Layer` has it.

    Args:
        left: whether it is the first factor of a MatMul.
    """
    attributes = attributes_of(node)
    if node.op_type == "MatMul" and weight.ndim > 2:
        matrices = weight.reshape(-1, *weight.shape[-2:])
        return np.concatenate([*matrices] if left else [*map(_transposed, matrices)])
    if node.op_type == "MatMul":
        return weight if left else _transposed(weight)
    if node.op_type == "Gemm":
        weight = np.ascontiguousarray(weight) if attributes.get("transB") else _transposed(weight)
        alpha = attributes.get("alpha", 1.0)
        return weight if alpha == 1 else weight * np.asarray(alpha, weight.dtype)
    if node.op_type == "ConvTranspose":
        groups = attributes.get("group", 1)
        inputs, out, *kernel = weight.shape
        split = weight.reshape(groups, inputs // groups, out, *kernel).swapaxes(1, 2)
        return np.ascontiguousarray(split.reshape(-1, inputs // groups, *kernel))
    return weight


def _transposed(matrix: Array) -> Array:
    """A copy, made strip by strip: whole columns are far apart in memory."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), STRIP):
        result[:, start : start + STRIP] = matrix[start : start + STRIP].T
    return result


def emptied_inputs(before: Model, after: Model) -> list[str]:
    """Inputs with a default in the one model that nothing reads any more in the other."""
    empty = {name for name, tensor in after.initializers.items() if not prod(tensor.dims)}
    inputs = [value.name for value in before.graph.input]
    return [name for name in inputs if name in empty and prod(before.initializers[name].dims)]


def bias_of(model: Model, scope: Scope, node: NodeProto, weight: Array) -> Any:
    """The constant bias as ``(out,)``, the name of one that is no constant, or None.

    One that a caller may override is none, unless the weight is such a one too.
    """
    if len(node.input) < 3 or not node.input[2]:
        return None
    key, attributes = scope.key(node.input[2]), attributes_of(node)
    free = is_overridable(model, key) and not is_overridable(model, weight_root(model, scope, node))
    if not model.fixed(key) or free:
        return node.input[2]
    bias = model.read(key)
    if node.op_type != "Gemm":
        return bias
    out = weight.shape[0 if attributes.get("transB") else 1]
    if bias.shape not in ((), (1,), (out,), (1, 1), (1, out)):
        return node.input[2]
    beta = np.asarray(attributes.get("beta", 1.0), bias.dtype)
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1) * beta, (out,)))
