"""Samples in folders of pictures."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import nearest
from onnxcompress.core.sample import Sample
from onnxcompress.data.checks import batch_size, check_shape, explain_errors, require_one_input
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.preprocess import Preprocessing
from onnxcompress.data.samples import Samples, spread
from onnxcompress.data.transform import transform_for

T = TypeVar("T")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")


def from_images(
    folder: Path,
    inputs: Sequence[InputSpec],
    limit: int,
    select: str | None,
    settings: Preprocessing | None,
    labelled: bool,
) -> Samples:
    """The pictures in a folder and those below it, decoded when they are read."""
    spec = require_one_input(inputs, "a folder of images")
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
    fixed, size = batch_size(inputs, int(np.prod(max(shapes))) * spec.dtype.itemsize)
    if len(shapes) > 1:
        if (fixed and size > 1) or not all(spec.fits((1, *shape), 1) for shape in shapes):
            raise DataError(
                f"the images have {len(shapes)} different sizes, which the input {spec} does not "
                "take; set 'resize' and 'crop' in a preprocessing file"
            )
        fixed, size = True, 1
    check_shape((1, *shapes.pop()), spec, 1)

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
        raise DataError(f"no image matches select={select!r}{nearest(select, list(known)[:200])}")
    return chosen


def _read_labels(folder: Path) -> dict[str, int]:
    """Labels by the image's path below the folder; rows without a label are left out."""
    labels: dict[str, int] = {}
    path = folder / "labels.csv"
    with explain_errors("labels.csv"), path.open(newline="", encoding="utf-8-sig") as file:
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
    with explain_errors(f"the image {path}"), Image.open(path, formats=IMAGE_FORMATS) as image:
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
            raise DataError(f"it has more than {Image.MAX_IMAGE_PIXELS} pixels; make it smaller")
        return use(image)
