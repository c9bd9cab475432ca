"""Model files beside protobuf: read without their weights, and written weight by weight.

Only the fields on the way to the raw data of the main graph's initializers are looked at; all
others are copied as they are.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto

# These are the numbers of fields of ModelProto, GraphProto and TensorProto.
GRAPH, INITIALIZER, RAW = 7, 5, 9

LEFT = 1 << 16  # Raw data of at least so many bytes are left in the file.
MOST_FIELDS = 1 << 21  # At most so many fields are looked at: more take longer than they save.


class _ManyError(Exception):
    """There are more fields than a model with large weights has."""


def without_weights(path: Path) -> bytes:
    """A model file in which large raw data are external data that lie in the file itself.

    The whole file where there are too many fields to look at.

    Raises:
        DecodeError: it is no protobuf message.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            numbers = iter(range(MOST_FIELDS))
            return _without(data, 0, len(data), (GRAPH, INITIALIZER, RAW), path.name, numbers)
        except _ManyError:
            return data[:]


def _without(
    data: mmap.mmap, start: int, end: int, way: tuple[int, ...], name: str, left: Iterator[int]
) -> bytes:
    """A message without large raw data.

    Args:
        way: the fields that lead there.
        left: has an item for every field that may still be looked at.
    """
    result = bytearray()
    for key, at, begin, stop in _fields(data, start, end):
        if next(left, None) is None:
            raise _ManyError
        if key != way[0] << 3 | 2 or (len(way) == 1 and stop - begin < LEFT):
            result += data[at:stop]
        elif len(way) == 1:
            result += _reference(name, begin, stop - begin)
        else:
            inner = _without(data, begin, stop, way[1:], name, left)
            result += _varint(key) + _varint(len(inner)) + inner
    return bytes(result)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Of every field its key, where it starts, where its value begins, and where it stops."""
    while start < end:
        key, begin = _number(data, start, end)
        if not key >> 3:
            raise DecodeError("a field without a number")
        if key & 7 == 2:
            length, begin = _number(data, begin, end)
            stop = begin + length
        elif key & 7 == 0:
            _, stop = _number(data, begin, end)
        elif key & 7 in (1, 5):
            stop = begin + (8 if key & 7 == 1 else 4)
        else:
            raise DecodeError("a group, which ONNX does not have")
        if stop > end:
            raise DecodeError("truncated")
        yield key, start, begin, stop
        start = stop


def _number(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    value = 0
    for place in range(10):
        if start + place >= end:
            raise DecodeError("truncated")
        byte = data[start + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, start + place + 1
    raise DecodeError("a number without end")


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def _reference(name: str, offset: int, length: int) -> bytes:
    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    for key, value in {"location": name, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor.SerializeToString(deterministic=True)


def pieces(
    proto: ModelProto, inside: Callable[[TensorProto], int | None]
) -> Iterator[bytes | TensorProto]:
    """What a file of the model consists of: bytes, and tensors whose raw data come there.

    Args:
        inside: the length of the raw data of a tensor that does not have them; None of others.
    """
    lengths = [inside(tensor) for tensor in proto.graph.initializer]
    if all(length is None for length in lengths):
        yield proto.SerializeToString(deterministic=True)
        return
    before, after = _around(proto, GRAPH)
    graph, rest = _around(proto.graph, INITIALIZER)
    parts: list[bytes | TensorProto] = []
    total = len(graph) + len(rest)
    for tensor, length in zip(proto.graph.initializer, lengths, strict=True):
        plain = TensorProto()
        plain.CopyFrom(tensor)
        body, tail = plain.SerializeToString(deterministic=True), b""
        if length is not None:
            plain.ClearField("external_data")
            plain.ClearField("data_location")
            body, tail = _around(plain, RAW)
            body += _head(RAW, length)
        size = len(body) + (length or 0) + len(tail)
        head = _head(INITIALIZER, size)
        total += len(head) + size
        parts += [head + body, *([tensor, tail] if length is not None else [])]
    yield before + _head(GRAPH, total) + graph
    yield from parts
    yield rest + after


def _head(field: int, length: int) -> bytes:
    return _varint(field << 3 | 2) + _varint(length)


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """A message without one of its fields: what comes before it, and what comes after it."""
    before, after = type(message)(), type(message)()
    after.CopyFrom(message)  # Fields that this version of ONNX does not know come last.
    for descriptor, value in message.ListFields():
        if descriptor.number < number:
            assign(before, descriptor.name, value)
        if descriptor.number <= number:
            after.ClearField(descriptor.name)
    first, last = (part.SerializeToString(deterministic=True) for part in (before, after))
    return first, last


def assign(message: Any, name: str, value: Any) -> None:
    """Set a field, of whatever kind."""
    field = getattr(message, name)
    if hasattr(field, "extend"):
        field.extend(value)
    elif hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    else:
        setattr(message, name, value)
