"""Beside other tools: each in a virtual environment of its own, on trained models.

    python benchmarks/peers/run.py ZOO WORK [MODEL[/FILE] ...]

ZOO has models, data and ``evaluate.py``; WORK gets the environments, where they are missing, and
for every model a folder with its samples and all files.  Every tool gets the same calibration
samples, and every file is judged alike: bytes, score by labels, SNR of the outputs on held-out
samples and paired latency beside the original (`onnxcompress compare`), processor time and peak
memory of making it.  The rows go to benchmarks/results/MODEL.json as they come, and from there into
RESULTS.md.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from launch import Cost, launch  # noqa: E402
from results import Row, load, save  # noqa: E402
from zoo_data import brain, cifar10, imagenet_caffe, imagenet_lite, noisy  # noqa: E402

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "sympy"),
    "nncf": ("nncf", "onnx", "onnxruntime"),
    "onnxslim": ("onnxslim",),
    "onnxsim": ("onnxsim", "onnxruntime"),
    "onnx_shrink_ray": ("onnx_shrink_ray",),
}
STATIC = "../onnxruntime/bin/python $PEERS/ort_static.py "
OURS = "onnxcompress original.onnx {file} --quiet --calib calibration.npy "
VARIANTS = {  # file: title, command; {ratio}, {quality} and {exact} are those of static int8
    "int8.onnx": ("onnxruntime static int8", STATIC + "original.onnx {file} calibration.npy"),
    "dynamic.onnx": (
        "onnxruntime dynamic int8",
        "../onnxruntime/bin/python $PEERS/ort_dynamic.py original.onnx {file}",
    ),
    "nncf.onnx": (
        "NNCF int8",
        "../nncf/bin/python $PEERS/nncf_int8.py original.onnx {file} calibration.npy",
    ),
    "ray.onnx": (
        "onnx-shrink-ray",
        "../onnx_shrink_ray/bin/python $PEERS/shrink_ray.py original.onnx {file}",
    ),
    "slim.onnx": ("onnxslim", "../onnxslim/bin/onnxslim original.onnx {file}"),
    "sim.onnx": ("onnxsim", "../onnxsim/bin/onnxsim original.onnx {file}"),
    "as_small.onnx": ("ours, the size of static int8: --ratio {ratio}", OURS + "--ratio {ratio}"),
    "as_exact.onnx": ("ours, the {quality} of static int8: {exact}", OURS + "{exact}"),
    "eighth.onnx": ("ours, --ratio 8", OURS + "--ratio 8"),
    "twelfth.onnx": ("ours, --ratio 12", OURS + "--ratio 12"),
    "basis.onnx": ("ours, --macs 0.6", OURS + "--macs 0.6"),
    "both.onnx": (
        "ours, --macs 0.6, then onnxruntime static int8",
        OURS.format(file="basis.onnx")
        + "--macs 0.6 && "
        + STATIC
        + "basis.onnx {file} calibration.npy",
    ),
}
HARDLY = 10  # dB of SNR: below, it is the logarithms of lost probabilities that differ
HELD_OUT = 64  # samples that no tool sees, for the SNR
CIFAR = "classify {file} $ZOO/data/cifar10/test.npz --prep cifar --batch 200 --threads 1"
IMAGENET = "classify {file} $ZOO/data/imagenet1k-sample --limit 500 --threads 1 --prep "
COMPARE = "onnxcompress compare original.onnx {file} --calib held_out.npy --json"
Read = Callable[[Path], np.ndarray]
MODELS: dict[str, tuple[Read, str]] = {  # samples, what judges
    "cifar10_resnet20": (cifar10, CIFAR),
    "cifar10_resnet56": (cifar10, CIFAR),
    "squeezenet1_1": (imagenet_caffe, IMAGENET + "caffe227"),
    "efficientnet_lite0": (imagenet_lite, IMAGENET + "lite224"),
    "dncnn_s25": (noisy, "denoise {file} $ZOO/data/set12 --sigma 25 --threads 1"),
    "vgg16_brain_mri": (
        brain,
        "classify {file} $ZOO/data/brain-mri --part testing --threads 1 --prep keras240",
    ),
}


@dataclass(frozen=True)
class Bench:
    """The folder of one model, in which commands run as RESULTS.md prints them."""

    zoo: Path
    folder: Path
    evaluate: str

    def run(self, command: str) -> tuple[Cost, str]:
        """What a command takes and prints.

        Raises:
            RuntimeError: it failed; the last line that it said.
        """
        here = Path(sys.executable).parent
        paths = {"PEERS": HERE, "ZOO": self.zoo, "PATH": f"{here}:{os.environ['PATH']}"}
        environment = {name: str(value) for name, value in paths.items()}
        cost, printed, said = launch(["bash", "-c", command], self.folder, environment)
        if cost.code:
            last = (said.strip() or printed.strip() or "nothing").splitlines()[-1]
            raise RuntimeError(last[:120])
        return cost, printed

    def score(self, file: str) -> float:
        """Top-1 in percent, or PSNR in dB."""
        _, answer = self.run(self.evaluate.format(file=file))
        found = json.loads(answer[answer.index("{") :])
        return next(float(found[key]) for key in ("top1", "psnr") if key in found)

    def row(self, file: str, title: str, command: str) -> Row:
        """A file, made and judged."""
        try:
            cost, _ = self.run(command)
            compared = json.loads(self.run(COMPARE.format(file=file))[1])
            compared = compared.get("comparison", compared)
            score = self.score(file)
        except RuntimeError as error:
            return Row(title, command, failure=str(error))
        latency = [compared["latency"][key] for key in ("ratio", "low", "high")]
        snr, nbytes = min(compared["snr"].values()), compared["after"]["nbytes"]
        spent = cost.processor, cost.peak >> 20
        agreed = compared["agreement"]
        return Row(title, command, "", nbytes, score, snr, latency, *spent, agreed)


def environment(work: Path, name: str) -> Path:
    """An environment's Python, made if it is missing."""
    python = work / name / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(work / name)], check=True)
        install = [str(python), "-m", "pip", "install", "-q", "numpy", *PACKAGES[name]]
        subprocess.run(install, check=True)
    return python


