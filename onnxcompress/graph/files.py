"""Models on disk: read with distrust, checked, and written as one.

What a file claims is compared with what it holds before anything is believed.  External data is
named by its hash and placed first, the model that names it last: whenever a run ends, the folder
has the old model or the whole new one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto, numpy_helper

from onnxcompress.core import Array
from onnxcompress.graph import wire
from onnxcompress.graph.model import (
    DATA_TYPES,
    HELD,
    Model,
    ModelError,
    is_external,
    location,
    one_line,
    opened,
    tensor_bytes,
    walk,
)
from onnxcompress.graph.spill import rest
from onnxcompress.graph.wire import assign

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DETACHED_BYTES = 4096  # weights from this size are handed to onnxruntime without a copy
LARGEST_FILE = (1 << 31) - 1  # bytes: what protobuf can parse
LARGE_FILE = 1 << 28  # bytes of a file whose weights are left there
LARGEST_TENSOR = 1 << 48  # entries
LARGEST_GRAPH = 1_000_000  # nodes, with local functions written out
MOST_DIMENSIONS = 64  # of a tensor: as in numpy


def load(path: str | os.PathLike[str], extensions: Sequence[str] = ()) -> Model:
    """Read a model; external data stays on disk until a tensor is asked for.

    Args:
        extensions: libraries of operators that onnxruntime is to know.

    Raises:
        ModelError: the file is missing, no ONNX model, or invalid.
    """
    path = Path(path)
    proto = onnx.ModelProto()
    large = _size(path, LARGEST_FILE) > LARGE_FILE
    try:
        proto.ParseFromString(wire.without_weights(path) if large else path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except DecodeError:
        raise ModelError(f"{path} is truncated or not an ONNX model") from None
    except UnicodeDecodeError:  # by protobuf's Python implementation; others give bytes
        raise ModelError(f"{path} is not a valid ONNX model: a name in it is no text") from None
    file = path.name if large else ""
    model = Model(proto, path.absolute().parent, tuple(map(str, extensions)), file)
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
    _size(path, most)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def _size(path: Path, most: int) -> int:
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
        return size
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
        if is_external(tensor):
            _check_external(model, tensor)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != tensor_bytes(tensor):
            raise ModelError(
                f"the tensor {tensor.name!r} has {len(tensor.raw_data):,} bytes "
                f"instead of {tensor_bytes(tensor):,}"
            )


def _check_external(model: Model, tensor: TensorProto) -> None:
    given = {entry.key: entry.value for entry in tensor.external_data}
    if len(given) < len(tensor.external_data):
        raise ModelError(f"the tensor {tensor.name!r} says twice where its values are")
    place = given.get("location", "")
    numbers = [given.get("offset", "0"), given.get("length", str(tensor_bytes(tensor)))]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ModelError(f"the tensor {tensor.name!r} has no possible offset or length")
    offset, length = map(int, numbers)
    if length != tensor_bytes(tensor):
        raise ModelError(
            f"the tensor {tensor.name!r} has {length:,} bytes instead of {tensor_bytes(tensor):,}"
        )
    file = model.folder / place.replace("\0", "")  # which no file has in its name
    try:
        inside = place == model.file or file.resolve().is_relative_to(model.folder.resolve())
        size = file.stat().st_size if file.is_file() else None
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        raise ModelError(f"its external data cannot be read: {one_line(error)}") from None
    if not inside:
        raise ModelError(f"its external data {place!r} lies outside its folder")
    if file.is_symlink() and place != model.file:  # which onnx does not read
        raise ModelError(f"its external data {place!r} is a link; put the file in its place")
    if size is None:
        raise ModelError(f"its external data {place!r} is missing")
    if size < offset + length:
        raise ModelError(f"its external data {place!r} is truncated")


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
        if is_external(tensor):
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
        raise ModelError(f"{path} is not a valid ONNX model: {one_line(error)}") from None


def _is_unranked(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return value.type.HasField("tensor_type") and not kind.HasField("shape")


def _is_heavy(tensor: TensorProto) -> bool:
    outside = is_external(tensor)
    return outside or len(tensor.raw_data) >= DETACHED_BYTES


def _shell(model: Model) -> onnx.ModelProto:
    """A copy without the initializers of the main graph."""
    result = onnx.ModelProto()
    for descriptor, value in model.proto.ListFields():
        if descriptor.name != "graph":
            assign(result, descriptor.name, value)
    for descriptor, value in model.graph.ListFields():
        if descriptor.name != "initializer":
            assign(result.graph, descriptor.name, value)
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
    external = external or model.nbytes - _apart(model) > LARGEST_FILE
    some = any(_leaves(model, tensor) for tensor in model.graph.initializer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            files = []
            if external or some:
                model, data = _externalised(model, Path(scratch, path.name), external)
                files.append(data)
            file = Path(scratch, path.name)
            with file.open("wb") as stream:
                stream.writelines(_written(model))
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
    with suppress(DecodeError, UnicodeDecodeError, ModelError):
        old.proto.ParseFromString(_read(path, LARGEST_FILE))
    return {file for file in old.data_files if name.fullmatch(_name(file, path.parent))}


def _name(file: Path, folder: Path) -> str:
    """The name of a file of this folder, else nothing."""
    return file.name if file.parent == folder else ""


def _leaves(model: Model, tensor: TensorProto) -> bool:
    """Whether a tensor lies beside the model's file, or is new in a model whose weights do."""
    return is_external(tensor) and not (model.file and model.inside(tensor) is not None)


