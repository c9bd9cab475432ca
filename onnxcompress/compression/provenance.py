"""What a result records of its making: nothing in it varies with threads, folders or time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from onnxcompress.compression.job import OURS, Settings
from onnxcompress.compression.target import Target
from onnxcompress.data.samples import Samples
from onnxcompress.graph import Model, digest, sha256

# The metadata of a result has these keys.
VERSION, CONFIG, SOURCE = (f"{OURS}{key}" for key in ("version", "config", "source_sha256"))


def recorded(
    settings: Settings,
    source: Callable[[], str],
    samples: Samples | None,
    evaluation: Samples | None,
) -> Settings:
    """The settings with what is recorded of them; metadata of the caller's own win.

    Args:
        source: gives the SHA-256 of the model that was given, which takes a while.
    """
    if settings.metadata.keys() >= {VERSION, CONFIG, SOURCE}:
        return settings
    methods = [_name(settings.methods)] if callable(settings.methods) else settings.methods
    how = vars(settings) | {
        **(settings.only.words if settings.only else {}),
        "classes": _words(settings.classes),
        "states": _words(settings.states),
    }
    made = record(source(), methods, settings.target, samples, evaluation, settings.refinement, how)
    return replace(settings, metadata=made | dict(settings.metadata))


def record(
    source: str,
    methods: Sequence[Any],
    target: Target | None,
    samples: Samples | None,
    evaluation: Samples | None,
    refinement: Callable[..., Any] | None,
    how: Mapping[str, Any],
) -> dict[str, str]:
    """The entries for the metadata of a result.

    Args:
        source: SHA-256 of the model that was given.
        how: what else was asked for, by the names of `compress`, and ``skip`` and ``rules``.
    """
    aims = (
        {name: value for name, value in vars(target).items() if value is not None} if target else {}
    )
    config = {
        "methods": [str(method) for method in methods],
        "target": aims,
        "samples": identify(samples),
        "strip": how.get("strip") or None,
        "simplify": how.get("simplify"),
        "compute": None if how.get("compute", "float") == "float" else how["compute"],
    }
    names = ("seed", "only", "skip", "rules", "shapes", "correct", "classes", "states")
    config |= {name: how.get(name) for name in names}
    if "max_drop" in aims:  # Else they are printed, but no part of the search.
        config |= {"evaluation": identify(evaluation), "metric": how["metric"]}
    if refinement is not None:
        config |= _refinement(refinement)
    return {VERSION: version("onnxcompress"), CONFIG: config_text(config), SOURCE: source}


def _refinement(refinement: Callable[..., Any]) -> dict[str, Any]:
    """What trains the result: its settings where it is ours with some, else its name."""
    how = getattr(refinement, "keywords", None)
    if how is None:
        return {"refine": _name(refinement)}
    known = {key: how[key] for key in ("epochs", "device", "augment") if how.get(key)}
    return {"refine": known, "train": identify(how.get("labelled"))}


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _words(names: Mapping[str, Any] | None) -> list[str] | None:
    """Names as the command line takes them: none where there are none, NAME or NAME:VALUE."""
    if names is None:
        return None
    words = [name if value is None else f"{name}:{value}" for name, value in names.items()]
    return words or ["none"]


def identify(samples: Samples | None) -> list[Any] | None:
    """What samples are recognised by."""
    return None if samples is None else [len(samples), samples.digest]


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as it is recorded, without what is not set."""
    values = {key: value for key, value in config.items() if value not in (None, (), {})}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def source_digest(given: Any, model: Model) -> str:
    """SHA-256 of a model: of its file or bytes where these were given, else of its content."""
    if isinstance(given, str | os.PathLike):
        return sha256(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return hashlib.sha256(given).hexdigest()
    return digest(model)