def prepare(zoo: Path, work: Path, name: str) -> Bench:
    """The folder of a model with its file and samples."""
    read, evaluate = MODELS[name]
    folder = work / name
    folder.mkdir(exist_ok=True)
    shutil.copyfile(zoo / "models" / f"{name}.onnx", folder / "original.onnx")
    samples = read(zoo)
    apart = np.linspace(0, len(samples) - 1, min(HELD_OUT, len(samples) // 4)).astype(int)
    np.save(folder / "held_out.npy", samples[apart])
    np.save(folder / "calibration.npy", np.delete(samples, apart, axis=0))
    return Bench(zoo, folder, f"python $ZOO/evaluate.py {evaluate}")


def aims(rows: Mapping[str, Row]) -> dict[str, str]:
    """What ours is asked to reach: the size of static int8 and its SNR.

    Where it rounds probabilities to 0, their logarithms have hardly any: there, its agreement.
    """
    static = rows.get("int8.onnx")
    if static is None or static.failure:
        return {"ratio": "4", "quality": "SNR", "exact": "--min-snr 30"}
    quality, exact = "SNR", f"--min-snr {static.snr:.1f}"
    if static.snr < HARDLY and static.agreement:
        quality, exact = "agreement", f"--min-agreement {static.agreement:.2f}"
    ratio = math.ceil(100 * rows["original"].nbytes / static.nbytes) / 100
    return {"ratio": f"{ratio:.2f}", "quality": quality, "exact": exact}


def measure(bench: Bench, name: str, wanted: Sequence[str], versions: str) -> None:
    """Make and judge the files of one model, and keep every row as it comes."""
    rows = load(name)
    size = (bench.folder / "original.onnx").stat().st_size
    if "original" not in rows or rows["original"].nbytes != size:
        rows["original"] = Row("original", nbytes=size, score=bench.score("original.onnx"))
    for file in VARIANTS:
        if not wanted or Path(file).stem in wanted:
            title, command = (text.format(file=file, **aims(rows)) for text in VARIANTS[file])
            rows[file] = bench.row(file, title, command)
            print(rows[file], flush=True)
            ordered = {key: rows[key] for key in ("original", *VARIANTS) if key in rows}
            facts = {"compare": COMPARE, "evaluate": bench.evaluate, "versions": versions}
            save(name, ordered, **facts)


def installed(work: Path) -> str:
    """What is compared."""
    found = [f"onnxcompress {version('onnxcompress')}"]
    for name in PACKAGES:
        program = f"import importlib.metadata as m; print(m.version('{name}'))"
        python = str(environment(work, name))
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
        found.append(f"{name} {done.stdout.strip()}")
    return ", ".join(found)


def main() -> None:
    zoo, work = (Path(word).resolve() for word in sys.argv[1:3])
    work.mkdir(exist_ok=True)
    versions = installed(work)
    wanted: dict[str, list[str]] = {}
    for word in sys.argv[3:] or MODELS:
        name, _, file = word.partition("/")
        wanted.setdefault(name, []).extend([file] if file else [])
    for name, files in wanted.items():
        measure(prepare(zoo, work, name), name, files, versions)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main()
