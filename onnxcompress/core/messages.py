"""Words that error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message about a wrong name: the nearest right one, or all of them."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    if close or not names:
        return f"; did you mean {close[0]!r}?" if close else ""
    return f"; there are: {', '.join(names[:20])}{', ...' * (len(names) > 20)}"


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks and without onnxruntime's prefix."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rsplit(" : ", 1)[-1] if text.startswith("[ONNXRuntimeError]") else text
