"""More images from those there are: mirrored, shifted, and two in one."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from onnxcompress.core.errors import RefineError
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample

AUGMENTATIONS = ("flip", "crop", "mix")
SHIFT = 4  # An image is moved by at most so many pixels, which is usual for images of 32 pixels.
# An image's share has a beta distribution of this parameter (Zhang et al. 2018, section 3).
MIXED = 0.2


def parse_augmentations(text: str) -> tuple[str, ...]:
    """The augmentations that are listed with commas.

    Raises:
        RefineError: there is no such augmentation.
    """
    names = tuple(word.strip() for word in text.split(",") if word.strip())
    if unknown := set(names) - set(AUGMENTATIONS):
        known = ", ".join(AUGMENTATIONS)
        raise RefineError(f"unknown augmentation {min(unknown)!r}; there are {known}")
    return names


def augment(sample: Sample, names: Collection[str], rng: np.random.Generator) -> Sample:
    """The batch with every input of images changed by the augmentations of these names."""
    return {
        name: _augment_images(array, names, rng) if names and _is_images(array) else array
        for name, array in sample.items()
    }


def _is_images(array: Array) -> bool:
    return array.ndim == 4 and array.dtype.kind == "f" and min(array.shape[2:]) > 2 * SHIFT


def _augment_images(images: Array, names: Collection[str], rng: np.random.Generator) -> Array:
    """Images ``(N, C, H, W)``, each mirrored or not, shifted with zeros moving in, and mixed.

    A mixture is of two images (Zhang et al. 2018); the teacher says what it is.
    """
    result = images.copy()
    if "flip" in names:
        mirrored = rng.random(len(images)) < 0.5
        result[mirrored] = result[mirrored, :, :, ::-1]
    if "crop" in names:
        height, width = images.shape[2:]
        wide = np.pad(result, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        for image, source, (i, j) in zip(
            result, wide, rng.integers(0, 2 * SHIFT + 1, (len(images), 2)), strict=True
        ):
            image[:] = source[:, i : i + height, j : j + width]
    if "mix" in names:
        share = rng.beta(MIXED, MIXED, (len(images), 1, 1, 1)).astype(images.dtype)
        result = share * result + (1 - share) * result[rng.permutation(len(images))]
    return result
