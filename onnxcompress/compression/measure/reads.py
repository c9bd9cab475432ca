"""Which rows of tables the samples look up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxcompress.compression.measure.unfit import blaming
from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array, Layer
from onnxcompress.data.samples import Samples
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, drop_unread, expose


def with_reads(model: Model, layers: Mapping[str, Layer], samples: Samples) -> dict[str, Layer]:
    """The layers; of tables that are read by rows it is known now in how many samples each row is.

    A row counts once in a sample: words that fill samples up to one length would outweigh all
    others, and hide how many of these are new.

    Raises:
        DataError: a sample looks up a row that a table does not have.
    """
    tables = {
        n: some
        for n, layer in layers.items()
        if (some := layer.attributes.get("indices") or layer.attributes.get("ends"))
    }
    if not tables:
        return dict(layers)
    reads = {name: np.zeros(len(layers[name].weight), np.int64) for name in tables}
    made = {t for some in tables.values() for t in some} - {v.name for v in model.graph.input}
    session = Session(drop_unread(expose(model, sorted(made)))) if made else None
    for sample in samples.batches(1):
        values = dict(sample)
        if session is not None:
            with blaming(model, samples):
                values |= dict(zip(session.outputs, session.run(sample), strict=True))
        for name, tensors in tables.items():
            rows = np.unique(np.concatenate([values[tensor].ravel() for tensor in tensors]))
            count, rows = len(reads[name]), rows.astype(np.int64)
            if "ends" in layers[name].attributes:  # Those below 0 count from the end, too.
                rows = np.arange(int(np.where(rows < 0, rows + count, rows).clip(0, count).max()))
            if (outside := rows[(rows < -count) | (rows >= count)]).size:
                raise DataError(f"a sample looks up row {outside[0]} of {name}, which has {count}")
            reads[name][rows] += 1  # Those below 0 count from the end.
    return {name: having(layer, reads.get(name)) for name, layer in layers.items()}


def having(layer: Layer, reads: Array | None) -> Layer:
    """The layer, with how often each of its rows is looked up where that is known."""
    return (
        layer if reads is None else replace(layer, attributes={**layer.attributes, "reads": reads})
    )
