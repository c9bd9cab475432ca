"""The last step: write the result, unless it is worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onnxcompress.core.errors import CompressionError
from onnxcompress.graph import Model, save
from onnxcompress.report.report import Report


def deliver(
    result: Model,
    report: Report,
    output: Path,
    force: bool = False,
    external: bool = False,
    ready: Callable[[Sequence[Path]], None] = lambda files: None,
) -> None:
    """Write the result unless it is worse.

    Args:
        force: write one that is worse as well.
        external, ready: see `onnxcompress.save`.

    Raises:
        CompressionError: it is worse, and nothing forces it.
        ModelError: it cannot be written.
    """
    if report.worse and not force:
        raise CompressionError(report)
    save(result, output.resolve(), external=external, ready=ready)
