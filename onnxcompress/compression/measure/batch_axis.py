"""Whether a model takes several samples at once, along the first axis of its inputs.

The declared shape does not tell: an exporter may leave the axis open, and still write the 1 that it
has seen into a Reshape.  So the model is run on two samples.
"""

from __future__ import annotations

from dataclasses import replace

from onnxcompress.compression.measure.shapes import first_run
from onnxcompress.core.errors import ModelError
from onnxcompress.core.sample import Sample
from onnxcompress.data.samples import Samples
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import Session, session_of
from onnxcompress.graph import Model


def fit_batches(model: Model, samples: Samples) -> Samples:
    """The samples, one at a time where the model does not run on two; else as they are."""
    if samples.exact or len(samples) < 2 or model.large:
        return samples
    try:
        session = session_of(runnable(model))
    except ModelError:  # Whoever runs the model says why.
        return samples
    two, one = (next(samples.batches(size)) for size in (2, 1))
    if _runs(session, two) or not _runs(session, one):
        return samples
    note = "the model takes one sample at a time, though it declares an open batch axis"
    return replace(samples, batch=1, exact=True, notes=(*samples.notes, note))


def _runs(session: Session, batch: Sample) -> bool:
    try:
        first_run(session, batch)
    except ModelError:
        return False
    return True
