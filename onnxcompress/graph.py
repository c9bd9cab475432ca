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
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import onnx
import onnx.inliner
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
MOST_NODES = 200_000  # that inlining may lead to
ROW = 16  # entries of a constant that make a row, where its last axis is shorter
SMALL = 64  # entries of a constant up to which several layers are likely to share it
HEADER = 16  # bytes of a tensor besides its name and its values, about
DETACHED_BYTES = 4096  # weights from this size are handed to onnxruntime without a copy
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
RANDOM = (  # operators whose result is another one every time
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    *("Multinomial", "Bernoulli", "Dropout"),
)
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # of operators that everybody knows
VIEWS = ("Identity", "Transpose", "Cast", "Reshape", "DequantizeLinear")  # of a constant
LARGEST_FILE = (1 << 31) - 1  # bytes: what protobuf can parse
LARGEST_TENSOR = 1 << 48  # entries
LARGEST_WEIGHT = 1e15  # magnitude with which float32 can compute errors
LARGEST_GRAPH = 1_000_000  # nodes, with local functions written out
MOST_DIMENSIONS = 64  # of a tensor: as in numpy
DATA_TYPES = {*TensorProto.DataType.values()} - {TensorProto.UNDEFINED}
PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2,
          "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}  # bits of one value  # fmt: skip


class ModelError(ValueError):
    """A model that cannot be read, is invalid, or cannot be written; the message is one line."""


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

    What it computes of its graph it keeps: ``replace(model)`` is one that has seen nothing yet.
    """

    proto: onnx.ModelProto
    folder: Path = field(default_factory=Path)
    extensions: tuple[str, ...] = ()

    def copy(self) -> Model:
        copied = onnx.ModelProto()
        copied.CopyFrom(self.proto)
        return replace(self, proto=copied)

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
                for name, tensor in zip(node.output, _given(node), strict=False):
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
        linear = [place for place in self.nodes.values() if _is_linear(place[1])]
        weights = Counter(_weight(self, *place) for place in linear)
        for key, (scope, node) in reversed(self.views.items()):
            if weights[key] and weights[key] == self.consumers[key]:
                weights[scope.key(node.input[0])] += 1
        roots = {_weight_root(self, *place) for place in linear}
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
            return numpy_helper.to_array(tensor, str(self.folder))
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError) as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {_line(error)}") from None

    def view(self) -> gs.Graph:
        """The graph as onnx-graphsurgeon shows it, for walking; changes do not reach the model."""
        return gs.import_onnx(self.copy().proto)


# ------------------------------------------------------------------------------ load and save


def load(path: str | os.PathLike[str], extensions: Sequence[str] = ()) -> Model:
    """Read a model; external data stays on disk until a tensor is asked for.

    Args:
        extensions: libraries of operators that onnxruntime is to know.

    Raises:
        ModelError: the file is missing, no ONNX model, or invalid.
    """
    path = Path(path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(_read(path, LARGEST_FILE))
    except DecodeError:
        raise ModelError(f"{path} is truncated or not an ONNX model") from None
    model = Model(proto, path.absolute().parent, tuple(map(str, extensions)))
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
        (f.domain, f.name, f.overload): Counter(called(node) for node in walk(f))
        for f in model.proto.functions
    }
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            within = calls.get(key, {})
            sizes[key] = 1 + sum(sizes[other] * count for other, count in within.items())
    except CycleError:
        raise ModelError("a function in it calls itself") from None
    total = sum(sizes.get(called(node), 1) for node in walk(model.graph)) if calls else 0
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
    for value in filter(_is_unranked, (*proto.graph.input, *proto.graph.output)):
        value.type.tensor_type.shape.SetInParent()  # onnx.checker asks for some shape
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


def _is_unranked(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return value.type.HasField("tensor_type") and not kind.HasField("shape")


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
        keys.append(key if named and not path else _unique(key, taken))
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
    for key, (scope, node) in model.nodes.items():
        if not _is_linear(node) or (only is not None and key not in only):
            continue
        try:
            layer = _layer(model, key, scope, node)
        except _SkippedError as reason:
            skipped[key] = str(reason)
            continue
        except ModelError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError):
            skipped[key] = "its weight and its attributes do not belong together"
            continue
        found = alike.setdefault(_likeness(layer), [])
        first = next((n for n in found if np.array_equal(layers[n].weight, layer.weight)), key)
        found += [key] if first == key else []
        layers[key] = replace(layer, weight=layers.get(first, layer).weight, shared=first)
    for function in model.proto.functions:
        for node in filter(_is_linear, function.node):
            key = f"{function.name}/{node.name or node.output[0]}"
            skipped[key] = "it lies in a local function"
    return layers, skipped


def _is_linear(node: NodeProto) -> bool:
    return node.op_type in OPERATORS and node.domain in ("", "ai.onnx")


def _likeness(layer: Layer) -> tuple[Any, ...]:
    """What layers have in common that may share a weight."""
    weight, left = layer.weight, layer.attributes.get("left")
    sample = weight.ravel()[:: max(1, weight.size // SMALL)]
    return layer.groups, left, weight.shape, weight.dtype, sample.tobytes()


def find_constants(model: Model, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Large constants that are no layer's weight, by name: embeddings, recurrent weights, ...

    They are seen as weights whose rows are their last axis, or a few of the last ones.
    """
    used = {_weight_root(model, *model.nodes[name]) for name in layers}
    used |= {scope.key(o.name) for scope in model.scopes for o in scope.graph.output}
    taken = {*model.nodes, *layers}
    found = {}
    for key, tensor in model.constants.items():
        size, rank = prod(tensor.dims), len(tensor.dims)
        if key in used or key in taken or rank < 2 or size < LARGE or not model.consumers[key]:
            continue
        if tensor.data_type not in FLOATS:
            continue
        value = model.read(key)
        flat = _rows(value)
        largest = np.abs(value.astype(np.float32)).max()
        if min(flat.shape) < 2 or not largest < LARGEST:
            continue  # infinities and their like are masks
        found[key] = Layer(key, "Constant", flat, None, {"shape": value.shape}, key)
    return found


