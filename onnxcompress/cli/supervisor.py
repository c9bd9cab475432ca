"""The command line in a process of its own.

onnxruntime, the checker and image decoders are native code that reads files from anywhere: if they
crash, or take all memory, that is a one-line error of the process which waits for them.  It is
forked before anything large is imported.  Where nothing forks (Windows) there is one process.

The two processes share one byte, the decision: the exit code as soon as nothing can change it any
more.  So the code and the message are true whatever signal comes when, and however a process ends.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from threading import Thread, Timer, current_thread, main_thread
from types import FrameType
from typing import Any, NoReturn

# These exit codes are those of `outcome`, which is too large to be imported before the fork.
BAD, INTERRUPTED = 2, 130

SCHEMA_VERSION = 1  # Keys of what --json prints are added, never changed, so it stays 1.

# The decision is one of these while there is none, and while OUTPUT is replaced; no exit code is.
RUNNING, REPLACING = 255, 254

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # These are the numbers of malloc.h.
MAPPED_BYTES = 4 << 20  # Arrays of so many bytes are mapped, and unmapped when they are let go.
GRACE = 10  # An interrupted child has so many seconds to tidy up; then it is killed.
# These signals end a run; not every system has all of them.
STOPS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

# Parent and child share this map of one byte; it is None in a single process.
_decision: Any = None
_interrupted = False  # A signal has told this process to stop.
_raised = False  # KeyboardInterrupt has been raised for it.
_starting = False  # Native code starts, which no exception may leave.


def main() -> NoReturn:
    """Run the command line and exit with its code; a crash is one line on stderr, and code 2."""
    try:
        if hasattr(os, "fork"):
            _supervise()
        elif hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        from onnxcompress.cli import commands
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):
            hold()
        decide(code := _say("interrupted; nothing was written", INTERRUPTED))
        sys.exit(code)
    commands.main()


def interrupted() -> bool:
    """Whether a signal has told this process to stop; what it raises then is a consequence."""
    return _interrupted


def hold() -> None:
    """Ignore signals from here on; one that came before is raised here, if need be again.

    From here on the parent does not end this process, until it is told the decision.
    """
    if _decision is None:
        return
    if current_thread() is main_thread():
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
    if _interrupted:
        raise KeyboardInterrupt
    _decision[0] = REPLACING


def decide(code: int) -> None:
    """Tell the parent the exit code: nothing that comes later changes it."""
    if _decision is not None:
        _decision[0] = code


def _supervise() -> None:
    """Return in a child; the parent waits for it and never returns."""
    global _decision
    import mmap

    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    stops = {number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN}
    watched, held = os.pipe()
    _decision = mmap.mmap(-1, 1)
    _decision[0] = RUNNING
    child = os.fork()
    if child:
        os.close(watched)
        sys.exit(_wait(child, stops))
    os.close(held)
    Thread(target=_end_with_parent, args=(watched,), daemon=True).start()
    _limit_memory()
    _return_memory()
    _keep_stdout()
    sys.unraisablehook = _raise_again
    for number in stops:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _wait(child: int, stops: set[signal.Signals]) -> int:
    """The exit code of the child, which is told once to stop, and ended if it does not."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        if _decision[0] == REPLACING:
            return
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL if stopping else signal.SIGINT)
        stopping = True
        signal.alarm(GRACE)

    for number in (*stops, signal.SIGALRM):
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number in (*stops, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    if _decision[0] not in (RUNNING, REPLACING):
        return _decision[0]
    if stopping:
        return _say("interrupted; nothing was written", INTERRUPTED)
    if code >= 0:
        return _say(f"code that was loaded ended the process (exit code {code})", BAD)
    if -code == signal.SIGKILL:
        return _say("the system ended the process, most likely for want of memory", BAD)
    return _say(f"onnxruntime or other native code crashed: {signal.Signals(-code).name}", BAD)


def _say(message: str, code: int) -> int:
    """One line on stderr, and with --json one object on stdout, without any large import."""
    line = "\n" * (code == INTERRUPTED and sys.stderr.isatty()) + f"Error: {message}"
    with suppress(OSError):
        print(line, file=sys.stderr)
    if "--json" in sys.argv:
        start = f'{{"schema_version": {SCHEMA_VERSION}, "exit": {code}'
        with suppress(OSError):
            print(f'{start}, "error": "{message}"}}', flush=True)
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


def _return_memory() -> None:
    """Give arrays that are let go back to the system.

    The GNU C library learns to keep what is allocated and freed again and again, in a heap for
    every thread: of activations and patches that was a quarter of the peak.
    """
    from ctypes import CDLL

    with suppress(AttributeError, OSError):
        tune = CDLL(None).mallopt
        tune(M_MMAP_THRESHOLD, MAPPED_BYTES)
        tune(M_ARENA_MAX, 1)


def _keep_stdout() -> None:
    """Keep the standard output for the report; whoever writes to its number writes to stderr."""
    with suppress(OSError):
        kept = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = open(kept, "w", encoding=sys.stdout.encoding)  # noqa: SIM115


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A terminal tells parent and child, and the parent tells the child: the first one counts."""
    global _interrupted
    _interrupted = True
    if not _starting:
        _raise_once()


def _raise_once() -> None:
    global _raised
    if not _raised:
        _raised = True
        raise KeyboardInterrupt


def start_native() -> None:
    """Import onnx, whose native part ends the process if it is interrupted while it starts."""
    global _starting
    _starting = True
    try:
        import onnxcompress.graph  # noqa: F401
    finally:
        _starting = False
    if _interrupted:
        _raise_once()


def _raise_again(unraisable: Any) -> None:
    """An interruption that a destructor swallows comes again, a moment later."""
    global _raised
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
    elif current_thread() is main_thread():
        _raised = False
        Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
