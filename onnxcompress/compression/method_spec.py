"""Methods as the command line spells them: ``basis``, ``basis:unfolding=filter,rank=16``.

The settings of a method are the fields of its class; its docstring explains them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from importlib import import_module
from inspect import getdoc
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxcompress.compression.auto import auto
from onnxcompress.compression.target import Target
from onnxcompress.core.errors import MethodError
from onnxcompress.core.layer import Layer
from onnxcompress.core.messages import nearest
from onnxcompress.core.method import Method
from onnxcompress.methods import METHODS
from onnxcompress.methods.composed import Packed

WORDS = {int: "a whole number", float: "a number", str: "a word"}


Spelled = str | Method | Sequence[str | Method] | Callable[[Layer], Sequence[Method]]
"""Methods for all layers, as spellings or objects, or by a function of the layer."""


def parse(spec: str, target: Target | None = None) -> list[Method]:
    """The methods that a spec stands for; ``auto`` depends on the target.

    Raises:
        MethodError: an unknown method or setting, or a value that does not fit, in one line.
    """
    if spec == "auto":
        return auto(target)
    if "+" in spec:
        return [_packed(spec)]
    name, _, pairs = spec.partition(":")
    method = method_named(name)
    kinds = _kinds(method)
    settings: dict[str, Any] = {}
    for pair in filter(None, pairs.split(",")):
        key, _, text = pair.partition("=")
        if key not in kinds:
            raise MethodError(f"{name} has no setting {key!r}{nearest(key, kinds)}")
        if key in settings:
            raise MethodError(f"{name}:{pairs} sets {key} twice")
        settings[key] = _value(f"{name}:{pair}", text, kinds[key])
    try:
        return [method(**settings)]
    except ValueError as error:
        raise MethodError(f"{spec}: {error}") from None


def as_methods(
    methods: Spelled | None, target: Target | None
) -> Sequence[Method] | Callable[[Layer], Sequence[Method]]:
    """Methods from spellings, objects, or a function of the layer; None for `auto`.

    Raises:
        MethodError: a spelling is wrong, or something is no method.
    """
    if callable(methods):
        return methods
    if methods is None or isinstance(methods, str | Method):
        methods = ["auto" if methods is None else methods]
    several = methods if isinstance(methods, Iterable) else [methods]
    return [method for one in several for method in _as_method(one, target)]


def _as_method(one: Any, target: Target | None) -> list[Method]:
    if isinstance(one, str):
        return parse(one, target)
    if not isinstance(one, Method):
        kind = type(one).__name__
        raise MethodError(f"methods must be spellings such as 'integer:bits=4', or Methods: {kind}")
    return [one]


def _packed(spec: str) -> Packed:
    """Methods joined by ``+``: the arrays of the first in the form of the second."""
    [inner], [outer] = (parse(part) for part in spec.split("+", 1))
    if not outer.packs:
        packers = sorted(name for name, method in METHODS.items() if method.packs)
        raise MethodError(f"{spec}: after + comes {', '.join(packers)}")
    return Packed(inner, outer)


def method_named(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        ValueError: there is none.
    """
    try:
        return METHODS[name]
    except KeyError:
        near = nearest(name, ["auto", *METHODS])
        raise MethodError(f"unknown method {name!r}{near}") from None


def described(method: type[Method]) -> tuple[str, list[tuple[str, str, str]]]:
    """What a method does, and for each setting its name, its values and its meaning."""
    text = getdoc(method) or ""
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE))
    settings = [
        (key, _values_in_words(kinds), " ".join(meanings.get(key, "").split()))
        for key, kinds in _kinds(method).items()
    ]
    return text.partition("\n")[0], settings


def explained(method: type[Method]) -> str:
    """How a method works: the docstring of its module, without its first line."""
    text = getdoc(import_module(method.__module__)) or ""
    return text.partition("\n")[2].strip()


def _kinds(method: type[Method]) -> dict[str, Sequence[Any]]:
    """For each setting the types of its values, None left out."""
    hints = get_type_hints(method)
    result = {}
    for f in fields(method):
        hint = hints[f.name]
        union = get_origin(hint) in (Union, UnionType)
        result[f.name] = [
            kind for kind in (get_args(hint) if union else [hint]) if kind != NoneType
        ]
    return result


def _value(pair: str, text: str, kinds: Sequence[Any]) -> Any:
    """The text as the first of the types that takes it."""
    for kind in kinds:
        try:
            if kind in (int, float):
                return kind(text)
            if get_origin(kind) is tuple:
                return tuple(int(part) for part in text.split("x"))
        except ValueError:
            continue
        if (kind is str and text) or (get_origin(kind) is Literal and text in get_args(kind)):
            return text
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    near = nearest(text, words) if words else f", which must be {_values_in_words(kinds)}"
    raise MethodError(f"{pair} has no value that fits{near}")


def _values_in_words(kinds: Sequence[Any]) -> str:
    """The values in words."""
    return " or ".join(
        ", ".join(map(str, get_args(kind)))
        if get_origin(kind) is Literal
        else "whole numbers joined by x"
        if get_origin(kind) is tuple
        else WORDS.get(kind, str(kind))
        for kind in kinds
    )
