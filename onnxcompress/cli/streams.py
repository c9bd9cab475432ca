"""What is printed, and nothing that a terminal would obey."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TextIO

from onnxcompress.cli.wording import in_options
from onnxcompress.core.messages import LONGEST_LINE, printable, shorten


def write(text: str) -> None:
    """Print text to the standard output; whoever reads it may leave at any time.

    Raises:
        OSError: it cannot be written.
    """
    if sys.stdout is None or not text:
        return
    try:
        sys.stdout.write(f"{in_options(text)}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _give_up(sys.stdout)
    except OSError:
        _give_up(sys.stdout)
        raise


def say(text: str) -> None:
    """Print one line to the standard error, or nothing where that cannot be written."""
    if sys.stderr is None:
        return
    line = printable(shorten(in_options(text), LONGEST_LINE))
    try:
        print(line, file=sys.stderr, flush=True)
    except ValueError:  # Code of the user has closed it.
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
    except OSError:
        _give_up(sys.stderr)


class _Said(logging.Handler):
    """Puts the lines of a log on the standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def show_log() -> None:
    """Show what the package logs: how far a run is, where there is no terminal for a bar."""
    log = logging.getLogger("onnxcompress")
    log.handlers, log.propagate = [_Said()], False
    log.setLevel(logging.INFO)


def _give_up(stream: TextIO) -> None:
    """Let what is still to be written to a broken stream go nowhere, at the end of Python too."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
