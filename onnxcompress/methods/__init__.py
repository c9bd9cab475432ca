"""The methods.  One file here is one method; the folder is the registry.

A method of another package joins through the entry point group ``onnxcompress.methods``.
"""

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from onnxcompress.core import Method


def _ours() -> list[type[Method]]:
    found = []
    for info in iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Method)
            and value.__module__ == module.__name__
        ]
    return found


METHODS: dict[str, type[Method]] = {method.__name__.lower(): method for method in _ours()}
METHODS |= {point.name: point.load() for point in entry_points(group="onnxcompress.methods")}
