"""Public networks as people ship them: is each compressed, and is the report true?

    python benchmarks/wild.py WILD [--judge FILE] [--only NAME ...] [--run RUN ...] [--results FILE]

WILD is a folder with models and samples, FILE the program that fetched them and that judges a
result on samples which nothing was fitted to; ``WILD_JUDGE`` in the environment names it as well.
Every model goes through ``inspect`` (which shares of its constants are listed and can shrink) and
every RUN below, as a user would start it.  A row is an ERROR where the command ends with another
code than 0 or 1, where it ends with 1 and does not say what was missed, or where the judge's SNR of
the main output is more than 2 dB from the reported one.  (Probabilities are reported by their
logarithms; the judge takes them as they are, so they are not compared.)  The exit code is 1 where
any row is an error.  ``--results`` keeps rows in a JSON file as they come; what is in it is not run
again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from launch import Cost, launch
from rich.console import Console
from rich.table import Table

RUNS = {  # name: arguments of compress, and whether it gets calibration samples
    "RATIO4": ("--ratio 4", True),
    "RATIO6": ("--ratio 6", True),
    "RATIO8": ("--ratio 8", True),
    "BITS8": ("--method integer:bits=8", False),
    "BITS8-DATA": ("--method integer:bits=8", True),
    "MACS": ("--method basis --macs 0.7", True),
}
CONTRADICTION = 2  # dB between what is reported on held-out samples and what the judge finds
EXCEPTION = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Model:
    """A model and what to give to --calib."""

    name: str
    path: Path
    samples: str


@dataclass(frozen=True)
class Row:
    """One run of one model.

    Attributes:
        cost: of the compression.
        said: the last line of its messages where nothing was written.
        error: what is wrong; empty where the row is what a user can accept.
        reported: SNR of the main output in dB, on held-out calibration samples; None without data.
        judged: what the judge prints, empty where nothing was written.
    """

    cost: Cost
    said: str = ""
    error: str = ""
    reported: float | None = None
    judged: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """The folder of models and the program that judges."""

    wild: Path
    judge: Path

    def models(self) -> list[Model]:
        """The models that are there, with samples."""
        command = [sys.executable, str(self.judge), "list", str(self.wild)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [line.split() for line in printed.splitlines() if "missing" not in line]
        return [Model(words[0], Path(words[-1]), words[-2]) for words in lines if len(words) == 4]

    def inspected(self, model: Model) -> str:
        """The shares of the constants' bytes that inspect lists, and that can become smaller."""
        command = [sys.executable, "-m", "onnxcompress", "inspect", str(model.path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.wild)
        if done.returncode:
            return f"inspect: exit {done.returncode}"
        answer = json.loads(done.stdout)
        rows = [(row["bytes"] or 0, bool(row["methods"])) for row in answer["layers"]]
        listed = sum(nbytes for nbytes, _ in rows) / answer["weights"]
        able = sum(nbytes for nbytes, methods in rows if methods) / answer["weights"]
        return f"{100 * listed:.0f} % listed, {100 * able:.0f} % can shrink"

    def row(self, model: Model, run: str) -> Row:
        """Compress a model and judge what was written."""
        arguments, data = RUNS[run]
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / "small.onnx"
            command = [sys.executable, "-m", "onnxcompress", str(model.path), str(out), "--json"]
            command += arguments.split() + (["--calib", model.samples] if data else [])
            cost, printed, said = launch(command, self.wild, self._environment())
            if cost.code not in (0, 1) or EXCEPTION in said:
                return Row(cost, _last(said), error=f"exit {cost.code}")
            if cost.code or not out.exists():
                return Row(cost, _last(said), "" if _last(said) else "nothing said")
            answer = [sys.executable, str(self.judge), "judge", str(self.wild), model.name]
            done = subprocess.run([*answer, str(out)], capture_output=True, text=True)
            judged = json.loads(done.stdout.splitlines()[-1])
            if "error" in judged:
                return Row(cost, error=f"cannot be judged: {judged['error']}", judged=judged)
            reported = _reported(json.loads(printed), judged["main"]) if data else None
            return Row(cost, "", self._contradiction(model, reported, judged), reported, judged)

    def _environment(self) -> dict[str, str]:
        """Modules of samples lie beside the arrays."""
        paths = [str(self.wild / "data"), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def _contradiction(self, model: Model, reported: float | None, judged: dict[str, Any]) -> str:
        """What the report says that the judge does not find."""
        found = judged["outputs"][judged["main"]].get("snr_db")
        if reported is None or found is None or self._is_probability(model, judged["main"]):
            return ""
        far = abs(found - reported) > CONTRADICTION
        return f"reported {reported:.1f} dB, judged {found:.1f} dB" if far else ""

    def _is_probability(self, model: Model, output: str) -> bool:
        """Whether the original's output sums to one along its classes."""
        session = ort.InferenceSession(model.path, providers=["CPUExecutionProvider"])
        with np.load(self.wild / "data" / f"{model.name}_test.npz") as arrays:
            alone = any("/" in key for key in arrays.files)  # one by one, without a batch axis
            names = [value.name for value in session.get_inputs()]
            feed = {n: arrays[f"0/{n}"] if alone else arrays[n][:1] for n in names}
        values = np.asarray(session.run([output], feed)[0])
        return values.ndim > 1 and values.min() >= 0 and np.allclose(values.sum(-1), 1, atol=1e-3)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _reported(report: dict[str, Any], output: str) -> float | None:
    both = report.get("comparison") or {}
    value = both.get("snr", {}).get(output)
    return None if value is None else float(value)


def cells(run: str, row: Row) -> list[str]:
    """One line of the table."""
    main = row.judged.get("outputs", {}).get(row.judged.get("main"), {})
    shares = [f"{100 * main[key]:.1f}" for key in ("agreement", "overlap") if key in main]
    if "same_text" in row.judged:
        shares.append(f"text {100 * row.judged['same_text']:.1f}")
    if "run" in row.judged:
        shares.append(f"run {100 * row.judged['run']['same_decisions']:.1f}")
    return [
        run,
        f"{row.judged['ratio']:.2f}" if "ratio" in row.judged else "",
        "" if row.reported is None else f"{row.reported:.1f}",
        f"{main['snr_db']:.1f}" if main.get("snr_db") is not None else "",
        "; ".join(shares),
        f"{row.cost.processor:.0f}",
        f"{row.cost.peak / 1e9:.2f}",
        f"ERROR: {row.error} {row.said}" if row.error else row.said or "written",
    ]


def read(path: Path | None) -> dict[str, Row]:
    """The rows of a file of results by MODEL/RUN; none where there is no file."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text())
    return {key: Row(**values | {"cost": Cost(**values["cost"])}) for key, values in rows.items()}


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Row]:
    """All rows, each kept as it comes."""
    rows = read(options.results)
    for model in bench.models():
        for run in options.run:
            key = f"{model.name}/{run}"
            if (options.only and model.name not in options.only) or key in rows:
                continue
            rows[key] = bench.row(model, run)
            print(f"{key:24}", *cells(run, rows[key])[1:], sep="  ", file=sys.stderr, flush=True)
            if options.results:
                kept = {name: asdict(row) for name, row in rows.items()}
                options.results.write_text(json.dumps(kept, indent=1) + "\n")
    return rows


def show(bench: Bench, rows: dict[str, Row], only: Sequence[str]) -> None:
    """Print the table: one block a model."""
    table = Table("model", "run", "ratio", "reported dB", "judged dB", "agreement %", "cpu s", "GB",
                  "outcome")  # fmt: skip
    for model in bench.models():
        own = {key: row for key, row in rows.items() if key.partition("/")[0] == model.name}
        if (only and model.name not in only) or not own:
            continue
        title = f"{model.name}: {bench.inspected(model)}"
        for key, row in own.items():
            table.add_row(title, *cells(key.partition("/")[2], row))
            title = ""
        table.add_section()
    Console(width=170).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("wild", type=Path)
    parser.add_argument("--judge", type=Path, default=os.environ.get("WILD_JUDGE"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--run", nargs="+", default=[*RUNS], choices=[*RUNS])
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.judge is None:
        parser.error("--judge or WILD_JUDGE names the program that judges")
    bench = Bench(options.wild.resolve(), options.judge.resolve())
    rows = measure(bench, options)
    show(bench, rows, options.only)
    sys.exit(any(row.error for row in rows.values()))


if __name__ == "__main__":
    main()
