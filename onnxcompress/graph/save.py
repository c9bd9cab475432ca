"""Models written as one: the data first, the model that names it last."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from onnxcompress.core.errors import ModelError
from onnxcompress.core.scratch import scratch_folder
from onnxcompress.graph import protobuf_wire
from onnxcompress.graph.detach import sha256
from onnxcompress.graph.load import LARGEST_FILE, read
from onnxcompress.graph.model import Model
from onnxcompress.graph.spill import rest
from onnxcompress.graph.tensors import HELD, is_external, location, opened, tensor_bytes

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None


def save(
    model: Model,
    path: str | os.PathLike[str],
    external: bool = False,
    ready: Callable[[Sequence[Path]], None] = lambda files: None,
) -> list[Path]:
    """Write the model atomically and return the files written.

    Below 1 GiB that is one file, wherever the source had its weights.  External data of a larger
    model is copied beside it, into a second file under a name that depends on what it holds: so
    the old model keeps its own until the new one takes its place.  After that the old data is
    removed, unless some other file there names it.

    Args:
        external: move all large weights to the second file.
        ready: called when all files are complete, in a temporary folder and with their final
            names, the model's last; what it raises leaves everything as it was.

    Returns:
        The model, and the second file if there is one.

    Raises:
        ModelError: it cannot be written; what was there before stays.
    """
    path = Path(path)
    external = external or model.nbytes - _apart(model) > LARGEST_FILE
    some = model.large and any(_leaves(model, tensor) for tensor in model.graph.initializer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path) as scratch:
            files, apart = [], ""
            if external or some:
                model, data = _externalised(model, scratch / path.name, external)
                files, apart = [data], data.name
            file = scratch / path.name
            with file.open("wb") as stream:
                stream.writelines(written(model, apart))
                _to_disk(stream)
            files.append(file)
            mode = 0o666 & ~_umask()
            for one in files:
                one.chmod(mode)
            ready(files)
            return _put_in_place(files, path, beside={path.parent, model.folder})
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error}") from None


def _put_in_place(files: Sequence[Path], path: Path, beside: set[Path]) -> list[Path]:
    """Move complete files to where they belong, the model's last, and remove its old data.

    Args:
        beside: the folders whose files may still name that data.
    """
    with _alone_in(path.parent):
        before = _own_data(path)
        result = [one.replace(path.parent / one.name) for one in files]
        for old in _unnamed(before.difference(result), beside):
            old.unlink(missing_ok=True)
    return result[::-1]


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
        os.close(handle)  # This unlocks it, as the end of the process does.


def _own_data(path: Path) -> set[Path]:
    """The data files of the model that is there, as far as `save` named them."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    if not any(name.fullmatch(file) for file in os.listdir(path.parent)):
        return set()
    old = Model(onnx.ModelProto(), path.parent)
    with suppress(DecodeError, UnicodeDecodeError, ModelError):
        old.proto.ParseFromString(read(path, LARGEST_FILE))
    return {file for file in old.data_files if name.fullmatch(_name(file, path.parent))}


def _unnamed(data: set[Path], folders: set[Path]) -> set[Path]:
    """Those of these data files whose names stand in no other file of the folders.

    A copy of a model names the data of the one that it was copied from, whatever it is called.
    """
    others = [one for folder in folders if data for one in folder.iterdir() if one not in data]
    return {file for file in data if not any(_mentions(one, file.name) for one in others)}


def _mentions(file: Path, name: str) -> bool:
    """Whether a file that may be a model holds this name; one that cannot be read may."""
    try:
        if not file.is_file() or not 0 < file.stat().st_size <= LARGEST_FILE:
            return False
        with (
            file.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(name.encode()) >= 0
    except (OSError, ValueError):
        return True


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


def written(model: Model, apart: str = "") -> Iterator[bytes | memoryview]:
    """The bytes of a model's file, piece by piece.

    Args:
        apart: the second file, whose values do not go into this one.
    """

    def inside(tensor: TensorProto) -> int | None:
        away = apart and is_external(tensor) and location(tensor) == apart
        return None if away else model.inside(tensor)

    for piece in protobuf_wire.pieces(model.proto, inside):
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


def serialized(model: Model) -> bytes:
    """The bytes of the model's file."""
    return b"".join(written(model))


def digest(model: Model) -> str:
    """SHA-256 of a model, its external data included."""
    hashed = hashlib.sha256()
    for piece in written(model):
        hashed.update(piece)
    for path in sorted(model.data_files) if model.large else ():
        hashed.update(sha256(path).encode())
    return hashed.hexdigest()
