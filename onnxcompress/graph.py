"""The model and graph surgery.  The only file that imports onnx and onnx-graphsurgeon.

The ModelProto is the truth: a pass copies it, replaces or inserts nodes in place, and leaves every
other byte alone.  onnx-graphsurgeon builds the replacement fragments and serves as a view for
walking; its round trip loses metadata, so it never becomes the output.

A pass is a plain function ``Model -> Model``; passes are applied by a ``for`` loop.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto, external_data_helper, numpy_helper

from onnxcompress.core import Array, CompressedWeight, Layer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGE = 1024  # entries of a constant from which it is worth compressing
LARGEST = 1e4  # magnitude of a constant that is likely to be a weight
SMALL = 64  # entries of a constant up to which several layers are likely to share it
HEADER = 16  # bytes of a tensor besides its name and its values, about
DETACHED_BYTES = 4096  # weights from this size are handed to onnxruntime without a copy
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
RANDOM = (  # operators whose result is another one every time
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli", "Dropout"),
)
LARGEST_FILE = (1 << 31) - 1  # bytes: what protobuf can parse
LARGEST_TENSOR = 1 << 48  # entries
LARGEST_GRAPH = 1_000_000  # nodes, with local functions written out
MOST_DIMENSIONS = 64  # of a tensor: as in numpy
DATA_TYPES = {*TensorProto.DataType.values()} - {TensorProto.UNDEFINED}
PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2,
          "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}  # bits of one value  # fmt: skip


class ModelError(ValueError):
    """A model that cannot be read, is invalid, or cannot be written; the message is one line."""


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX model.

    Attributes:
        proto: the truth; treat it as read only and change a `copy`.
        folder: where the external data lies.
    """

    proto: onnx.ModelProto
    folder: Path = field(default_factory=Path)

    def copy(self) -> Model:
        copied = onnx.ModelProto()
        copied.CopyFrom(self.proto)
        return Model(copied, self.folder)

    @property
    def graph(self) -> onnx.GraphProto:
        return self.proto.graph

    @property
    def opset(self) -> int:
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the file, external data included."""
        return self.proto.ByteSize() + sum(_external_length(t) for t in self.initializers.values())

    @property
    def data_files(self) -> set[Path]:
        """The files that hold its external data."""
        tensors = filter(external_data_helper.uses_external_data, self.graph.initializer)
        return {self.folder / _location(tensor) for tensor in tensors}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers and Constant nodes."""
        return sum(_nbytes(t) for t in self.constants.values())

    @cached_property
    def initializers(self) -> dict[str, TensorProto]:
        """The initializers of the main graph."""
        return {tensor.name: tensor for tensor in self.graph.initializer}

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """Every tensor of the main graph that is known before it runs."""
        found = dict(self.initializers)
        for node in self.graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                found |= dict(zip(node.output, _given(node), strict=False))
        return found

    @cached_property
    def consumers(self) -> Counter[str]:
        """How often each tensor is read, bodies of If, Loop and Scan and the outputs included."""
        reads = Counter(output.name for output in self.graph.output)
        for _, node in walk(self.graph):
            reads.update(name for name in node.input if name)
        for graph in _bodies(self.graph):
            reads.update(output.name for output in graph.output)
        return reads

    @cached_property
    def keys(self) -> list[str]:
        """A unique name for every node of the main graph: its own, or one made for it."""
        given = Counter(node.name for node in self.graph.node)
        taken = set(given)
        keys = []
        for index, node in enumerate(self.graph.node):
            name = node.name
            if not name or given[name] > 1:
                name = _unique(f"{node.op_type}_{index}", taken)
                taken.add(name)
            keys.append(name)
        return keys

    @cached_property
    def names(self) -> set[str]:
        """Every name in use: tensors and nodes, of all bodies."""
        taken = {node.name for _, node in walk(self.graph)}
        taken |= {name for _, node in walk(self.graph) for name in (*node.input, *node.output)}
        for graph in (self.graph, *_bodies(self.graph)):
            values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
            taken |= {value.name for value in values}
            taken |= {sparse.values.name for sparse in graph.sparse_initializer}
        return taken

    def read(self, name: str) -> Array:
        """The value of a constant tensor."""
        return self.value(self.constants[name])

    def value(self, tensor: TensorProto) -> Array:
        try:
            return numpy_helper.to_array(tensor, str(self.folder))
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {_line(error)}") from None

    def view(self) -> gs.Graph:
        """The graph as onnx-graphsurgeon shows it, for walking; changes do not reach the model."""
        return gs.import_onnx(self.copy().proto)


