"""From pictures to what a model's image input wants."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

LARGEST_YAML = 1 << 16  # bytes
Size = tuple[int, int]  # height, width
Layout = Literal["NCHW", "NHWC"]


class DataError(ValueError):
    """Samples that cannot be used; the message is one line: what is wrong and what to do."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message about a wrong name: the nearest right one, or all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    if close or not names:
        return f"; did you mean {close[0]!r}?" if close else ""
    return f"; there are: {', '.join(names[:20])}{', ...' * (len(names) > 20)}"


@dataclass(frozen=True)
class InputSpec:
    """What a model declares of an input.

    Attributes
    ----------
    shape : tuple or None
        Per axis the size, a symbolic name, or None; None where the rank is unknown.
    sequence : bool
        Whether it takes a list of such arrays.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None
    sequence: bool = False

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f" or self.dtype.name == "bfloat16"  # whose kind is "V"

    @property
    def layout(self) -> Layout | None:
        """Where the channels of an image input are: the axis declared as 1 or 3."""
        if self.shape is None or len(self.shape) != 4:
            return None
        if self.shape[1] in (1, 3):
            return "NCHW"
        return "NHWC" if self.shape[3] in (1, 3) else None

    def fits(self, shape: tuple[int, ...], first: int = 0) -> bool:
        """Whether an array of this shape can be fed; axes before ``first`` may be anything."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        pairs = zip(shape[first:], self.shape[first:], strict=True)
        return all(size == want for size, want in pairs if isinstance(want, int) and want > 0)

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join(str(d or "?") for d in self.shape)
        return f"{self.name!r} ({self.dtype} [{dims}])"


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
        """The size before cropping; rounds as torchvision does."""
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


def read_yaml(path: Path, what: str, content: str) -> dict[Any, Any]:
    """What a small file of YAML holds.

    Parameters
    ----------
    what, content : str
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
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise DataError(f"{path} is no readable YAML: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold {content}")
    return found


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
                f"say how images become the input {spec}: --preprocess {', '.join(PRESETS)} "
                "or a YAML file"
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
            f"the input {spec} takes whole numbers: use --preprocess none, or a YAML file "
            f"with 'dtype: {spec.dtype}'"
        )


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _times(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
