"""How a command ends: everything is complete and rendered before OUTPUT is replaced.

What can fail comes first: the model, the page and all text are made under temporary names or in
memory.  Then signals are ignored, the files take their places, and the text is printed; whatever
fails from there on is a warning, because the files are there.

Exit codes: 0 done, 1 target missed or result worse and nothing written, 2 bad arguments or input,
3 internal error, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from onnxcompress.cli import supervisor
from onnxcompress.cli.streams import say, write
from onnxcompress.cli.wording import in_options
from onnxcompress.core.errors import BudgetError, OnnxCompressError, PageError
from onnxcompress.core.messages import LONGEST_LINE, printable, shorten
from onnxcompress.core.scratch import scratch_folder

# These exit codes are explained above; 130 is 128 + SIGINT, as shells have it.
DONE, MISSED, BAD, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130


@dataclass(frozen=True)
class Outcome:
    """What is left to do when OUTPUT has been replaced, or will not be.

    Attributes:
        code: exit code.
        text: of the standard output.
        error: a line of the standard error; "" for none.
        files: complete file -> its place.
    """

    code: int
    text: str
    error: str = ""
    files: Mapping[Path, Path] = field(default_factory=dict)

    def publish(self) -> int:
        """Move the files to their places and print; the exit code."""
        supervisor.hold()
        for made, place in self.files.items():
            with _warn("could not be written", place):
                made.replace(place)
        supervisor.decide(self.code)
        with _warn("could not be printed", "the report"):
            write(self.text)
        if self.error:
            say(self.error)
        return self.code


@contextmanager
def _warn(failed: str, what: object) -> Iterator[None]:
    """A failure that comes too late to change the outcome."""
    try:
        yield
    except OSError as error:
        say(f"Warning: {what} {failed}: {error}")


def stage(stack: ExitStack, place: Path, text: str) -> dict[Path, Path]:
    """A text, complete under a temporary name as long as the stack is open, and its place.

    Raises:
        PageError: it cannot be written.
    """
    try:
        real = place.resolve()
        real.parent.mkdir(parents=True, exist_ok=True)
        made = stack.enter_context(scratch_folder(real)) / real.name
        made.write_text(in_options(text), "utf-8")
    except OSError as error:
        raise PageError(f"{place} cannot be written: {error}") from None
    return {made: real}


def json_text(code: int, value: Mapping[str, Any]) -> str:
    """The one object that --json prints."""
    whole = {"schema_version": supervisor.SCHEMA_VERSION, "exit": code} | _finite(value)
    return json.dumps(whole, indent=2, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fail(error: BaseException, words: Sequence[str], as_json: bool) -> int:
    """Say in one line what went wrong; the exit code."""
    try:
        supervisor.hold()
    except KeyboardInterrupt as stop:
        error = stop
    message, code = _explain(error)
    message = printable(shorten(" ".join(message.split()), LONGEST_LINE))
    if code == INTERRUPTED and sys.stderr is not None and sys.stderr.isatty():
        say("")  # The terminal has written ^C.
    if code == INTERNAL and "--verbose" in words:
        traceback.print_exception(error)
    say(f"Error: {message}")
    supervisor.decide(code)
    if as_json:
        with _warn("could not be printed", "the error"):
            write(json_text(code, {"error": message}))
    return code


def _explain(error: BaseException) -> tuple[str, int]:
    """The line for an error, and the exit code."""
    if supervisor.interrupted() or isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted; nothing was written", INTERRUPTED
    if isinstance(error, click.ClickException):
        return error.format_message(), BAD
    if isinstance(error, OnnxCompressError):
        return str(error), MISSED if isinstance(error, BudgetError) else BAD
    if isinstance(error, OSError):
        return str(error), BAD
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}", BAD
    if isinstance(error, SystemExit):
        return f"code that was loaded ended the process (exit code {error.code or 0})", BAD
    kind = type(error).__name__
    return f"internal error: {kind}: {error} (--verbose shows where)", INTERNAL
