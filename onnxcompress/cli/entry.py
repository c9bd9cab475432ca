"""The first instant of the command line: signals wait until somebody can answer them.

This module is imported by entry points alone, and imports next to nothing before it holds them.
"""

import signal

if hasattr(signal, "pthread_sigmask"):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def main() -> None:
    """Run the command line and exit with its code."""
    from onnxcompress.cli import supervisor

    supervisor.main()
