"""Layers that compute in int8: size, score, SNR and time beside onnxruntime's quantization.

    python benchmarks/int8.py ZOO LARGE WILD [MODEL ...]

ZOO and LARGE are the folders of zoo.py, WILD that of wild.py, whose judge ``WILD_JUDGE`` in the
environment names.  Of each model: onnxruntime's quantize_static (QDQ, weights per channel) and
quantize_dynamic, after its own pre-processing, and every run of ours, all from the same samples.
Scores are the zoo's and the judge's, on data that nothing was fitted to; SNR is that on samples
held out (of wild the judge's); times are those of all files of a model, in turns in one process, on
one thread, as shares of the original's: medians, with quartiles.  Rows are printed as they come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from wild import Bench
from zoo_data import brain, cifar10, imagenet_caffe, imagenet_lite, noisy

import onnxcompress as oc
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.data.samples import from_batches
from onnxcompress.execution.session import Sample, Session

PEERS = Path(__file__).parent / "peers"
CIFAR = ("classify", "data/cifar10/test.npz", "--prep", "cifar", "--batch", "200")
IMAGENET = ("classify", "data/imagenet1k-sample", "--limit", "500", "--prep")
BRAIN = ("classify", "data/brain-mri", "--part", "testing", "--prep", "keras240")
DENOISE = ("denoise", "data/set12", "--sigma", "25")
INT8 = "--compute int8"
ZOO: dict[str, tuple[Callable[[Path], np.ndarray], Sequence[str], Sequence[str]]] = {
    "cifar10_resnet56": (cifar10, CIFAR, ("--ratio 8", "--ratio 12", "--ratio 16")),
    "efficientnet_lite0": (imagenet_lite, (*IMAGENET, "lite224"), ("", "--ratio 6")),
    "squeezenet1_1": (imagenet_caffe, (*IMAGENET, "caffe227"), ("--ratio 6",)),
    "dncnn_s25": (noisy, DENOISE, ("--ratio 8",)),
    "vgg16_brain_mri": (brain, BRAIN, ("--ratio 10", "--macs 0.6 --ratio 12")),
}
WILD = {
    "minilm_l3": ("", "--ratio 6"),
    "captcha": ("--ratio 6",),
    **dict.fromkeys(
        ("khmersm", "ppocr_rec", "nudenet", "nsfw", "magika", "jarvis"), ("--ratio 4",)
    ),
}
SECONDS = 20.0  # for which the files of a model run in turns
HEAD = "| model | file | bytes | smaller | score | SNR, dB | time |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Case:
    """A model, its samples and what tells how good a file is.

    Attributes:
        calibration: what to give to --calib; ``fitting``: the part that fits, for others' tools.
        judge: score and SNR of a file; a dash for what there is not.
        sample: one, to be timed with.
    """

    name: str
    source: Path
    calibration: str
    folder: Path
    fitting: Path
    judge: Callable[[Path], tuple[str, str]]
    runs: Sequence[str]
    sample: Sample


def zoo_case(zoo: Path, large: Path, name: str, scratch: Path) -> Case:
    make, judge, runs = ZOO[name]
    places = (zoo / "models" / f"{name}.onnx", large / f"{name}.onnx")
    source = next(place for place in places if place.exists())
    value = oc.load(source).graph.input[0].name
    samples = make(zoo)
    fit, held_out = from_batches([{value: x[None]} for x in samples]).split()
    calibration, fitting = scratch / "calibration.npy", scratch / "fitting.npy"
    np.save(calibration, samples)
    np.save(fitting, np.concatenate([batch[value] for batch in fit.batches(1)]))
    batches = list(held_out.batches(1))[:64]

    def judged(path: Path) -> tuple[str, str]:
        task, data, *options = judge
        command = [sys.executable, str(zoo / "evaluate.py"), task, str(path), str(zoo / data)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        return f"{figures.get('top1', figures.get('psnr'))}", f"{_snr(source, path, batches):.1f}"

    return Case(name, source, str(calibration), scratch, fitting, judged, runs, batches[0])


def _snr(source: Path, path: Path, batches: Sequence[Sample]) -> float:
    first, second, fidelity = Session(oc.load(source)), Session(oc.load(path)), Fidelity()
    for batch in batches:
        fidelity.add(first.outputs, first.run(batch), second.run(batch))
    return -10 * float(np.log10(max(fidelity.loss, 1e-20)))


def wild_case(wild: Path, name: str, scratch: Path) -> Case:
    judge = Path(os.environ["WILD_JUDGE"])
    [model] = [m for m in Bench(wild, judge).models() if m.name == name]

    def judged(path: Path) -> tuple[str, str]:
        command = [sys.executable, str(judge), "judge", str(wild), name, str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        answer = json.loads(done.stdout.splitlines()[-1])
        if "error" in answer:
            return "cannot be run", "-"
        main = answer["outputs"][answer["main"]]
        shown = [
            f"{100 * main[key]:.1f} % {key}" for key in ("agreement", "overlap") if key in main
        ]
        texts = [f"{100 * answer['same_text']:.1f} % texts"] if "same_text" in answer else []
        return ", ".join([*shown, *texts]), f"{main['snr_db']}"

    stored = wild / "data" / f"{name}_calib.npz"
    data = np.load(stored)
    apart = [key for key in data.files if key.startswith("0/")]  # samples of several shapes
    sample = {k.removeprefix("0/"): data[k][: None if apart else 1] for k in apart or data.files}
    return Case(name, model.path, model.samples, wild, stored, judged, WILD[name], sample)


def makers(case: Case, scratch: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Title, file and command of every file."""
    source = str(case.source)
    for kind, more in (("static", [str(case.fitting)]), ("dynamic", [])):
        path = scratch / f"{kind}.onnx"
        script = str(PEERS / f"ort_{kind}.py")
        yield f"onnxruntime {kind}", path, [sys.executable, script, source, str(path), *more]
    for index, run in enumerate(case.runs):
        path = scratch / f"ours{index}.onnx"
        command = [sys.executable, "-m", "onnxcompress", source, str(path), "--quiet", "--force"]
        words = f"{INT8} {run}".strip()
        yield f"`{words}`", path, [*command, *words.split(), "--calib", case.calibration]


