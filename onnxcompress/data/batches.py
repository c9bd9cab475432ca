"""Samples that come as whole batches: ONNX test data, and what a function of the user yields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.foreign import contain_errors, import_function
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample
from onnxcompress.data.checks import (
    cast_to_input,
    check_regular,
    convert_batch,
    explain_errors,
)
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.samples import Samples, spread
from onnxcompress.graph import read_tensor


def test_data_sets(folder: Path) -> list[Path]:
    """The ``test_data_set_*`` folders here, or this one, in the order of their numbers."""
    if folder.name.startswith("test_data_set"):
        return [folder]
    sets = [f for f in folder.glob("test_data_set*") if f.is_dir()]
    return sorted(sets, key=lambda f: (len(f.name), f.name))


def from_test_data(folders: list[Path], inputs: Sequence[InputSpec], limit: int) -> Samples:
    """One sample for each folder with ``input_0.pb`` to the last input's, in the model's order."""
    folders = [folders[i] for i in spread(len(folders), limit)]
    for folder in folders:
        if not (folder / f"input_{len(inputs) - 1}.pb").is_file():
            raise DataError(
                f"{folder.name} needs input_0.pb to input_{len(inputs) - 1}.pb, for the inputs "
                + ", ".join(repr(spec.name) for spec in inputs)
            )

    def read(rows: Array) -> Sample:
        with explain_errors("a tensor"):
            files = [folders[rows[0]] / f"input_{i}.pb" for i in range(len(inputs))]
            for file in files:
                check_regular(file)
            tensors = zip(map(read_tensor, files), inputs, strict=True)
            return {spec.name: cast_to_input(array, spec) for array, spec in tensors}

    return Samples(read, np.arange(len(folders)), whole=True)


def from_function(name: str, inputs: Sequence[InputSpec], limit: int) -> Samples:
    """The batches that ``module:function`` yields, until they have ``limit`` rows."""
    batches: list[Sample] = []
    labels: list[Array] = []
    rows = 0
    for item in _yields(name):
        batch, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        batches.append(convert_batch(batch, inputs))
        if label is not None:
            labels.append(np.atleast_1d(np.array(label)))
        shape = batches[-1][inputs[0].name].shape
        if 0 in shape:
            raise DataError(f"batch {len(batches) - 1} of the function is empty: {list(shape)}")
        rows += shape[0] if shape else 1
        if rows >= limit:
            break
    if not batches:
        raise DataError("the function yields nothing")
    if labels and len(labels) != len(batches):
        raise DataError("the function yields labels with some batches only")
    return Samples(
        read=lambda rows: batches[rows[0]],
        index=np.arange(len(batches)),
        read_labels=(lambda rows: np.concatenate([labels[i] for i in rows])) if labels else None,
        whole=True,
    )


def _yields(name: str) -> Iterator[Any]:
    """What the function yields, item by item; only its own code runs as foreign code."""
    function = import_function(name, DataError)
    with contain_errors("the function failed", DataError):
        items = iter(function())
    while True:
        with contain_errors("the function failed", DataError):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
