"""Methods as the command line spells them: ``basis``, ``basis:unfolding=filter,rank=16``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from onnxcompress.core import Method
from onnxcompress.methods import METHODS
from onnxcompress.preprocess import nearest


def parse(spec: str) -> list[Method]:
    """The methods that a spec stands for; ``auto`` stands for all.

    Raises:
        ValueError: an unknown method or setting, or a value that does not fit, in one line.
    """
    name, _, given = spec.partition(":")
    if name == "auto" and not given:
        return [method() for method in METHODS.values()]
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, ['auto', *METHODS])}")
    method = METHODS[name]
    hints = get_type_hints(method)
    known = [f.name for f in fields(method)]
    settings: dict[str, Any] = {}
    for pair in filter(None, given.split(",")):
        key, _, text = pair.partition("=")
        if key not in known:
            raise ValueError(f"{name} has no setting {key!r}{nearest(key, known)}")
        settings[key] = _value(name, key, text, hints[key])
    return [method(**settings)]


def _value(name: str, key: str, text: str, hint: Any) -> Any:
    """The text as the first of the types that the setting admits."""
    for kind in get_args(hint) or (hint,):
        try:
            if kind is int or kind is float:
                return kind(text)
            if kind is str or text in get_args(kind):
                return text
            if getattr(kind, "__origin__", None) is tuple:
                return tuple(int(part) for part in text.split("x"))
        except ValueError:
            continue
    raise ValueError(f"{name}:{key}={text} is not {_wanted(hint)}")


def _wanted(hint: Any) -> str:
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    words = {int: "a whole number", float: "a number", str: "a word"}
    return " or ".join(
        words.get(kind) or ", ".join(map(str, _choices(kind))) or "numbers joined by x"
        for kind in kinds
    )


def _choices(kind: Any) -> Sequence[Any]:
    return [c for c in get_args(kind) if isinstance(c, str)]
