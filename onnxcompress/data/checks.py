"""What samples must be to be fed to a model: names, shapes, types, and the size of a batch."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import nearest, one_line
from onnxcompress.core.sample import Sample
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.preprocess import Preprocessing
from onnxcompress.data.samples import BATCH_BYTES, BATCH_SAMPLES


def check_shape(shape: tuple[int, ...], spec: InputSpec, first: int = 0) -> None:
    """Refuse a shape that the input does not take; axes before ``first`` may be anything."""
    if not spec.fits(shape, first):
        dims = ", ".join(["N"] * first + [str(d) for d in shape[first:]])
        raise DataError(f"samples of shape [{dims}] do not fit the input {spec}")


def check_input_names(names: Iterable[str], inputs: Sequence[InputSpec]) -> None:
    """Refuse names that are no inputs of the model."""
    known = [spec.name for spec in inputs]
    for name in names:
        if name not in known:
            raise DataError(f"the model has no input {name!r}{nearest(str(name), known)}")


def check_regular(file: Path) -> None:
    """Refuse what is no regular file: a pipe may keep its reader waiting for ever."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise DataError("it is no regular file")


def require_one_input(inputs: Sequence[InputSpec], source: str) -> InputSpec:
    """The only input of the model, which this kind of source feeds."""
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise DataError(f"{source} feeds one input, but the model has {names}; use an .npz")
    return inputs[0]


def convert_batch(batch: Any, inputs: Sequence[InputSpec]) -> Sample:
    """A copy of what a function yields, as the model reads it: its buffers may be used again."""
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise DataError(f"the function must yield {{input: array}}, not {kind}")
    check_input_names(batch, inputs)
    for spec in inputs:
        if spec.name not in batch:
            raise DataError(f"the function yields nothing for the input {spec.name!r}")
    return {spec.name: cast_to_input(copy_array(batch[spec.name], spec), spec) for spec in inputs}


def copy_array(value: Any, spec: InputSpec) -> Array:
    """A copy of an array, a nested list or a tensor of another library."""
    if hasattr(value, "detach"):  # A tensor of torch may lie on a GPU or hold bfloat16.
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        return np.array(value.numpy() if hasattr(value, "numpy") else value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"no array for the input {spec}: {one_line(error)}") from error


def count_rows(batch: Sample) -> int | None:
    """The length that the first axes of all inputs have in common; None where there is none."""
    lengths = {x.shape[0] if getattr(x, "ndim", 0) else None for x in batch.values()}
    return lengths.pop() if len(lengths) == 1 else None


def batch_size(inputs: Sequence[InputSpec], nbytes: int) -> tuple[bool, int]:
    """Whether the model's batch size is fixed, and the size to use for samples of so many bytes."""
    declared = {None if spec.shape is None else (*spec.shape, 1)[0] for spec in inputs}
    fixed = {d for d in declared if isinstance(d, int) and d > 0}
    if len(fixed) > 1 or any(spec.shape == () for spec in inputs):
        raise DataError(
            "the model's inputs have no common batch axis ("
            + ", ".join(str(spec) for spec in inputs)
            + "); use module:function, which yields whole inputs"
        )
    if fixed:
        return True, fixed.pop()
    return False, max(1, min(BATCH_SAMPLES, BATCH_BYTES // max(nbytes, 1)))


@contextmanager
def explain_errors(what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into an error that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    except Exception as error:
        reason = one_line(error)
        if isinstance(error, ValueError) and "bject" in reason:  # numpy says "pickle" like this.
            reason = "it holds Python objects (a pickle), which are never loaded; save numbers"
        raise DataError(f"{what} cannot be read: {reason}") from error


def note_unused(settings: Preprocessing | None) -> tuple[str, ...]:
    """What the user should know where there is nothing to preprocess."""
    if settings is None:
        return ()
    return ("the preprocessing is not used: the samples are no 8-bit images",)


def cast_to_input(array: Array, spec: InputSpec, first: int = 0) -> Array:
    """The array as the input's type, if that is safe; axes before ``first`` may be anything."""
    check_shape(array.shape, spec, first)
    if array.dtype == spec.dtype:
        return array
    floats = spec.is_float and InputSpec("", array.dtype, None).is_float
    whole = spec.dtype.kind in "iu" and array.dtype.kind in "iu"
    if floats or whole or np.can_cast(array.dtype, spec.dtype, "safe"):
        with np.errstate(over="ignore"):
            cast = array.astype(spec.dtype)
        same = np.isfinite if floats else np.asarray  # Floats may be rounded, but not overflow.
        if np.array_equal(same(cast), same(array)):
            return cast
    raise DataError(f"these {array.dtype} values cannot be fed to the input {spec}; convert them")