def _rows(value: Array) -> Array:
    """A matrix whose rows are the last axis, or so many of the last ones as make a row long."""
    axis = value.ndim - 1
    while axis > 1 and prod(value.shape[axis:]) < ROW:
        axis -= 1
    return np.ascontiguousarray(value.reshape(prod(value.shape[:axis]), -1))


def custom_operators(model: Model) -> list[str]:
    """Operators that are neither in the domains that onnxruntime knows nor local functions."""
    local = {(function.domain, function.name) for function in model.proto.functions}
    nodes = [n for part in (model.graph, *model.proto.functions) for n in walk(part)]
    found = {(n.domain, n.op_type) for n in nodes if n.domain not in DOMAINS} - local
    return sorted(map(".".join, found))


def part(model: Model, key: str, inputs: Mapping[str, Array], output: str) -> Model:
    """A model of what computes a tensor of one graph from these tensors and from constants.

    Args:
        key: of any node of that graph.
    """
    chain, scope = [], model.nodes[key][0] if key in model.nodes else model.scopes[0]
    while scope.outer is not None:
        chain, scope = [scope, *chain], scope.outer
    nodes = [node for scope in chain for node in scope.graph.node]
    makers = {name: node for node in [*model.graph.node, *nodes] for name in node.output}
    wanted, open_ = set[int](), [output]
    while open_:
        node = makers.get(open_.pop())
        if node is not None and id(node) not in wanted:
            wanted.add(id(node))
            open_ += reads(node) - inputs.keys()
    nodes = [node for node in [*model.graph.node, *nodes] if id(node) in wanted]
    result = segment(model, nodes, inputs, [output])
    needed = {name for node in nodes for name in reads(node)} - inputs.keys()
    for scope in chain:
        result.graph.initializer.extend(t for t in scope.graph.initializer if t.name in needed)
    return result


def with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """A copy in which these constants have other values."""
    result = model.copy()
    tensors = [*result.graph.initializer, *(t for n in result.graph.node for t in _given(n))]
    names = [*model.initializers, *(n.output[0] for n in model.graph.node for _ in _given(n))]
    for name, tensor in zip(names, tensors, strict=True):
        if name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[name], tensor.name))
    return replace(result)


def _given(node: NodeProto) -> list[TensorProto]:
    """The tensor of a Constant node."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return []
    return [a.t for a in node.attribute if a.name == "value"]


class _SkippedError(Exception):
    """Completes the sentence "layer X was skipped: ..."."""


def layer_input(node: NodeProto, layer: Layer) -> str:
    """The name of the tensor that a layer multiplies with its weight."""
    return node.input[1 if layer.attributes.get("left") else 0]


def _weight(model: Model, scope: Scope, node: NodeProto) -> str:
    """The key of a linear node's weight; of its second factor where none is constant."""
    left = node.op_type == "MatMul" and not model.fixed(scope.key(node.input[1]))
    return scope.key(node.input[0 if left else 1])


