"""What the library calls by its arguments, in the options of the command line."""

from __future__ import annotations

import re

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

    return ARGUMENT.sub(argument, SHAPES.sub(shape, TARGET.sub(target, text)))
