"""ONNX graphs computed by torch: a table of operators and a loop over nodes.

Every floating-point type is computed in float32, whatever the model says: what is trained has
masters in float32.  The unsigned types that torch stores but does not compute with go through
int64 and wrap around.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxcompress.core.errors import TorchError
from onnxcompress.core.layer import Array
from onnxcompress.graph import Model, Operation, operations

WRAPPED = (torch.uint16, torch.uint32)

SEVERAL = ("Split",)  # operators all of whose outputs are computed; of others, the first


@dataclass(frozen=True, eq=False)
class Node:
    """What an operator's function is told besides its inputs."""

    operation: Operation
    opset: int

    def get(self, key: str, default: Any = None) -> Any:
        return self.operation.attributes.get(key, default)

    @property
    def outputs(self) -> int:
        return len(self.operation.outputs)


class TorchGraph:
    """A model that torch runs, on one device.

    What depends on constants alone is computed once.

    Args:
        trained: constants that every call is given anew; or values that nodes compute, which are
            given in their place.

    Raises:
        TorchError: an operator is missing; the message names it.
    """

    def __init__(
        self, model: Model, trained: Collection[str] = (), device: str | torch.device = "cpu"
    ) -> None:
        if missing := unsupported(model):
            raise TorchError(f"torch cannot run the model: {', '.join(missing)} is not supported")
        self.outputs = [output.name for output in model.graph.output]
        self._known = {
            name: tensor(model.read(name), device)
            for name in model.constants
            if name not in trained
        }
        self._steps: list[Node] = []
        with torch.no_grad():
            for operation in operations(model):
                node = Node(operation, model.opset)
                if operation.outputs[0] in trained:
                    continue
                if operation.op_type == "Constant":
                    if operation.outputs[0] not in model.constants:
                        self._known[operation.outputs[0]] = _constant(node).to(device)
                elif all(name in self._known for name in operation.inputs if name):
                    _compute(node, self._known)
                else:
                    self._steps.append(node)
        self._prune()

    def _prune(self) -> None:
        """Forget what no step reads, and find out when each value is read for the last time."""
        last = {n: i for i, node in enumerate(self._steps) for n in node.operation.inputs}
        wanted = {*last, *self.outputs}
        self._known = {name: value for name, value in self._known.items() if name in wanted}
        self._done: list[list[str]] = [[] for _ in self._steps]
        for name, index in last.items():
            if name and name not in self.outputs:
                self._done[index].append(name)

    def __call__(
        self, inputs: Mapping[str, Tensor], trained: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs for one batch, in the model's order.

        Raises:
            TorchError: torch cannot compute a node; the message names it.
        """
        values = {**self._known, **inputs, **(trained or {})}
        for node, done in zip(self._steps, self._done, strict=True):
            _compute(node, values)
            for name in done:
                del values[name]
        return [values[name] for name in self.outputs]


def _compute(node: Node, values: dict[str, Any]) -> None:
    """Run one node, in place."""
    operation = node.operation
    given = [values[name] if name else None for name in operation.inputs]
    try:
        found = OPERATORS[operation.op_type](node, *given)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = f"{operation.op_type} that computes {operation.outputs[0]!r}"
        raise TorchError(f"torch cannot run the {name}: {reason}") from error
    found = found if isinstance(found, tuple) else (found,)
    values.update(zip(operation.outputs, found, strict=False))  # a mask or the like is left out


def unsupported(model: Model) -> list[str]:
    """What the executor lacks to run a model: operators, or outputs of them."""
    found = set()
    for operation in operations(model):
        if operation.op_type not in OPERATORS:
            found.add(operation.op_type)
        elif operation.op_type not in SEVERAL and any(map(_read(model), operation.outputs[1:])):
            found.add(f"a second output of {operation.op_type}")
    if model.graph.sparse_initializer:
        found.add("a sparse initializer")
    return sorted(found)


def _read(model: Model) -> Callable[[str], bool]:
    return lambda name: bool(name) and model.consumers[name] > 0


def tensor(array: Array, device: str | torch.device = "cpu") -> Tensor:
    """An array as torch computes with it: floating-point types in float32, 4-bit ones in 8 bits."""
    kind = array.dtype.name
    if kind.startswith(("float", "bfloat")):
        array = array.astype(np.float32)
    elif kind in ("int4", "int2", "uint4", "uint2"):
        array = array.astype(np.int8)
    return torch.from_numpy(np.array(array, order="C")).to(device)  # copied: some are read only


def _dtype(name: str) -> torch.dtype:
    return torch.float32 if name.startswith(("float", "bfloat")) else getattr(torch, name)


def _ints(values: Tensor | Sequence[int]) -> list[int]:
    """The entries of a tensor that says a shape, axes, ...; of an attribute too."""
    flat = values if isinstance(values, Sequence) else values.reshape(-1).tolist()
    return [int(value) for value in flat]


def _listed(node: Node, key: str, given: Tensor | None) -> list[int] | None:
    """What is an attribute in older opsets and an input in newer ones."""
    found = node.get(key) if given is None else given
    return None if found is None else _ints(found)


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator that needs to know nothing of its node."""
    return lambda node, *inputs: function(*inputs)


def _wrapping(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Arithmetic of two tensors; what torch cannot compute with wraps around in int64."""

    def run(node: Node, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in WRAPPED:
            return function(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
        return function(a, b)

    return run


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return run


def _columns(values: Tensor, rank: int, axis: int = 1) -> Tensor:
    """A vector along one axis of tensors of this rank."""
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _same(node: Node, length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding of one axis so that the output has ``ceil(length / stride)`` entries."""
    total = max((ceil(length / stride) - 1) * stride + kernel - length, 0)
    less = total // 2
    return (less, total - less) if node.get("auto_pad") == "SAME_UPPER" else (total - less, less)


def _pads(node: Node, x: Tensor, kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding of every spatial axis; dilated kernels count in full."""
    rank = len(kernel)
    if node.get("auto_pad", "NOTSET").startswith("SAME"):
        strides = node.get("strides", [1] * rank)
        return [_same(node, *v) for v in zip(x.shape[2:], kernel, strides, strict=True)]
    pads = node.get("pads", [0] * 2 * rank)
    if node.get("auto_pad") == "VALID":
        pads = [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _flat(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch wants it: the last axis first."""
    return [n for pair in reversed(pads) for n in pair]


def _spatial(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and the extents of the kernel."""
    ones = [1] * len(kernel)
    strides, dilations = node.get("strides", ones), node.get("dilations", ones)
    return strides, dilations, [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, extents = _spatial(node, weight.shape[2:])
    pads = _pads(node, x, extents)
    run = (F.conv1d, F.conv2d, F.conv3d)[len(extents) - 1]
    even = all(low == high for low, high in pads)
    padding = [low for low, _ in pads] if even else 0
    x = x if even else F.pad(x, _flat(pads))
    return run(x, weight, bias, strides, padding, dilations, node.get("group", 1))


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, extents = _spatial(node, weight.shape[2:])
    rank, automatic = len(extents), node.get("auto_pad", "NOTSET")
    extra = node.get("output_padding", [0] * rank)
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    y = run(x, weight, None, strides, 0, 0, node.get("group", 1), dilations)
    if "output_shape" in node.operation.attributes or automatic.startswith("SAME"):
        same = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        wanted = node.get("output_shape", same)[-rank:]
        totals = [max(n + e - w, 0) for n, e, w in zip(y.shape[2:], extra, wanted, strict=True)]
        upper = automatic == "SAME_UPPER"
        pads = [(t // 2, t - t // 2) if upper else (t - t // 2, t // 2) for t in totals]
    else:
        pads = _pads(node, x, extents)
    # What output_padding adds lies behind all contributions: cropped, or zeros.
    y = F.pad(y, _flat([(-low, e - high) for (low, high), e in zip(pads, extra, strict=True)]))
    return y if bias is None else y + _columns(bias, y.ndim)


def _windows(node: Node, x: Tensor) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Padding of a pool's axes as the node says, and what rounding up adds to the end."""
    kernel = node.get("kernel_shape")
    strides, _, extents = _spatial(node, kernel)
    pads, added = _pads(node, x, extents), []
    for n, (low, high), extent, stride in zip(x.shape[2:], pads, extents, strides, strict=True):
        rest = n + low + high - extent
        last = rest // stride
        if node.get("ceil_mode") and ceil(rest / stride) * stride < n + low:
            last = ceil(rest / stride)  # a window must not start in the padding
        added.append((0, max(last * stride - rest, 0)))
    return pads, added


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides, dilations, _ = _spatial(node, kernel)
    pads, added = _windows(node, x)
    both = [(low, high + more) for (low, high), (_, more) in zip(pads, added, strict=True)]
    least = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    return run(F.pad(x, _flat(both), value=least), kernel, strides, 0, dilations)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.get("kernel_shape")
    strides, dilations, _ = _spatial(node, kernel)
    if any(d > 1 for d in dilations):
        raise ValueError("its dilations are not supported")
    pads, added = _windows(node, x)
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    y = run(F.pad(F.pad(x, _flat(pads)), _flat(added)), kernel, strides)
    if not any(map(any, pads)) and not any(map(any, added)):
        return y
    inside = torch.ones_like(x[:1, :1])
    counted = F.pad(inside, _flat(pads), value=float(node.get("count_include_pad", 0)))
    return y / run(F.pad(counted, _flat(added)), kernel, strides)


def _global(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: function(x, dim=tuple(range(2, x.ndim)), keepdim=True)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.get("transA") else a
    b = b.T if node.get("transB") else b
    y = a @ b if node.get("alpha", 1.0) == 1 else node.get("alpha") * (a @ b)
    if c is None:
        return y
    return y + (c if node.get("beta", 1.0) == 1 else node.get("beta") * c)


def _batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if node.get("training_mode"):
        raise ValueError("its training mode is not supported")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


def _normalized(node: Node, x: Tensor, axes: Sequence[int]) -> Tensor:
    variance, mean = torch.var_mean(x, dim=tuple(axes), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + node.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = _normalized(node, x, range(2, x.ndim))
    return y * _columns(scale, x.ndim) + _columns(bias, x.ndim)


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.get("axis", -1) % x.ndim
    y = _normalized(node, x, range(axis, x.ndim)) * scale
    return y if bias is None else y + bias


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    split = x.reshape(len(x), groups, -1)
    y = _normalized(node, split, [2]).reshape(x.shape)
    if len(scale) != x.shape[1]:  # one for a group, before opset 21
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return y * _columns(scale, x.ndim) + _columns(bias, x.ndim)


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % x.ndim  # all axes from this one on together
        return function(x.reshape(prod(x.shape[:axis]), -1), dim=1).reshape(x.shape)

    return run


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = _listed(node, "axes", given)
        if not axes and node.get("noop_with_empty_axes"):
            return x
        dims = tuple(axes) if axes else tuple(range(x.ndim))
        found = function(x, dim=dims, keepdim=bool(node.get("keepdims", 1)))
        return found if x.is_floating_point() else found.to(x.dtype)

    return run


def _square_sum(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.square().sum(dim, keepdim)


def _norm(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return _square_sum(x, dim, keepdim).sqrt()


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return _wrapping(torch.fmod if node.get("fmod") else torch.remainder)(node, a, b)


def _clip(node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low = node.get("min") if low is None else low
    high = node.get("max") if high is None else high
    return x if low is None and high is None else torch.clamp(x, low, high)


def _pow(node: Node, x: Tensor, y: Tensor) -> Tensor:
    if y.numel() == 1 and y.ndim <= x.ndim:  # a number: 2 is a square, whose gradient is finite
        return x.pow(y.item()).to(x.dtype)
    return x.pow(y).to(x.dtype)


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0, 1)


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", 1.67326319217681884765625), node.get("gamma", 1.05070102214813)
    return gamma * F.elu(x, alpha)


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(_dtype(node.get("to")))


def _constant(node: Node) -> Tensor:
    """A Constant that is given as plain numbers."""
    (key, value), *_ = node.operation.attributes.items()
    return tensor(np.array(value, np.float32 if key.startswith("value_float") else np.int64))


def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = tensor(node.get("value", np.zeros(1, np.float32)), shape.device)
    return value.reshape(()).expand(_ints(shape))


def _shape(node: Node, x: Tensor) -> Tensor:
    part = slice(node.get("start", 0), node.get("end"))
    return torch.tensor(list(x.shape)[part], dtype=torch.int64, device=x.device)


def _range(node: Node, start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    return torch.arange(
        start.item(), stop.item(), step.item(), dtype=start.dtype, device=start.device
    )


def _reshape(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    shape = _listed(node, "shape", given) or []
    if not node.get("allowzero"):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1)


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(reversed(range(x.ndim)))))


def _squeeze(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    axes = _listed(node, "axes", given)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    axes = _listed(node, "axes", given) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(_ints(shape))))


def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_ints(repeats))


def _concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=node.get("axis", 1))


def _split(node: Node, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.get("axis", 0)
    sizes = _listed(node, "split", given)
    if sizes is None:
        return x.split(ceil(x.shape[axis] / node.outputs), dim=axis)
    return x.split(sizes, dim=axis)


def _picked(x: Tensor, axis: int, places: Sequence[int]) -> Tensor:
    return x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))


def _slice(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begin, end = _listed(node, "starts", starts) or [], _listed(node, "ends", ends) or []
    along = _listed(node, "axes", axes) or list(range(len(begin)))
    step = [1] * len(begin) if steps is None else _ints(steps)
    for a, b, axis, s in zip(begin, end, along, step, strict=True):
        places = range(*slice(a, b, s).indices(x.shape[axis]))
        if s < 0:
            x = _picked(x, axis % x.ndim, places)
        else:
            window = [slice(None)] * (axis % x.ndim)
            x = x[(*window, slice(places.start, max(places.stop, places.start), s))]
    return x


def _gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0) % x.ndim
    flat = index.reshape(-1).to(torch.int64)
    found = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _pad(
    node: Node,
    x: Tensor,
    given: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    pads = _listed(node, "pads", given) or []
    count = len(pads) // 2
    along = list(range(count)) if axes is None else [axis % x.ndim for axis in _ints(axes)]
    pairs = [(0, 0)] * x.ndim
    for axis, low, high in zip(along, pads[:count], pads[count:], strict=True):
        pairs[axis] = (low, high)
    mode = node.get("mode", "constant")
    if mode == "constant":
        fill = node.get("value", 0.0) if value is None else value.item()
        return F.pad(x, _flat(pairs), value=fill)
    for axis, (low, high) in enumerate(pairs):
        if low or high:
            n = x.shape[axis]
            x = _picked(x, axis, [_inside(i, n, mode) for i in range(-low, n + high)])
    return x


def _inside(index: int, length: int, mode: str) -> int:
    """Where padding takes the entry of a place outside from."""
    if mode == "edge":
        return min(max(index, 0), length - 1)
    if mode == "wrap":
        return index % length
    if length == 1:
        return 0
    index = index % (2 * length - 2)
    return min(index, 2 * length - 2 - index)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = node.get("blocksize")
    if node.get("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, -1, b, b, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // b**2, height * b, width * b)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    b = node.get("blocksize")
    split = x.reshape(n, channels, height // b, b, width // b, b).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(n, channels * b**2, height // b, width // b)


def _upsample(node: Node, x: Tensor, given: Tensor | None = None) -> Tensor:
    scales = node.get("scales") if given is None else given.tolist()
    return _resized(node, x, scales, None, "asymmetric", "floor")


def _resize(node: Node, x: Tensor, *given: Tensor | None) -> Tensor:
    if node.opset < 11:
        assert given[0] is not None
        return _resized(node, x, given[0].tolist(), None, "asymmetric", "simple")
    _, scales, sizes, *_ = (*given, None, None, None)
    if node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("its policy for the aspect ratio is not supported")
    axes = [axis % x.ndim for axis in node.get("axes", range(x.ndim))]
    factors, lengths = [1.0] * x.ndim, None
    if scales is not None and scales.numel():
        for axis, scale in zip(axes, scales.tolist(), strict=True):
            factors[axis] = scale
    else:
        assert sizes is not None
        lengths = list(x.shape)
        for axis, size in zip(axes, _ints(sizes), strict=True):
            lengths[axis], factors[axis] = size, size / x.shape[axis]
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.get("nearest_mode", "round_prefer_floor")
    return _resized(node, x, factors, lengths, coordinates, rounding)


def _resized(
    node: Node,
    x: Tensor,
    scales: Sequence[float],
    lengths: Sequence[int] | None,
    coordinates: str,
    rounding: str,
) -> Tensor:
    """Resize axis after axis: nearest and linear interpolation are separable."""
    mode = node.get("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear", "trilinear"):
        raise ValueError(f"its mode {mode!r} is not supported")
    for axis, scale in enumerate(scales):
        before = x.shape[axis]
        after = int(np.floor(before * scale)) if lengths is None else lengths[axis]
        if after == before and scale == 1:
            continue
        places = _places(before, after, scale, coordinates)
        if mode == "nearest":
            found = _rounded(places, rounding, scale).clip(0, before - 1)
            x = _picked(x, axis, found.astype(np.int64).tolist())
            continue
        low = np.floor(places.clip(0, before - 1)).astype(np.int64)
        share = tensor((places.clip(0, before - 1) - low).astype(np.float32), x.device)
        share = _columns(share, x.ndim, axis)
        high = np.minimum(low + 1, before - 1)
        x = _picked(x, axis, low.tolist()) * (1 - share) + _picked(x, axis, high.tolist()) * share
    return x


def _places(before: int, after: int, scale: float, coordinates: str) -> Array:
    """Where the entries of a resized axis lie on the original."""
    place = np.arange(after, dtype=np.float64)
    if coordinates == "asymmetric":
        return place / scale
    if coordinates == "align_corners":
        return place * ((before - 1) / (after - 1) if after > 1 else 0.0)
    if coordinates == "pytorch_half_pixel" and after == 1:
        return np.zeros(1)
    if coordinates not in ("half_pixel", "pytorch_half_pixel"):
        raise ValueError(f"its coordinates {coordinates!r} are not supported")
    return (place + 0.5) / scale - 0.5


def _rounded(places: Array, rounding: str, scale: float) -> Array:
    if rounding == "simple":
        rounding = "ceil" if scale < 1 else "floor"
    if rounding in ("floor", "ceil"):
        return np.floor(places) if rounding == "floor" else np.ceil(places)
    down = rounding == "round_prefer_floor"
    return np.ceil(places - 0.5) if down else np.floor(places + 0.5)


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": _plain(torch.abs),
    "Add": _wrapping(torch.add),
    "And": _plain(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _plain(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _wrapping(_divided),
    "Dropout": lambda node, x, *rest: x,
    "Elu": lambda node, x: F.elu(x, node.get("alpha", 1.0)),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "Gelu": lambda node, x: F.gelu(x, approximate=node.get("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": _global(torch.mean),
    "GlobalMaxPool": _global(torch.amax),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Identity": lambda node, x: x,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _plain(torch.matmul),
    "Max": _variadic(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _variadic(torch.minimum),
    "Mish": _plain(F.mish),
    "Mod": _mod,
    "Mul": _wrapping(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "Range": _range,
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL2": _reduce(_norm),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(_square_sum),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": lambda node, x: F.softplus(x, threshold=80),  # above it, float32 has no difference
    "Softsign": _plain(F.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _wrapping(torch.sub),
    "Sum": _variadic(torch.add),
    "Tanh": _plain(torch.tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _upsample,
    "Where": _plain(torch.where),
}
