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

# The metadata of a result has these keys.
VERSION, CONFIG, SOURCE = (f"onnxcompress.{key}" for key in ("version", "config", "source_sha256"))


def record(
    source: Path,
    methods: Sequence[Method],
    target: Target | None,
    options: Mapping[str, Any],
    samples: Samples | None,
    evaluation: Samples | None,
    refinement: partial[Any] | None = None,
) -> dict[str, str]:
    """What the result records of its making: nothing in it varies with threads, folders or time."""
    from onnxcompress.graph import sha256

    aims = vars(target) if target else {}
    config = {
        "methods": [str(method) for method in methods],
        "target": {name: value for name, value in aims.items() if value is not None},
        "seed": options["seed"],
        "samples": identify(samples),
        "evaluation": identify(evaluation),
        "metric": evaluation and options["metric"],
        "only": options["only"],
        "skip": options["skip"],
        "rules": options["rules"] and options["rules"].model_dump(exclude_defaults=True),
        "shapes": dict(options["shapes"]),
        "correct": not options["no_correct"],
        "classes": options["classes"],
        "states": options["states"],
        "strip": options.get("strip") or None,
        "simplify": options.get("simplify"),
        "compute": None if options.get("compute", "float") == "float" else options["compute"],
    }
    if refinement is not None:
        how = refinement.keywords
        train = how["labelled"]
        config["refine"] = {key: how[key] for key in ("epochs", "device", "augment") if how[key]}
        config["train"] = identify(train)
    if aims.get("max_drop") is None:
        del config["evaluation"], config["metric"]  # They are printed, but no part of the search.
    return {
        VERSION: version("onnxcompress"),
        CONFIG: config_text(config),
        SOURCE: sha256(source),
    }


def identify(samples: Samples | None) -> list[Any] | None:
    """What samples are recognised by."""
    return None if samples is None else [len(samples), samples.digest]


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as it is recorded, without what is not set."""
    values = {key: value for key, value in config.items() if value not in (None, (), {})}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


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
