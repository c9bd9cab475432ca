"""From pictures to what a model's image input wants."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from onnxcompress.core.errors import DataError
from onnxcompress.core.messages import nearest, one_line
from onnxcompress.data.inputs import Layout

LARGEST_YAML = 1 << 16  # A file of more bytes holds no settings, and would take long to parse.
# A resized picture of so many pixels takes 200 MB as RGB, and twice that while it is made.
LARGEST_PIXELS = 1 << 26

Size = tuple[int, int]  # It is height, then width.


@dataclass(frozen=True)
class Geometry:
    """How an image changes its size.

    Attributes
    ----------
    cover : size
        Resize to the smallest size of the same aspect ratio that covers this one.
    stretch : size
        Resize to exactly this size.
    crop : size
        Then cut this size out of the centre.
    done : size
        An image that has this size is left alone.
    """

    cover: Size | None = None
    stretch: Size | None = None
    crop: Size | None = None
    done: Size | None = None

    def resized(self, size: Size) -> Size:
        """The size before cropping; rounds as torchvision does.

        Raises
        ------
        DataError
            It has more than ``LARGEST_PIXELS``: a narrow picture grows without bound.
        """
        resized = self._resized(size)
        if resized[0] * resized[1] > LARGEST_PIXELS:
            raise DataError(
                f"resizing makes {_times(size)} pixels {_times(resized)}, more than "
                f"{LARGEST_PIXELS} in all; leave the picture out or cut it"
            )
        return resized

    def _resized(self, size: Size) -> Size:
        if size == self.done:
            return size
        if self.cover is None:
            return self.stretch or size
        (height, width), (h, w) = size, self.cover
        if h * width >= w * height:
            return h, h * width // height
        return w * height // width, w

    def final(self, size: Size) -> Size:
        """The size after cropping.

        Raises
        ------
        DataError
            The crop is larger than the image.
        """
        resized = self.resized(size)
        if self.crop is None or size == self.done:
            return resized
        if self.crop[0] > resized[0] or self.crop[1] > resized[1]:
            raise DataError(
                f"a crop of {_times(self.crop)} does not fit into an image of {_times(resized)}; "
                "set 'resize', or a smaller 'crop'"
            )
        return self.crop

    def keeps(self, size: Size) -> bool:
        """Whether an image of this size stays as it is."""
        return self.resized(size) == size == self.final(size)

    def apply(self, image: Image.Image, interpolation: str) -> Image.Image:
        size = (image.height, image.width)
        (height, width), (h, w) = self.resized(size), self.final(size)
        if (height, width) != size:
            image = image.resize((width, height), Image.Resampling[interpolation.upper()])
        top, left = round((height - h) / 2), round((width - w) / 2)
        return image.crop((left, top, left + w, top + h))


def _nonzero(values: Any) -> Any:
    if np.any(np.asarray(values) == 0):
        raise ValueError
    return values


Pixels = Annotated[int, Field(strict=True, gt=0)]

Number = Annotated[float, Field(allow_inf_nan=False)]

Numbers = Number | tuple[Number, ...]


class Preprocessing(BaseModel):
    """What happens to 8-bit images: ``(pixels / scale - mean) / std`` after resize and crop.

    These are the keys of a ``--preprocess`` YAML file; it does what it says and no more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    resize: Pixels | tuple[Pixels, Pixels] | None = Field(
        default=None, description="a number of pixels (the short side) or [height, width]"
    )
    crop: Pixels | tuple[Pixels, Pixels] | None = Field(
        default=None, description="a number of pixels or [height, width]"
    )
    interpolation: Literal["bilinear", "bicubic", "nearest"] = Field(
        default="bilinear", description="bilinear, bicubic or nearest"
    )
    color: Literal["rgb", "bgr", "gray"] | None = Field(
        default=None, description="rgb, bgr or gray"
    )
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0, description="a positive number, which pixel values are divided by"
    )
    mean: Numbers = Field(default=0.0, description="a number, or one for each channel")
    std: Annotated[Numbers, AfterValidator(_nonzero)] = Field(
        default=1.0, description="a number other than 0, or one for each channel"
    )
    layout: Layout | None = Field(default=None, description="NCHW or NHWC")
    dtype: Literal["uint8", "int8", "float16", "float32", "float64"] | None = Field(
        default=None, description="the model's input type: uint8, int8, float16, float32 or float64"
    )

    def geometry(self, declared: Size | None) -> Geometry:
        """What to do where the model declares this size; here: the same for any."""
        crop = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        if isinstance(self.resize, int):
            return Geometry(cover=(self.resize, self.resize), crop=crop)
        return Geometry(stretch=self.resize, crop=crop)


class Preset(Preprocessing):
    """Preprocessing with a name: it adapts to the size that a model declares."""

    def geometry(self, declared: Size | None) -> Geometry:
        if declared is None:
            return super().geometry(None)
        height, width = declared
        margin = 256 / 224
        cover = (round(height * margin), round(width * margin))
        return Geometry(cover=cover, crop=declared, done=declared)


PRESETS: dict[str, Preset] = {
    "imagenet": Preset(
        resize=256,
        crop=224,
        color="rgb",
        scale=255,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "imagenet-caffe": Preset(resize=256, crop=224, color="bgr", mean=(104, 117, 123)),
    "inception": Preset(scale=127.5, mean=1),
    "unit": Preset(scale=255),
    "none": Preset(),
}


def load_preprocessing(source: str | Path | Preprocessing) -> Preprocessing:
    """Look a preset up by name, or read a YAML file.

    Raises
    ------
    DataError
        No such preset or file, no valid YAML, an unknown key or a wrong value.
    """
    if isinstance(source, Preprocessing):
        return source
    if source in PRESETS:
        return PRESETS[str(source)]
    path = Path(source)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise DataError(f"there is no preprocessing file {path}")
        raise DataError(
            f"no preprocessing is called {str(source)!r}{nearest(str(source), PRESETS)}"
        )
    settings = read_yaml(path, "a preprocessing file", "settings such as 'scale: 255'")
    return _validated(path, settings)


def read_yaml(path: Path, what: str, example: str) -> dict[Any, Any]:
    """What a small file of YAML holds.

    Parameters
    ----------
    what, example : str
        What the file is to be, and what it is to hold, for the messages.

    Raises
    ------
    DataError
        No such file, too large a one, no valid YAML, or nothing with keys.
    """
    if not path.is_file():
        raise DataError(f"{path} is no file, so it cannot be {what}")
    if path.stat().st_size > LARGEST_YAML:
        raise DataError(f"{path} is too large for {what}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # The constructors of YAML's types raise whatever they meet.
        raise DataError(f"{path} is no readable YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold {example}")
    return content


def _validated(path: Path, settings: dict[Any, Any]) -> Preprocessing:
    fields = Preprocessing.model_fields
    for key in settings:
        if key not in fields:
            raise DataError(f"{path}: no setting is called {key!r}{nearest(str(key), fields)}")
    try:
        return Preprocessing(**settings)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise DataError(
            f"{path}: {key!r} must be {fields[key].description}, not {reprlib.repr(settings[key])}"
        ) from error


def _times(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