# ------------------------------------------------------------------------------ load and save


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model; external data stays on disk until a tensor is asked for.

    Raises:
        ModelError: the file is missing, no ONNX model, or invalid.
    """
    path = Path(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(_read(path, LARGEST_FILE))
    except DecodeError:
        raise ModelError(f"{path} is truncated or not an ONNX model") from None
    model = Model(proto, path.absolute().parent)
    try:
        if not proto.graph.node and not proto.graph.input:
            raise ModelError("it has no graph")
        _check_parts(model)
        _check_functions(model)
    except ModelError as error:
        raise ModelError(f"{path} is not a valid ONNX model: {error}") from None
    _read_inner(model)
    check(model, path)
    return model


def _read(path: Path, most: int) -> bytes:
    """The bytes of a regular file, which is neither empty nor larger than ``most``."""
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder, not an ONNX file")
        size = path.stat().st_size
        if not path.is_file():  # a device or a pipe may never end
            raise ModelError(f"{path} is not a regular file")
        if not size:
            raise ModelError(f"{path} is empty")
        if size > most:
            raise ModelError(f"{path} has {size:,} bytes; more than {most:,} need external data")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _parts(message: Any) -> Iterator[Any]:
    """Every tensor and every string in a protobuf message, wherever it lies."""
    if isinstance(message, TensorProto):
        yield message
        yield message.name
        return
    for descriptor, value in message.ListFields():
        items = value if hasattr(value, "extend") else (value,)
        if descriptor.type == descriptor.TYPE_STRING:
            yield from items
        elif descriptor.message_type is not None:
            for item in items:
                yield from _parts(item)


def _tensors(message: Any) -> Iterator[TensorProto]:
    return (part for part in _parts(message) if isinstance(part, TensorProto))


def _check_parts(model: Model) -> None:
    """Refuse names that are no text, and tensors whose type, shape and bytes do not fit together.

    External data has to lie in regular files of the model's folder, links resolved.
    """
    for tensor in _parts(model.proto):
        if isinstance(tensor, bytes):  # which protobuf gives for what is no UTF-8
            raise ModelError(f"a name in it is no text: {tensor!r}")
        if isinstance(tensor, str):
            continue
        if tensor.data_type not in DATA_TYPES:
            raise ModelError(f"the tensor {tensor.name!r} is of no known type")
        if len(tensor.dims) > MOST_DIMENSIONS or any(size < 0 for size in tensor.dims):
            raise ModelError(f"the tensor {tensor.name!r} has no possible shape")
        if prod(max(size, 1) for size in tensor.dims) >= LARGEST_TENSOR:  # zeros do not help
            raise ModelError(f"the tensor {tensor.name!r} is too large: {list(tensor.dims)}")
        if external_data_helper.uses_external_data(tensor):
            _check_external(model, tensor)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != _nbytes(tensor):
            raise ModelError(
                f"the tensor {tensor.name!r} has {len(tensor.raw_data):,} bytes "
                f"instead of {_nbytes(tensor):,}"
            )


def _check_external(model: Model, tensor: TensorProto) -> None:
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    numbers = [given.get("offset", "0"), given.get("length", str(_nbytes(tensor)))]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ModelError(f"the tensor {tensor.name!r} has no possible offset or length")
    offset, length = map(int, numbers)
    if length != _nbytes(tensor):
        raise ModelError(
            f"the tensor {tensor.name!r} has {length:,} bytes instead of {_nbytes(tensor):,}"
        )
    file = model.folder / location.replace("\0", "")  # which no file has in its name
    try:
        inside = file.resolve().is_relative_to(model.folder.resolve())
        size = file.stat().st_size if file.is_file() else None
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise ModelError(f"its external data cannot be read: {_line(error)}") from None
    if not inside:
        raise ModelError(f"its external data {location!r} lies outside its folder")
    if file.is_symlink():  # which onnx does not read
        raise ModelError(f"its external data {location!r} is a link; put the file in its place")
    if size is None:
        raise ModelError(f"its external data {location!r} is missing")
    if size < offset + length:
        raise ModelError(f"its external data {location!r} is truncated")


def _check_functions(model: Model) -> None:
    """Refuse functions that call themselves, or that make too large a graph in full."""

    def called(node: NodeProto) -> tuple[str, str, str]:
        return node.domain, node.op_type, node.overload

    calls = {
        (f.domain, f.name, f.overload): Counter(called(node) for _, node in walk(f))
        for f in model.proto.functions
    }
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            within = calls.get(key, {})
            sizes[key] = 1 + sum(sizes[other] * count for other, count in within.items())
    except CycleError:
        raise ModelError("a function in it calls itself") from None
    total = sum(sizes.get(called(node), 1) for _, node in walk(model.graph)) if calls else 0
    if total > LARGEST_GRAPH:
        raise ModelError(f"with its functions written out it has {total:,} nodes")


def _read_inner(model: Model) -> None:
    """Bring external data into the file, in place, but that of the main graph's initializers."""
    graph, proto = model.graph, model.proto
    others = *graph.node, *graph.sparse_initializer, *proto.functions, *proto.training_info
    for tensor in (tensor for message in others for tensor in _tensors(message)):
        if external_data_helper.uses_external_data(tensor):
            tensor.CopyFrom(numpy_helper.from_array(model.value(tensor), tensor.name))


def check(model: Model, path: str | os.PathLike[str] = "the model") -> None:
    """Run onnx.checker; large weights count as inputs, so that none of them is copied.

    Raises:
        ModelError: the model is invalid.
    """
    proto = _shell(model)
    known = {value.name for value in proto.graph.input}
    for tensor in model.graph.initializer:
        if not _is_heavy(tensor):
            proto.graph.initializer.append(tensor)
        elif tensor.name not in known:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(value)
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError(f"{path} is not a valid ONNX model: {_line(error)}") from None


def _is_heavy(tensor: TensorProto) -> bool:
    outside = external_data_helper.uses_external_data(tensor)
    return outside or len(tensor.raw_data) >= DETACHED_BYTES


def _shell(model: Model) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    result = onnx.ModelProto()
    for descriptor, value in model.proto.ListFields():
        if descriptor.name != "graph":
            _assign(result, descriptor.name, value)
    for descriptor, value in model.graph.ListFields():
        if descriptor.name != "initializer":
            _assign(result.graph, descriptor.name, value)
    return result


