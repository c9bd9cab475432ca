"""Samples that come as batches: ONNX test data, functions."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.messages import nearest, one_line
from onnxcompress.data.checks import fit, named, reading
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.samples import Array, Sample, Samples, spread
from onnxcompress.graph import read_tensor

# Whole batches


def test_data_sets(folder: Path) -> list[Path]:
    """The ``test_data_set_*`` folders here, or this one, in the order of their numbers."""
    if folder.name.startswith("test_data_set"):
        return [folder]
    sets = [f for f in folder.glob("test_data_set*") if f.is_dir()]
    return sorted(sets, key=lambda f: (len(f.name), f.name))


def from_test_data(folders: list[Path], inputs: Sequence[InputSpec], limit: int) -> Samples:
    folders = [folders[i] for i in spread(len(folders), limit)]
    for folder in folders:
        if not (folder / f"input_{len(inputs) - 1}.pb").is_file():
            raise DataError(
                f"{folder.name} needs input_0.pb to input_{len(inputs) - 1}.pb, for the inputs "
                + ", ".join(repr(spec.name) for spec in inputs)
            )

    def read(rows: Array) -> Sample:
        folder = folders[rows[0]]
        with reading("a tensor"):
            return {
                spec.name: fit(read_tensor(folder / f"input_{i}.pb"), spec)
                for i, spec in enumerate(inputs)
            }

    return Samples(read, np.arange(len(folders)))


def from_function(name: str, inputs: Sequence[InputSpec], limit: int) -> Samples:
    batches: list[Sample] = []
    labels: list[Array] = []
    rows = 0
    for item in _yields(name):
        batch, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        batches.append(named(batch, inputs))
        if label is not None:
            labels.append(np.atleast_1d(label))
        shape = batches[-1][inputs[0].name].shape
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
    )


def _yields(name: str) -> Iterator[Any]:
    """Import ``module:function``, from the current folder too, and call it."""
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
        if not hasattr(module, function_name):
            near = nearest(function_name, [n for n in vars(module) if not n.startswith("_")])
            raise DataError(f"the module has no function {function_name!r}{near}")
        yield from getattr(module, function_name)()
    except DataError:
        raise
    except Exception as error:  # the user's code
        raise DataError(
            f"the function failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        sys.path.remove(here)
