"""Samples in .npy and .npz files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import nearest
from onnxcompress.data.checks import (
    batch_size,
    cast_to_input,
    check_regular,
    check_shape,
    explain_errors,
    note_unused,
    require_one_input,
)
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.preprocess import Preprocessing
from onnxcompress.data.samples import Samples, spread
from onnxcompress.data.transform import transform_for

# An array of an .npz that grows more times when it is read may be made to fill the memory.
LARGEST_EXPANSION = 100
LARGEST_EXPANDED = 1 << 30  # An array of no more bytes may grow any number of times.


def from_npy(
    path: Path, inputs: Sequence[InputSpec], limit: int, settings: Preprocessing | None
) -> Samples:
    """The samples of the model's only input, which stay on the disk."""
    spec = require_one_input(inputs, "an .npy")
    with explain_errors("the file"):
        check_regular(path)
        array = np.lib.format.open_memmap(path, mode="r")  # This never loads pickles.
    return from_arrays({spec.name: array}, None, inputs, limit, settings)


def from_npz(
    path: Path, inputs: Sequence[InputSpec], limit: int, settings: Preprocessing | None
) -> Samples:
    """Arrays named like the inputs, and labels in an array y that is no input."""
    with ExitStack() as stack:
        with explain_errors("the file"):
            check_regular(path)
            file = stack.enter_context(path.open("rb"))
            archive = np.lib.npyio.NpzFile(file, allow_pickle=False)
        names = {spec.name: find_member(spec.name, inputs, archive.files) for spec in inputs}
        arrays = {name: _read_member(archive, member) for name, member in names.items()}
        has_labels = "y" in archive.files and "y" not in names.values()
        labels = _read_member(archive, "y") if has_labels else None
    return from_arrays(arrays, labels, inputs, limit, settings)


def find_member(name: str, inputs: Sequence[InputSpec], members: list[str]) -> str:
    """The array, of several with these names, that feeds this input."""
    if name in members:
        return name
    others = [member for member in members if member != "y"]
    if len(inputs) == 1 and ("x" in others or len(others) == 1):
        return "x" if "x" in others else others[0]
    if not others:
        raise DataError(f"there is no array for the input {name!r}")
    raise DataError(f"no array is called {name!r} like the input{nearest(name, others)}")


def _read_member(archive: Any, name: str) -> Array:
    with explain_errors(f"the array {name!r}"):
        for stored in archive.zip.infolist():
            times = stored.file_size / max(stored.compress_size, 1)
            bomb = stored.file_size > LARGEST_EXPANDED and times > LARGEST_EXPANSION
            if bomb and stored.filename.removesuffix(".npy") == name:
                raise DataError(f"it grows {times:.0f} times when it is read; save it as an .npy")
        array = archive[name]
        if not isinstance(array, np.ndarray):
            raise DataError("it is no array; numpy.savez writes such files")
        return array


def from_arrays(
    arrays: Mapping[str, Array],
    labels: Array | None,
    inputs: Sequence[InputSpec],
    limit: int,
    settings: Preprocessing | None,
) -> Samples:
    """Samples of arrays in memory or on the disk: one row of each for every sample.

    A row is a part of a batch, or, where it has as many axes as the input, a whole batch.
    """
    total = _count_samples(arrays, labels)
    chosen = spread(total, limit)
    # A copy of the chosen rows lets the rest of an .npz go; a memory map stays on disk.
    if not any(isinstance(a, np.memmap) for a in arrays.values()) and len(chosen) < total:
        arrays = {name: a[chosen] for name, a in arrays.items()}
        labels, chosen = None if labels is None else labels[chosen], np.arange(len(chosen))
    whole = all(_holds_whole_batches(arrays[spec.name], spec) for spec in inputs)
    if whole:
        convert = {spec.name: _whole_converter(spec) for spec in inputs}
    else:
        convert = {spec.name: _converter(arrays[spec.name], spec, settings) for spec in inputs}
    first = {name: f(arrays[name][:1]) for name, f in convert.items()}
    fixed, size = (True, 1) if whole else batch_size(inputs, sum(a.nbytes for a in first.values()))
    pictures = any(_is_images(arrays[spec.name], spec, settings) for spec in inputs)
    return Samples(
        read=lambda rows: {name: f(arrays[name][rows]) for name, f in convert.items()},
        index=chosen,
        batch=size,
        exact=fixed,
        read_labels=None if labels is None else labels.__getitem__,
        notes=() if pictures else note_unused(settings),
        whole=whole,
    )


def _count_samples(arrays: Mapping[str, Array], labels: Array | None) -> int:
    """How many samples there are: every array has a row for each."""
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    total = max(lengths.values())
    if set(lengths.values()) != {total} or not total:
        raise DataError(
            "every array needs one row for each sample, but there are "
            + ", ".join(f"{n} in {name!r}" for name, n in lengths.items())
            + "; where inputs have no common batch axis, use module:function"
        )
    if labels is not None and (not labels.ndim or len(labels) != total):
        raise DataError(f"labels 'y' of shape {labels.shape} do not match {total} samples")
    return total


def _holds_whole_batches(array: Array, spec: InputSpec) -> bool:
    """Whether every row is all that the input reads: the samples have an axis of their own."""
    return (
        spec.shape is not None
        and array.ndim == len(spec.shape) + 1
        and array.size > 0
        and spec.fits(array.shape[1:])
    )


def _whole_converter(spec: InputSpec) -> Callable[[Array], Array]:
    """What turns one row of an array into all that the input reads."""
    return lambda rows: cast_to_input(np.asarray(rows)[0], spec)


def _converter(
    array: Array, spec: InputSpec, settings: Preprocessing | None
) -> Callable[[Array], Array]:
    """What turns rows of an array into a batch of the input."""
    if not _is_images(array, spec, settings):
        return lambda rows: cast_to_input(np.asarray(rows), spec, first=1)
    transform = transform_for(spec, settings)
    channels = array.shape[3] if array.ndim == 4 else 1
    if channels not in (1, 3):
        raise DataError(f"8-bit images must be (N, H, W, 1 or 3), not {array.shape}")
    shape = transform.shape((array.shape[1], array.shape[2]))
    check_shape((1, *shape), spec, 1)
    return lambda rows: transform.arrays(np.reshape(rows, (*rows.shape[:3], channels)))


def _is_images(array: Array, spec: InputSpec, settings: Preprocessing | None) -> bool:
    """Whether preprocessing has a say: 8-bit pixels, and not just what the input takes."""
    pixels = array.dtype == np.uint8 and array.ndim in (3, 4)
    takes_images = spec.shape is None or len(spec.shape) == 4
    return pixels and takes_images and (spec.is_float or settings is not None)
