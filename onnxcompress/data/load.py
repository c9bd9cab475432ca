"""Samples from wherever ``--calib`` points."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxcompress.core.errors import DataError
from onnxcompress.core.messages import nearest
from onnxcompress.data.arrays import from_npy, from_npz
from onnxcompress.data.batches import from_function, from_test_data, test_data_sets
from onnxcompress.data.checks import note_unused
from onnxcompress.data.images import from_images
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.preprocess import Preprocessing, load_preprocessing
from onnxcompress.data.samples import Samples

NO_LABELS = (
    "there are no labels; give an array 'y' in the .npz, a labels.csv (file,label) in the folder, "
    "or let the function yield pairs (inputs, labels)"
)


def load_samples(
    path: str | Path,
    inputs: Sequence[InputSpec],
    *,
    limit: int = 512,
    select: str | None = None,
    preprocess: str | Path | Preprocessing | None = None,
    batch: int | None = None,
    labelled: bool = False,
    ordered: bool = False,
) -> Samples:
    """Open the samples in an .npz, .npy, folder of images, test_data_set folders, or a function.

    Parameters
    ----------
    path : str or Path
        A file, a folder, or ``module:function``, which yields {input: batch} or pairs of that
        and labels.
    limit : int
        At most so many samples; of more, evenly spread ones.  A function is read until its
        batches have so many rows; they stay in memory.
    select : str
        Takes only the images whose path below the folder matches this pattern.
    preprocess : str, Path or Preprocessing
        A name of ``PRESETS`` or a YAML file; needed where 8-bit images meet a float input.
    batch : int
        Samples per batch, where the model leaves it open; by default what 16 MiB hold, and at
        most 64.
    labelled : bool
        Takes only samples with a label, and raises where there is none.
    ordered : bool
        Of more samples than the limit the first are taken, which follow one another.

    Raises
    ------
    DataError
        In one line: what is wrong with the data, and what to do.
    """
    settings = None if preprocess is None else load_preprocessing(preprocess)
    _check(inputs, limit, batch)
    try:
        samples = _open(path, inputs, limit, select, settings, labelled, ordered)
        if labelled and samples.read_labels is None:
            raise DataError(NO_LABELS)
        if not samples.exact:
            samples = replace(samples, batch=batch or samples.batch)
        return samples.take(range(len(samples)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__


def _check(inputs: Sequence[InputSpec], limit: int, batch: int | None) -> None:
    """Raise where there is nothing that a file could hold, or where it is to hold nothing."""
    for number in (limit, batch):
        if number is not None and number < 1:
            raise DataError(f"the number of samples must be 1 or more, not {number}")
    if not inputs:
        raise DataError("the model has no inputs, so there is nothing to feed")
    for spec in inputs:
        if spec.sequence:
            raise DataError(f"no file holds the input {spec}, a sequence; leave samples=... out")


def _neighbours(file: Path) -> str:
    """The end of an error message about a path that leads nowhere: what is there instead.

    Hidden files are nobody's samples, and the name itself is one that cannot be read.
    """
    try:
        names = sorted(f.name for f in file.parent.iterdir())
    except OSError:
        return ""
    return nearest(file.name, [n for n in names if n[0] != "." and n != file.name])


def _open(
    path: str | Path,
    inputs: Sequence[InputSpec],
    limit: int,
    select: str | None,
    settings: Preprocessing | None,
    labelled: bool,
    ordered: bool,
) -> Samples:
    file = Path(path)
    if ordered and file.exists():  # A function is read no further anyway.
        whole = _open(path, inputs, sys.maxsize, select, settings, labelled, ordered=False)
        return whole.take(range(min(len(whole), limit)))
    function = not file.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(path))
    if not file.exists() and not function:
        raise DataError(f"there is no such file or folder{_neighbours(file)}")
    sets = test_data_sets(file)
    if file.is_dir() and not sets:
        return from_images(file, inputs, limit, select, settings, labelled)
    if select is not None:
        raise DataError(f"select={select!r} chooses among a folder's images; leave it out here")
    if sets:
        return replace(from_test_data(sets, inputs, limit), notes=note_unused(settings))
    if function:
        return replace(from_function(str(path), inputs, limit), notes=note_unused(settings))
    if file.suffix == ".npz":
        return from_npz(file, inputs, limit, settings)
    if file.suffix == ".npy":
        return from_npy(file, inputs, limit, settings)
    raise DataError("samples are an .npz, an .npy, a folder, or module:function")
