"""Samples: what calibration and evaluation feed to a model, read when it is needed."""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from onnxcompress.graph import (
    Model,
    declared_inputs,
    declared_outputs,
    read_tensor,
    sequences,
)
from onnxcompress.preprocess import (
    DataError,
    InputSpec,
    Preprocessing,
    load_preprocessing,
    nearest,
    one_line,
    transform_for,
)

Array = np.ndarray
Sample = Mapping[str, Any]  # input name -> batch, an array or a list of arrays
T = TypeVar("T")

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")
BATCH_BYTES = 16 << 20  # of inputs; what a model makes of them is many times larger
BATCH_SAMPLES = 64
LARGEST_INPUT = 1 << 31  # values that are made up
LARGEST_EXPANSION = 100  # times that an array may grow when it is read,
LARGEST_EXPANDED = 1 << 30  # where it has more bytes than that
LEAST_BATCHES = 4  # where there are so many samples


@dataclass(frozen=True, eq=False)
class Samples:
    """A view of samples that are read, decoded and preprocessed batch by batch, each time anew.

    ``for batch in samples`` gives dictionaries input name -> array; ``samples[:100]`` and
    ``take`` give views.  Where batches are whole (one per yield of a function, per
    ``test_data_set`` folder, or per image of a set of several sizes) a sample is such a batch.

    Attributes
    ----------
    read : callable
        Indices to the batch of those samples.
    index : int array
        The samples of this view, in order.
    batch : int
        Samples per batch: at most, or exactly.
    exact : bool
        Every batch has exactly ``batch`` samples; what fills no batch is left out of the view.
    read_labels : callable or None
        Indices to the labels of those samples.
    notes : tuple of str
        What the user should know, such as samples left out; one sentence each.
    """

    read: Callable[[Array], Sample]
    index: Array
    batch: int = 1
    exact: bool = True
    read_labels: Callable[[Array], Array] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Sample]:
        return self.batches()

    def __getitem__(self, rows: slice) -> Samples:
        return self.take(np.arange(len(self))[rows])

    @property
    def labels(self) -> Array | None:
        """Labels in the order of the batches, or None."""
        return self.read_labels(self.index) if self.read_labels else None

    @property
    def digest(self) -> str:
        """SHA-256 of the first batch, as the model reads it."""
        found = hashlib.sha256()
        for name, array in sorted(next(iter(self)).items()):
            found.update(f"{name} {array.dtype} {array.shape} ".encode())
            plain = array.dtype.kind != "O"  # else strings
            found.update(array.tobytes() if plain else repr(array.tolist()).encode())
        return found.hexdigest()

    @property
    def content(self) -> str:
        """SHA-256 of all samples, as the model reads them."""
        found = hashlib.sha256()
        for start in range(0, len(self), self.batch):
            found.update(self[start : start + self.batch].digest.encode())
        return found.hexdigest()

    @property
    def even(self) -> int:
        """Samples per batch that leave work for several threads, however many there are."""
        return max(1, min(self.batch, -(-len(self) // LEAST_BATCHES)))

    def batches(self, size: int | None = None) -> Iterator[Sample]:
        """Batches of at most ``size`` samples (default ``batch``; no effect where exact)."""
        step = size if size and not self.exact else self.batch
        for start in range(0, len(self), step):
            yield self.read(self.index[start : start + step])

    def take(self, rows: Sequence[int] | Array) -> Samples:
        """A view of these samples, counted from this view's first.

        Raises
        ------
        DataError
            They are too few for one batch of the model's fixed size.
        """
        index = self.index[np.asarray(rows, np.intp)]
        rest = len(index) % self.batch if self.exact else 0
        if not rest:
            return replace(self, index=index)
        if rest == len(index):
            raise DataError(f"{rest} samples do not fill the model's fixed batch of {self.batch}")
        note = f"{rest} of {len(index)} samples are left out: the model's batch is {self.batch}"
        return replace(self, index=index[:-rest], notes=(*self.notes, note))

    def spread(self, count: int) -> Samples:
        """A view of ``count`` samples, evenly spread over this one; whole batches where exact."""
        return self.take(self._rows(spread(len(self) // self._unit, -(-count // self._unit))))

    def split(self, held_out: int | None = None) -> tuple[Samples, Samples]:
        """Samples to fit with, and samples to validate with, evenly spread between them.

        Parameters
        ----------
        held_out : int
            Samples to validate with, by default a quarter, but 16 to 256 and not above a half;
            rounded up to whole batches where exact.  A single batch serves for both.
        """
        total = len(self) // self._unit
        if total < 2:
            note = "the only batch of samples serves for fitting and for validation"
            both = replace(self, notes=(*self.notes, note))
            return both, both
        most = total // 2 if held_out is None else total - 1
        wanted = min(max(len(self) // 4, 16), 256) if held_out is None else held_out
        held = spread(total, min(-(-wanted // self._unit), most))
        kept = np.setdiff1d(np.arange(total), held)
        return self.take(self._rows(kept)), self.take(self._rows(held))

    @property
    def _unit(self) -> int:
        return self.batch if self.exact else 1

    def _rows(self, units: Array) -> Array:
        return (units[:, None] * self._unit + np.arange(self._unit)).ravel()


def spread(total: int, count: int) -> Array:
    """``count`` of ``range(total)``, one from each of as many equal parts; all if too few.

    The place within a part follows the golden ratio: equal steps would fall into step with
    data that repeats, and take every sample from one class.
    """
    if count >= total:
        return np.arange(total)
    i = np.arange(count)
    start, stop = i * total // count, (i + 1) * total // count
    return start + (i * 0.6180339887498949 % 1 * (stop - start)).astype(np.intp)


def from_batches(batches: Sequence[Sample]) -> Samples:
    """Samples that are in memory already: each dictionary is one whole batch."""
    return Samples(lambda rows: batches[int(rows[0])], np.arange(len(batches)))


def input_specs(model: Model) -> list[InputSpec]:
    """What a model declares of its inputs."""
    lists = sequences(model)
    return [
        InputSpec(name, dtype, None if shape is None else tuple(shape), name in lists)
        for name, dtype, shape in declared_inputs(model)
    ]


def output_specs(model: Model) -> list[InputSpec]:
    """What a model declares of its outputs."""
    return [
        InputSpec(name, dtype, None if shape is None else tuple(shape))
        for name, dtype, shape in declared_outputs(model)
    ]


def load_samples(
    path: str | Path,
    inputs: Sequence[InputSpec],
    *,
    limit: int = 512,
    select: str | None = None,
    preprocess: str | Path | Preprocessing | None = None,
    batch: int | None = None,
    labelled: bool = False,
) -> Samples:
    """Open the samples in an .npz, .npy, folder of images, test_data_set folders, or a function.

    Parameters
    ----------
    path : str or Path
        A file, a folder, or ``module:function``, which yields {input: batch} or pairs of that
        and labels.
    limit : int
        At most so many samples; of more, evenly spread ones.  A function is read until its
        batches have so many rows (along the first axis of the first input); they stay in memory.
    select : str
        Takes only the images whose path below the folder matches this pattern.
    preprocess : str, Path or Preprocessing
        A name of ``PRESETS`` or a YAML file; needed where 8-bit images meet a float input.
    batch : int
        Samples per batch, where the model leaves it open; by default what 16 MiB hold, and at
        most 64.
    labelled : bool
        Takes only samples with a label, and raises where there is none.

    Raises
    ------
    DataError
        In one line: what is wrong with the data, and what to do.
    """
    settings = None if preprocess is None else load_preprocessing(preprocess)
    for number in (limit, batch):
        if number is not None and number < 1:
            raise DataError(f"the number of samples must be 1 or more, not {number}")
    if not inputs:
        raise DataError("the model has no inputs, so there is nothing to feed")
    for spec in inputs:
        if spec.sequence:
            raise DataError(f"no file holds the input {spec}, a sequence; leave --calib out")
    try:
        samples = _open(path, inputs, limit, select, settings, labelled)
        if labelled and samples.read_labels is None:
            raise DataError(
                "there are no labels; give an array 'y' in the .npz, a labels.csv (file,label) "
                "in the folder, or let the function yield pairs (inputs, labels)"
            )
        if not samples.exact:
            samples = replace(samples, batch=batch or samples.batch)
        return samples.take(range(len(samples)))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__


def _open(
    path: str | Path,
    inputs: Sequence[InputSpec],
    limit: int,
    select: str | None,
    settings: Preprocessing | None,
    labelled: bool,
) -> Samples:
    file = Path(path)
    function = not file.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(path))
    if not file.exists() and not function:
        near = [f.name for f in file.parent.iterdir()] if file.parent.is_dir() else []
        raise DataError(f"there is no such file or folder{nearest(file.name, near)}")
    sets = _test_data_sets(file)
    if file.is_dir() and not sets:
        return _from_images(file, inputs, limit, select, settings, labelled)
    if select is not None:
        raise DataError(f"--select {select} chooses among a folder's images; leave it out here")
    if sets:
        return replace(_from_test_data(sets, inputs, limit), notes=_unused(settings))
    if function:
        return replace(_from_function(str(path), inputs, limit), notes=_unused(settings))
    if file.suffix == ".npz":
        return _from_npz(file, inputs, limit, settings)
    if file.suffix == ".npy":
        return _from_npy(file, inputs, limit, settings)
    raise DataError("samples are an .npz, an .npy, a folder, or module:function")


def _unused(settings: Preprocessing | None) -> tuple[str, ...]:
    if settings is None:
        return ()
    return ("the preprocessing is not used: the samples are no 8-bit images",)


@contextmanager
def _reading(what: str) -> Iterator[None]:
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


# Arrays


def _from_npy(
    path: Path, inputs: Sequence[InputSpec], limit: int, settings: Preprocessing | None
) -> Samples:
    spec = _only(inputs, "an .npy")
    with _reading("the file"):
        array = np.lib.format.open_memmap(path, mode="r")  # never loads pickles
    return _from_arrays({spec.name: array}, None, inputs, limit, settings)


def _from_npz(
    path: Path, inputs: Sequence[InputSpec], limit: int, settings: Preprocessing | None
) -> Samples:
    with ExitStack() as stack:
        with _reading("the file"):
            file = stack.enter_context(path.open("rb"))
            archive = np.lib.npyio.NpzFile(file, allow_pickle=False)
        names = {spec.name: _member(spec.name, inputs, archive.files) for spec in inputs}
        arrays = {name: _read_member(archive, member) for name, member in names.items()}
        has_labels = "y" in archive.files and "y" not in names.values()
        labels = _read_member(archive, "y") if has_labels else None
    return _from_arrays(arrays, labels, inputs, limit, settings)


def _member(name: str, inputs: Sequence[InputSpec], members: list[str]) -> str:
    """The array of an .npz that feeds this input."""
    if name in members:
        return name
    others = [member for member in members if member != "y"]
    if len(inputs) == 1 and ("x" in others or len(others) == 1):
        return "x" if "x" in others else others[0]
    if not others:
        raise DataError(f"there is no array for the input {name!r}")
    raise DataError(f"no array is called {name!r} like the input{nearest(name, others)}")


def _read_member(archive: Any, name: str) -> Array:
    with _reading(f"the array {name!r}"):
        for stored in archive.zip.infolist():
            times = stored.file_size / max(stored.compress_size, 1)
            bomb = stored.file_size > LARGEST_EXPANDED and times > LARGEST_EXPANSION
            if bomb and stored.filename.removesuffix(".npy") == name:
                raise DataError(f"it grows {times:.0f} times when it is read; save it as an .npy")
        return archive[name]


def _from_arrays(
    arrays: Mapping[str, Array],
    labels: Array | None,
    inputs: Sequence[InputSpec],
    limit: int,
    settings: Preprocessing | None,
) -> Samples:
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
    chosen = spread(total, limit)
    # A copy of the chosen rows lets the rest of an .npz go; a memory map stays on disk.
    if not any(isinstance(a, np.memmap) for a in arrays.values()) and len(chosen) < total:
        arrays = {name: a[chosen] for name, a in arrays.items()}
        labels, chosen = None if labels is None else labels[chosen], np.arange(len(chosen))
    convert = {spec.name: _converter(arrays[spec.name], spec, settings) for spec in inputs}
    first = {name: f(arrays[name][:1]) for name, f in convert.items()}
    pictures = any(_is_images(arrays[spec.name], spec, settings) for spec in inputs)
    fixed, size = _batch_size(inputs, sum(a.nbytes for a in first.values()))
    return Samples(
        read=lambda rows: {name: f(arrays[name][rows]) for name, f in convert.items()},
        index=chosen,
        batch=size,
        exact=fixed,
        read_labels=None if labels is None else labels.__getitem__,
        notes=() if pictures else _unused(settings),
    )


def _converter(
    array: Array, spec: InputSpec, settings: Preprocessing | None
) -> Callable[[Array], Array]:
    """What turns rows of an array into a batch of the input."""
    if not _is_images(array, spec, settings):
        return lambda rows: _fit(np.asarray(rows), spec, first=1)
    transform = transform_for(spec, settings)
    channels = array.shape[3] if array.ndim == 4 else 1
    if channels not in (1, 3):
        raise DataError(f"8-bit images must be (N, H, W, 1 or 3), not {array.shape}")
    shape = transform.shape((array.shape[1], array.shape[2]))
    _check_shape((1, *shape), spec, 1)
    return lambda rows: transform.arrays(np.reshape(rows, (*rows.shape[:3], channels)))


def _is_images(array: Array, spec: InputSpec, settings: Preprocessing | None) -> bool:
    """Whether preprocessing has a say: 8-bit pixels, and not just what the input takes."""
    pixels = array.dtype == np.uint8 and array.ndim in (3, 4)
    wanted = spec.shape is None or len(spec.shape) == 4
    return pixels and wanted and (spec.is_float or settings is not None)


def _fit(array: Array, spec: InputSpec, first: int = 0) -> Array:
    """The array as the input's type, if that is safe; axes before ``first`` may be anything."""
    _check_shape(array.shape, spec, first)
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


def _check_shape(shape: tuple[int, ...], spec: InputSpec, first: int = 0) -> None:
    if not spec.fits(shape, first):
        dims = ", ".join(["N"] * first + [str(d) for d in shape[first:]])
        raise DataError(f"samples of shape [{dims}] do not fit the input {spec}")


def _batch_size(inputs: Sequence[InputSpec], nbytes: int) -> tuple[bool, int]:
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


def _only(inputs: Sequence[InputSpec], what: str) -> InputSpec:
    if len(inputs) != 1:
        names = ", ".join(repr(spec.name) for spec in inputs)
        raise DataError(f"{what} feeds one input, but the model has {names}; use an .npz")
    return inputs[0]


# Images


def _from_images(
    folder: Path,
    inputs: Sequence[InputSpec],
    limit: int,
    select: str | None,
    settings: Preprocessing | None,
    labelled: bool,
) -> Samples:
    spec = _only(inputs, "a folder of images")
    names = _image_names(folder, select)
    labels = _read_labels(folder) if (folder / "labels.csv").is_file() else {}
    if labelled and labels:
        listed = [name for name in names if name in labels]
        if not listed:
            raise DataError(f"labels.csv has no label for {names[0]!r} or any other image")
        names = listed
    names = [names[i] for i in spread(len(names), limit)]
    transform = transform_for(spec, settings)
    shapes = {
        _with_image(folder / name, lambda image: transform.shape((image.height, image.width)))
        for name in names
    }
    fixed, size = _batch_size(inputs, int(np.prod(max(shapes))) * spec.dtype.itemsize)
    if len(shapes) > 1:
        if (fixed and size > 1) or not all(spec.fits((1, *shape), 1) for shape in shapes):
            raise DataError(
                f"the images have {len(shapes)} different sizes, which the input {spec} does not "
                "take; set 'resize' and 'crop' in a preprocessing file"
            )
        fixed, size = True, 1
    _check_shape((1, *shapes.pop()), spec, 1)

    def read(rows: Array) -> Sample:
        pixels = [_with_image(folder / names[i], transform.pixels) for i in rows]
        return {spec.name: transform.normalise(np.stack(pixels))}

    known = labels.keys() >= set(names)
    every = np.array([labels[name] for name in names]) if known else None
    getter = None if every is None else every.__getitem__
    return Samples(read, np.arange(len(names)), size, fixed, getter)


def _image_names(folder: Path, select: str | None) -> list[str]:
    """Paths of the images, relative to the folder, in the order of their names."""
    names = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not names:
        raise DataError(f"there are no images ({', '.join(IMAGE_SUFFIXES)}) in the folder")
    if select is None:
        return names
    chosen = [name for name in names if fnmatchcase(name, select)]
    if not chosen:
        known = dict.fromkeys([*(f"{n.rpartition('/')[0]}/*" for n in names if "/" in n), *names])
        raise DataError(f"no image matches --select {select}{nearest(select, list(known)[:200])}")
    return chosen


def _read_labels(folder: Path) -> dict[str, int]:
    """Labels by the image's path below the folder; rows without a label are left out."""
    labels: dict[str, int] = {}
    path = folder / "labels.csv"
    with _reading("labels.csv"), path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"file", "label"} <= set(reader.fieldnames or ()):
            raise DataError("it needs a first line with the columns 'file' and 'label'")
        for row in reader:
            name, label = row["file"], row["label"]
            if not name or not label:
                continue
            if not re.fullmatch(r"\s*-?\d+\s*", label):
                raise DataError(f"line {reader.line_num}: the label {label!r} is no whole number")
            labels[name] = labels["images/" + name] = int(label)
    return labels


def _with_image(path: Path, use: Callable[[Image.Image], T]) -> T:
    """Apply a function to an image; its pixels are decoded only if the function looks at them."""
    with _reading(f"the image {path}"), Image.open(path, formats=IMAGE_FORMATS) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
            raise DataError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller")
        return use(image)


# Whole batches


def _test_data_sets(folder: Path) -> list[Path]:
    """The ``test_data_set_*`` folders here, or this one, in the order of their numbers."""
    if folder.name.startswith("test_data_set"):
        return [folder]
    sets = [f for f in folder.glob("test_data_set*") if f.is_dir()]
    return sorted(sets, key=lambda f: (len(f.name), f.name))


def _from_test_data(folders: list[Path], inputs: Sequence[InputSpec], limit: int) -> Samples:
    folders = [folders[i] for i in spread(len(folders), limit)]
    for folder in folders:
        if not (folder / f"input_{len(inputs) - 1}.pb").is_file():
            raise DataError(
                f"{folder.name} needs input_0.pb to input_{len(inputs) - 1}.pb, for the inputs "
                + ", ".join(repr(spec.name) for spec in inputs)
            )

    def read(rows: Array) -> Sample:
        folder = folders[rows[0]]
        with _reading("a tensor"):
            return {
                spec.name: _fit(read_tensor(folder / f"input_{i}.pb"), spec)
                for i, spec in enumerate(inputs)
            }

    return Samples(read, np.arange(len(folders)))


def _from_function(name: str, inputs: Sequence[InputSpec], limit: int) -> Samples:
    batches: list[Sample] = []
    labels: list[Array] = []
    rows = 0
    for item in _yields(name):
        batch, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        batches.append(_named(batch, inputs))
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


def _named(batch: Any, inputs: Sequence[InputSpec]) -> Sample:
    """What a function yields, checked against the model's inputs."""
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise DataError(f"the function must yield {{input: array}}, not {kind}")
    _check_names(batch, inputs)
    for spec in inputs:
        if spec.name not in batch:
            raise DataError(f"the function yields nothing for the input {spec.name!r}")
    return {spec.name: _fit(np.asarray(batch[spec.name]), spec) for spec in inputs}


def _check_names(names: Iterable[str], inputs: Sequence[InputSpec]) -> None:
    known = [spec.name for spec in inputs]
    for name in names:
        if name not in known:
            raise DataError(f"the model has no input {name!r}{nearest(str(name), known)}")


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


# Random


def random_samples(
    inputs: Sequence[InputSpec],
    count: int,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Samples:
    """Random inputs, for smoke tests and latency: nothing can be learnt from them.

    Floats are normal (0, 1), whole numbers in [0, 2), truth values even.

    Parameters
    ----------
    count : int
        How many batches.
    input_shapes : mapping
        Shapes of some inputs.  Other open axes: a symbol's size where it is known from
        ``input_shapes``; else 1 for the first, 224 for the image sides of a rank-4 input with
        1 or 3 channels, and 8.
    ranges : mapping
        For some inputs, the lowest whole number and the one above the highest.

    Raises
    ------
    DataError
        An unknown input, a shape that does not fit, or an input of unknown rank without one.
    """
    input_shapes, ranges = input_shapes or {}, ranges or {}
    _check_names((*input_shapes, *ranges), inputs)
    symbols: dict[str, int] = {}
    for spec in inputs:
        if spec.name in input_shapes and spec.shape is not None:
            given = tuple(input_shapes[spec.name])
            _check_shape(given, spec)
            pairs = zip(spec.shape, given, strict=True)
            symbols.update((dim, size) for dim, size in pairs if isinstance(dim, str))
    shapes = {s.name: input_shapes.get(s.name) or _default_shape(s, symbols) for s in inputs}

    def read(rows: Array) -> Sample:
        rng = np.random.default_rng([seed, int(rows[0])])

        def draw(spec: InputSpec) -> Array:
            return _random(rng, spec, shapes[spec.name], ranges.get(spec.name, (0, 2)))

        return {s.name: [draw(s), draw(s)] if s.sequence else draw(s) for s in inputs}

    return Samples(read, np.arange(count))


def _default_shape(spec: InputSpec, symbols: dict[str, int]) -> tuple[int, ...]:
    """The declared shape with numbers for the open axes; ``symbols`` learns those of symbols."""
    if spec.shape is None:
        raise DataError(f"the input {spec} needs a shape: --input-shapes {spec.name}:1,8")
    sides = {None: (), "NCHW": (2, 3), "NHWC": (1, 2)}[spec.layout]

    def size(axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int) and dim > 0:
            return dim
        default = 1 if axis == 0 else 224 if axis in sides else 8
        return symbols.setdefault(dim, default) if isinstance(dim, str) and dim else default

    return tuple(size(axis, dim) for axis, dim in enumerate(spec.shape))


def _random(
    rng: np.random.Generator, spec: InputSpec, shape: Sequence[int], limits: tuple[int, int]
) -> Array:
    if prod(shape) > LARGEST_INPUT:
        raise DataError(f"the input {spec} has too many values to make them up; give samples")
    if spec.is_float:
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind in "iu":
        return rng.integers(*limits, shape).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    raise DataError(f"no random values can be made for the input {spec}; give samples")
