"""Scales and shifts per channel folded into the convolution or product beside them.

A layer gives ``y = W x + b``.  What follows it, ``g y + t`` (batch normalization, Mul, Div, Add or
Sub with constants), becomes part of it:  ``W' = diag(g) W``,  ``b' = g b + t``.  So does what comes
before it, ``x = s z + u``:  ``W' = W diag(s)``,  ``b' = b + W u``, where no padding puts zeros
among the ``s z + u``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxcompress.core.layer import Array
from onnxcompress.graph.edit import add_constant, drop_constants, keep_only
from onnxcompress.graph.model import FLOATS, Model, is_overridable, weight_of, weight_root
from onnxcompress.graph.nodes import attributes_of, is_linear, is_standard, unique_name

ARITHMETIC = ("Mul", "Div", "Add", "Sub")
BROADCASTING = 7  # Add and its like broadcast as numpy does from this opset on.

Affine = tuple[Array, Array]  # Scale and shift are one number, or one for every channel.


def fold_affine(model: Model, operators: Sequence[str] = ()) -> Model:
    """Fold what scales and shifts channels into the Conv, ConvTranspose, Gemm or MatMul beside it.

    Only weights that are stored as floats, and that nothing else reads, are changed.  What comes
    before a layer is reached through Transpose, and Cast from one float type to another, too.

    Args:
        operators: fold only these; all of them if it is empty.
    """
    if model.opset < BROADCASTING:
        return model.copy()
    work = _Work(model.copy(), set(operators or ("BatchNormalization", *ARITHMETIC)))
    for node in work.nodes:
        layer = _opened(work.model, node) if is_linear(node) else None
        if layer is not None:
            work.fold(layer)
    return work.finished()


def fold_batchnorm(model: Model) -> Model:
    """Fold every BatchNormalization into the convolution or product beside it."""
    return fold_affine(model, ["BatchNormalization"])


@dataclass(eq=False)
class _Layer:
    """A layer while it is changed.

    Attributes:
        weight: output first per group, ``(groups, out, in, *kernel)``, as it was.
        bias: one for every output; None where there is none yet.
        scale: of every output, and ``scale_in`` of every input, that the weight is to take.
        adds: the Add that holds the bias of a MatMul.
    """

    node: NodeProto
    weight: Array
    bias: Array | None
    scale: Array
    scale_in: Array
    adds: NodeProto | None = None
    changed: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """The rank of input and output, and which axis is that of the channels.

        The rank of what a MatMul multiplies is open, 0 here, and its last axis counts.
        """
        if self.node.op_type.startswith("Conv"):
            return self.weight.ndim - 1, 1
        return (2, 1) if self.node.op_type == "Gemm" else (0, 0)

    @property
    def has_bias(self) -> bool:
        return self.node.op_type != "MatMul" or self.adds is not None

    @property
    def outputs(self) -> int:
        return self.weight.shape[0] * self.weight.shape[1]

    @property
    def inputs(self) -> int:
        return self.weight.shape[0] * self.weight.shape[2]

    def after(self, scale: Array, shift: Array) -> None:
        """The layer with ``scale y + shift`` behind it."""
        self.scale = self.scale * scale
        if self.bias is not None or shift.any():
            self.bias = (np.zeros(self.outputs) if self.bias is None else self.bias * scale) + shift
        self.changed = True

    def before(self, scale: Array, shift: Array) -> None:
        """The layer with ``scale z + shift`` before it."""
        if shift.any():
            moved = self.scaled(np.broadcast_to(shift, self.inputs))
            moved = moved.reshape(self.outputs, -1).sum(1)
            self.bias = moved if self.bias is None else self.bias + moved
        self.scale_in = self.scale_in * scale
        self.changed = True

    def scaled(self, more: Array | None = None) -> Array:
        """The weight as it is to be, in float64, its inputs scaled by ``more`` as well."""
        groups, ones = len(self.weight), (1,) * (self.weight.ndim - 3)
        inputs = self.scale_in if more is None else self.scale_in * more
        outputs = np.broadcast_to(self.scale, self.outputs).reshape(groups, -1, 1, *ones)
        inputs = np.broadcast_to(inputs, self.inputs).reshape(groups, 1, -1, *ones)
        return self.weight.astype(np.float64) * outputs * inputs

    @property
    def takes_shifts(self) -> bool:
        """Whether a shift of the input is the same shift of every output."""
        attributes = attributes_of(self.node)
        if self.node.op_type == "ConvTranspose" or not self.has_bias:
            return False
        plain = attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        return plain and not any(attributes.get("pads", ()))


def _opened(model: Model, node: NodeProto) -> _Layer | None:
    """A layer whose weight may be changed; None for others."""
    scope = model.scopes[0]
    key, attributes = weight_of(model, scope, node), attributes_of(node)
    if key != node.input[1] or not _is_plain(model, key) or model.consumers[key] != 1:
        return None
    stored = model.constants[weight_root(model, scope, node)].data_type
    if stored not in FLOATS or stored == TensorProto.BFLOAT16 or attributes.get("transA"):
        return None
    if node.op_type == "Einsum":
        return None
    value, bias = model.read(key), None
    if helper.np_dtype_to_tensor_dtype(value.dtype) != stored:
        return None
    if value.ndim != 2 if not node.op_type.startswith("Conv") else value.ndim < 3:
        return None
    weight = _output_first(node, value)
    if len(node.input) > 2 and node.input[2]:
        if not _is_plain(model, node.input[2]):
            return None
        bias = model.read(node.input[2]).astype(np.float64) * attributes.get("beta", 1.0)
        bias = np.broadcast_to(bias.reshape(-1), weight.shape[0] * weight.shape[1])
    alpha = np.asarray(attributes.get("alpha", 1.0) if node.op_type == "Gemm" else 1.0)
    return _Layer(node, weight, bias, alpha, np.ones(()))


def _output_first(node: NodeProto, weight: Array) -> Array:
    """``(groups, out, in, *kernel)`` of the weight as a node stores it."""
    attributes = attributes_of(node)
    groups = attributes.get("group", 1)
    if node.op_type == "Conv":
        return weight.reshape(groups, -1, *weight.shape[1:])
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return (weight if attributes.get("transB") else weight.T)[None]


def _as_stored(node: NodeProto, weight: Array) -> Array:
    """The weight as a node stores it, of what `_output_first` gives."""
    if node.op_type == "ConvTranspose":
        weight = weight.swapaxes(1, 2)
    if node.op_type.startswith("Conv"):
        return weight.reshape(-1, *weight.shape[2:])
    return weight[0] if attributes_of(node).get("transB") else weight[0].T


def _is_plain(model: Model, name: str) -> bool:
    """Whether a tensor of the main graph is a constant that no caller can replace."""
    if not name or not model.fixed(name):
        return False
    return not any(is_overridable(model, part) for part in model.made_of(name))


def _per_channel(value: Array, channels: int, rank: int, axis: int) -> Array | None:
    """A constant as one float, or one for every channel; None where it is more than that.

    Args:
        rank: of what it is combined with; 0 if that is open, and the axis the last one.
    """
    if value.dtype.kind != "f" or value.ndim > (rank or 1):
        return None
    value = value.astype(np.float64)
    if value.size == 1:
        return value.reshape(())
    shape = (1,) * ((rank or 1) - value.ndim) + value.shape
    place = axis if rank else 0
    alone = all(size == 1 for i, size in enumerate(shape) if i != place % len(shape))
    return value.reshape(-1) if alone and shape[place] == channels else None


@dataclass(eq=False)
class _Work:
    """A model being changed, with what its main graph's nodes read and make."""

    model: Model
    operators: set[str]
    # These are ids of nodes, which `nodes` keeps alive.
    gone: set[int] = field(default_factory=set)
    served: set[str] = field(default_factory=set)
    layers: list[_Layer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = list(self.model.graph.node)
        self._count = self.model.consumers
        # These are ids of nodes that hold the bias of a changed MatMul.
        self._holders: set[int] = set()
        self._maker = {name: node for node in self.nodes for name in node.output if name}
        self._reader = {name: node for node in self.nodes for name in node.input if name}

    def fold(self, layer: _Layer) -> None:
        """Take into a layer what stands behind and before it."""
        while self._fold_after(layer):
            pass
        # float16 has no room for more.
        while layer.weight.dtype.itemsize > 2 and self._fold_before(layer):
            pass
        if layer.changed:
            self.layers.append(layer)
            self._holders.add(id(layer.adds))

    def _fold_after(self, layer: _Layer) -> bool:
        last = layer.adds or layer.node
        through = last  # It is the node before the one that is looked at.
        rank, axis = layer.place
        while self._count[name := through.output[0]] == 1 and (node := self._reader.get(name)):
            affine = self._affine(node, name, layer.outputs, rank, axis)
            if affine is not None and not layer.has_bias and affine[1].any():
                return through is last and self._hold(layer, node, affine)
            if affine is not None:
                layer.after(*affine)
                self._remove(node)
                self._maker[node.output[0]] = through
                through.output[0] = node.output[0]
                return True
            attributes = attributes_of(node)
            if node.op_type == "Transpose" and "perm" in attributes:
                perm = attributes["perm"]
                rank, axis = len(perm), perm.index(axis if rank else len(perm) - 1)
            elif node.op_type != "Cast" or attributes["to"] not in FLOATS:
                return False
            through = node
        return False

    def _hold(self, layer: _Layer, node: NodeProto, affine: Affine) -> bool:
        """Let a node become the Add of a product, if it is not that already."""
        changed = layer.changed or node.op_type != "Add"
        layer.adds = node
        layer.after(*affine)
        layer.changed = changed
        return True

    def _fold_before(self, layer: _Layer) -> bool:
        reader, name = layer.node, layer.node.input[0]
        rank, axis = layer.place
        while self._count[name] == 1 and (node := self._maker.get(name)) is not None:
            affine = self._affine(node, None, layer.inputs, rank, axis)
            if affine is not None:
                if affine[1].any() and not layer.takes_shifts:
                    return False
                layer.before(*affine)
                source = node.input[self._data_input(node)]
                self._remove(node)
                reader.input[0] = source
                self._reader[source] = reader
                return True
            attributes = attributes_of(node)
            if node.op_type == "Transpose" and "perm" in attributes:
                perm = attributes["perm"]
                rank, axis = len(perm), perm[axis if rank else -1]
            elif node.op_type != "Cast" or attributes["to"] not in FLOATS:
                return False
            reader, name = node, node.input[0]
        return False

    def _affine(
        self, node: NodeProto, name: str | None, channels: int, rank: int, axis: int
    ) -> Affine | None:
        """The scale and the shift that a node applies to a tensor; None where it does more."""
        if node.op_type not in self.operators or not is_standard(node):
            return None
        if id(node) in self.gone or id(node) in self._holders:
            return None
        if node.op_type == "BatchNormalization":
            return self._norm(node) if axis == 1 and name in (None, node.input[0]) else None
        place = self._data_input(node) if name is None else [*node.input].index(name)
        other = node.input[1 - place]
        if not _is_plain(self.model, other) or _is_plain(self.model, node.input[place]):
            return None
        value = _per_channel(self.model.read(other), channels, rank, axis)
        if value is None:
            return None
        one, zero = np.ones(()), np.zeros(())
        if node.op_type == "Mul":
            return value, zero
        if node.op_type == "Add":
            return one, value
        if node.op_type == "Sub":
            return (one, -value) if place == 0 else (-one, value)
        return (1 / value, zero) if place == 0 and value.all() else None

    def _data_input(self, node: NodeProto) -> int:
        """Which of two inputs is not the constant."""
        first = node.op_type == "BatchNormalization" or not _is_plain(self.model, node.input[0])
        return 0 if first else 1

    def _norm(self, node: NodeProto) -> Affine | None:
        attributes = attributes_of(node)
        trains = attributes.get("training_mode") or not attributes.get("spatial", 1)
        if trains or len([*filter(None, node.output)]) > 1:
            return None
        if not all(_is_plain(self.model, name) for name in node.input[1:5]):
            return None
        scale, shift, mean, variance = (
            self.model.read(name).astype(np.float64) for name in node.input[1:5]
        )
        scale = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        return scale, shift - mean * scale

    def _remove(self, node: NodeProto) -> None:
        self.gone.add(id(node))
        self.served.update(node.input)

    def finished(self) -> Model:
        """The model with the new weights."""
        model, taken = self.model, set(self.model.names)
        for layer in self.layers:
            self._store(layer, taken)
        alive = iter([id(node) not in self.gone for node in self.nodes])
        keep_only(model.graph.node, lambda _: next(alive))
        made = {name for node in model.graph.node for name in node.output}
        known = {*made, *(value.name for value in model.graph.input)}
        keep_only(model.graph.value_info, lambda value: value.name in known)
        model.changed()
        drop_constants(model, self.served)
        return model

    def _store(self, layer: _Layer, taken: set[str]) -> None:
        node = layer.node
        self.served.update(node.input[1:])
        node.input[1] = self._constant(f"{node.input[1]}_folded", layer, layer.scaled(), taken)
        keep_only(node.attribute, lambda a: a.name not in ("alpha", "beta"))
        if layer.bias is None:
            return
        bias = self._constant(f"{node.input[1]}_bias", layer, layer.bias, taken)
        if layer.adds is None:
            node.input[:] = [*node.input[:2], bias]
            return
        self.served.update(layer.adds.input)
        layer.adds.op_type = "Add"
        layer.adds.input[:] = [node.output[0], bias]
        del layer.adds.attribute[:], layer.adds.output[1:]

    def _constant(self, base: str, layer: _Layer, value: Array, taken: set[str]) -> str:
        name = unique_name(base, taken)
        taken.add(name)
        stored = _as_stored(layer.node, value) if value.ndim > 1 else value
        add_constant(self.model, name, np.ascontiguousarray(stored, dtype=layer.weight.dtype))
        return name
