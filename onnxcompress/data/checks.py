"""What samples must be to be fed to a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import nearest, one_line
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.preprocess import Preprocessing
from onnxcompress.data.samples import BATCH_BYTES, BATCH_SAMPLES, Sample


def check_shape(shape: tuple[int, ...], spec: InputSpec, first: int = 0) -> None:
    if not spec.fits(shape, first):
        dims = ", ".join(["N"] * first + [str(d) for d in shape[first:]])
        raise DataError(f"samples of shape [{dims}] do not fit the input {spec}")


def only(inputs: Sequence[InputSpec], what: str) -> InputSpec:
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise DataError(f"{what} feeds one input, but the model has {names}; use an .npz")
    return inputs[0]


def named(batch: Any, inputs: Sequence[InputSpec]) -> Sample:
    """What a function yields, checked against the model's inputs."""
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise DataError(f"the function must yield {{input: array}}, not {kind}")
    check_names(batch, inputs)
    for spec in inputs:
        if spec.name not in batch:
            raise DataError(f"the function yields nothing for the input {spec.name!r}")
    return {spec.name: fit(np.asarray(batch[spec.name]), spec) for spec in inputs}


def check_names(names: Iterable[str], inputs: Sequence[InputSpec]) -> None:
    known = [spec.name for spec in inputs]
    for name in names:
        if name not in known:
            raise DataError(f"the model has no input {name!r}{nearest(str(name), known)}")


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
def reading(what: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into an error that names the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    except Exception as error:
        reason = one_line(error)
        if isinstance(error, ValueError) and "bject" in reason:  # how numpy says "pickle"
            reason = "it holds Python objects (a pickle), which are never loaded; save numbers"
        raise DataError(f"{what} cannot be read: {reason}") from error


def unused(settings: Preprocessing | None) -> tuple[str, ...]:
    if settings is None:
        return ()
    return ("the preprocessing is not used: the samples are no 8-bit images",)


def fit(array: Array, spec: InputSpec, first: int = 0) -> Array:
    """The array as the input's type, if that is safe; axes before ``first`` may be anything."""
    check_shape(array.shape, spec, first)
    if array.dtype == spec.dtype:
        return array
    floats = spec.is_float and InputSpec("", array.dtype, None).is_float
    whole = spec.dtype.kind in "iu" and array.dtype.kind in "iu"
    if floats or whole or np.can_cast(array.dtype, spec.dtype, "safe"):
        with np.errstate(over="ignore"):
            cast = array.astype(spec.dtype)
        same = np.isfinite if floats else np.asarray  # floats may be rounded, but not overflow
        if np.array_equal(same(cast), same(array)):
            return cast
    raise DataError(f"these {array.dtype} values cannot be fed to the input {spec}; convert them")