def save(model: Model, path: str | os.PathLike[str], external: bool = False) -> list[Path]:
    """Write the model atomically and return the files written.

    External data of the source is copied beside the model, into one file under a relative name
    that depends on what it holds: so the old model keeps its own until the new one takes its
    place, and the old data is removed after that.  ``external`` moves all weights there, as does
    a model too large for one file.

    Raises:
        ModelError: it cannot be written; what was there before stays.
    """
    path = Path(path)
    any_external = any(map(external_data_helper.uses_external_data, model.graph.initializer))
    external = external or model.proto.ByteSize() > LARGEST_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            files = []
            if external or any_external:
                model, data = _externalised(model, Path(scratch, path.name), external)
                files.append(data)
            file = Path(scratch, path.name)
            with file.open("wb") as stream:
                stream.write(model.proto.SerializeToString(deterministic=True))
                _to_disk(stream)
            files.append(file)
            mode = 0o666 & ~_umask()
            for written in files:
                written.chmod(mode)
            with _alone_in(path.parent):
                before = _own_data(path)
                result = [written.replace(path.parent / written.name) for written in files]
                for old in before.difference(result):
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error}") from None
    return result


def _to_disk(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time replace files there; where nothing can be locked, any."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which unlocks it, as the end of the process does


def _own_data(path: Path) -> set[Path]:
    """The data files of the model that is there, as far as `save` named them."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    if not any(name.fullmatch(file) for file in os.listdir(path.parent)):
        return set()
    old = Model(onnx.ModelProto(), path.parent)
    with suppress(DecodeError, ModelError):
        old.proto.ParseFromString(_read(path, LARGEST_FILE))
    return {file for file in old.data_files if name.fullmatch(_name(file, path.parent))}


def _name(file: Path, folder: Path) -> str:
    """The name of a file of this folder, else nothing."""
    return file.name if file.parent == folder else ""


def _externalised(model: Model, beside: Path, everything: bool) -> tuple[Model, Path]:
    """A copy whose large weights lie in a file beside this one, and that file."""
    result = model.copy()
    moved: list[tuple[TensorProto, int, int]] = []
    file = beside.with_name("data")
    with file.open("wb") as stream:
        for tensor in result.graph.initializer:
            outside = external_data_helper.uses_external_data(tensor)
            if not outside and not (everything and tensor.ByteSize() > 1024):
                continue
            stream.write(b"\0" * (-stream.tell() % 64))
            offset = stream.tell()
            if outside:
                info = external_data_helper.ExternalDataInfo(tensor)
                with (model.folder / info.location).open("rb") as source:
                    source.seek(info.offset or 0)
                    _copy(source, stream, _nbytes(tensor))
            else:
                if not tensor.HasField("raw_data"):
                    tensor.CopyFrom(numpy_helper.from_array(model.value(tensor), tensor.name))
                stream.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            moved.append((tensor, offset, stream.tell() - offset))
        _to_disk(stream)
    named = file.rename(beside.with_name(f"{beside.name}.{sha256(file)[:16]}.data"))
    for tensor, offset, length in moved:
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": named.name, "offset": offset, "length": length}.items():
            tensor.external_data.add(key=key, value=str(value))
    return result, named


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    while length:
        piece = source.read(min(length, 1 << 24))
        if not piece:
            raise ModelError("the external data is truncated")
        target.write(piece)
        length -= len(piece)


def sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(model: Model) -> str:
    """SHA-256 of a model, its external data included."""
    found = hashlib.sha256(model.proto.SerializeToString(deterministic=True))
    for path in sorted(model.data_files):
        found.update(sha256(path).encode())
    return found.hexdigest()


def read_tensor(path: Path) -> Array:
    """A TensorProto file, as the ``test_data_set_*`` folders hold them."""
    tensor = TensorProto()
    try:
        tensor.ParseFromString(_read(path, LARGEST_FILE))
        if external_data_helper.uses_external_data(tensor):
            raise ModelError(f"{path} holds no values, only the name of another file")
        return numpy_helper.to_array(tensor)
    except ModelError:
        raise
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not an ONNX tensor: {_line(error)}") from None


# ------------------------------------------------------------------------------------- walking


def walk(
    graph: onnx.GraphProto | onnx.FunctionProto, scope: str = ""
) -> Iterator[tuple[str, NodeProto]]:
    """Every node with the path of the body it lies in: ``""`` for the main graph."""
    for node in graph.node:
        yield scope, node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    yield from walk(body, f"{scope}{node.name or node.op_type}/{attribute.name}/")


def _bodies(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for _, node in walk(graph):
        for attribute in node.attribute:
            yield from (body for body in (attribute.g, *attribute.graphs) if body.node)


def reads(node: NodeProto) -> set[str]:
    """Names of the tensors that a node reads, its bodies included."""
    found = set(node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                found |= reads(inner)
            found |= {output.name for output in body.output}
    return found - {""}


def find_layers(
    model: Model, only: Container[str] | None = None
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers that can be compressed, and for every other linear node the reason why not.

    Args:
        only: look at these nodes alone.
    """
    layers: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}  # what is read and how -> the first layer to read it
    for name, node in zip(model.keys, model.graph.node, strict=True):
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            continue
        if only is not None and name not in only:
            continue
        try:
            layer = _layer(model, name, node)
        except _SkippedError as reason:
            skipped[name] = str(reason)
            continue
        except ModelError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError):
            skipped[name] = "its weight and its attributes do not belong together"
            continue
        key = (_weight_name(model, node), layer.op_type, *map(str, _view_of(node, layer)))
        layers[name] = _shared(layer, first.setdefault(key, name), layers)
    for scope, node in walk(model.graph):
        if scope and node.op_type in OPERATORS:
            skipped[f"{scope}{node.name or node.output[0]}"] = "it lies in the body of a node"
    for function in model.proto.functions:
        for node in function.node:
            if node.op_type in OPERATORS:
                key = f"{function.name}/{node.name or node.output[0]}"
                skipped[key] = "it lies in a local function"
    return layers, skipped