def _weight_root(model: Model, scope: Scope, node: NodeProto) -> str:
    """The key of the constant that the weight is made of."""
    key = _weight(model, scope, node)
    while key in model.views:
        scope, node = model.views[key]
        key = scope.key(node.input[0])
    return key


def _layer(model: Model, key: str, scope: Scope, node: NodeProto) -> Layer:
    tensor, root = _weight(model, scope, node), _weight_root(model, scope, node)
    if not model.fixed(tensor):
        raise _SkippedError("its weight is computed while the model runs")
    if {*map(scope.key, node.input[:2])} <= model.quantized:
        raise _SkippedError("it computes in 8 bits: its input and its weight are quantized")
    try:
        weight, attributes = model.read(tensor), _attributes(node)
    except ModelError:
        raise
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise _SkippedError(f"its weight cannot be computed: {_line(error)}") from None
    if onnx.helper.np_dtype_to_tensor_dtype(weight.dtype) not in FLOATS:
        raise _SkippedError(f"its weight is of type {weight.dtype.name}")
    if not weight.size or not np.isfinite(weight.astype(np.float32)).all():
        raise _SkippedError("its weight is empty or not finite")
    if float(np.abs(weight).max()) > LARGEST_WEIGHT:  # which float16 does not hold
        raise _SkippedError("its weight is so large that squares of it overflow")
    if root in model.tied:
        raise _SkippedError(f"other nodes read its weight too: see the constant {root}")
    flat = node.op_type in ("Gemm", "MatMul")
    if weight.ndim != 2 if flat else weight.ndim < 3:
        wanted = "2" if flat else "3 or more"
        raise _SkippedError(f"its weight has {weight.ndim} dimensions instead of {wanted}")
    stored = min(weight.nbytes, _nbytes(model.constants[root]))
    if node.op_type == "MatMul":
        if tensor == scope.key(node.input[0]) and not model.fixed(scope.key(node.input[1])):
            return Layer(key, "MatMul", weight, attributes={"left": 1}, stored=stored)
        return Layer(key, "MatMul", np.ascontiguousarray(weight.T), stored=stored)
    bias = _bias(model, scope, node, weight)
    if node.op_type == "Gemm":
        weight = weight if attributes.get("transB") else weight.T
        alpha = attributes.get("alpha", 1.0)
        weight = np.ascontiguousarray(weight * np.asarray(alpha, weight.dtype))
        kept = {"transA": attributes.get("transA", 0), "beta": attributes.get("beta", 1.0)}
        return Layer(key, "Gemm", weight, bias, kept, stored=stored)
    if node.op_type == "ConvTranspose":
        groups = attributes.get("group", 1)
        inputs, out, *kernel = weight.shape
        split = weight.reshape(groups, inputs // groups, out, *kernel).swapaxes(1, 2)
        weight = np.ascontiguousarray(split.reshape(-1, inputs // groups, *kernel))
    kept = {name: value for name, value in attributes.items() if name != "kernel_shape"}
    return Layer(key, node.op_type, weight, bias, kept, stored=stored)


def _viewed(node: NodeProto, inputs: Sequence[Array]) -> Array:
    """What a node of `VIEWS` makes of its inputs."""
    x, *rest = inputs
    attributes = _attributes(node)
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


def _overridable(model: Model, key: str) -> bool:
    """Whether a caller may give a tensor instead of the initializer."""
    given = any(key == value.name for value in model.graph.input)
    return given and model.proto.ir_version >= 4


def emptied_inputs(before: Model, after: Model) -> list[str]:
    """Inputs with a default in the one model that nothing reads any more in the other."""
    empty = {name for name, tensor in after.initializers.items() if not prod(tensor.dims)}
    given = [value.name for value in before.graph.input]
    return [name for name in given if name in empty and prod(before.initializers[name].dims)]


def _bias(model: Model, scope: Scope, node: NodeProto, weight: Array) -> Any:
    """The constant bias as ``(out,)``, the name of one that is no constant, or None.

    One that a caller may override is none, unless the weight is such a one too.
    """
    if len(node.input) < 3 or not node.input[2]:
        return None
    key, attributes = scope.key(node.input[2]), _attributes(node)
    free = _overridable(model, key) and not _overridable(model, _weight_root(model, scope, node))
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
    """What the model declares of every input that a caller must give; of a sequence, its items."""
    given = [value for value in model.graph.input if value.name not in model.initializers]
    for value in given:
        if not _tensor_type(value.type).elem_type:
            raise ModelError(f"the input {value.name!r} is no tensor")
    return list(map(_declared, given))


def declared_outputs(model: Model) -> list[Declared]:
    """What the model declares of its outputs; the dtype of what is no tensor is object."""
    return list(map(_declared, model.graph.output))


def sequences(model: Model) -> set[str]:
    """The inputs that are sequences of tensors."""
    return {value.name for value in model.graph.input if _is_sequence(value.type)}


def _is_sequence(kind: onnx.TypeProto) -> bool:
    return kind.HasField("sequence_type") or (
        kind.HasField("optional_type") and _is_sequence(kind.optional_type.elem_type)
    )


def _tensor_type(kind: onnx.TypeProto) -> onnx.TypeProto.Tensor:
    """Of a tensor, of what is optional, or of the items of a sequence."""
    for of in ("sequence_type", "optional_type"):
        if kind.HasField(of):
            return _tensor_type(getattr(kind, of).elem_type)
    return kind.tensor_type


def _declared(value: onnx.ValueInfoProto) -> Declared:
    kind = _tensor_type(value.type)
    if kind.elem_type and kind.elem_type not in DATA_TYPES:
        raise ModelError(f"{value.name!r} is of no known type")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else object
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    return value.name, np.dtype(dtype), dims if kind.HasField("shape") else None


def linear_inputs(model: Model, key: str) -> list[str]:
    """The names of what a linear node reads and no constant gives."""
    scope, node = model.nodes[key]
    return [name for name in node.input if name and not model.fixed(scope.key(name))]


def linear_nodes(model: Model) -> dict[str, NodeProto]:
    """The Conv, ConvTranspose, Gemm and MatMul nodes of the main graph that run every time.

    Those that compute with nothing but constants run once, when the model is loaded.
    """
    found, folded = {}, set(model.constants)
    for key, node in zip(model.keys, model.graph.node, strict=True):
        if node.domain in ("", "ai.onnx") and reads(node) and reads(node) <= folded:
            folded.update(node.output)
        elif _is_linear(node):
            found[key] = node
    return found


def inner_nodes(model: Model) -> dict[str, tuple[NodeProto, list[str]]]:
    """The same of the bodies of nodes, each with the keys of what it reads and makes."""
    return {
        key: (node, [*map(scope.key, (*node.input[:2], node.output[0]))])
        for key, (scope, node) in model.nodes.items()
        if scope.outer is not None and _is_linear(node)
    }


def inner_shapes(model: Model, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors in the bodies of nodes, by key, as far as onnx can infer them.

    Args:
        inputs: name -> shape.
    """
    if len(model.scopes) == 1:
        return {}
    stub = onnx.ModelProto()
    stub.ParseFromString(detached(model)[0])
    for value in stub.graph.input:
        if value.name in inputs:
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, inputs[value.name]))
    try:
        inferred = Model(onnx.shape_inference.infer_shapes(stub, data_prop=True))
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        return {}
    shapes = {key: tuple(tensor.dims) for key, tensor in model.constants.items()}
    for scope in inferred.scopes:
        for value in (*scope.graph.input, *scope.graph.value_info, *scope.graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.type.tensor_type.HasField("shape") and all(d.dim_value for d in dims):
                shapes[scope.path + value.name] = tuple(d.dim_value for d in dims)
    return shapes


def needs_float32(model: Model) -> bool:
    """Whether the model has types for which onnxruntime's CPU kernels are missing."""
    wide = (TensorProto.BFLOAT16, TensorProto.DOUBLE)
    types = {tensor.data_type for tensor in model.constants.values()}
    return bool(types & set(wide))


def has_bfloat16(model: Model) -> bool:
    """Whether some constant is a bfloat16, whose rounding the float32 twin leaves out."""
    return any(t.data_type == TensorProto.BFLOAT16 for t in model.constants.values())


def inline_functions(model: Model) -> Model:
    """Put the nodes of local functions that hold layers in the place of the calls.

    Equal constants that several calls bring along are kept once.
    """
    wanted = _functions_with_layers(model)
    if not wanted:
        return model
    given = set(model.constants)
    result = replace(model, proto=onnx.inliner.inline_selected_functions(model.proto, wanted))
    first: dict[bytes, str] = {}
    for node in [n for n in result.graph.node if _given(n) and n.output[0] not in given]:
        content = node.attribute[0].SerializeToString()
        name = first.setdefault(content, node.output[0])
        if name != node.output[0] and len(content) > SMALL:
            for reader in walk(result.graph):
                reader.input[:] = [
                    name if read == node.output[0] else read for read in reader.input
                ]
            result.graph.node.remove(node)
    return replace(result)


def _functions_with_layers(model: Model) -> list[tuple[str, str]]:
    """Domains and names of local functions with linear nodes, in what they call too.

    None of them where they call themselves, or where inlining them would give too many nodes.
    """
    every = {(f.domain, f.name): [*walk(f)] for f in model.proto.functions}
    found: set[tuple[str, str]] = set()
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(len(every) + 2):
        known = set(found), dict(sizes)
        for key, nodes in every.items():
            calls = [(node.domain, node.op_type) for node in nodes]
            sizes[key] = sum(sizes.get(call, 1) for call in calls)
            if any(map(_is_linear, nodes)) or found.intersection(calls):
                found.add(key)
        whole = sum(sizes.get((node.domain, node.op_type), 1) for node in walk(model.graph))
        if whole > MOST_NODES:
            return []
        if (found, sizes) == known:
            return sorted(found)
    return []


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
        result = replace(result)
        _drop(result, {*sources, between})
        result = replace(result)
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
    nodes, makers = model.graph.node, model.makers
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
    return replace(result)


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
    _drop(replace(model), touched)


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
    decoders = _restored(result, constants, store, failed)
    fragments: dict[str, list[NodeProto]] = {}
    freed = set(store.replaced)
    for key, layer in layers.items():
        scope, node = model.nodes[key]
        bias = (biases or {}).get(key, layer.bias)
        if isinstance(bias, Array):
            bias = bias.astype(layer.weight.dtype)
        try:
            made = _fragment(
                node, _prefix(scope, key), replace(layer, bias=bias), weights[key], store
            )
        except Exception as error:
            if failed is None:
                raise
            failed[key] = f"it could not be rewritten: {_line(error)}"
            continue
        if scope.outer is not None:  # what decodes the weight runs once, outside
            outside, made = _split(made, store)
            decoders += outside
        fragments[key] = made
        freed.update(map(scope.key, node.input))
    store.commit([*decoders, *(node for made in fragments.values() for node in made)])
    _insert(replace(result), fragments, decoders)
    _drop(replace(result), freed, store.replaced)
    return replace(result)


def _insert(
    model: Model, fragments: Mapping[str, list[NodeProto]], first: Sequence[NodeProto]
) -> None:
    """Put nodes in the place of others, and some before all of the main graph, in place."""
    changed = {id(model.nodes[key][0].graph) for key in fragments}
    for scope in reversed(model.scopes):  # a body before the graph that it lies in
        nodes = [] if scope.outer else [*first]
        if id(scope.graph) not in changed and not nodes:
            continue
        for key, node in zip(scope.node_keys, scope.graph.node, strict=True):
            nodes += fragments.get(key, [node])
        copies = [_copied(node) for node in nodes]
        del scope.graph.node[:]
        scope.graph.node.extend(copies)


def _prefix(scope: Scope, key: str) -> str:
    """What new names begin with; none is mistaken for a key of something in a body."""
    return key.replace("/", ".") if scope.outer else key


def _split(
    nodes: Sequence[NodeProto], store: _Constants
) -> tuple[list[NodeProto], list[NodeProto]]:
    """Those that compute with nothing but constants, and the others."""
    known, constant, others = set(store.arrays), [], []
    for node in nodes:
        if known.issuperset(node.input):
            known.update(node.output)
            constant.append(node)
        else:
            others.append(node)
    return constant, others


def _restored(
    model: Model,
    weights: Mapping[str, CompressedWeight],
    store: _Constants,
    failed: dict[str, str] | None,
) -> list[NodeProto]:
    """Nodes of the main graph that compute the named constants instead."""
    nodes: list[NodeProto] = []
    found = find_constants(model, {}) if weights else {}
    for key, weight in weights.items():
        scope = next(s for s in reversed(model.scopes) if key in map(s.path.__add__, s.names))
        name = key.removeprefix(scope.path)
        output = store.unique(name) if scope.outer else name
        try:
            made = _fragment(NodeProto(output=[output]), key, found[key], weight, store)
        except Exception as error:
            if failed is None:
                raise
            failed[key] = f"it could not be rewritten: {_line(error)}"
            continue
        if output != name:
            for node in walk(scope.graph):
                node.input[:] = [output if read == name else read for read in node.input]
        nodes += made
        store.replaced.add(key)
    return nodes


def _is_wide(array: Array) -> bool:
    """Whether an array is of a type for which float32 twins exist."""
    return array.dtype == np.float64 or array.dtype.name == "bfloat16"


def _check_names(model: Model, names: Iterable[str]) -> None:
    unknown = set(names) - model.nodes.keys()
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
    for configuration in getattr(node, "device_configurations", ()):  # since onnx 1.18
        last.device_configurations.append(configuration)
        known = (*last.input, *last.output)
        specs = last.device_configurations[-1].sharding_spec
        _keep(specs, lambda spec, known=known: spec.tensor_name in known)
    return nodes


def _attribute_slice(node: NodeProto, store: _Constants) -> None:
    """A Slice of constant ranges as it was before opset 10."""
    for key, name in zip(("starts", "ends", "axes"), node.input[1:], strict=False):
        node.attribute.append(onnx.helper.make_attribute(key, store.arrays[name].tolist()))
    del node.input[1:]


def overhead(model: Model, layer: Layer, weight: CompressedWeight) -> int:
    """Bytes of nodes and headers by which the file grows for a layer, stored arrays apart."""
    place = model.nodes.get(layer.name)
    node = place[1] if place else NodeProto(output=[layer.name])
    store = _Constants(model)
    prefix = _prefix(place[0], layer.name) if place else layer.name
    made = _fragment(node, prefix, layer, weight, store)
    given = sum(HEADER + len(name) for name, a in store.arrays.items() if a.size > SMALL)
    tensor = _weight_root(model, *place) if place else layer.name
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
        self.replaced: set[str] = set()  # keys of constants that nodes compute instead
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


def _drop(model: Model, keys: Iterable[str], replaced: AbstractSet[str] = frozenset()) -> None:
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
        _keep(
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
    _keep(graph.initializer, lambda tensor: tensor.name not in dead)
    _keep(graph.input, lambda value: value.name not in given or not older)
    _keep(graph.value_info, lambda value: value.name not in dead)
    _keep(graph.quantization_annotation, lambda note: note.tensor_name not in dead)
    for value in kept:
        kind = value.type.tensor_type
        graph.initializer.add(
            name=value.name, data_type=kind.elem_type, dims=[0] * len(kind.shape.dim)
        )
        for dim in kind.shape.dim:
            dim.ClearField("dim_value")


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
    """A model of just these nodes, with the constants that they read and what computes these."""
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in reads(node)} - made - set(inputs)
    chains = {i for name in needed if name in model.makers
              for i in _ancestors(model.graph.node, model.makers[name], model.makers)}  # fmt: skip
    nodes = [*(model.graph.node[i] for i in sorted(chains)), *nodes]
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in reads(node)} - made - set(inputs)
    result = onnx.ModelProto()
    result.ir_version = max(model.proto.ir_version, 4)
    result.opset_import.extend(model.proto.opset_import)
    result.functions.extend(model.proto.functions)
    graph = result.graph
    graph.name = "segment"
    graph.node.extend(nodes)
    graph.input.extend(_value_info(name, value) for name, value in inputs.items())
    graph.initializer.extend(t for name, t in model.initializers.items() if name in needed)
    graph.sparse_initializer.extend(
        sparse for sparse in model.graph.sparse_initializer if sparse.values.name in needed
    )
    for name in outputs:
        graph.output.add(name=name)
    return replace(model, proto=result)


def _value_info(name: str, value: Array | Sequence[Array]) -> onnx.ValueInfoProto:
    """The type of an array, or of a sequence of arrays."""
    items = [value] if isinstance(value, Array) else [*value]
    kind = onnx.helper.np_dtype_to_tensor_dtype(items[0].dtype) if items else TensorProto.FLOAT
    if isinstance(value, Array):
        return onnx.helper.make_tensor_value_info(name, kind, [None] * value.ndim)
    item = onnx.helper.make_tensor_type_proto(kind, None)
    return onnx.helper.make_value_info(name, onnx.helper.make_sequence_type_proto(item))


def as_float32(model: Model) -> Model:
    """A twin that computes in float32 where the model computes in bfloat16 or float64."""
    result = model.copy()
    _retype(result.proto, model)
    return replace(result)


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
