"""Pictures turned into what an image input takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from onnxcompress.core.errors import DataError
from onnxcompress.data.inputs import InputSpec, Layout
from onnxcompress.data.preprocess import PRESETS, Geometry, Preprocessing, Size


@dataclass(frozen=True)
class Transform:
    """Preprocessing, fitted to one input of a model."""

    settings: Preprocessing
    geometry: Geometry
    color: Literal["rgb", "bgr", "gray"]
    layout: Layout
    dtype: np.dtype

    def shape(self, size: Size) -> tuple[int, int, int]:
        """What an image of this size becomes: (C, H, W) or (H, W, C)."""
        height, width = self.geometry.final(size)
        channels = 1 if self.color == "gray" else 3
        return (channels, height, width) if self.layout == "NCHW" else (height, width, channels)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Convert, resize and crop one image to uint8 (H, W, C); still RGB where BGR is wanted.

        Raises
        ------
        DataError
            The image has more than 8 bits per channel, or is smaller than the crop.
        """
        if image.mode.startswith(("I", "F")):
            raise DataError("has more than 8 bits per channel; convert it to 8 bits")
        image = image.convert("L" if self.color == "gray" else "RGB")
        pixels = np.asarray(self.geometry.apply(image, self.settings.interpolation))
        return pixels.reshape(*pixels.shape[:2], -1)

    def arrays(self, images: np.ndarray) -> np.ndarray:
        """Images as uint8 (N, H, W, C) to a batch of the model's input."""
        channels = 1 if self.color == "gray" else 3
        if images.shape[-1] != channels or not self.geometry.keeps(images.shape[1:3]):
            gray = images.shape[-1] == 1
            images = np.stack(
                [self.pixels(Image.fromarray(x[..., 0] if gray else x)) for x in images]
            )
        return self.normalise(images)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as uint8 (N, H, W, C), resized and cropped, to a batch of the model's input."""
        if self.color == "bgr":
            pixels = pixels[..., ::-1]
        x = pixels.astype(np.float32)
        x /= np.float32(self.settings.scale)
        x -= np.asarray(self.settings.mean, np.float32)
        x /= np.asarray(self.settings.std, np.float32)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            x = np.clip(np.rint(x), limits.min, limits.max)
        if self.layout == "NCHW":
            x = x.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(x, self.dtype)


def transform_for(spec: InputSpec, settings: Preprocessing | None) -> Transform:
    """Fit preprocessing to an input.

    Parameters
    ----------
    settings : Preprocessing or None
        None is only enough where the input takes pixels as they are (uint8).

    Raises
    ------
    DataError
        The input takes no images, or not what the preprocessing gives.
    """
    if settings is None:
        if spec.dtype != np.uint8:
            raise DataError(
                f"say how images become the input {spec}: preprocess=..., which takes "
                f"{', '.join(PRESETS)} or a YAML file"
            )
        settings = Preprocessing()
    layout = settings.layout or spec.layout
    if (spec.shape is not None and len(spec.shape) != 4) or layout is None:
        raise DataError(
            f"images do not go into the input {spec}: its channels are not found; "
            "set 'layout' in a preprocessing file if it takes images"
        )
    *spatial, channels = _height_width_channels(spec, layout)
    color = settings.color or ("gray" if channels == 1 else "rgb")
    _check_channels(spec, settings, color, channels)
    _check_dtype(spec, settings)
    height, width = (d if isinstance(d, int) and d > 0 else None for d in spatial)
    declared = (height, width) if height and width else None
    return Transform(settings, settings.geometry(declared), color, layout, spec.dtype)


def _height_width_channels(spec: InputSpec, layout: Layout) -> tuple[int | str | None, ...]:
    if spec.shape is None:
        return None, None, None
    _, *dims = spec.shape
    return (*dims[1:], dims[0]) if layout == "NCHW" else tuple(dims)


def _check_channels(
    spec: InputSpec, settings: Preprocessing, color: str, channels: int | str | None
) -> None:
    count = 1 if color == "gray" else 3
    if isinstance(channels, int) and channels > 0 and channels != count:
        raise DataError(
            f"images in {color} have {count} channel{'s' * (count > 1)}, the input {spec} takes "
            f"{channels}; choose another preprocessing, or set 'color'"
        )
    for key in ("mean", "std"):
        if np.size(getattr(settings, key)) not in (1, count):
            raise DataError(f"{key!r} must have one value, or one for each of {count} channel(s)")


def _check_dtype(spec: InputSpec, settings: Preprocessing) -> None:
    if settings.dtype is not None:
        if settings.dtype != spec.dtype.name:
            raise DataError(f"'dtype' is {settings.dtype}, but the model's input is {spec}")
    elif not spec.is_float and (
        settings.scale != 1 or np.any(settings.mean) or np.any(np.asarray(settings.std) != 1)
    ):
        raise DataError(
            f"the input {spec} takes whole numbers: use preprocess='none', or a YAML file "
            f"with 'dtype: {spec.dtype}'"
        )