def find_constants(model: Model, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Large constants that are no layer's weight, by name: embeddings, recurrent weights, ...

    Their rows are seen as those of a weight ``(rows, length of the last axis)``.
    """
    nodes = dict(zip(model.keys, model.graph.node, strict=True))
    used = {_weight_name(model, nodes[name]) for name in layers}
    used |= {output.name for output in model.graph.output}
    taken = {*model.keys, *layers}
    found = {}
    for name, tensor in model.constants.items():
        size, rank = prod(tensor.dims), len(tensor.dims)
        if name in used or name in taken or rank < 2 or size < LARGE or tensor.dims[-1] < 2:
            continue
        if tensor.data_type not in FLOATS or _overridable(model, name):
            continue
        value = model.read(name)
        flat = np.ascontiguousarray(value.reshape(-1, value.shape[-1]))
        largest = np.abs(value.astype(np.float32)).max()
        if not model.consumers[name] or len(flat) < 2 or not largest < LARGEST:
            continue  # infinities and their like are masks
        found[name] = Layer(name, "Constant", flat, None, {"shape": value.shape}, name)
    return found


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """A copy in which these constants have other values."""
    result = model.copy()
    tensors = [*result.graph.initializer, *(t for n in result.graph.node for t in _given(n))]
    names = [*model.initializers, *(n.output[0] for n in model.graph.node for _ in _given(n))]
    for name, tensor in zip(names, tensors, strict=True):
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], tensor.name))
    return Model(result.proto, result.folder)


def _given(node: NodeProto) -> list[TensorProto]:
    """The tensor of a Constant node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return []
    return [a.t for a in node.attribute if a.name == "value"]


class _SkippedError(Exception):
    """Completes the sentence "layer X was skipped: ..."."""


def _shared(layer: Layer, first: str, layers: Mapping[str, Layer]) -> Layer:
    weight = layers[first].weight if first in layers else layer.weight
    return Layer(layer.name, layer.op_type, weight, layer.bias, layer.attributes, first)


def _view_of(node: NodeProto, layer: Layer) -> tuple[Any, ...]:
    attributes = _attributes(node) | {"left": layer.attributes.get("left")}
    return tuple(attributes.get(key) for key in ("group", "transB", "alpha", "left"))


def layer_input(node: NodeProto, layer: Layer) -> str:
    """The name of the tensor that a layer multiplies with its weight."""
    return node.input[1 if layer.attributes.get("left") else 0]


def _weight_name(model: Model, node: NodeProto) -> str:
    left = node.op_type == "MatMul" and node.input[1] not in model.constants
    return node.input[0 if left else 1]


def _layer(model: Model, name: str, node: NodeProto) -> Layer:
    tensor = _weight_name(model, node)
    if tensor not in model.constants:
        raise _SkippedError("its weight is computed while the model runs")
    if _overridable(model, tensor):
        raise _SkippedError("its weight is a graph input, which a caller may override")
    if model.constants[tensor].data_type not in FLOATS:
        raise _SkippedError(f"its weight is of type {_type_name(model.constants[tensor])}")
    weight, attributes = model.read(tensor), _attributes(node)
    if not weight.size or not np.isfinite(weight.astype(np.float32)).all():
        raise _SkippedError("its weight is empty or not finite")
    flat = node.op_type in ("Gemm", "MatMul")
    if weight.ndim != 2 if flat else weight.ndim < 3:
        wanted = "2" if flat else "3 or more"
        raise _SkippedError(f"its weight has {weight.ndim} dimensions instead of {wanted}")
    if node.op_type == "MatMul":
        left = tensor == node.input[0] and node.input[1] not in model.constants
        if left:
            return Layer(name, "MatMul", weight, attributes={"left": 1})
        return Layer(name, "MatMul", np.ascontiguousarray(weight.T))
    bias = _bias(model, node, attributes)
    if node.op_type == "Gemm":
        weight = weight if attributes.get("transB") else weight.T
        alpha = attributes.get("alpha", 1.0)
        weight = np.ascontiguousarray(weight * np.asarray(alpha, weight.dtype))
        kept = {"transA": attributes.get("transA", 0), "beta": attributes.get("beta", 1.0)}
        return Layer(name, "Gemm", weight, bias, kept)
    if node.op_type == "ConvTranspose":
        groups = attributes.get("group", 1)
        inputs, out, *kernel = weight.shape
        split = weight.reshape(groups, inputs // groups, out, *kernel).swapaxes(1, 2)
        weight = np.ascontiguousarray(split.reshape(-1, inputs // groups, *kernel))
    kept = {key: value for key, value in attributes.items() if key != "kernel_shape"}
    return Layer(name, node.op_type, weight, bias, kept)


def _overridable(model: Model, tensor: str) -> bool:
    """Whether a caller may give a tensor instead of the initializer."""
    given = any(tensor == value.name for value in model.graph.input)
    return given and model.proto.ir_version >= 4


def _bias(model: Model, node: NodeProto, attributes: Mapping[str, Any]) -> Any:
    """The constant bias as ``(out,)``, the name of one that is no constant, or None."""
    if len(node.input) < 3 or not node.input[2]:
        return None
    if node.input[2] not in model.constants or _overridable(model, node.input[2]):
        return node.input[2]
    bias = model.read(node.input[2])
    if node.op_type != "Gemm":
        return bias
    weight = model.constants[node.input[1]]
    out = weight.dims[0 if attributes.get("transB") else 1]
    if bias.shape not in ((), (1,), (out,), (1, 1), (1, out)):
        return node.input[2]
    beta = np.asarray(attributes.get("beta", 1.0), bias.dtype)
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1) * beta, (out,)))


def _attributes(node: NodeProto) -> dict[str, Any]:
    result = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        result[attribute.name] = (
            list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        )
    return result


@dataclass(frozen=True, eq=False)
class Operation:
    """A node in plain Python.

    Attributes:
        op_type: with the domain before it where that is not ONNX's own.
        inputs: names; an empty one stands for an input that is left out.
        attributes: tensors as arrays, types as numpy names them; bodies are left out.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def operations(model: Model) -> list[Operation]:
    """The nodes of the main graph, in order."""
    return [
        Operation(
            node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}",
            tuple(node.input),
            tuple(node.output),
            {key: _plain(model, key, value) for key, value in _attributes(node).items()},
        )
        for node in model.graph.node
    ]


def _plain(model: Model, key: str, value: Any) -> Any:
    if key == "to":
        return onnx.helper.tensor_dtype_to_np_dtype(value).name
    if isinstance(value, TensorProto):
        return model.value(value)
    return None if isinstance(value, onnx.GraphProto) else value


# ------------------------------------------------------------------------------------- passes


Declared = tuple[str, Any, list[int | str | None] | None]  # name, dtype, shape; None is open


def declared_inputs(model: Model) -> list[Declared]:
    """What the model declares of every input that a caller must give."""
    given = [value for value in model.graph.input if value.name not in model.initializers]
    for value in given:
        if not value.type.tensor_type.elem_type:
            raise ModelError(f"the input {value.name!r} is no tensor")
    return list(map(_declared, given))


def declared_outputs(model: Model) -> list[Declared]:
    """What the model declares of its outputs; the dtype of what is no tensor is object."""
    return list(map(_declared, model.graph.output))


def _declared(value: onnx.ValueInfoProto) -> Declared:
    kind = value.type.tensor_type
    if kind.elem_type and kind.elem_type not in DATA_TYPES:
        raise ModelError(f"{value.name!r} is of no known type")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else object
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    return value.name, np.dtype(dtype), dims if kind.HasField("shape") else None


def linear_nodes(model: Model) -> dict[str, NodeProto]:
    """The Conv, ConvTranspose, Gemm and MatMul nodes of the main graph that run every time.

    Those that compute with nothing but constants run once, when the model is loaded.
    """
    found, folded = {}, set(model.constants)
    for key, node in zip(model.keys, model.graph.node, strict=True):
        if node.domain in ("", "ai.onnx") and reads(node) and reads(node) <= folded:
            folded.update(node.output)
        elif node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
            found[key] = node
    return found


def needs_float32(model: Model) -> bool:
    """Whether the model has types for which onnxruntime's CPU kernels are missing."""
    wide = (TensorProto.BFLOAT16, TensorProto.DOUBLE)
    types = {tensor.data_type for tensor in model.constants.values()}
    return bool(types & set(wide))


def has_bfloat16(model: Model) -> bool:
    """Whether some constant is a bfloat16, whose rounding the float32 twin leaves out."""
    return any(t.data_type == TensorProto.BFLOAT16 for t in model.constants.values())


def name_nodes(model: Model) -> Model:
    """Give every unnamed node of the main graph the unique name that it has in reports."""
    result = model.copy()
    for node, key in zip(result.graph.node, model.keys, strict=True):
        node.name = key
    return result


def drop_dead(model: Model, names: Iterable[str]) -> Model:
    """Remove those of the named constants that nothing reads any more."""
    result = model.copy()
    _drop(result, set(names))
    return result


def fold_batchnorm(model: Model) -> Model:
    """Fold every BatchNormalization that follows a Conv, its only reader, into that Conv."""
    result = model.copy()
    producers = {node.output[0]: node for node in result.graph.node if node.output}
    for norm in list(result.graph.node):
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or result.consumers[conv.output[0]] != 1:
            continue
        sources = [*conv.input[1:], *norm.input[1:]]
        if any(n not in result.initializers or _overridable(result, n) for n in sources):
            continue
        if len(norm.output) > 1:
            continue
        if result.consumers[conv.input[1]] != 1:
            continue
        weight, *bias = [result.read(name) for name in conv.input[1:]]
        scale, shift, mean, variance = (result.read(name) for name in norm.input[1:5])
        gain = scale / np.sqrt(variance + _attributes(norm).get("epsilon", 1e-5))
        shift = shift + gain * ((bias[0] if bias else 0) - mean)
        weight = (weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))).astype(weight.dtype)
        name = _unique(f"{conv.input[1]}_folded", result.names)
        result.names.update((name, f"{name}_bias"))
        _append(result, name, weight)
        _append(result, f"{name}_bias", shift.astype(weight.dtype))
        conv.input[:] = [conv.input[0], name, f"{name}_bias"]
        between, conv.output[0] = conv.output[0], norm.output[0]
        result.graph.node.remove(norm)
        result = Model(result.proto, result.folder)
        _drop(result, {*sources, between})
        result = Model(result.proto, result.folder)
        producers = {node.output[0]: node for node in result.graph.node if node.output}
    return result


