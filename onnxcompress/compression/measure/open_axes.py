"""Sizes for the axes that a model leaves open, with which it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from onnxcompress.compression.measure.shapes import FIRST_RUN
from onnxcompress.core.errors import ModelError, RunError
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.random import OPEN_SIZES, default_shapes, random_samples
from onnxcompress.data.samples import Samples
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, index_ranges

NO_SHAPE = "the model does not run on random inputs"
HELP = "give --input-shapes or --calib"


def shapes_that_run(
    model: Model, shapes: Mapping[str, Sequence[int]], seed: int
) -> dict[str, Sequence[int]]:
    """Shapes for the inputs; as they are given where the defaults serve, or no other can be tried.

    Raises:
        ModelError: the model runs with none of the sizes that are tried.
    """
    inputs = input_specs(model)
    default, *others = (default_shapes(inputs, shapes, sizes) for sizes in OPEN_SIZES)
    if all(other == default for other in others):  # none is open, or the batch alone
        return dict(shapes)
    session, ranges, first = Session(runnable(model)), index_ranges(model), None
    for tried in (default, *others):
        sample = next(iter(random_samples(inputs, 1, seed, tried, ranges)))
        try:
            session.run(sample, FIRST_RUN)
        except ModelError as error:  # not run, or not in time
            first = first or error
            continue
        return dict(shapes if tried is default else tried)
    raise ModelError(f"{NO_SHAPE} of any shape that was tried: {HELP} ({first})")


@contextmanager
def explained() -> Iterator[None]:
    """Random inputs may be at fault where a model does not run: the error says what to give.

    Raises:
        ModelError: the model does not run.
    """
    try:
        yield
    except RunError as error:
        raise ModelError(f"{NO_SHAPE}: {HELP} ({error})") from None


def inputs_that_run(
    model: Model, count: int, shapes: Mapping[str, Sequence[int]], seed: int = 0
) -> Samples:
    """Random inputs of shapes with which the model runs.

    Raises:
        ModelError: as `shapes_that_run`.
    """
    known = shapes if model.large else shapes_that_run(model, shapes, seed)
    return random_samples(input_specs(model), count, seed, known, index_ranges(model))
