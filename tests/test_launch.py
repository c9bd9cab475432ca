"""What benchmarks measure of a process is true of all processes that it starts."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
WORK = """
import subprocess, sys, time
if len(sys.argv) > 1:  # a child that works, and holds memory
    held = bytearray(64 << 20)
    while time.process_time() < 0.2:
        pass
else:
    subprocess.run([sys.executable, sys.argv[0], "child"])
"""


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from launch import launch  # pyright: ignore[reportMissingImports]

    return launch


def test_processor_time_and_memory_count_what_a_process_starts(launch, tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    cost, _, _ = launch([sys.executable, "work.py"], tmp_path)
    assert cost.code == 0
    assert cost.processor > 0.2
    assert cost.together >= cost.peak > 64 << 20


def test_the_exit_code_and_the_words_of_a_command_are_its_own(launch, tmp_path):
    script = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    cost, printed, said = launch([sys.executable, "-c", script], tmp_path)
    assert (cost.code, printed, said) == (7, "out\n", "err\n")