def in_turns(paths: Sequence[Path], sample: Sample) -> list[tuple[float, float, float]]:
    """Quartiles and median of the time of each, as shares of the first's."""
    sessions = [Session(oc.load(path)) for path in paths]
    for session in sessions:
        session.run(sample)
    rows: list[list[float]] = []
    start = time.perf_counter()
    while len(rows) < 7 or (time.perf_counter() - start < SECONDS and len(rows) < 500):
        rows.append([])
        for session in sessions:
            began = time.thread_time()
            session.run(sample)
            rows[-1].append(time.thread_time() - began)
    shares = np.array(rows) / np.array(rows)[:, :1]
    return [tuple(map(float, q)) for q in np.quantile(shares, [0.25, 0.5, 0.75], axis=0).T]  # type: ignore[misc]


def lines(case: Case, scratch: Path) -> Iterator[str]:
    """The rows of a model."""
    before, made, failed = case.source, dict[str, Path](), list[str]()
    searched = [str(case.folder / "data"), os.environ.get("PYTHONPATH", "")]  # modules of samples
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, searched))}
    for title, path, command in makers(case, scratch):
        done: Any = subprocess.run(
            command, cwd=case.folder, env=environment, capture_output=True, text=True
        )
        if path.exists():
            made[title] = path
        else:
            failed.append(f"| {case.name} | {title} | fails: {_last(done.stderr)} | | | | |")
    size = oc.load(before).nbytes
    yield f"| {case.name} | as it is | {size:,} | 1 | {case.judge(before)[0]} | | 1 |"
    times = in_turns([before, *made.values()], case.sample)[1:]
    for (title, path), (low, middle, high) in zip(made.items(), times, strict=True):
        score, snr = case.judge(path)
        after = oc.load(path).nbytes
        spent = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        ratio = f"{size / after:.2f}"
        yield f"| {case.name} | {title} | {after:,} | {ratio} | {score} | {snr} | {spent} |"
    yield from failed


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["nothing said"])[-1][:120]


def main() -> None:
    zoo, large, wild = (Path(word).resolve() for word in sys.argv[1:4])
    print(HEAD, flush=True)
    for name in sys.argv[4:] or [*ZOO, *WILD]:
        with TemporaryDirectory() as folder:
            scratch = Path(folder)
            known = name in ZOO
            case = zoo_case(zoo, large, name, scratch) if known else wild_case(wild, name, scratch)
            for line in lines(case, scratch):
                print(line, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main()
