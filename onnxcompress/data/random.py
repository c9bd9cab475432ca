"""Random inputs, for where there are no samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample
from onnxcompress.data.checks import check_input_names, check_shape
from onnxcompress.data.inputs import InputSpec
from onnxcompress.data.samples import Samples

LARGEST_INPUT = 1 << 31  # values that are made up


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
    check_input_names((*input_shapes, *ranges), inputs)
    symbols: dict[str, int] = {}
    for spec in inputs:
        if spec.name in input_shapes and spec.shape is not None:
            shape = tuple(input_shapes[spec.name])
            check_shape(shape, spec)
            pairs = zip(spec.shape, shape, strict=True)
            symbols.update((dim, size) for dim, size in pairs if isinstance(dim, str))
    shapes = {s.name: input_shapes.get(s.name) or _default_shape(s, symbols) for s in inputs}

    def read(rows: Array) -> Sample:
        rng = np.random.default_rng([seed, int(rows[0])])

        def draw(spec: InputSpec) -> Array:
            return _random(rng, spec, shapes[spec.name], ranges.get(spec.name, (0, 2)))

        return {s.name: [draw(s), draw(s)] if s.sequence else draw(s) for s in inputs}

    return Samples(read, np.arange(count), whole=True)


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
