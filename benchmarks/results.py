"""Write benchmarks/RESULTS.md from benchmarks/results/, where one file is one section.

    python benchmarks/results.py

A .json file is what peers/run.py measured on one model; a .md file is a section as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "results"
TARGET = FOLDER.parent / "RESULTS.md"
MODELS = (
    "cifar10_resnet20",
    "cifar10_resnet56",
    "squeezenet1_1",
    "efficientnet_lite0",
    "dncnn_s25",
    "vgg16_brain_mri",
)
HEADER = """# What was measured

Every figure is from the command beside it, with unlabelled calibration samples and, but for what
says so, without training.  Scores are top-1 in percent or PSNR in dB, on labelled data that nothing
was fitted to.  The README's two commands need this repository alone.  The rest needs the folder
`ZOO`, with `models/`, `data/` and an `evaluate.py`, which is not part of it, since the weights and
the pictures are others': ResNets from akamaster/pytorch_resnet_cifar10, SqueezeNet 1.1 by
DeepScale, EfficientNet-lite0 and DnCNN as their authors published them; CIFAR-10, 1,000
images of ImageNet, Set12.  `LARGE` is a folder with models that are too large for it.

## Beside other tools

`python benchmarks/peers/run.py ZOO WORK` makes a virtual environment for every tool, gives all of
them the same calibration samples, and writes the tables below; `... ZOO WORK MODEL/FILE` makes one
row again.  Files and samples stay in `WORK/MODEL`, where each line under a table runs as it stands,
with `PEERS` set to `benchmarks/peers`.

* SNR is that of the outputs on samples that no tool saw (`held_out.npy`); 200 dB is the same.
  Probabilities are compared by their logarithms: near 0 dB where a tool rounds them to 0.
* Latency is the share of the original's time, with its quartiles: original and result run in turns,
  on one thread, by `onnxcompress compare`.  The machine, an x86-64 server with 8-bit dot products
  (AVX-512 VNNI), had other work to do: only differences larger than the quartiles mean something.
* Seconds are those of the processor, all threads together: on two idle cores ours takes about half
  as long, and the waiting of a busy machine does not count.
* "better than ours" says where a tool beats every file of ours that is no larger: in its score, its
  SNR, its latency (where the quartiles do not overlap), seconds or memory to make it; or its size,
  where none is as small.
* No row of ours was chosen by its score: `--min-snr` asks for what the int8 file reaches, `--ratio`
  for its size.
"""


@dataclass(frozen=True)
class Row:
    """One file of one tool: what it is worth and what it took."""

    title: str
    command: str = ""
    failure: str = ""
    nbytes: int = 0
    score: float = 0.0
    snr: float = 0.0
    latency: Sequence[float] = (1.0, 1.0, 1.0)  # median, quartiles
    seconds: float = 0.0
    megabytes: int = 0
    agreement: float | None = None  # where there are classes

    @property
    def ours(self) -> bool:
        return self.title.startswith("ours")


def load(name: str) -> dict[str, Row]:
    """The rows of a model by the names of their files, which is empty before the first run."""
    path = FOLDER / f"{name}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    return {file: Row(**row) for file, row in rows.items()}


def save(name: str, rows: Mapping[str, Row], **facts: str) -> None:
    """Keep the rows of a model and what was said about them; write RESULTS.md anew."""
    FOLDER.mkdir(exist_ok=True)
    data = {**facts, "rows": {file: asdict(row) for file, row in rows.items()}}
    (FOLDER / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    write()


def better(row: Row, rows: Sequence[Row]) -> list[str]:
    """Where a tool's file beats every file of ours that is no larger."""
    rivals = [r for r in rows if r.ours and not r.failure and r.nbytes <= row.nbytes]
    if not rivals:
        return ["size"]
    faster = all(row.latency[2] < r.latency[1] for r in rivals)
    return [
        *(["score"] if row.score > max(r.score for r in rivals) else []),
        *(["SNR"] if row.snr > max(r.snr for r in rivals) else []),
        *(["latency"] if faster else []),
        *(["seconds"] if row.seconds < min(r.seconds for r in rivals) else []),
        *(["memory"] if row.megabytes < min(r.megabytes for r in rivals) else []),
    ]


def _cells(row: Row, original: Row, rows: Sequence[Row]) -> list[str]:
    if row.failure:
        return [row.title, f"failed: {row.failure}", *[""] * 7]
    median, low, high = row.latency
    return [
        row.title,
        f"{row.nbytes:,}",
        f"{original.nbytes / row.nbytes:.2f}",
        f"{row.score:.2f}",
        f"{row.snr:.1f}",
        f"{median:.2f} ({low:.2f} to {high:.2f})",
        f"{row.seconds:.0f}" if row.seconds else "",
        f"{row.megabytes:,}",
        "" if row.ours else ", ".join(better(row, rows)),
    ]


def _smallest(row: Row, rows: Sequence[Row]) -> str:
    """Which file of ours has at least a tool's score, in words."""
    equal = [r for r in rows if r.ours and not r.failure and r.score >= row.score]
    least = min(equal, key=lambda r: r.nbytes, default=None)
    found = f"{least.title} ({least.nbytes:,} bytes)" if least else "none"
    return f"The smallest of these files of ours with at least the score of {row.title}: {found}."


def section(name: str) -> Iterator[str]:
    """The lines of one model."""
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    found = load(name)
    original = found.pop("original")
    rows = [*found.values()]
    yield f"\n### {name}\n"
    yield "| | bytes | ratio | score | SNR, dB | latency | seconds | peak MB | better than ours |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield f"| original | {original.nbytes:,} | 1 | {original.score:.2f} | | 1 | | | |"
    for row in rows:
        yield "| " + " | ".join(_cells(row, original, rows)) + " |"
    yield ""
    for row in rows:
        if row.title.endswith("static int8") and not row.ours and not row.failure:
            yield _smallest(row, rows) + "\n"
    yield f"With {facts['versions']}.\n\n```"
    yield from (row.command for row in rows)
    yield facts["compare"]
    yield facts["evaluate"]
    yield "```"


def text() -> str:
    """All sections."""
    lines = [HEADER.rstrip()]
    for name in MODELS:
        if (FOLDER / f"{name}.json").exists():
            lines += section(name)
    for path in sorted(FOLDER.glob("*.md")):
        lines += ["", path.read_text().rstrip()]
    return "\n".join(lines) + "\n"


def write() -> None:
    TARGET.write_text(text())


if __name__ == "__main__":
    write()
