"""Made-up signals that stand in for sound, brain waves and other series of measurements.

Series in nature are smooth: their power falls with the frequency, as 1 / f^a (a = 1: pink noise),
or lies in a tone and its overtones, whose loudness changes slowly.  White noise is neither, and
tells a fit little of what the filters of such a network respond to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample
from onnxcompress.data.inputs import InputSpec, input_specs
from onnxcompress.data.random import default_shapes, draw
from onnxcompress.data.samples import Samples
from onnxcompress.data.stand_ins import StandIns
from onnxcompress.graph import Model, convolved_inputs, index_ranges

LONG = 256  # A series has at least so many values.
FIT, HELD_OUT = 64, 16  # At most so many samples are for the fit, and so many for validation.
# The samples of a fit have so many values together, so that there are fewer of large inputs.
VALUES = 1 << 22
LEAST = 16  # There are at least so many samples to fit with, however large they are.
EXPONENTS = (0.5, 2.0)  # The power of noise falls as 1 / f^a, with a between these.
LOUDNESS = (0.1, 1.0)  # The standard deviation of a signal lies between these.
OVERTONES = 12  # A tone has so many overtones, itself included, as far as the rate allows.
WORDS = "noise and tones, as signals have them"
# This is a doubt as `Statistics` takes it: what was made up tells half of the truth at most.
MADE_UP = 1.0


def signals(
    model: Model, seed: int = 0, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> StandIns | None:
    """Signals for a model with inputs that are series and that convolutions read; None for others.

    Such an input has two or three axes, one of them long, and floats.  All other inputs get random
    values.

    Raises:
        DataError: a shape does not fit.
    """
    inputs = input_specs(model)
    shapes, ranges = default_shapes(inputs, input_shapes), index_ranges(model)
    read = convolved_inputs(model)
    series = {s.name for s in inputs if s.name in read and _is_series(s, shapes[s.name])}
    if not series:
        return None

    def samples(count: int, part: int) -> Samples:
        def draw_one(rows: Array) -> Sample:
            rng = np.random.default_rng([seed, int(rows[0]), part, 2])
            return {
                spec.name: signal(rng, shapes[spec.name]).astype(spec.dtype)
                if spec.name in series
                else draw(rng, spec, shapes[spec.name], ranges.get(spec.name, (0, 2)))
                for spec in inputs
            }

        return Samples(draw_one, np.arange(count), whole=True)

    values = sum(prod(shape) for shape in shapes.values())
    count = int(np.clip(VALUES // values, LEAST, FIT))
    return StandIns(samples(count, 0), samples(HELD_OUT, 1), WORDS, MADE_UP, pictures=False)


def _is_series(spec: InputSpec, shape: Sequence[int]) -> bool:
    return spec.is_float and not spec.sequence and len(shape) in (2, 3) and max(shape[1:]) >= LONG


def signal(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Noise and tones along the longest axis after the first, another mixture in every sample."""
    axis = 1 + int(np.argmax(shape[1:]))
    moved = (*(n for i, n in enumerate(shape) if i != axis), shape[axis])
    share, loudness = rng.uniform(), np.exp(rng.uniform(*np.log(LOUDNESS)))
    noise, tones = _noise(rng, moved, rng.uniform(*EXPONENTS)), _tones(rng, moved)
    mixed = share * noise + (1 - share) * tones
    return np.moveaxis(loudness * mixed, -1, axis)


def _noise(rng: np.random.Generator, shape: Sequence[int], exponent: float) -> Array:
    """Noise of power 1 / f^exponent along the last axis, of deviation 1."""
    f = np.fft.rfftfreq(shape[-1])[1:]
    spectrum = np.zeros((*shape[:-1], len(f) + 1), complex)
    drawn = rng.standard_normal((2, *shape[:-1], len(f)))
    spectrum[..., 1:] = (drawn[0] + 1j * drawn[1]) * f ** (-exponent / 2)
    noise = np.fft.irfft(spectrum, shape[-1])
    return noise / noise.std(axis=-1, keepdims=True)


def _tones(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """A tone with overtones in every row, which comes and goes slowly, of deviation 1."""
    n, rows = shape[-1], (*shape[:-1], 1)
    base = np.exp(rng.uniform(np.log(4 / n), np.log(0.1), rows))
    result, time = np.zeros(shape), np.arange(n)
    for overtone in range(1, OVERTONES + 1):
        height = rng.standard_normal(rows) / overtone * (base * overtone < 0.5)
        result += height * np.sin(2 * np.pi * (base * overtone * time + rng.uniform(size=rows)))
    result *= np.maximum(_noise(rng, shape, 2.0), 0) + 0.1
    return result / np.maximum(result.std(axis=-1, keepdims=True), 1e-9)