def fold_constants(model: Model, run: Callable[[Model], Sequence[Any]]) -> Model:
    """Store what nodes compute from constants alone, where it is float and large.

    Every such tensor of `LARGE` entries or more that is read while the model runs, or is an output,
    becomes an initializer of the same name.  What served nothing but its computation is removed.

    Args:
        run: the outputs of a model that takes no inputs; called for one tensor at a time.
    """
    result = model.copy()
    nodes, makers = model.graph.node, _constant_makers(model)
    wanted = _read_while_running(model, makers)
    folded: set[int] = set()
    used: set[int] = set()
    for index in sorted({makers[name] for name in wanted if name in makers}):
        if nodes[index].op_type == "Constant":
            continue
        chain = _ancestors(nodes, index, makers)
        names = [name for name in nodes[index].output if model.consumers[name]]
        values = _computed(model, [nodes[i] for i in chain], names, run)
        if not any(name in wanted and _is_large(value) for name, value in values.items()):
            continue
        for name, value in values.items():  # all of them: the node goes as a whole
            _append(result, name, value)
        folded.add(index)
        used.update(chain)
        del values
    _remove_chains(result, folded, used)
    return Model(result.proto, result.folder)


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


def _read_while_running(model: Model, makers: Mapping[str, int]) -> set[str]:
    """Names of the outputs, and of all that is read by nodes which are no part of ``makers``."""
    constant = set(makers.values())
    found = {output.name for output in model.graph.output}
    for index, node in enumerate(model.graph.node):
        if index not in constant:
            found |= reads(node)
    return found


