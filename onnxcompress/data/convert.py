"""Samples from what people have in Python: arrays, tensors, lists, generators, data loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.core.errors import DataError, SamplesTypeError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import nearest
from onnxcompress.core.sample import Sample
from onnxcompress.data.arrays import find_member, from_arrays
from onnxcompress.data.checks import batch_size, cast_to_input, copy_array, count_rows
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.load import load_samples
from onnxcompress.data.samples import Samples

FORMS = (
    "an array, {input: array}, or an iterable of batches, such as a DataLoader; a batch is an "
    "array, a tensor, {input: array}, or a tuple of the inputs in the model's order and labels"
)


def as_samples(source: Any, inputs: Sequence[InputSpec], limit: int | None = None) -> Samples:
    """Samples from a path or from objects, whose values are copied: buffers may be used again.

    Parameters
    ----------
    source : Samples, path, array, mapping or iterable
        An array, or ``{input: array}``, has one row for each sample, and labels in ``y`` where
        that is no input; so a tuple of arrays in the inputs' order, which may end in labels.  An
        iterable gives batches: an array or tensor, ``{input: batch}``, or a tuple of the inputs in
        the model's order that may end in labels.  Batches are joined to samples where the first
        axis of every input is open and all else has one shape; else each batch is a sample.
    limit : int
        At most so many samples; an iterable is not read any further.

    Raises
    ------
    SamplesTypeError
        It is none of these.
    DataError
        The values do not fit the model's inputs.
    """
    if isinstance(source, Samples):
        return source
    many = limit or np.iinfo(np.intp).max
    if isinstance(source, str | Path):
        return load_samples(source, inputs, limit=many)
    if _is_array(source):
        source = {_only_name(inputs): source}
    elif _is_tuple_of_arrays(source, inputs):
        source = dict(zip([*(spec.name for spec in inputs), "y"], source, strict=False))
    if isinstance(source, Mapping):
        return _from_mapping(source, inputs, many)
    if not isinstance(source, Iterable):
        raise SamplesTypeError(f"samples cannot be {type(source).__name__}: give {FORMS}")
    return _from_iterable(source, inputs, many)


def _is_array(value: Any) -> bool:
    """An array of numpy, or a tensor of another library."""
    return isinstance(value, np.ndarray) or (hasattr(value, "__array__") and hasattr(value, "ndim"))


def _is_tuple_of_arrays(source: Any, inputs: Sequence[InputSpec]) -> bool:
    """One for each input, and perhaps labels; two of one shape may be batches of one input."""
    if not isinstance(source, tuple) or not all(map(_is_array, source)):
        return False
    several = len(inputs) > 1 and len(source) == len(inputs)
    return several or (len(source) == len(inputs) + 1 and source[-1].ndim != source[0].ndim)


def _only_name(inputs: Sequence[InputSpec]) -> str:
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise SamplesTypeError(f"one array feeds one input, but the model has {names}: give a dict")
    return inputs[0].name


def _from_mapping(source: Mapping[str, Any], inputs: Sequence[InputSpec], limit: int) -> Samples:
    names = {spec.name: find_member(spec.name, inputs, [*source]) for spec in inputs}
    arrays = {spec.name: copy_array(source[names[spec.name]], spec) for spec in inputs}
    labelled = "y" in source and "y" not in names.values()
    labels = copy_array(source["y"], inputs[0]) if labelled else None
    return from_arrays(arrays, labels, inputs, limit, None)


def _from_iterable(source: Iterable[Any], inputs: Sequence[InputSpec], limit: int) -> Samples:
    batches: list[Sample] = []
    labels: list[Array] = []
    rows = 0
    for item in source:
        batch, label = _read_item(item, inputs)
        batches.append(batch)
        if label is not None:
            labels.append(label)
        rows += count_rows(batch) or 1
        if rows >= limit:
            break
    if not batches:
        raise DataError("samples: the iterable gives no batch")
    whole = {} if len(labels) != len(batches) else dict(enumerate(labels))
    joined = _joined(batches, inputs, whole)
    if joined is not None:
        return joined.take(range(min(len(joined), limit)))
    return Samples(
        read=lambda index: batches[int(index[0])],
        index=np.arange(len(batches)),
        read_labels=(lambda index: np.concatenate([whole[int(i)] for i in index]))
        if whole
        else None,
        whole=True,
    )


def _read_item(item: Any, inputs: Sequence[InputSpec]) -> tuple[Sample, Array | None]:
    """The batch that an iterable gives, and its labels where it has some."""
    if isinstance(item, Mapping):
        label = item.get("y") if "y" not in [spec.name for spec in inputs] else None
        label = item.get("labels", item.get("label")) if label is None else label
        values = [_value(item, spec) for spec in inputs]
    elif isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Mapping):
        values, label = [_value(item[0], spec) for spec in inputs], item[1]
    elif isinstance(item, tuple | list) and item and _is_array(item[0]):
        if len(item) < len(inputs):
            raise SamplesTypeError(
                f"samples: a batch has {len(item)} arrays, but the model has {len(inputs)} inputs"
            )
        values = item[: len(inputs)]
        label = item[len(inputs)] if len(item) > len(inputs) else None
    elif _is_array(item):
        _only_name(inputs)
        values, label = [item], None
    else:
        raise SamplesTypeError(f"samples: a batch cannot be {type(item).__name__}: give {FORMS}")
    batch = {s.name: _fit(copy_array(v, s), s) for v, s in zip(values, inputs, strict=True)}
    return batch, None if label is None else np.atleast_1d(copy_array(label, inputs[0]))


def _value(batch: Mapping[str, Any], spec: InputSpec) -> Any:
    if spec.name not in batch:
        near = nearest(spec.name, map(str, batch))
        raise SamplesTypeError(f"samples: a batch has nothing for the input {spec.name!r}{near}")
    return batch[spec.name]


def _fit(array: Array, spec: InputSpec) -> Array:
    """The array as the input takes it; one sample without a batch axis gets one."""
    if spec.shape is not None and array.ndim == len(spec.shape) - 1:
        array = array[None]
    return cast_to_input(array, spec)


def _joined(
    batches: Sequence[Sample], inputs: Sequence[InputSpec], labels: Mapping[int, Array]
) -> Samples | None:
    """Samples whose batches may be of any size; None where batches have to stay as they are."""
    counts = [count_rows(batch) for batch in batches]
    shapes = {tuple(batch[spec.name].shape[1:] for spec in inputs) for batch in batches}
    if None in counts or len(shapes) > 1 or not all(spec.batched for spec in inputs):
        return None
    if any(
        len(labels.get(i, batch[inputs[0].name])) != counts[i] for i, batch in enumerate(batches)
    ):
        return None
    places = [
        *chain.from_iterable(((i, row) for row in range(n or 0)) for i, n in enumerate(counts))
    ]
    nbytes = sum(batches[0][spec.name].nbytes for spec in inputs) // max(counts[0] or 1, 1)
    fixed, size = batch_size(inputs, nbytes)

    def read(index: Array) -> Sample:
        rows = [places[int(i)] for i in index]
        return {s.name: np.stack([batches[i][s.name][row] for i, row in rows]) for s in inputs}

    def read_labels(index: Array) -> Array:
        return np.stack([labels[i][row] for i, row in (places[int(k)] for k in index)])

    return Samples(read, np.arange(len(places)), size, fixed, read_labels if labels else None)
