"""The forms in which models arrive: is each compressed as the plain one is?

    python benchmarks/breadth.py

The models are those of tests/kinds.py.  Two settings: a decoded form (4-bit integers) and a chain
of smaller layers.  "yes" where every layer is compressed, the file is within 5 % of what the plain
model gives, and the outputs are those of the original by onnxruntime as closely as there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import onnxcompress as oc
from onnxcompress.compression.method_spec import parse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import kinds

SETTINGS = ("integer:bits=4", "basis:unfolding=filter,rank=16")
STORED = {"float16": 0.5, "bfloat16": 0.5, "double": 2}  # the size of what keeps its type


def row(kind: str, spec: str, plain: tuple[int, float] | None) -> tuple[list[str], int, float]:
    """What the table says of a model and a setting; bytes and SNR of the result."""
    model = kinds.KINDS[kind]()
    result, report = oc.compress(model, methods=parse(spec), shapes=kinds.shapes(model))
    assert report.comparison is not None
    snr = report.comparison.worst_snr
    assert snr is not None  # Every kind has a floating-point output.
    nbytes, expected = plain or (result.nbytes, snr)
    size = result.nbytes / nbytes / (STORED.get(kind, 1) if spec.startswith("basis") else 1)
    good = size <= 1.05 and snr > expected - 6 and all(row.method for row in report.rows)
    # The file would be written by force: every kind is to lose as little as the plain model does.
    good = good and not [f for f in report.failures if "no longer does the job" not in f]
    words = ["yes" if good else "NO", f"{model.nbytes / result.nbytes:.2f}", f"{size:.3f}"]
    return [*words, f"{snr:.1f}"], result.nbytes, snr


def main() -> None:
    table = Table("kind of model")
    for spec in SETTINGS:
        for title in (spec.split(":")[0], "ratio", "size", "SNR"):
            table.add_column(title, justify="right")
    known: dict[tuple[str, str], tuple[int, float]] = {}
    for kind in kinds.KINDS:
        words = []
        for spec in SETTINGS:
            found, *measured = row(kind, spec, known.get((kinds.plain_form(kind), spec)))
            known[kind, spec] = (int(measured[0]), measured[1])
            words += found
        table.add_row(kind, *words)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