def _ancestors(nodes: Sequence[NodeProto], last: int, makers: Mapping[str, int]) -> list[int]:
    """A node and all that compute what it reads, in the order of the graph."""
    found, open_ = {last}, [last]
    while open_:
        sources = {makers[name] for name in nodes[open_.pop()].input if name in makers}
        open_ += sources - found
        found |= sources
    return sorted(found)


def _computed(
    model: Model,
    nodes: Sequence[NodeProto],
    names: Sequence[str],
    run: Callable[[Model], Sequence[Any]],
) -> dict[str, Array]:
    """The values of tensors that these nodes compute; empty where one is no array or none float."""
    part = segment(model, nodes, {}, names)
    kinds = _output_types(part)
    if all(kind and kind not in FLOATS for kind in kinds):
        return {}
    for output, kind in zip(part.graph.output, kinds, strict=True):
        if kind == TensorProto.BFLOAT16:  # arrays of it do not come out of onnxruntime
            name, output.name = output.name, _unique(f"{output.name}/float", part.names)
            cast = onnx.helper.make_node("Cast", [name], [output.name], to=TensorProto.FLOAT)
            part.graph.node.append(cast)
    values = {}
    for name, kind, value in zip(names, kinds, run(part), strict=True):
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return {}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind) if kind else value.dtype
        values[name] = value.astype(dtype, copy=False)  # a float32 twin may have run
    return values


def _output_types(model: Model) -> list[int]:
    """The element types of the outputs as far as onnx can tell; 0 is unknown, or no tensor."""
    inferred = onnx.shape_inference.infer_shapes(detached(model)[0])
    return [output.type.tensor_type.elem_type for output in inferred.graph.output]


def _is_large(value: Array) -> bool:
    return value.size >= LARGE and onnx.helper.np_dtype_to_tensor_dtype(value.dtype) in FLOATS


def _remove_chains(model: Model, folded: set[int], used: set[int]) -> None:
    """Remove the folded nodes, and of those that led to them what nothing else needs, in place."""
    graph, left = model.graph, model.consumers.copy()
    touched: set[str] = set()
    for index in sorted(used, reverse=True):
        node = graph.node[index]
        if index in folded or not any(left[name] for name in node.output):
            left.subtract(node.input)
            touched.update(node.input, node.output)
            del graph.node[index]
    _drop(Model(model.proto, model.folder), touched)


