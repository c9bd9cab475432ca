"""What the library calls by its arguments, in the options of the command line."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from shlex import quote
from typing import Any

OPTIONS = {  # argument -> option
    "samples": "--calib",
    "evaluation": "--eval",
    "shapes": "--input-shapes",
    "refinement": "--refine",
    "only": "--skip",
    "extensions": "--ort-extension",
    "output": "--dry-run",
    **{name: f"--{name}" for name in ("engine", "force", "preprocess", "select")},
}
QUOTE = "(?:'|&#39;)"  # On a page it is spelled out.
TARGET = re.compile(r"Target\(([a-z_]+)=(\.\.\.|[\d.]+)\)")
SHAPES = re.compile(rf"\bshapes=\{{{QUOTE}([^{{}}]*?){QUOTE}: \(([\d, ]+)\)\}}")
STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
SKIP = re.compile(rf"\bskip=(\[{STRING}(?:, {STRING})*\])")
ARGUMENT = re.compile(rf"\b({'|'.join(OPTIONS)})=(?:\.\.\.|True|None|{QUOTE}(\S+?){QUOTE})")


def in_options(text: str) -> str:
    """A message in the words of the command line: ``--min-snr`` for ``Target(min_snr=...)``."""

    def target(found: re.Match[str]) -> str:
        option = f"--{found[1].replace('_', '-')}"
        return option if found[2] == "..." else f"{option} {found[2]}"

    def shape(found: re.Match[str]) -> str:
        return f"--input-shapes {found[1]}:{found[2].replace(' ', '')}"

    def argument(found: re.Match[str]) -> str:
        option = OPTIONS[found[1]]
        return f"{option} {found[2]}" if found[2] else option

    def skip(found: re.Match[str]) -> str:
        try:
            names = literal_eval(found[1])
        except (SyntaxError, ValueError):  # A stranger's text only looks like ours.
            return found[0]
        return " ".join(f"--skip {quote(name)}" for name in names)

    text = SKIP.sub(skip, text)
    return ARGUMENT.sub(argument, SHAPES.sub(shape, TARGET.sub(target, text)))


def all_in_options(value: Any) -> Any:
    """The same with all messages in it in the words of the command line.

    Names are quoted for a shell, which only works before the text is escaped for JSON or a page.
    """
    if isinstance(value, str):
        return in_options(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: all_in_options(part) for name, part in parts.items()})
    if isinstance(value, Mapping):
        return {name: all_in_options(part) for name, part in value.items()}
    return tuple(map(all_in_options, value)) if isinstance(value, tuple) else value