def _apart(model: Model) -> int:
    """Bytes of the values that lie in other files than the model's."""
    tensors = (t for t in model.graph.initializer if is_external(t))
    return sum(tensor_bytes(t) for t in tensors if model.inside(t) is None)


def _written(model: Model) -> Iterator[bytes | memoryview]:
    """The bytes of a model's file, piece by piece."""
    for piece in wire.pieces(model.proto, model.inside):
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from _values(model, piece)


def _values(model: Model, tensor: TensorProto) -> Iterator[bytes | memoryview]:
    """The raw data of a tensor, piece by piece, wherever they are."""
    if not is_external(tensor):
        plain = tensor.HasField("raw_data")
        yield (tensor if plain else numpy_helper.from_array(model.value(tensor))).raw_data
        return
    if location(tensor) == HELD:
        yield np.ascontiguousarray(model.value(tensor)).reshape(-1).view(np.uint8).data
        rest()
        return
    length = tensor_bytes(tensor)
    with opened(tensor, model.folder) as source:
        while length:
            piece = source.read(min(length, 1 << 24))
            if not piece:
                raise ModelError(f"the external data {location(tensor)!r} is truncated")
            yield piece
            length -= len(piece)


def _externalised(model: Model, beside: Path, everything: bool) -> tuple[Model, Path]:
    """A copy whose large weights lie in a file beside this one, and that file.

    Those that were in the model's own file move only if ``everything`` does.
    """
    result = model.copy()
    moved: list[tuple[TensorProto, int, int]] = []
    file = beside.with_name("data")
    with file.open("wb") as stream:
        for tensor in result.graph.initializer:
            large = is_external(tensor) or tensor.ByteSize() > 1024
            if not _leaves(model, tensor) and not (everything and large):
                continue
            stream.write(b"\0" * (-stream.tell() % 64))
            offset = stream.tell()
            stream.writelines(_values(model, tensor))
            for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data",
                         "uint64_data"):  # fmt: skip
                tensor.ClearField(kind)
            moved.append((tensor, offset, stream.tell() - offset))
        _to_disk(stream)
    named = file.rename(beside.with_name(f"{beside.name}.{sha256(file)[:16]}.data"))
    for tensor, offset, length in moved:
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": named.name, "offset": offset, "length": length}.items():
            tensor.external_data.add(key=key, value=str(value))
    return result, named


def sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(model: Model) -> str:
    """SHA-256 of a model, its external data included."""
    found = hashlib.sha256()
    for piece in _written(model):
        found.update(piece)
    for path in sorted(model.data_files):
        found.update(sha256(path).encode())
    return found.hexdigest()


def read_tensor(path: Path) -> Array:
    """A TensorProto file, as the ``test_data_set_*`` folders hold them."""
    tensor = TensorProto()
    try:
        tensor.ParseFromString(_read(path, LARGEST_FILE))
        if is_external(tensor):
            raise ModelError(f"{path} holds no values, only the name of another file")
        return numpy_helper.to_array(tensor)
    except ModelError:
        raise
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not an ONNX tensor: {one_line(error)}") from None


def detached(model: Model) -> tuple[bytes, dict[str, Array]]:
    """The serialized model without its large weights, and these, as views of the model's memory."""
    result = _shell(model)
    weights: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if model.inside(tensor) is not None:
            weights[tensor.name] = model.value(tensor)
            result.graph.initializer.append(_stub(tensor))
            continue
        packed = len(tensor.raw_data) < prod(tensor.dims) * dtype.itemsize
        if len(tensor.raw_data) < DETACHED_BYTES or packed:
            result.graph.initializer.append(tensor)
            continue
        weights[tensor.name] = np.frombuffer(tensor.raw_data, dtype).reshape(tensor.dims)
        result.graph.initializer.append(_stub(tensor))
    return result.SerializeToString(), weights


def _stub(tensor: TensorProto) -> TensorProto:
    stub = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value="memory")
    return stub


def serialized(model: Model) -> bytes:
    """The bytes of the model's file."""
    return b"".join(_written(model))
