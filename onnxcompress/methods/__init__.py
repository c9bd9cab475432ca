"""The methods.  One file here is one method; the folder is the registry.

A method of another package joins through the entry point group ``onnxcompress.methods``.
"""

from dataclasses import MISSING, fields
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from onnxcompress.core.method import Method


def _methods_of(module: str) -> list[type[Method]]:
    """The methods that a module defines, without those that are made of others."""
    return [
        value
        for value in vars(import_module(module)).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module
        and all(f.default is not MISSING for f in fields(value))
    ]


def _find_methods() -> dict[str, type[Method]]:
    ours = [m for info in iter_modules(__path__) for m in _methods_of(f"{__name__}.{info.name}")]
    named = {method.__name__.lower(): method for method in ours}
    return named | {p.name: p.load() for p in entry_points(group="onnxcompress.methods")}


METHODS: dict[str, type[Method]] = _find_methods()
