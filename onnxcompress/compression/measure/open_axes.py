"""Sizes for the axes that a model leaves open, with which it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxcompress.compression.measure.shapes import first_run
from onnxcompress.core.errors import ModelError, SlowError
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.random import OPEN_SIZES, default_shapes, random_samples
from onnxcompress.data.samples import Samples
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import session_of
from onnxcompress.graph import Model, index_ranges


def shapes_that_run(
    model: Model, shapes: Mapping[str, Sequence[int]], seed: int
) -> dict[str, Sequence[int]]:
    """Shapes for the inputs with which the model runs; as they are given where that serves.

    Raises:
        ModelError: the model runs with none of the sizes that are tried.
    """
    inputs = input_specs(model)
    default, *others = (default_shapes(inputs, shapes, sizes) for sizes in OPEN_SIZES)
    session, ranges, first = session_of(runnable(model)), index_ranges(model), None
    for tried in (default, *(other for other in others if other != default)):
        sample = next(iter(random_samples(inputs, 1, seed, tried, ranges)))
        try:
            first_run(session, sample)
        except SlowError:  # A loop may be endless at any size.
            raise
        except ModelError as error:
            first = first or error
            continue
        return dict(shapes if tried is default else tried)
    raise ModelError(
        "the model does not run on random inputs: give shapes=... or samples=..., whose shapes and "
        f"values suit it ({first})"
    )


def inputs_that_run(
    model: Model, count: int, shapes: Mapping[str, Sequence[int]], seed: int = 0
) -> Samples:
    """Random inputs of shapes with which the model runs.

    Raises:
        ModelError: as `shapes_that_run`.
    """
    known = shapes if model.large else shapes_that_run(model, shapes, seed)
    return random_samples(input_specs(model), count, seed, known, index_ranges(model))
