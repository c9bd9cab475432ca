"""Pictures that stand in for the samples that nobody gave.

Crops of photographs that ship with the package, at several scales, some of them with noise.  The
range of values is the one that the network was trained with, as far as that shows.  A network says
most about pictures in that range: of class probabilities p over pictures,

    H(E p) - E H(p)          H(p) = - sum p log p

is largest there (the logarithm of the inception score: Salimans et al. 2016, section 4).

A network is sure of what it was trained for, and less so of photographs of other things: there any
change tips many classes over.  So it is judged on those that it is surest of, in every class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import prod

import numpy as np
from PIL import Image

from onnxcompress.core.errors import ModelError
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample
from onnxcompress.core.statistics import DOUBT
from onnxcompress.data.inputs import InputSpec, input_specs
from onnxcompress.data.preprocess import PRESETS, Preprocessing
from onnxcompress.data.random import default_shapes, draw
from onnxcompress.data.samples import BATCH_BYTES, BATCH_SAMPLES, Samples
from onnxcompress.data.transform import Transform, transform_for
from onnxcompress.graph import Model, first_scaling, index_ranges

MOST = 256  # A fit gets no more pictures: more crops of the same photographs hardly help.
LEAST = 48  # It gets no fewer pictures, however large they are.
PIXELS = 1 << 23  # Between these two, its pictures have so many pixels together.
# One photograph in so many is for validation, with one crop for as many crops of the fit.
HELD_OUT = 4
LEAST_HELD_OUT = 16  # There are at least so many crops for validation.
# Of so many crops of each class, validation takes the one that the network is surest of.
SURE = 4
SMALLEST = 8  # What has fewer pixels on a side is no picture.
SCALES = (0.35, 1.0)  # The sides of a crop are such a share of the largest that fits.
# Noise has at most this deviation, in 255ths, which is near what denoisers are trained with.
NOISE = 30.0
# What restores pictures gets them no larger than they are: where it leaves the sides open, so many
# pixels, which most photographs have.
DETAIL = 128
LOOKED_AT = 32  # So many pictures tell the range of values.
TOGETHER = 4  # So many pictures run at a time, which bounds the memory.
# Pixels that are blue first and less their mean are taken if they tell this share of what plain
# pixels do: a network that takes values to 255 and subtracts nothing was usually trained with them.
TIE = 0.9
CENTRED = 2.0  # A model for inputs of a larger mean is meant for values up to 255.
SPREAD = 20.0  # So is a model for inputs of a larger scale.

Scores = Callable[[Sample], Array | None]


@dataclass(frozen=True)
class StandIns:
    """What stands in for samples.

    Attributes:
        fit, held_out: crops of other photographs each.
        words: what they are, for the report.
        doubt: how unlike them the user's samples may be, as `Statistics` takes it.
        pictures: whether they are photographs, on which what a model decides says something.
    """

    fit: Samples
    held_out: Samples
    words: str
    doubt: float = 2 * DOUBT
    pictures: bool = True


def stand_ins(
    model: Model,
    scores: Scores,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    repaints: Callable[[Sample], bool] = lambda _: True,
) -> StandIns | None:
    """Pictures for a model with one input that takes pictures; None for others.

    An input of pictures has four axes, 1 or 3 channels, and floats or bytes.  All other inputs
    get random values.

    Args:
        scores: what the model answers to a batch: class probabilities or their logarithms up to
            a constant, ``(N, K)``, or None where it has none.
        input_shapes: shapes of some inputs; other open sides have 224 pixels, or `DETAIL` where
            there are no scores.
        repaints: whether the model answers a batch with as many values as its pictures have.

    Raises:
        DataError: a shape does not fit.
    """
    inputs = input_specs(model)
    pictured = [spec for spec in inputs if _takes_pictures(spec)]
    if len(pictured) != 1:
        return None
    shapes = default_shapes(inputs, input_shapes)
    spec = pictured[0]
    fixed = all(isinstance(dim, int) for dim in (spec.shape or ())[1:])
    source = _Source(spec, inputs, shapes, index_ranges(model), seed)
    if min(source.size) < SMALLEST:
        return None
    name = _range_of(model, source, scores)
    first = next(source.samples(PRESETS[name], 1).batches(1))
    least = LEAST
    if scores(first) is None:
        # It may be a denoiser, but nothing else; and what restores pictures reads their details.
        source = replace(source, noise=NOISE if repaints(first) else 0.0, sharp=True)
        smaller = source if spec.name in (input_shapes or {}) else source.smaller()
        if _runs(smaller.samples(PRESETS[name], 1), repaints):
            least, source = LEAST * prod(source.size) // prod(smaller.size), smaller
    count = int(np.clip(PIXELS // prod(source.size), LEAST, MOST)) if fixed else least
    fit = source.samples(PRESETS[name], count)
    others = replace(source, held_out=True)
    judged = max(count // HELD_OUT, LEAST_HELD_OUT)
    held_out = _surest(others.samples(PRESETS[name], SURE * judged), scores)
    held_out = held_out or others.samples(PRESETS[name], judged)
    words = f"photographs that ship with onnxcompress, as preprocess={name!r} gives them"
    return StandIns(fit, held_out, words)


def _runs(pictures: Samples, answer: Callable[[Sample], object]) -> bool:
    """Whether the model takes pictures of this size."""
    try:
        answer(next(pictures.batches(1)))
    except ModelError:
        return False
    return True


def _takes_pictures(spec: InputSpec) -> bool:
    whole = spec.dtype == np.uint8
    return spec.layout is not None and not spec.sequence and (spec.is_float or whole)


@dataclass(frozen=True)
class _Source:
    """Crops for one input of a model, and random values for the others."""

    spec: InputSpec
    inputs: Sequence[InputSpec]
    shapes: Mapping[str, tuple[int, ...]]
    ranges: Mapping[str, tuple[int, int]]
    seed: int
    held_out: bool = False
    noise: float = 0.0
    sharp: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        shape = self.shapes[self.spec.name]
        return (shape[2], shape[3]) if self.spec.layout == "NCHW" else (shape[1], shape[2])

    def smaller(self) -> _Source:
        """The same with `DETAIL` pixels for sides that the model leaves open."""
        axes = (2, 3) if self.spec.layout == "NCHW" else (1, 2)
        declared = self.spec.shape or ()
        shape = [
            DETAIL if axis in axes and not isinstance(declared[axis], int) else dim
            for axis, dim in enumerate(self.shapes[self.spec.name])
        ]
        return replace(self, shapes={**self.shapes, self.spec.name: tuple(shape)})

    def samples(self, settings: Preprocessing, count: int) -> Samples:
        """Crops in the range that a preprocessing gives them."""
        transform = transform_for(self.spec, settings)
        batch = self.shapes[self.spec.name][0]
        alone = len(self.inputs) == 1 and not isinstance((self.spec.shape or (0,))[0], int)
        if alone:
            batch = max(1, min(BATCH_SAMPLES, BATCH_BYTES // (12 * prod(self.size))))

        def read(rows: Array) -> Sample:
            rng = np.random.default_rng([self.seed, int(rows[0]), self.held_out, 1])
            others = {
                spec.name: draw(
                    rng, spec, self.shapes[spec.name], self.ranges.get(spec.name, (0, 2))
                )
                for spec in self.inputs
                if spec is not self.spec
            }
            pixels = np.stack([self._crop(int(row), transform) for row in rows])
            return {self.spec.name: transform.normalise(pixels)} | others

        count = count if alone else -(-count // batch) * batch
        return Samples(read, np.arange(count), batch, exact=not alone)

    def _crop(self, index: int, transform: Transform) -> Array:
        """One picture, ``(height, width, channels)``, 0 to 255."""
        rng = np.random.default_rng([self.seed, index, self.held_out])
        photographs = _photographs(self.held_out)
        image = _cropped(rng, photographs[index % len(photographs)], *self.size, self.sharp)
        pixels = np.asarray(image.convert("L" if transform.color == "gray" else "RGB"), np.float32)
        noise = rng.uniform(0, self.noise) * rng.integers(2)
        return pixels.reshape(*self.size, -1) + noise * rng.standard_normal((*self.size, 1))


def _cropped(
    rng: np.random.Generator, photograph: Image.Image, height: int, width: int, sharp: bool
) -> Image.Image:
    """A crop of random place and scale, half of them mirrored; enlarged as little as may be."""
    largest = min(photograph.width / width, photograph.height / height)
    scale = rng.uniform(*SCALES) * largest
    if sharp:
        scale = min(max(scale, 1.0), largest)
    left = rng.uniform(0, photograph.width - scale * width)
    top = rng.uniform(0, photograph.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    image = photograph.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


@cache
def _photographs(held_out: bool) -> tuple[Image.Image, ...]:
    """Those that ship, to fit with or to validate with."""
    folder = files("onnxcompress") / "data" / "pictures"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".jpg"))
    chosen = [n for i, n in enumerate(names) if (i % HELD_OUT == HELD_OUT - 1) == held_out]
    result = []
    for name in chosen:
        with (folder / name).open("rb") as file, Image.open(file) as image:
            result.append(image.convert("RGB"))
    return tuple(result)


def _range_of(model: Model, source: _Source, scores: Scores) -> str:
    """The name of the preset whose values the network takes."""
    if source.spec.dtype == np.uint8:
        return "none"
    scaling = first_scaling(model, source.spec.name)
    if scaling is not None:
        a, b = scaling
        return "none" if abs(b / a) > CENTRED or abs(1 / a) > SPREAD else "unit"
    shape = source.spec.shape or ()
    gray = shape[1 if source.spec.layout == "NCHW" else 3] == 1
    bits = {
        name: _information(source.samples(settings, LOOKED_AT), scores)
        for name, settings in PRESETS.items()
        if not gray or np.size(settings.mean) == 1
    }
    if not any(bits.values()):
        return "unit"
    best = max(bits, key=lambda name: bits[name])
    caffe = best == "none" and bits.get("imagenet-caffe", 0) >= TIE * bits[best]
    return "imagenet-caffe" if caffe else best


def _information(samples: Samples, scores: Scores) -> float:
    """What the classes say of the pictures, in nats; 0 where there are none."""
    p = _probabilities(samples, scores)
    return 0.0 if p is None else float(_entropy(p.mean(0)) - _entropy(p).mean())


def _probabilities(samples: Samples, scores: Scores) -> Array | None:
    """Of the classes, ``(pictures, classes)``; None where there are none."""
    answers: list[Array] = []
    for batch in samples.batches(TOGETHER):
        answer = scores(batch)
        if answer is None:
            return None
        answers.append(answer)
    logits = np.concatenate(answers).astype(np.float64)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _surest(samples: Samples, scores: Scores) -> Samples | None:
    """One picture in `SURE` of each class, those that the network is surest of, in their order.

    None where there are no classes, or not one for each picture.
    """
    p = _probabilities(samples, scores)
    if p is None or len(p) != len(samples):
        return None
    classes, sure = p.argmax(1), p.max(1)
    place = np.empty(len(p))  # Within its class, it goes from 0 for the surest to 1.
    for one in np.unique(classes):
        members = np.flatnonzero(classes == one)
        order = members[np.argsort(-sure[members], kind="stable")]
        place[order] = (np.arange(len(order)) + 0.5) / len(order)
    unit = samples.batch if samples.exact else 1
    count = -(-len(p) // (SURE * unit)) * unit
    return samples.take(np.sort(np.lexsort((-sure, place))[:count]))


def _entropy(p: Array) -> Array:
    return -np.sum(p * np.log(np.maximum(p, 1e-30)), axis=-1)
