"""The command line in a process of its own.

onnxruntime, the checker and image decoders are native code that reads files from anywhere: if they
crash, or take all memory, that is a one-line error of the process which waits for them.  It is
forked before anything large is imported.  Where nothing forks (Windows) there is one process.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import NoReturn

BAD, INTERRUPTED = 2, 130  # exit codes, as the command line has them

GRACE = 10  # seconds in which an interrupted child may tidy up


def main() -> NoReturn:
    """Run the command line and exit with its code; a crash is one line on stderr, and code 2."""
    if hasattr(os, "fork"):
        _supervise()
    from onnxcompress.cli import commands

    commands.main()


def _supervise() -> None:
    """Return in a child; the parent waits for it and never returns."""
    stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    stops = {number for number in stops if signal.getsignal(number) != signal.SIG_IGN}
    watched, held = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    child = os.fork()
    if child:
        os.close(watched)
        sys.exit(_wait(child, stops))
    os.close(held)
    Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    _limit_memory()
    if signal.SIGINT in stops:
        signal.signal(signal.SIGINT, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)


def _wait(child: int, stops: set[signal.Signals]) -> int:
    """The exit code of the child, which is told once to stop, and ended if it does not."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        os.kill(child, signal.SIGKILL if stopping else signal.SIGINT)
        stopping = True
        signal.alarm(GRACE)

    for number in (*stops, signal.SIGALRM):
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        return code
    if stopping:
        return _say("interrupted", INTERRUPTED)
    if -code == signal.SIGKILL:
        return _say("the system ended the process, most likely for want of memory", BAD)
    return _say(f"onnxruntime or other native code crashed: {signal.Signals(-code).name}", BAD)


def _say(message: str, code: int) -> int:
    print(f"Error: {message}", file=sys.stderr)
    return code


def _end_with_parent(watched: int) -> None:
    """Wait for the end of the parent, which alone holds the other end of the pipe."""
    os.read(watched, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_memory() -> None:
    """Let what asks for more memory than the machine has fail, before others suffer from it."""
    import resource

    with suppress(ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if soft == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, hard))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A terminal tells parent and child, and the parent tells the child: the first one counts."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
