"""The operators that torch computes.  A file here is a family; the folder is the registry.

A new operator is an entry of its family's table, a new family a file with a table of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from onnxcompress.refinement.torch_ops.operator import Operator


def _collect() -> dict[str, Operator]:
    """The tables of all files, in one."""
    files = [import_module(f"{__name__}.{info.name}") for info in iter_modules(__path__)]
    tables = [getattr(file, "OPERATORS", {}) for file in files]
    return {name: operator for table in tables for name, operator in table.items()}


OPERATORS: Mapping[str, Operator] = _collect()