def rewrite(
    model: Model,
    weights: Mapping[str, CompressedWeight],
    biases: Mapping[str, Array] | None = None,
    failed: dict[str, str] | None = None,
) -> Model:
    """A copy in which every named layer is replaced by the subgraph of its compressed weight.

    Args:
        weights: layer name -> what to emit; layers that share a weight share the stored arrays.
        biases: layer name -> a new bias ``(out,)``.
        failed: filled with layer -> reason for layers that could not be replaced and stay as
            they are; without it the first failure is raised.
    """
    layers, _ = find_layers(model, weights)
    constants = {n: w for n, w in weights.items() if n in model.constants and n not in layers}
    _check_names(model, set(weights) - set(constants))
    result = model.copy()
    store = _Constants(result)
    nodes = _restored(model, constants, store, failed)
    freed: set[str] = set()
    for key, node in zip(model.keys, model.graph.node, strict=True):
        if key not in weights or key not in layers:
            if not store.replaced & set(node.output):
                nodes.append(node)
            continue
        layer = layers[key]
        bias = (biases or {}).get(key, layer.bias)
        if isinstance(bias, Array):
            bias = bias.astype(layer.weight.dtype)
        layer = Layer(key, layer.op_type, layer.weight, bias, layer.attributes, layer.shared)
        try:
            fragment = _fragment(node, key, layer, weights[key], store)
        except Exception as error:
            if failed is None:
                raise
            failed[key] = f"it could not be rewritten: {_line(error)}"
            nodes.append(node)
            continue
        nodes += fragment
        freed.update(node.input[1:] if node.input[1] in model.constants else node.input[:1])
    store.commit(nodes)
    copies = [_copied(node) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    result = Model(result.proto, result.folder)
    _drop(result, freed)
    return Model(result.proto, result.folder)


def _restored(
    model: Model,
    weights: Mapping[str, CompressedWeight],
    store: _Constants,
    failed: dict[str, str] | None,
) -> list[NodeProto]:
    """Nodes that compute the named constants; what they take the place of is no more."""
    nodes: list[NodeProto] = []
    found = find_constants(model, {}) if weights else {}
    for name, weight in weights.items():
        try:
            made = _fragment(NodeProto(output=[name]), name, found[name], weight, store)
        except Exception as error:
            if failed is None:
                raise
            failed[name] = f"it could not be rewritten: {_line(error)}"
            continue
        nodes += made
        store.replaced.add(name)
    return nodes


def _is_wide(array: Array) -> bool:
    """Whether an array is of a type for which float32 twins exist."""
    return array.dtype == np.float64 or array.dtype.name == "bfloat16"


def _check_names(model: Model, names: Iterable[str]) -> None:
    unknown = set(names) - set(model.keys)
    if unknown:
        raise KeyError(f"the model has no layer {min(unknown)!r}")


def _copied(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _fragment(
    node: NodeProto, key: str, layer: Layer, weight: CompressedWeight, store: _Constants
) -> list[NodeProto]:
    """The nodes that replace a node; the last one keeps its name, output and metadata."""
    if layer.weight.dtype == np.float32 and any(map(_is_wide, weight.arrays())):
        weight = weight.astype(np.float32)  # the model is a twin of one in that type
    op = Emitter(key, store)
    left = layer.op_type == "MatMul" and layer.attributes.get("left")
    x = gs.Variable(node.input[1 if left else 0]) if node.input else None
    y = weight.emit(op, x, layer)
    y.name = node.output[0]
    graph = gs.Graph(nodes=op.nodes, inputs=[x] if x else [], outputs=[y], opset=store.opset)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = list(gs.export_onnx(graph, do_type_check=False).graph.node)
    for made in nodes:
        if made.op_type == "Gemm" and len(made.input) == 2 and store.opset < 11:
            made.input.append(store.add(np.zeros(1, layer.weight.dtype), ""))  # not optional there
        if made.op_type == "Slice" and store.opset < 10:  # its ranges are attributes there
            _attribute_slice(made, store)
    last = nodes[-1]
    last.name = node.name
    last.doc_string = node.doc_string
    last.metadata_props.extend(node.metadata_props)
    return nodes


def _attribute_slice(node: NodeProto, store: _Constants) -> None:
    """A Slice of constant ranges as it was before opset 10."""
    for key, name in zip(("starts", "ends", "axes"), node.input[1:], strict=False):
        node.attribute.append(onnx.helper.make_attribute(key, store.arrays[name].tolist()))
    del node.input[1:]


def overhead(model: Model, layer: Layer, weight: CompressedWeight) -> int:
    """Bytes of nodes and headers by which the file grows for a layer, stored arrays apart."""
    nodes = dict(zip(model.keys, model.graph.node, strict=True))
    constant = layer.op_type == "Constant"
    node = NodeProto(output=[layer.name]) if constant else nodes[layer.name]
    store = _Constants(model)
    made = _fragment(node, layer.name, layer, weight, store)
    given = sum(HEADER + len(name) for name, a in store.arrays.items() if a.size > SMALL)
    tensor = layer.name if constant else _weight_name(model, node)
    freed = HEADER + len(tensor) + node.ByteSize()
    return sum(n.ByteSize() + 3 for n in made) + given - freed


class Emitter:
    """Adds nodes to a fragment; every ONNX operator is a method: ``y = op.Conv(x, weight)``.

    Arrays become initializers, shared by value: an array emitted twice is stored once.
    """

    def __init__(self, prefix: str, store: _Constants) -> None:
        self.nodes: list[gs.Node] = []
        self._constant: dict[str, gs.Variable] = {}
        self._prefix = prefix
        self._store = store

    def __getattr__(self, op_type: str) -> Callable[..., gs.Variable]:
        def emit(*inputs: gs.Tensor | Array | str, **attributes: object) -> gs.Variable:
            constant = all(isinstance(x, Array) or self._folds(x) for x in inputs)
            tensors: list[Any] = [self._tensor(x, constant) for x in inputs]
            name = self._store.unique("" if constant else f"{self._prefix}/{op_type}")
            output = gs.Variable(name if constant else f"{name}_out")
            if constant:  # it folds away when the model is loaded: no name needs to be read
                self._constant[output.name] = output
                name = ""
            kind: Any = attributes.get("to", 0)
            if not isinstance(kind, int):  # a type as numpy names it
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


class _Constants:
    """New initializers of a model, each array once, under names that nothing else has."""

    def __init__(self, model: Model) -> None:
        self.opset = model.opset
        self._model = model
        self._taken = set(model.names)
        self._known: dict[tuple[Any, ...], list[str]] = {}
        self.arrays: dict[str, Array] = {}
        self.replaced: set[str] = set()  # constants that nodes compute instead
        self._count = 0

    def unique(self, base: str) -> str:
        """A name that nothing else has: a short one where nothing is to be said."""
        while not base:
            self._count += 1
            if f"~{self._count:x}" not in self._taken:
                base = f"~{self._count:x}"
        name = _unique(base, self._taken)
        self._taken.add(name)
        return name

    def add(self, array: Array, base: str) -> str:
        small = array.size <= SMALL
        alike = (array.flat[:64].tobytes(), array.dtype, array.shape)
        known = self._known.setdefault(alike, [])
        for name in known:
            if small or np.array_equal(self.arrays[name], array):
                return name
        known.append(self.unique("" if small else base))
        self.arrays[known[-1]] = array
        return known[-1]

    def commit(self, nodes: Iterable[NodeProto]) -> None:
        """Store what these nodes read; a fragment that failed half way leaves nothing."""
        graph = self._model.graph
        _keep(graph.initializer, lambda tensor: tensor.name not in self.replaced)
        _keep(graph.input, lambda value: value.name not in self.replaced)
        used = {name for node in nodes for name in node.input}
        for name, array in self.arrays.items():
            if name in used:
                _append(self._model, name, array)


def _append(model: Model, name: str, array: Array) -> None:
    """A new initializer, in place."""
    tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)  # scalars stay scalars
    model.graph.initializer.append(tensor)
    if model.proto.ir_version < 4:  # there, every initializer is an input too
        value = onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape)
        model.graph.input.append(value)


