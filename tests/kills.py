"""Runs that are stopped at any moment: OUTPUT is the old or the new file, and what is said is so.

    python tests/kills.py 500

Run number i is told the same signal after about the same time in every campaign: in the first
instants, where modules are imported, and up to a little more than a whole run takes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np

import onnxcompress
from models import network
from onnxcompress.graph import save

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
OURS = {str(file) for file in Path(onnxcompress.__file__).parent.rglob("*.py")} - {
    str(Path(onnxcompress.__file__).parent / name) for name in ("__main__.py", "cli/entry.py")
}  # where signals are answered: before, Python itself ends the process, and says so
INTERRUPTED = "Error: interrupted; nothing was written"
WORDS = "net.onnx out.onnx --method half --jobs 1"
WITH = ("", " --save-as-external-data", " --report page.html", " --json")
SECONDS = 600  # that a run may take after a signal


def started(folder, words):
    """The command line, with the signals as a terminal leaves them."""

    def restore():
        for number in SIGNALS[:3]:
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "onnxcompress", *words.split()], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=restore, start_new_session=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


def state(folder):
    """Every file -> its digest."""
    return {f.name: sha256(f.read_bytes()).hexdigest() if f.is_file() else ""
            for f in folder.iterdir()}  # fmt: skip


def whole_runs(folder):
    """For each of `WITH`: the files that a run adds, and the seconds that it takes."""
    runs = []
    for more in WITH:
        before, start = state(folder), time.monotonic()
        out, err = (child := started(folder, WORDS + more)).communicate()
        assert child.returncode == 0, out + err
        after = state(folder)
        runs.append(({n: after[n] for n in after if n not in before}, time.monotonic() - start))
        clear(folder)
    return runs


def clear(folder):
    for file in folder.iterdir():
        if file.is_dir():
            shutil.rmtree(file)
        elif file.name != "net.onnx":
            file.unlink()


def trial(index, folder, runs):
    """What happened, and what is wrong with it: "" for nothing."""
    rng = random.Random(index)
    which, number = rng.randrange(len(WITH)), rng.choice(SIGNALS)
    new, seconds = runs[which]
    old = rng.random() < 0.5
    (folder / "out.onnx").unlink(missing_ok=True)  # a run that was killed may have left the new one
    if old:
        (folder / "out.onnx").write_bytes(b"old")
    before = state(folder)
    child = started(folder, WORDS + WITH[which])
    time.sleep(rng.random() ** 2 * 0.5 if rng.random() < 0.3 else rng.uniform(0, 1.1) * seconds)
    if child.poll() is None:
        os.killpg(child.pid, number) if rng.random() < 0.5 else child.send_signal(number)
    out, err = child.communicate(timeout=SECONDS)
    ends = (-number, 1) if number == signal.SIGINT else (-number,)  # 1 from its own imports
    if child.returncode in ends and state(folder) == before and OURS.isdisjoint(err.split('"')):
        return f"{signal.Signals(number).name} while Python starts", ""
    lines = [line for line in err.splitlines() if line.startswith(("Error", "Traceback"))]
    what, wrong = judged(number, child.returncode, lines, before, state(folder), new)
    if "--json" in WITH[which] and number != signal.SIGKILL and not wrong:
        wrong = "" if json.loads(out).get("exit", 0) == child.returncode else f"it prints {out}"
    return what, wrong


def judged(number, code, lines, before, after, new):
    """What happened, and what is wrong with it; the page of a report has a time in it."""
    written = after.get("out.onnx") == new["out.onnx"]
    what = f"{signal.Signals(number).name} {code} {'new' if written else 'old'}"
    if after.get("out.onnx") not in (before.get("out.onnx"), new["out.onnx"]):
        return what, "OUTPUT is torn"
    if after.get("net.onnx") != before["net.onnx"]:
        return what, "INPUT has changed"
    if number == signal.SIGKILL:  # it says nothing, and the next run tidies up
        return what, "" if code in (0, -signal.SIGKILL) else f"exit code {code}"
    if code not in (0, 130) or lines != [INTERRUPTED] * (code == 130):
        return what, f"exit code {code}: {' '.join(lines)}"
    if written != (code == 0):
        return what, "what it said is not so"
    left = {n for n in after if n not in before or (written and n.startswith(".out.onnx"))}
    left -= set(new) if written else set()
    return what, f"it left {sorted(left)}" if left else ""


def campaign(count, first=0):
    """Findings as (number of the run, what is wrong), and how often which signal ended in what."""
    findings, kinds = [], Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save(network(np.random.default_rng(0)), folder / "net.onnx")
        runs = whole_runs(folder)
        for index in range(first, first + count):
            what, wrong = trial(index, folder, runs)
            kinds[what] += 1
            if wrong:
                findings.append((index, wrong))
                print(index, what, wrong, flush=True)
            if not what.startswith("SIGKILL"):
                clear(folder)
    return findings, kinds


if __name__ == "__main__":
    found, kinds = campaign(int(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0)
    for what, times in sorted(kinds.items()):
        print(times, what)
    print(f"{sys.argv[1]} runs, {len(found)} findings")
