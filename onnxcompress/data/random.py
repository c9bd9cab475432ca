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

LARGEST_INPUT = 1 << 28  # At most so many values are made up: as float64 they take 2 GiB.
OPEN_SIZES = (  # Open image sides, and other open axes, have these sizes, tried in this order.
    (224, 8), (32, 1), (48, 16), (64, 32), (96, 64), (128, 128), (256, 512), (320, 1024),
    (512, 4096), (640, 16000),
)  # fmt: skip


def random_samples(
    inputs: Sequence[InputSpec],
    count: int,
    seed: int = 0,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[int, int]] | None = None,
) -> Samples:
    """Random inputs, for where there are no samples: little can be learnt from them.

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
        For some inputs, the lowest whole number and the one above the highest: `index_ranges` of
        the model.

    Raises
    ------
    DataError
        An unknown input, a shape that does not fit, or an input of unknown rank without one.
    """
    ranges = ranges or {}
    check_input_names(ranges, inputs)
    shapes = default_shapes(inputs, input_shapes)

    def read(rows: Array) -> Sample:
        rng = np.random.default_rng([seed, int(rows[0])])

        def value(spec: InputSpec) -> Array:
            return draw(rng, spec, shapes[spec.name], ranges.get(spec.name, (0, 2)))

        return {s.name: [value(s), value(s)] if s.sequence else value(s) for s in inputs}

    return Samples(read, np.arange(count), whole=True)


def default_shapes(
    inputs: Sequence[InputSpec],
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    sizes: tuple[int, int] = OPEN_SIZES[0],
) -> dict[str, tuple[int, ...]]:
    """A shape for every input, as `random_samples` says.

    Parameters
    ----------
    sizes : tuple of int
        Of image sides, and of other open axes.

    Raises
    ------
    DataError
        An unknown input, a shape that does not fit, or an input of unknown rank without one.
    """
    input_shapes = input_shapes or {}
    check_input_names(input_shapes, inputs)
    symbols: dict[str, int] = {}
    for spec in inputs:
        if spec.name in input_shapes and spec.shape is not None:
            shape = tuple(input_shapes[spec.name])
            check_shape(shape, spec)
            pairs = zip(spec.shape, shape, strict=True)
            symbols.update((dim, size) for dim, size in pairs if isinstance(dim, str))
    return {
        s.name: tuple(input_shapes.get(s.name) or _default_shape(s, symbols, sizes)) for s in inputs
    }


def _default_shape(
    spec: InputSpec, symbols: dict[str, int], sizes: tuple[int, int]
) -> tuple[int, ...]:
    """The declared shape with numbers for the open axes; ``symbols`` learns those of symbols."""
    if spec.shape is None:
        raise DataError(f"the input {spec} needs a shape: shapes={{{spec.name!r}: (1, 8)}}")
    sides = {None: (), "NCHW": (2, 3), "NHWC": (1, 2)}[spec.layout]
    first, *rest = spec.shape or (None,)
    state = len(rest) == 2 and isinstance(first, int) and isinstance(rest[1], int)
    batch = 1 if state else 0  # In a recurrent state the batch follows the layers.

    def size(axis: int, dim: int | str | None) -> int:
        if isinstance(dim, int) and dim > 0:
            return dim
        default = 1 if axis == batch else sizes[0] if axis in sides else sizes[1]
        return symbols.setdefault(dim, default) if isinstance(dim, str) and dim else default

    return tuple(size(axis, dim) for axis, dim in enumerate(spec.shape))


def draw(
    rng: np.random.Generator,
    spec: InputSpec,
    shape: Sequence[int],
    limits: tuple[int, int] = (0, 2),
) -> Array:
    """Random values for one input; whole numbers in the half-open range of ``limits``.

    Raises
    ------
    DataError
        There would be too many, or the input takes no numbers.
    """
    if prod(shape) > LARGEST_INPUT:
        raise DataError(f"the input {spec} has too many values to make them up; give samples")
    if spec.is_float:
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype.kind in "iu":
        return rng.integers(*limits, shape).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    raise DataError(f"no random values can be made for the input {spec}; give samples")
