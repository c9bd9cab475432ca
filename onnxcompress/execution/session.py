"""Running models.  The only file that imports onnxruntime."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import inf
from threading import BoundedSemaphore
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as OrtNotImplemented

from onnxcompress.core.errors import SlowError
from onnxcompress.core.messages import one_line
from onnxcompress.core.sample import Sample
from onnxcompress.execution.room import ROOM, peak_bytes, room_for
from onnxcompress.execution.watch import Watch
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

# Otherwise it leaves a file in the temporary folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ort.set_default_logger_severity(4)

ort.disable_telemetry_events()

# numpy knows these types by name; a model with weights of others is handed over as bytes.
PLAIN = tuple(np.dtype(code) for code in "efdbBhHiIlLqQ?")


def available_providers() -> list[str]:
    """The execution providers of the onnxruntime that is installed."""
    return ort.get_available_providers()


# A model that takes so many seconds to load, for its many nodes, is kept loaded if it is small.
SLOW, SMALL_BYTES = 0.5, 16 << 20
LENT_BYTES = 1 << 22  # After a run on inputs of more bytes, its memory goes back to the system.
# All threads together run so many parts of large models at once: each has weights in memory.
PARTS_AT_ONCE = BoundedSemaphore(2)


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
            self._arena = self._how[-1] and _pooled(model)
            self._whole = _loaded(model, *self._how)
            inputs = self._whole.get_inputs()
            self._floats = {value.name: value.type == "tensor(float)" for value in inputs}
            self.outputs = [value.name for value in self._whole.get_outputs()]

    @property
    def nbytes(self) -> int:
        """Bytes of the model."""
        return self._model.nbytes

    @property
    def loops(self) -> bool:
        """Whether the model has a loop, which may be endless."""
        return any(node.op_type == "Loop" for _, node in self._model.nodes.values())

    def run(self, sample: Sample, seconds: float | None = None) -> Sequence[Any]:
        """The outputs for one batch, in the model's order.

        Args:
            seconds: after which it is given up, or each step of it, as when it takes nearly all
                memory: a model may contain an endless loop.
        """
        feeds = {
            name: value.astype(np.float32)
            if self._floats[name] and value.dtype != np.float32
            else value
            for name, value in sample.items()
            if name in self._floats
        }
        if self._steps:
            return self._stepped(feeds, seconds)
        costs, first = self._model.costs, seconds is not None  # Nothing runs beside a first run.
        taken, before = costs.get("run", 0), peak_bytes() if first else 0
        given = sum(x.nbytes for x in feeds.values() if isinstance(x, np.ndarray))
        with room_for(taken):
            outputs = _run(self._whole, feeds, seconds, self._arena and given > LENT_BYTES)
        if first:
            costs["run"] = max(taken, peak_bytes() - before)
        return outputs

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
        outputs = _run(_loaded(part, *self._how), inputs, seconds)
        return dict(zip(step.outputs, outputs, strict=True))


def session_of(model: Model, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Session:
    """A model as `Session` loads it by default, kept where loading takes longer than running.

    That is so of models with very many nodes.  Others are loaded anew each time: a session holds
    the weights once more, and the memory of its largest run.
    """
    kind = "session", tuple(providers)
    if kind not in model.seen:
        begun = time.thread_time()
        session = Session(model, providers)
        if time.thread_time() - begun < SLOW or model.weight_bytes > SMALL_BYTES:
            return session
        model.seen[kind] = session
    return model.seen[kind]


def _pooled(model: Model) -> bool:
    """Whether memory is kept from one run to the next: what a pool begins with stays in it."""
    return model.costs.get("run", 0) < ROOM


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
        raise ModelError(f"onnxruntime cannot load the model: {one_line(error)}") from None


def _run(
    session: ort.InferenceSession,
    feeds: Mapping[str, Any],
    seconds: float | None,
    give_back: bool = False,
) -> Sequence[Any]:
    options = ort.RunOptions()
    if give_back:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    watch = Watch(inf if seconds is None else seconds, lambda: setattr(options, "terminate", True))
    try:
        with nullcontext() if seconds is None else watch:
            return session.run(None, feeds, options)
    except Exception as error:
        if watch.reason:
            raise SlowError(f"one run of the model takes {watch.reason}") from None
        raise ModelError(f"onnxruntime cannot run the model: {one_line(error)}") from None


def _options(model: Model, threads: int, optimize: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for library in model.extensions:
        options.register_custom_ops_library(library)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_mem_pattern = False  # It takes long to find where very many tensors live.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(model.folder.absolute())
    )
    return options


def _load(
    model: Model, options: ort.SessionOptions, providers: Sequence[str], fold: bool
) -> ort.InferenceSession:
    graph, weights = detached(model)
    sizes = {name: value for name, value in weights.items() if value.dtype in PLAIN}
    if len(sizes) < len(weights):  # numpy has no own name for some of the types.
        graph, sizes = serialized(model), {}
    values = [ort.OrtValue.ortvalue_from_numpy(value) for value in sizes.values()]
    options.add_external_initializers(list(sizes), values)
    options.enable_cpu_mem_arena = fold and _pooled(model)
    left_out = [] if fold else ["ConstantFolding"]
    return ort.InferenceSession(
        graph, options, providers=list(providers), disabled_optimizers=left_out
    )
