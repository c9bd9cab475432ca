"""What a result records of its making, and a report of its run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcompress.compression.target import Target
    from onnxcompress.core.method import Method
    from onnxcompress.data.samples import Samples

VERSION, CONFIG, SOURCE, FORCED = (
    f"onnxcompress.{key}" for key in ("version", "config", "source_sha256", "forced")
)


def recorded(
    source: Path,
    methods: Sequence[Method],
    target: Target | None,
    given: Mapping[str, Any],
    samples: Samples | None,
    evaluation: Samples | None,
    refinement: partial[Any] | None = None,
) -> dict[str, str]:
    """What the result records of its making: nothing in it varies with threads, folders or time."""
    from onnxcompress.graph import sha256

    wanted = vars(target) if target else {}
    config = {
        "methods": [str(method) for method in methods],
        "target": {name: value for name, value in wanted.items() if value is not None},
        "seed": given["seed"],
        "samples": known(samples),
        "evaluation": known(evaluation),
        "metric": evaluation and given["metric"],
        "only": given["only"],
        "skip": given["skip"],
        "rules": given["rules"] and given["rules"].model_dump(exclude_defaults=True),
        "shapes": dict(given["shapes"]),
        "correct": not given["no_correct"],
    }
    if refinement is not None:
        how = refinement.keywords
        train = how["labelled"]
        config["refine"] = {key: how[key] for key in ("epochs", "device", "augment") if how[key]}
        config["train"] = known(train)
    if wanted.get("max_drop") is None:
        del config["evaluation"], config["metric"]  # printed, but no part of the search
    return {
        VERSION: version("onnxcompress"),
        CONFIG: told(config),
        SOURCE: sha256(source),
    }


def known(samples: Samples | None) -> list[Any] | None:
    """What samples are recognised by."""
    return None if samples is None else [len(samples), samples.digest]


def told(config: Mapping[str, Any]) -> str:
    """A configuration as it is recorded, without what is not set."""
    given = {key: value for key, value in config.items() if value not in (None, (), {})}
    return json.dumps(given, sort_keys=True, separators=(",", ":"))


def made(
    metadata: Mapping[str, str], models: Sequence[Path], command: Sequence[str]
) -> dict[str, Any]:
    """All that it takes to repeat a run, and to know its files again."""
    from onnxcompress.graph import sha256

    names = ("onnxcompress", "onnx", "onnxruntime", "numpy")
    return {
        "command": command,
        "metadata": metadata,
        "sha256": {str(path): sha256(path) for path in models},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
