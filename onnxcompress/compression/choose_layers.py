"""Which layers may be changed: by patterns of their names, or by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from onnxcompress.core.errors import PatternError
from onnxcompress.core.layer import Layer
from onnxcompress.core.messages import shorten
from onnxcompress.graph import Model, find_constants, find_layers, inline_functions

NAMED = 5  # A message lists so many names where none is like the wrong one.

Patterns = str | Sequence[str]
Only = Callable[[str], bool] | Patterns


@dataclass(frozen=True)
class Chosen:
    """Says by name which layers may be changed: those of ``only``, without those of ``skip``."""

    only: Callable[[str], bool] | tuple[str, ...] | None
    skip: tuple[str, ...]

    def __call__(self, name: str) -> bool:
        if callable(self.only):
            wanted = self.only(name)
        else:
            wanted = self.only is None or _any(name, self.only)
        return wanted and not _any(name, self.skip)

    @property
    def words(self) -> dict[str, Any]:
        """What a result records of it."""
        named = getattr(self.only, "__qualname__", type(self.only).__name__)
        return {"only": named if callable(self.only) else self.only, "skip": self.skip}


def choose_layers(model: Model, only: Only | None, skip: Patterns = ()) -> Chosen | None:
    """What says which layers may be changed; None for all of them.

    Raises:
        PatternError: a pattern matches no layer.
    """
    left = _patterns(skip, "skip")
    if only is None and not left:
        return None
    chosen = only if only is None or callable(only) else _patterns(only, "only")
    check_patterns(model, [*(chosen if isinstance(chosen, tuple) else ()), *left])
    return Chosen(chosen, left)


def check_patterns(model: Model, patterns: Sequence[str]) -> None:
    """A pattern that matches no layer is an error.

    Raises:
        PatternError: there is one.
    """
    names = [name for names in every_layer(model) for name in names] if patterns else []
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            short = {shorten(name): name for name in names}
            near = get_close_matches(shorten(pattern), short, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {some(names)}"
            raise PatternError(f"no layer matches {pattern!r}; {hint}")


def every_layer(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers and constants, those in local functions too, and why others are skipped."""
    model = inline_functions(model)
    layers, skipped = find_layers(model)
    return layers | find_constants(model, layers), skipped


def matches(name: str, pattern: str) -> bool:
    """Whether a layer is meant; names with brackets mean themselves."""
    return name == pattern or fnmatchcase(name, pattern)


def some(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    more = ", ..." * (len(names) > NAMED)
    return ", ".join(map(shorten, names[:NAMED])) + more if names else "none"


def _patterns(given: Patterns, name: str) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else (*given,)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise PatternError(f"{name} must be patterns of layer names, such as ['head/*']")
    return patterns


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(name, pattern) for pattern in patterns)
