"""The last step: write the result, unless it is worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onnxcompress.core.errors import CompressionError
from onnxcompress.graph import Model, annotate, save
from onnxcompress.report.report import Report

# Metadata under this key says why a result is worse, where it was written all the same.
FORCED = "onnxcompress.forced"


def deliver(
    result: Model,
    report: Report,
    output: Path,
    force: bool = False,
    external: bool = False,
    ready: Callable[[Sequence[Path]], None] = lambda files: None,
) -> Model:
    """Write the result unless it is worse; the model that was written.

    Args:
        force: write one that is worse, marked as such in its metadata.
        external, ready: see `onnxcompress.save`.

    Raises:
        CompressionError: it is worse, and nothing forces it.
        ModelError: it cannot be written.
    """
    if report.worse:
        if not force:
            raise CompressionError(report)
        result = annotate(result, {FORCED: "; ".join(report.failures)})
    save(result, output.resolve(), external=external, ready=ready)
    return result
