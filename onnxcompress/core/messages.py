"""Words that error messages share, and text of strangers made fit to be shown."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_LINE = 2000  # What makes a message have more letters is a name that nobody reads.
# How onnxruntime says which node failed, and where in its own source that was found out.
FAILED_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' ")
SOURCE = re.compile(r"Status Message: (?:\S+\.(?:h|cc|cu|cuh):\d+ (?:.*? was false\. |\w+ )?)?")
LONGEST_NAME = 200  # Names are compared in so many letters: the time of difflib is quadratic.


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message about a wrong name: the nearest right one, or all of them."""
    names = list(names)
    near = {shorten(other, LONGEST_NAME): other for other in names}
    close = difflib.get_close_matches(shorten(name, LONGEST_NAME), near, 1)
    if close or not names:
        return f"; did you mean {shorten(near[close[0]])!r}?" if close else ""
    shown = ", ".join(map(shorten, names[:20]))
    return f"; there are: {shown}{', ...' * (len(names) > 20)}"


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, and without onnxruntime's frame."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not text.startswith("[ONNXRuntimeError]"):
        return text
    text = FAILED_NODE.sub(lambda found: f"{found[2] or 'a node'} ({found[1]}): ", text)
    return SOURCE.sub("", text.split(" : ", 3)[-1], count=1)


def shorten(text: str, longest: int = LONGEST_NAME) -> str:
    """The text without its middle where it is too long."""
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def printable(text: str) -> str:
    """Text in which whatever a terminal would obey, or not show, is spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
