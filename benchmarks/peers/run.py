"""Beside other tools: each in a virtual environment of its own, on trained models.

    python benchmarks/peers/run.py ZOO VENVS [MODEL ...]

ZOO has models, data and ``evaluate.py``; environments are made in VENVS where they are missing.
Every tool gets the same calibration samples, and every file is judged alike: bytes, score by
labels, SNR of the outputs on held-out samples and paired latency beside the original (`onnxcompress
compare`), seconds and peak memory of making it.  Writes benchmarks/RESULTS.md, a model at a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE.parent / "RESULTS.md"
sys.path.insert(0, str(HERE.parent))

from zoo_data import cifar10, imagenet_caffe, imagenet_lite, noisy  # noqa: E402

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "sympy"),
    "nncf": ("nncf", "onnx", "onnxruntime"),
    "onnxslim": ("onnxslim",),
    "onnxsim": ("onnxsim", "onnxruntime"),
    "onnx_shrink_ray": ("onnx_shrink_ray",),
}
SCRIPT = "{bin}/python {here}/"
OURS = "{bin}/python -m onnxcompress {source} {target} --quiet --calib {calibration} "
VARIANTS = (  # title, environment (or this one), file, command
    ("onnxruntime static int8", "onnxruntime", "int8", SCRIPT + "ort_static.py {files}"),
    ("onnxruntime dynamic int8", "onnxruntime", "dynamic", SCRIPT + "ort_dynamic.py {files}"),
    ("NNCF int8", "nncf", "nncf", SCRIPT + "nncf_int8.py {files}"),
    ("onnx-shrink-ray", "onnx_shrink_ray", "ray", SCRIPT + "shrink_ray.py {files}"),
    ("onnxslim", "onnxslim", "slim", "{bin}/onnxslim {source} {target}"),
    ("onnxsim", "onnxsim", "sim", "{bin}/onnxsim {source} {target}"),
    ("ours, --ratio 4", "", "quarter", OURS + "--ratio 4"),
    ("ours, --ratio 8", "", "eighth", OURS + "--ratio 8"),
    ("ours, --macs 0.6", "", "basis", OURS + "--macs 0.6"),
    ("ours, --macs 0.6, then onnxruntime static int8", "onnxruntime", "both",
     SCRIPT + "ort_static.py {folder}/basis.onnx {target} {calibration}"),
)  # fmt: skip
HELD_OUT = 64  # samples that no tool sees, for the SNR
CIFAR = ("classify", "data/cifar10/test.npz", "--prep", "cifar", "--batch", "200")
IMAGENET = ("classify", "data/imagenet1k-sample", "--limit", "500", "--prep")
Read = Callable[[Path], np.ndarray]
MODELS: dict[str, tuple[Read, Sequence[str]]] = {  # samples, judge
    "cifar10_resnet20": (cifar10, CIFAR),
    "cifar10_resnet56": (cifar10, CIFAR),
    "squeezenet1_1": (imagenet_caffe, (*IMAGENET, "caffe227")),
    "efficientnet_lite0": (imagenet_lite, (*IMAGENET, "lite224")),
    "dncnn_s25": (noisy, ("denoise", "data/set12", "--sigma", "25")),
}
LAUNCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
sys.exit(code)
"""
HEADER = """# Beside other tools

Written by `python benchmarks/peers/run.py ZOO VENVS`.  Every tool in an environment of its own,
with the same calibration samples.  Scores (top-1 in percent, PSNR in dB) by labels that nothing was
fitted to; SNR on held-out samples; latency is the share of the original's time, measured in turns
on one thread, with its quartiles; "-" and what was said where a tool failed.
"""


@dataclass(frozen=True)
class Judge:
    """How the files of one model are judged."""

    zoo: Path
    source: Path
    held_out: Path
    evaluation: Sequence[str]

    def score(self, path: Path) -> float:
        """Top-1 in percent, or PSNR in dB."""
        task, data, *options = self.evaluation
        command = [sys.executable, str(self.zoo / "evaluate.py"), task, str(path)]
        answer = _run([*command, str(self.zoo / data), *options])
        found = json.loads(answer[answer.index("{") :])
        return next(float(found[key]) for key in ("top1", "psnr") if key in found)

    def row(self, title: str, path: Path, seconds: float, memory: int) -> list[str]:
        compare = [sys.executable, "-m", "onnxcompress", "compare", str(self.source), str(path)]
        found = json.loads(_run([*compare, "--calib", str(self.held_out), "--json"]))
        found = found.get("comparison", found)
        spent, before = found["latency"], found["before"]["nbytes"]
        after = found["after"]["nbytes"]
        return [
            title,
            f"{after:,}",
            f"{before / after:.2f}",
            f"{self.score(path):.2f}",
            f"{min(found['snr'].values()):.1f}",
            f"{spent['ratio']:.2f} ({spent['low']:.2f} to {spent['high']:.2f})" if spent else "",
            f"{seconds:.0f}",
            f"{memory:,}",
        ]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise RuntimeError(said[:120])
    return done.stdout


def environment(venvs: Path, name: str) -> Path:
    """The folder of an environment's programs, which is made if it is missing."""
    place = venvs / name
    if not (place / "bin/python").exists():
        _run([sys.executable, "-m", "venv", str(place)])
        _run([str(place / "bin/pip"), "install", "-q", "numpy", *PACKAGES[name]])
    return place / "bin"


def table(zoo: Path, venvs: Path, name: str) -> Iterator[str]:
    """The lines of one model's table."""
    read, evaluation = MODELS[name]
    source = (zoo / "models" / f"{name}.onnx").resolve()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibration, held_out = folder / "calibration.npy", folder / "held_out.npy"
        samples = read(zoo)
        apart = np.linspace(0, len(samples) - 1, min(HELD_OUT, len(samples) // 4)).astype(int)
        np.save(held_out, samples[apart])
        np.save(calibration, np.delete(samples, apart, axis=0))
        judge = Judge(zoo, source, held_out, evaluation)
        yield f"\n## {name}\n"
        yield "| | bytes | ratio | score | SNR, dB | latency | seconds | peak MB |"
        yield "|---|---|---|---|---|---|---|---|"
        yield f"| original | {source.stat().st_size:,} | 1 | {judge.score(source):.2f} | | 1 | | |"
        for title, tool, file, command in VARIANTS:
            programs = environment(venvs, tool) if tool else Path(sys.executable).parent
            target = folder / f"{file}.onnx"
            words = command.format(
                bin=programs, here=HERE, folder=folder, source=source, target=target,
                calibration=calibration, files=f"{source} {target} {calibration}",
            ).split()  # fmt: skip
            start = time.perf_counter()
            try:
                memory = int(_run([sys.executable, "-c", LAUNCH, *words]))
                row = judge.row(title, target, time.perf_counter() - start, memory)
            except RuntimeError as error:
                row = [title, f"- {error}", *[""] * 6]
            yield "| " + " | ".join(row) + " |"
            print(row, flush=True)


def versions(venvs: Path) -> str:
    """What was compared."""
    found = [f"onnxcompress {version('onnxcompress')}"]
    for name in PACKAGES:
        program = f"import importlib.metadata as m; print(m.version('{name}'))"
        found.append(f"{name} {_run([str(venvs / name / 'bin/python'), '-c', program]).strip()}")
    return ", ".join(found)


def main() -> None:
    zoo, venvs = (Path(word).resolve() for word in sys.argv[1:3])
    for name in PACKAGES:
        environment(venvs, name)
    lines = [HEADER, versions(venvs) + "."]
    for name in sys.argv[3:] or MODELS:
        lines += table(zoo, venvs, name)
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
