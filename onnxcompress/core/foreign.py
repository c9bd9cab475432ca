"""Code of the user: imported by name, and run so that nothing it does escapes as it is.

Such code may print, end the process or raise anything.  What it prints goes to the standard error,
because the standard output belongs to the report; whatever it raises becomes an error of one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

from onnxcompress.core.errors import OnnxCompressError
from onnxcompress.core.messages import nearest, one_line


@contextmanager
def contain_errors(failed: str, error: type[OnnxCompressError]) -> Iterator[None]:
    """Run foreign code in this block; an interruption passes, all else that it raises is `error`.

    Args:
        failed: what failed, the beginning of the message.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, MemoryError, GeneratorExit, OnnxCompressError):
        raise
    except SystemExit as stop:
        raise error(f"{failed}: it ends the process (exit code {stop.code or 0})") from None
    except BaseException as cause:
        raise error(f"{failed}: {type(cause).__name__}: {one_line(cause)}") from cause


def import_function(name: str, error: type[OnnxCompressError]) -> Callable[..., Any]:
    """The function that ``module:function`` names; modules of the current folder are found too.

    Raises:
        error: the module cannot be imported, or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        with contain_errors(f"{name!r} cannot be imported", error):
            module = import_module(module_name)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        near = nearest(function_name, [n for n in vars(module) if not n.startswith("_")])
        raise error(f"{name!r}: the module has no function {function_name!r}{near}")
    return function
