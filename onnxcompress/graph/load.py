"""Models on disk: read with distrust, checked, and written as one.

What a file claims is compared with what it holds before anything is believed.  External data is
named by its hash and placed first, the model that names it last: whenever a run ends, the folder
has the old model or the whole new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import LONGEST_NAME, one_line, shorten
from onnxcompress.graph import protobuf_wire
from onnxcompress.graph.check import check
from onnxcompress.graph.functions import nodes_in_full
from onnxcompress.graph.model import Model
from onnxcompress.graph.tensors import DATA_TYPES, is_external, tensor_bytes

LARGEST_FILE = (1 << 31) - 1  # protobuf can parse no more bytes.
LARGE_FILE = 1 << 28  # Weights stay in a file of more bytes until they are read, to save memory.
LARGEST_TENSOR = 1 << 48  # No memory holds a tensor of so many entries.
LARGEST_GRAPH = 1_000_000  # A graph has at most so many nodes, with local functions written out.
MOST_DIMENSIONS = 64  # A tensor has at most so many dimensions, as in numpy.


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
        proto.ParseFromString(protobuf_wire.without_weights(path) if large else path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except DecodeError:
        raise ModelError(f"{path} is truncated or not an ONNX model") from None
    except UnicodeDecodeError:  # protobuf's Python implementation raises it; others give bytes.
        raise ModelError(f"{path} is not a valid ONNX model: a name in it is no text") from None
    file = path.name if large else ""
    model = Model(proto, path.absolute().parent, tuple(map(str, extensions)), file)
    try:
        if not proto.graph.node and not proto.graph.input:
            raise ModelError("it has no graph")
        external = _check_parts(model, path.resolve().parent)
        _check_functions(model)
    except ModelError as error:
        raise ModelError(f"{path} is not a valid ONNX model: {error}") from None
    if external > sum(map(is_external, model.graph.initializer)):
        _read_inner(model)
    check(model, path)
    return model


def as_model(source: Any) -> Model:
    """A model from what people have: a path, a ModelProto, its bytes, or a Model.

    Raises:
        ModelError: it cannot be read, or is none of these.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, str | os.PathLike):
        return load(source)
    if isinstance(source, onnx.ModelProto):
        return Model(source)
    if isinstance(source, bytes | bytearray | memoryview):
        try:
            return Model(onnx.ModelProto.FromString(bytes(source)))
        except DecodeError as error:
            raise ModelError(f"the bytes are no ONNX model: {one_line(error)}") from None
    kind = type(source).__name__
    raise ModelError(f"model must be a path, a ModelProto, bytes or a Model, not {kind}")


def read(path: Path, most: int) -> bytes:
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
        if not path.is_file():  # A device or a pipe may never end.
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


def _check_parts(model: Model, home: Path) -> int:
    """Refuse names that are no text, and tensors whose type, shape and bytes do not fit together.

    External data has to lie in regular files of the model's folder or, where the model's file is a
    link, of the folder ``home`` of what it leads to; links resolved.  So it is in onnxruntime.

    Returns:
        The number of tensors with external data.
    """
    sizes, external = _DataFiles(model, home), 0
    for tensor in _parts(model.proto):
        if isinstance(tensor, bytes):  # protobuf gives bytes for what is no UTF-8.
            raise ModelError(f"a name in it is no text: {tensor[:LONGEST_NAME]!r}")
        if isinstance(tensor, str):
            continue
        if tensor.data_type not in DATA_TYPES:
            raise ModelError(f"the tensor {shorten(tensor.name)!r} is of no known type")
        if len(tensor.dims) > MOST_DIMENSIONS or any(size < 0 for size in tensor.dims):
            raise ModelError(f"the tensor {shorten(tensor.name)!r} has no possible shape")
        if prod(max(size, 1) for size in tensor.dims) >= LARGEST_TENSOR:  # Zeros do not help.
            raise ModelError(
                f"the tensor {shorten(tensor.name)!r} is too large: {list(tensor.dims)}"
            )
        if is_external(tensor):
            external += 1
            _check_external(sizes, tensor)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != tensor_bytes(tensor):
            raise ModelError(
                f"the tensor {shorten(tensor.name)!r} has {len(tensor.raw_data):,} bytes "
                f"instead of {tensor_bytes(tensor):,}"
            )
    return external


class _DataFiles:
    """The files of a model's external data."""

    def __init__(self, model: Model, home: Path) -> None:
        self._model, self._folders = model, (model.folder.resolve(), home)
        self._sizes: dict[str, int] = {}

    def size(self, place: str) -> int:
        """The size of the file that a tensor names."""
        if place not in self._sizes:
            self._sizes[place] = self._looked_up(place)
        return self._sizes[place]

    def _looked_up(self, place: str) -> int:
        file = self._model.folder / place.replace("\0", "")  # No file has a zero byte in its name.
        try:
            target = file.resolve()
            inside = place == self._model.file or any(map(target.is_relative_to, self._folders))
            size = file.stat().st_size if file.is_file() else None
        except (OSError, RuntimeError) as error:  # The name is too long, or links form a circle.
            raise ModelError(f"its external data cannot be read: {one_line(error)}") from None
        if not inside:
            raise ModelError(f"its external data {shorten(place)!r} lies outside its folder")
        if size is None:
            raise ModelError(f"its external data {shorten(place)!r} is missing")
        return size


def _check_external(files: _DataFiles, tensor: TensorProto) -> None:
    name, entries = shorten(tensor.name), {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) < len(tensor.external_data):
        raise ModelError(f"the tensor {name!r} says twice where its values are")
    numbers = [entries.get("offset", "0"), entries.get("length", str(tensor_bytes(tensor)))]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ModelError(f"the tensor {name!r} has no possible offset or length")
    offset, length = map(int, numbers)
    if length != tensor_bytes(tensor):
        raise ModelError(
            f"the tensor {name!r} has {length:,} bytes instead of {tensor_bytes(tensor):,}"
        )
    place = entries.get("location", "")
    if files.size(place) < offset + length:
        raise ModelError(f"its external data {shorten(place)!r} is truncated")


def _check_functions(model: Model) -> None:
    """Refuse functions that call themselves, or that make too large a graph in full."""
    total = nodes_in_full(model.proto)
    if total > LARGEST_GRAPH:
        raise ModelError(f"with its functions written out it has {total:,} nodes")


def _read_inner(model: Model) -> None:
    """Bring external data into the file, in place, but that of the main graph's initializers."""
    graph, proto = model.graph, model.proto
    others = *graph.node, *graph.sparse_initializer, *proto.functions, *proto.training_info
    for tensor in (tensor for message in others for tensor in _tensors(message)):
        if is_external(tensor):
            tensor.CopyFrom(numpy_helper.from_array(model.value(tensor), tensor.name))


def read_tensor(path: Path) -> Array:
    """A TensorProto file, as the ``test_data_set_*`` folders hold them."""
    tensor = TensorProto()
    try:
        tensor.ParseFromString(read(path, LARGEST_FILE))
        if is_external(tensor):
            raise ModelError(f"{path} holds no values, only the name of another file")
        return numpy_helper.to_array(tensor)
    except ModelError:
        raise
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not an ONNX tensor: {one_line(error)}") from None