def _drop(model: Model, names: set[str]) -> None:
    """Remove constants that nothing reads any more, in place."""
    dead = {name for name in names if name and not model.consumers[name]}
    graph = model.graph
    _keep(graph.initializer, lambda tensor: tensor.name not in dead)
    _keep(graph.input, lambda value: value.name not in dead or model.proto.ir_version >= 4)
    _keep(graph.value_info, lambda value: value.name not in dead)
    _keep(graph.quantization_annotation, lambda note: note.tensor_name not in dead)
    _keep(graph.node, lambda node: node.op_type != "Constant" or node.output[0] not in dead)


def _keep(items: Any, wanted: Callable[[Any], bool]) -> None:
    for index in reversed([i for i, item in enumerate(items) if not wanted(item)]):
        del items[index]


def annotate(model: Model, properties: Mapping[str, str]) -> Model:
    """Set entries of the model's metadata_props."""
    result = model.copy()
    _keep(result.proto.metadata_props, lambda entry: entry.key not in properties)
    for key, value in properties.items():
        result.proto.metadata_props.add(key=key, value=value)
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
        outputs[name] = _unique(f"{name}/shape", result.names)
        result.names.add(outputs[name])
        result.graph.node.append(onnx.helper.make_node("Shape", [name], [outputs[name]]))
        result.graph.output.add(name=outputs[name])
    return result, outputs


def detached(model: Model) -> tuple[bytes, dict[str, Array]]:
    """The serialized model without its large weights, and these, as views of the model's memory."""
    result = _shell(model)
    weights: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        packed = len(tensor.raw_data) < prod(tensor.dims) * dtype.itemsize
        if len(tensor.raw_data) < DETACHED_BYTES or packed:
            result.graph.initializer.append(tensor)
            continue
        weights[tensor.name] = np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
        stub = result.graph.initializer.add(name=tensor.name, data_type=tensor.data_type)
        stub.dims.extend(tensor.dims)
        stub.data_location = TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="memory")
    return result.SerializeToString(), weights


def _assign(message: Any, name: str, value: Any) -> None:
    field = getattr(message, name)
    if hasattr(field, "extend"):
        field.extend(value)
    elif hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    else:
        setattr(message, name, value)


def segment(
    model: Model, nodes: Sequence[NodeProto], inputs: Mapping[str, Array], outputs: Sequence[str]
) -> Model:
    """A model of just these nodes, with the constants that they read."""
    result = onnx.ModelProto()
    result.ir_version = max(model.proto.ir_version, 4)
    result.opset_import.extend(model.proto.opset_import)
    result.functions.extend(model.proto.functions)
    graph = result.graph
    graph.name = "segment"
    graph.node.extend(nodes)
    needed = {name for node in nodes for name in reads(node)}
    for name, value in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim))
    made = {name for node in nodes for name in node.output}
    for name, tensor in model.constants.items():
        if name in needed and name not in inputs and name not in made:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
    graph.sparse_initializer.extend(
        sparse for sparse in model.graph.sparse_initializer if sparse.values.name in needed
    )
    for name in outputs:
        graph.output.add(name=name)
    return Model(result, model.folder)


def as_float32(model: Model) -> Model:
    """A twin that computes in float32 where the model computes in bfloat16 or float64."""
    result = model.copy()
    _retype(result.proto, model)
    return Model(result.proto, result.folder)


def _retype(message: Any, model: Model) -> None:
    """Turn every bfloat16 and float64 of a protobuf message into float32, in place."""
    wide = (TensorProto.BFLOAT16, TensorProto.DOUBLE)
    if isinstance(message, TensorProto):
        if message.data_type in wide:
            value = model.value(message).astype(np.float32)
            message.CopyFrom(numpy_helper.from_array(value, message.name))
        return
    if isinstance(message, onnx.TypeProto.Tensor) and message.elem_type in wide:
        message.elem_type = TensorProto.FLOAT
    if isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype"):
        message.i = TensorProto.FLOAT if message.i in wide else message.i
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for item in value if not hasattr(value, "ListFields") else (value,):
            _retype(item, model)


def _unique(base: str, taken: set[str]) -> str:
    if base not in taken:
        return base
    number = 1
    while f"{base}_{number}" in taken:
        number += 1
    return f"{base}_{number}"


def _location(tensor: TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def _external_length(tensor: TensorProto) -> int:
    if not external_data_helper.uses_external_data(tensor):
        return 0
    return int(next((e.value for e in tensor.external_data if e.key == "length"), 0)) or (
        _nbytes(tensor)
    )


def _nbytes(tensor: TensorProto) -> int:
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = PACKED.get(TensorProto.DataType.Name(tensor.data_type), 8 * size)
    return (prod(tensor.dims) * bits + 7) // 8


def _type_name(tensor: TensorProto) -> str:
    return TensorProto.DataType.Name(tensor.data_type).lower()


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
