"""Calibration samples for the zoo's models, never taken from what the model is evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray


def cifar10(zoo: Path) -> Array:
    """512 training images, unlabelled, evenly spread over the zoo's 5,000."""
    pixels = np.load(zoo / "data/cifar10/train5k.npz")["x"]
    return _normalized(pixels[np.linspace(0, len(pixels) - 1, 512).astype(int)])


def cifar10_all(zoo: Path) -> Array:
    """The 5,000 training images of the zoo, unlabelled."""
    return _normalized(np.load(zoo / "data/cifar10/train5k.npz")["x"])


def cifar10_whole(large: Path) -> Array:
    """All 50,000 training images, unlabelled; of the folder of what is not kept in the zoo."""
    return _normalized(np.load(large / "cifar10_train.npz")["x"])


def cifar10_labelled(zoo: Path) -> tuple[Array, Array]:
    """2,000 training images, and their labels, none of those of `cifar10`."""
    data = np.load(zoo / "data/cifar10/train5k.npz")
    rest = np.setdiff1d(np.arange(5000), np.linspace(0, 4999, 512).astype(int))
    chosen = rest[np.linspace(0, len(rest) - 1, 2000).astype(int)]
    return _normalized(data["x"][chosen]), data["y"][chosen]


def _normalized(pixels: Array) -> Array:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return _channels_first((pixels.astype(np.float32) / 255 - mean) / std)


def noisy(zoo: Path) -> Array:
    """60 gray training images of 180 x 180 with noise of deviation 25."""
    files = sorted((zoo / "data/bsd-train-gray").glob("*.png"))
    clean = np.stack([np.asarray(Image.open(f).convert("L"), np.float32) for f in files])
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    return ((clean + noise) / 255).astype(np.float32)[:, None]


def noisy_patches(zoo: Path) -> Array:
    """The same in 960 pieces of 45 x 45."""
    images = noisy(zoo)
    return images.reshape(-1, 1, 4, 45, 4, 45).swapaxes(3, 4).reshape(-1, 1, 45, 45)


def brain(zoo: Path) -> Array:
    """256 training scans, channels last."""
    files = sorted((zoo / "data/brain-mri/training").glob("*.jpg"))
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, 256).astype(int)]
    images = [
        Image.open(f).convert("RGB").resize((240, 240), Image.Resampling.BICUBIC) for f in chosen
    ]
    return np.stack([np.asarray(i, np.float32) / 255 for i in images])


def imagenet_lite(zoo: Path) -> Array:
    return _imagenet(
        zoo, lambda im: (_crop(im, 224, 224 / 256, Image.Resampling.BICUBIC) - 127) / 128
    )


def imagenet_caffe(zoo: Path) -> Array:
    mean = np.array([104, 117, 123], np.float32)
    bilinear = Image.Resampling.BILINEAR
    return _imagenet(zoo, lambda im: _crop(im, 227, 227 / 256, bilinear)[:, :, ::-1] - mean)


def pictures(zoo: Path) -> Array:
    """Colour images of 142 x 142, 0 to 1."""
    return _imagenet(zoo, lambda im: _crop(im, 142, 1.0, Image.Resampling.BICUBIC) / 255)


def _imagenet(zoo: Path, prepare: Callable[[Image.Image], Array]) -> Array:
    """384 images of the second half of the sample; the first half is for evaluation."""
    rows = (zoo / "data/imagenet1k-sample/labels.csv").read_text().splitlines()[1:]
    names = [row.split(",")[0] for row in rows][500:]
    folder = zoo / "data/imagenet1k-sample"
    folder = folder if (folder / names[0]).exists() else folder / "images"
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, 384).astype(int)]
    return _channels_first(
        np.stack([prepare(Image.open(folder / n).convert("RGB")) for n in chosen])
    )


def _crop(image: Image.Image, size: int, share: float, method: Image.Resampling) -> Array:
    width, height = image.size
    side = share * min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    return np.asarray(image.resize((size, size), method, box=box), np.float32)


def _channels_first(images: Array) -> Array:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
