"""What a result records of its making, and a report of its run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Imports where they are used let --help and wrong options answer at once.
    from onnxcompress.compression.target import Target
    from onnxcompress.core.method import Method
    from onnxcompress.data.samples import Samples


def record(
    source: Path,
    methods: Sequence[Method],
    target: Target | None,
    options: Mapping[str, Any],
    samples: Samples | None,
    evaluation: Samples | None,
    refinement: partial[Any] | None = None,
) -> dict[str, str]:
    """What the result records of its making, by the options of the command line."""
    from onnxcompress.compression import provenance
    from onnxcompress.graph import sha256

    rules = options["rules"] and options["rules"].model_dump(exclude_defaults=True)
    how = {"correct": not options["no_correct"], "shapes": dict(options["shapes"]), "rules": rules}
    return provenance.record(
        sha256(source), methods, target, samples, evaluation, refinement, {**options, **how}
    )


def describe_run(
    metadata: Mapping[str, str], models: Mapping[str, Path], command: Sequence[str]
) -> dict[str, Any]:
    """All that it takes to repeat a run, and to know its files again.

    Args:
        models: the name under which a file is known -> where it lies now.
    """
    from onnxcompress.graph import sha256

    names = ("onnxcompress", "onnx", "onnxruntime", "numpy")
    return {
        "command": command,
        "metadata": metadata,
        "sha256": {name: sha256(path) for name, path in models.items()},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
