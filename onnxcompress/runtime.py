"""Running models.  The only file that imports onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import BoundedSemaphore, Timer
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it leaves a file in the temporary folder
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as OrtNotImplemented

from onnxcompress.graph import (
    Model,
    ModelError,
    Step,
    as_float32,
    declared_inputs,
    declared_outputs,
    detached,
    in_steps,
    reads,
    rest,
    segment,
    serialized,
)

Sample = Mapping[str, Any]  # input name -> batch, an array or a list of arrays

PLAIN = tuple(np.dtype(code) for code in "efdbBhHiIlLqQ?")

ort.set_default_logger_severity(4)
ort.disable_telemetry_events()


def available_providers() -> list[str]:
    """The execution providers of the onnxruntime that is installed."""
    return ort.get_available_providers()


PARTS_AT_ONCE = BoundedSemaphore(2)  # of large models, in all threads: each has weights in memory


class Session:
    """A model loaded by onnxruntime, on one thread: parallel work runs one batch a thread.

    Where onnxruntime has no kernel for a type (bfloat16, float64 Conv), its float32 twin runs.  A
    model too large to be loaded as a whole runs in steps, each of which is loaded for every batch.

    Args:
        threads: of one run.
        optimize: whether onnxruntime may rewrite the graph.
        fold: whether weights are decoded when the model is loaded, which takes six times their
            memory, or in every run, which takes twice that.
    """

    def __init__(
        self,
        model: Model,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 1,
        optimize: bool = True,
        fold: bool = True,
    ) -> None:
        self._model, self._steps = model, in_steps(model)
        self._how = providers, threads, optimize, fold and not self._steps
        if self._steps:
            self._floats = {n: dtype == np.float32 for n, dtype, _ in declared_inputs(model)}
            self.outputs = [name for name, _, _ in declared_outputs(model)]
        else:
            self._whole = _loaded(model, *self._how)
            inputs = self._whole.get_inputs()
            self._floats = {value.name: value.type == "tensor(float)" for value in inputs}
            self.outputs = [value.name for value in self._whole.get_outputs()]

    def run(self, sample: Sample, seconds: float | None = None) -> Sequence[Any]:
        """The outputs for one batch, in the model's order.

        Args:
            seconds: after which it is given up, or each step of it: a model may contain an endless
                loop.
        """
        feeds = {
            name: value.astype(np.float32)
            if self._floats[name] and value.dtype != np.float32
            else value
            for name, value in sample.items()
            if name in self._floats
        }
        if not self._steps:
            return _run(self._whole, feeds, seconds)
        return self._stepped(feeds, seconds)

    def _stepped(self, feeds: Mapping[str, Any], seconds: float | None) -> Sequence[Any]:
        values = {n: self._model.read(n) for n in self.outputs if n in self._model.initializers}
        values |= feeds
        last = {
            name: i for i, step in enumerate(self._steps) for n in step.nodes for name in reads(n)
        }
        for index, step in enumerate(self._steps):
            with PARTS_AT_ONCE:
                values |= self._advanced(step, values, seconds)
                rest()
            done = [n for n in values if last.get(n, -1) <= index and n not in self.outputs]
            for name in done:
                del values[name]
        return [values[name] for name in self.outputs]

    def _advanced(self, step: Step, values: Mapping[str, Any], seconds: Any) -> dict[str, Any]:
        """What one step makes of what the ones before it made."""
        read = {name for node in step.nodes for name in reads(node)}
        inputs = {name: value for name, value in values.items() if name in read}
        part = segment(self._model, step.nodes, inputs, step.outputs)
        found = _run(_loaded(part, *self._how), inputs, seconds)
        return dict(zip(step.outputs, found, strict=True))


def _loaded(
    model: Model, providers: Sequence[str], threads: int, optimize: bool, fold: bool
) -> ort.InferenceSession:
    def load(version: Model) -> ort.InferenceSession:
        return _load(version, _options(version, threads, optimize), providers, fold)

    try:
        try:
            return load(model)
        except OrtNotImplemented:
            return load(as_float32(model))
    except Exception as error:
        raise ModelError(f"onnxruntime cannot load the model: {line(error)}") from None


def _run(
    session: ort.InferenceSession, feeds: Mapping[str, Any], seconds: float | None
) -> Sequence[Any]:
    options = timer = None
    if seconds is not None:
        options = ort.RunOptions()
        timer = Timer(seconds, setattr, (options, "terminate", True))
        timer.start()
    try:
        return session.run(None, feeds, options)
    except Exception as error:
        if options is not None and options.terminate:
            raise ModelError(f"one run of the model takes more than {seconds:g} s") from None
        raise ModelError(f"onnxruntime cannot run the model: {line(error)}") from None
    finally:
        if timer is not None:
            timer.cancel()


def _options(model: Model, threads: int, optimize: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for library in model.extensions:
        options.register_custom_ops_library(library)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.folder.absolute())
    )
    return options


def _load(
    model: Model, options: ort.SessionOptions, providers: Sequence[str], fold: bool
) -> ort.InferenceSession:
    graph, weights = detached(model)
    sizes = {name: value for name, value in weights.items() if value.dtype in PLAIN}
    if len(sizes) < len(weights):  # types that numpy has no own name for
        graph, sizes = serialized(model), {}
    values = [ort.OrtValue.ortvalue_from_numpy(value) for value in sizes.values()]
    options.add_external_initializers(list(sizes), values)
    options.enable_cpu_mem_arena = fold
    left_out = [] if fold else ["ConstantFolding"]
    return ort.InferenceSession(
        graph, options, providers=list(providers), disabled_optimizers=left_out
    )


@dataclass(frozen=True)
class Latency:
    """Paired measurement of two models, run in turn.

    Attributes:
        before, after: median milliseconds of one run.
        ratio: median of after / before over the pairs; below 1 is faster.
        low, high: quartiles of that ratio.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """faster, slower, or inconclusive where the spread is larger than the effect."""
        if self.high < 0.98:
            return "faster"
        return "slower" if self.low > 1.02 else "inconclusive"


def latency(
    original: Model, compressed: Model, sample: Sample, providers: Sequence[str], seconds: float = 3
) -> Latency:
    """Run both models on one sample in turn, A B B A, until the time is up (at least 7 pairs)."""
    sessions = [Session(model, providers) for model in (original, compressed)]
    for session in sessions:
        session.run(sample)
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < 7 or (time.perf_counter() - start < seconds and len(times) < 200):
        order = (0, 1) if len(times) % 2 else (1, 0)
        spent = [0.0, 0.0]
        for which in order:
            began = time.perf_counter()
            sessions[which].run(sample)
            spent[which] = time.perf_counter() - began
        times.append((spent[0], spent[1]))
    ratios = np.array([after / before for before, after in times])
    low, high = np.quantile(ratios, [0.25, 0.75])
    before, after = (1000 * median(column) for column in zip(*times, strict=True))
    return Latency(before, after, float(np.median(ratios)), float(low), float(high))


LOADING = """
import sys
import onnxruntime

def now(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
before = now("VmRSS")
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
print(1024 * (now("VmHWM") - before))
"""


def load_memory(path: Path) -> int | None:
    """Bytes that loading a file adds at its peak, in a process of its own.

    None where that is not known: the file cannot be loaded, or the system is not Linux.
    """
    words = [sys.executable, "-c", LOADING, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return None if done.returncode else max(int(done.stdout), 0)


def line(error: BaseException) -> str:
    """The first line of an error's message, without onnxruntime's prefix and paths."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.rsplit(" : ", 1)[-1] if text.startswith("[ONNXRuntimeError]") else text
