"""The methods.  One file here is one method; the folder is the registry.

A method of another package joins through the entry point group ``onnxcompress.methods``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any
from warnings import warn

from onnxcompress.core.errors import OnnxCompressError
from onnxcompress.core.messages import one_line
from onnxcompress.core.method import Method

GROUP = "onnxcompress.methods"


def _is_complete(value: Any) -> bool:
    """Whether it is a method that needs no setting, and so is not made of others."""
    if not isinstance(value, type) or not issubclass(value, Method):
        return False
    return all(f.default is not MISSING for f in fields(value))


def _own_methods() -> dict[str, type[Method]]:
    modules = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    return {
        value.__name__.lower(): value
        for module in modules
        for value in vars(module).values()
        if _is_complete(value) and value.__module__ == module.__name__
    }


class _Registry(Mapping[str, type[Method]]):
    """Our methods, and those of other packages, which are imported when somebody looks.

    Not before: such a package imports this one, which would then be half imported itself.
    """

    def __init__(self) -> None:
        self._own = _own_methods()

    @cached_property
    def _points(self) -> dict[str, EntryPoint]:
        return {p.name: p for p in entry_points(group=GROUP) if p.name not in self._own}

    @cached_property
    def _foreign(self) -> dict[str, type[Method]]:
        methods = {}
        for name in self._points:
            try:
                methods[name] = self._load(name)
            except OnnxCompressError as error:
                warn(str(error), RuntimeWarning, stacklevel=3)
        return methods

    def _load(self, name: str) -> type[Method]:
        """The method of an entry point.

        Raises:
            OnnxCompressError: it cannot be imported, or is no method that needs no setting.
        """
        point = self._points[name]
        try:
            value = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
        else:
            if _is_complete(value):
                return value
            reason = "it is no Method all of whose fields have defaults"
        raise OnnxCompressError(f"method {name!r} of {point.value} cannot be used: {reason}")

    def __getitem__(self, name: str) -> type[Method]:
        if name in self._own:
            return self._own[name]
        if name in self._points and name not in self._foreign:
            self._load(name)  # It says why it is missing.
        return self._foreign[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._foreign

    def __len__(self) -> int:
        return len(self._own) + len(self._foreign)


METHODS: Mapping[str, type[Method]] = _Registry()
