"""Run a command and measure what it takes.

    python benchmarks/launch.py FILE COMMAND ...

writes to FILE, as JSON: the exit code, seconds by the clock, processor seconds (of all threads and
processes together), and peak bytes of memory: of the largest process, and of all processes at the
same moment, mapped files included.  The program imports the standard library alone: the peak of a
process counts from its parent's size at the start (Linux), so a small parent starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

INTERVAL = 0.1  # seconds between two looks at the memory


@dataclass(frozen=True)
class Cost:
    """What a command took; memory in bytes."""

    code: int
    seconds: float
    processor: float
    peak: int
    together: int


def launch(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[Cost, str, str]:
    """What a command takes, from a small process, and what it prints: stdout and stderr."""
    with TemporaryDirectory() as scratch:
        target = Path(scratch) / "cost.json"
        done = subprocess.run(
            [sys.executable, __file__, str(target), *command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
        )
        return Cost(**json.loads(target.read_text())), done.stdout, done.stderr


def _measure(command: Sequence[str]) -> Cost:
    start, together = time.perf_counter(), 0
    child = subprocess.Popen(command)
    while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
        together = max(together, _resident(child.pid))
        time.sleep(INTERVAL)
    _, status, used = ended
    seconds = time.perf_counter() - start
    peak = used.ru_maxrss * 1024
    processor = used.ru_utime + used.ru_stime
    code = os.waitstatus_to_exitcode(status)
    return Cost(code, seconds, processor, peak, max(peak, together))


def _resident(process: int) -> int:
    """Bytes of memory of a process and of those that it started, on Linux."""
    place = Path(f"/proc/{process}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        children = (place / "task" / str(process) / "children").read_text().split()
    except (OSError, IndexError):  # it has just ended
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_resident(int(child)) for child in children)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    cost = _measure(sys.argv[2:])
    Path(sys.argv[1]).write_text(json.dumps(asdict(cost)))
    sys.exit(max(cost.code, 1) if cost.code else 0)
