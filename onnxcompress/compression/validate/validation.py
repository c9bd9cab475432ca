"""The original against another model, on real runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnxcompress.compression.measure.at_once import batch_size, threads
from onnxcompress.compression.measure.unfit import blaming
from onnxcompress.compression.target import Target
from onnxcompress.compression.validate import states as sequence
from onnxcompress.compression.validate.decisions import Decision, find_decisions
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.compression.validate.layerwise import Layerwise
from onnxcompress.compression.validate.metrics import find_metric
from onnxcompress.compression.validate.verdict import reaches
from onnxcompress.core.errors import MetricError, ModelError
from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import each
from onnxcompress.core.progress import Track, doing, untracked
from onnxcompress.data.samples import Samples
from onnxcompress.execution.latency import Latency, latency
from onnxcompress.execution.memory import memory_of
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import Session, session_of
from onnxcompress.graph import Model, changed_outputs, in_steps
from onnxcompress.report.report import Comparison, Size

# The original's outputs are kept if they have fewer bytes than this; else they are computed again.
REMEMBERED_BYTES = 256 << 20
AS_A_RUN = " as a run"  # This follows the name of an output whose state was fed back.


@dataclass(frozen=True, eq=False)
class Validation:
    """Compares models with one original, on the same samples.

    Attributes:
        samples: held-out samples, or stand-ins if ``real`` is false.
        pictures: whether the stand-ins are pictures, and not random.
        evaluation: labelled samples for the metric, or None.
        classes: as `find_decisions` takes them.
        states: output -> input that it is fed back into; None to find out by `find_states`.
        largest: bytes of the largest input of a layer for one sample, which limits the samples
            that are run at the same time.
    """

    original: Model
    samples: Samples
    _: KW_ONLY
    real: bool = True
    pictures: bool = False
    evaluation: Samples | None = None
    metric: str = "top1"
    classes: Mapping[str, int | None] | None = None
    states: Mapping[str, str] | None = None
    providers: Sequence[str] = ("CPUExecutionProvider",)
    largest: int = 0
    jobs: int = 1
    track: Track[Any] = untracked
    _remembered: dict[Any, list[Sequence[Any]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        sequence.check_states(self.original, self.states or {})

    @cached_property
    def _fed_back(self) -> Mapping[str, str]:
        """Output -> input that it is fed back into."""
        return sequence.states_of(self.original, self.states)

    def _reference(self) -> Session:
        """The original; what it answers is kept where that is small."""
        return session_of(runnable(self.original), self.providers)

    @cached_property
    def decisions(self) -> dict[str, Decision | None]:
        """What each output decides, on the first samples; None where its SNR counts alone."""
        reference = self._reference()
        with blaming(self.original, self.samples, self.real):
            outputs = reference.run(next(self.samples.batches(self._size(self.samples))))
        named = dict(zip(reference.outputs, outputs, strict=True))
        return find_decisions(self.original, named, self.classes)

    @property
    def decides(self) -> bool:
        """Whether any output decides something."""
        return any(self.decisions.values()) or self.fidelity(self.original, 1).agreement is not None

    @cached_property
    def baseline(self) -> float | None:
        """The original's metric, None without labels.

        Raises:
            MetricError: it is not finite.
        """
        if self.evaluation is None:
            return None
        with blaming(self.original, self.evaluation):
            value = self.metric_of(self.original)
        if value is not None and not np.isfinite(value):
            raise MetricError(f"the metric {self.metric!r} gives the original {value}, no number")
        return value

    def fidelity(self, model: Model, limit: int | None = None) -> Fidelity:
        """How far the model's outputs are from the original's.

        Args:
            limit: samples to run at most; None for all, and for a run with the state fed back.
        """
        samples = self.samples
        if limit is not None and limit < len(samples):
            samples = samples[: max(limit, samples.batch if samples.exact else 1)]
        session, size = session_of(runnable(model), self.providers), self._size(samples)
        batches = samples.batches(size)
        if limit is None:  # Otherwise it is a short step of a longer one.
            batches = self.track(batches, "comparing outputs", -(-len(samples) // size))
        result = Fidelity(dict(self.decisions), changed_outputs(self.original, model))
        # The original's outputs come first: only when these are asked for one more are they kept.
        answers = each(session.run, batches, self._threads(size))
        for expected, outputs in zip(self._expected(samples), answers, strict=True):
            result.add(session.outputs, expected, outputs)
        if limit is None and self._fed_back:
            result.merge(self._run(session, result), AS_A_RUN)
        return result

    def _run(self, session: Session, steps: Fidelity) -> Fidelity:
        """The same with the state fed back, which itself is compared step by step alone."""
        counted = (steps.counted or {*session.outputs}) - self._fed_back.keys()
        result, guessed = Fidelity(dict(self.decisions), counted), self.states is None

        def answers() -> Iterator[Sequence[Any]]:
            with blaming(self.original, self.samples, self.real):
                yield from self._sequence(self._reference(), guessed)

        expected = self._remember("run", answers)
        for before, after in zip(expected, self._sequence(session), strict=False):
            result.add(session.outputs, before, after)
        return result

    def _sequence(self, session: Session, guessed: bool = False) -> Iterator[Sequence[Any]]:
        """The outputs of a run; none where a state does not fit that was only guessed."""
        try:
            yield from sequence.run(session, self.samples, self._fed_back)
        except ModelError:
            if not guessed:
                raise

    def metric_of(self, model: Model) -> float | None:
        """The model's metric on the labelled samples, None without them."""
        if self.evaluation is None:
            return None
        return self._measure(session_of(runnable(model), self.providers))

    def holds(self, model: Model, target: Target) -> bool:
        """Whether the model reaches the fidelity that the target asks for."""
        drop = None
        if target.max_drop is not None:
            drop = (self.baseline or 0) - (self.metric_of(model) or 0)
        return reaches(self.fidelity(model), drop, target)

    def compare(self, model: Model, macs: tuple[int | None, int | None]) -> Comparison:
        """Everything that the report says about the two models; macs before and after."""
        fidelity, samples = self.fidelity(model), len(self.samples)
        if not fidelity.compared and fidelity.finite:  # Its layers are compared, one by one.
            samples = 0
            with suppress(ModelError):
                fidelity = Layerwise(self.original).fidelity(model)
        metrics = self.baseline, self.metric_of(model)
        parted = any(map(in_steps, (self.original, model)))
        timed: Latency | None = None
        models = self.original, model
        with doing(self.track, "measuring time and memory"):
            if not parted:
                one = next(iter(self.samples.batches(1)))
                timed = latency(runnable(self.original), runnable(model), one, self.providers)
            held = memory_of(*models)
        before, after = (
            Size(one.nbytes, one.weight_bytes, work, metric, *memory)
            for one, work, metric, memory in zip(models, macs, metrics, held, strict=True)
        )
        return Comparison(
            before=before,
            after=after,
            samples=samples,
            real=self.real,
            pictures=self.pictures,
            snr=fidelity.snr,
            agreement=fidelity.agreement if self.real or self.pictures else None,
            shares=fidelity.shares(samples) if self.real or self.pictures else {},
            detections=fidelity.detections(samples) if self.real else {},
            resized={name: (times, fidelity.runs) for name, times in fidelity.resized.items()},
            metric=self.metric if self.evaluation is not None else None,
            latency=timed,
            finite=fidelity.finite,
            parted=parted,
        )

    def _size(self, samples: Samples) -> int:
        """Samples per batch."""
        return batch_size(self.largest, samples.even)

    def _threads(self, size: int) -> int:
        return threads(self.largest, size, self.jobs)

    def _expected(self, samples: Samples) -> Iterator[Sequence[Any]]:
        """The original's outputs, from memory where they are small enough to be kept."""
        size = self._size(samples)

        def compute() -> Iterator[Sequence[Any]]:
            run, batches = self._reference().run, samples.batches(size)
            with blaming(self.original, samples, self.real):
                yield from each(run, batches, self._threads(size))

        return self._remember(len(samples), compute)

    def _remember(
        self, key: Any, compute: Callable[[], Iterator[Sequence[Any]]]
    ) -> Iterator[Sequence[Any]]:
        """What was computed before, or else what is computed now, kept where it is small."""
        if key in self._remembered:
            yield from self._remembered[key]
            return
        kept: list[Sequence[Any]] = []
        filled = 0
        for outputs in compute():
            filled += sum(y.nbytes for y in outputs if isinstance(y, np.ndarray))
            if filled < REMEMBERED_BYTES:
                kept.append(outputs)
            yield outputs
        if filled < REMEMBERED_BYTES:
            self._remembered[key] = kept

    def _measure(self, session: Session) -> float:
        samples = self.evaluation
        assert samples is not None
        labels = samples.labels
        if labels is None:
            raise MetricError("the evaluation samples have no labels")
        metric: Callable[[Array, Array], Array] = find_metric(self.metric)
        size = batch_size(self.largest, samples.batch)
        total, seen = 0.0, 0
        batches = self.track(samples.batches(size), "evaluating", -(-len(samples) // size))
        for outputs in each(session.run, batches, self._threads(size)):
            count = len(outputs[0])
            total += float(np.sum(metric(outputs[0], labels[seen : seen + count])))
            seen += count
        return total / seen
