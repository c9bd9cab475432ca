"""Values of tensors, in the model, in its files, or spilled."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array

DATA_TYPES = {*TensorProto.DataType.values()} - {TensorProto.UNDEFINED}

PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2,
          "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}  # One value has so many bits.  # fmt: skip

HEADER = 16  # A tensor takes about so many bytes besides its name and its values.

# External data that is in `Model.held` lies there; in files such a place would be refused.
HELD = "/"

is_external = external_data_helper.uses_external_data


def location(tensor: TensorProto) -> str:
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def opened(tensor: TensorProto, folder: Path) -> IO[bytes]:
    """The file of external data, where the tensor begins."""
    stream = (folder / location(tensor)).open("rb")
    stream.seek(int(next((e.value for e in tensor.external_data if e.key == "offset"), 0)))
    return stream


def in_file(tensor: TensorProto, folder: Path) -> Array:
    """The value of external data."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    raw = np.empty(tensor_bytes(tensor), np.uint8)
    with opened(tensor, folder) as stream:
        if stream.readinto(raw.data) < len(raw):  # type: ignore[attr-defined]
            raise ModelError(f"the external data {location(tensor)!r} is truncated")
    if len(raw) == prod(tensor.dims) * dtype.itemsize and sys.byteorder == "little":
        return raw.view(dtype).reshape(tensor.dims)
    whole = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=raw.tobytes())
    return numpy_helper.to_array(whole)


def tensor_bytes(tensor: TensorProto) -> int:
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = PACKED.get(TensorProto.DataType.Name(tensor.data_type), 8 * size)
    return (prod(tensor.dims) * bits + 7) // 8
