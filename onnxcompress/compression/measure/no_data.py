"""What takes the place of samples where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxcompress.compression.validate.fidelity import has_class_scores, scores
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample
from onnxcompress.data.signals import signals
from onnxcompress.data.stand_ins import StandIns, stand_ins
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import Session, session_of
from onnxcompress.graph import Model


def find_stand_ins(model: Model, seed: int, shapes: Mapping[str, Sequence[int]]) -> StandIns | None:
    """Pictures in the range that the model answers to, or signals; None where it reads neither.

    Args:
        shapes: input name -> shape, for inputs whose dimensions the model leaves open.
    """
    sessions: list[Session] = []

    def run(batch: Sample) -> Sequence[Any]:
        if not sessions:  # Most models read no pictures.
            sessions.append(session_of(runnable(model)))
        return sessions[0].run(batch)

    def answer(batch: Sample) -> Array | None:
        count = len(next(iter(batch.values())))  # It holds so many pictures.
        outputs = [y for y in run(batch) if _is_scores(y, count)]
        return scores(outputs[0])[0] if outputs else None

    def repaints(batch: Sample) -> bool:
        sizes = {np.size(x) for x in batch.values()}
        return any(isinstance(y, Array) and y.ndim == 4 and y.size in sizes for y in run(batch))

    return stand_ins(model, answer, seed, shapes, repaints) or signals(model, seed, shapes)


def _is_scores(output: object, count: int) -> bool:
    """Whether an output may hold class scores for so many pictures."""
    return isinstance(output, Array) and has_class_scores(output) and len(output) == count
