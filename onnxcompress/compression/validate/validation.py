"""Is the result as good as was asked?  The original against the compressed model, on real runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from onnxcompress.compression.target import Target
from onnxcompress.compression.validate.fidelity import Fidelity, has_class_scores
from onnxcompress.compression.validate.metrics import find_metric
from onnxcompress.core.errors import MetricError
from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import each
from onnxcompress.core.progress import Track, untracked
from onnxcompress.data.samples import Samples
from onnxcompress.execution.latency import Latency, latency
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, in_steps
from onnxcompress.report.report import Comparison, Size

REMEMBERED_BYTES = 256 << 20  # outputs of the original that are kept instead of computed again


class Validation:
    """Compares models with one original, on the same samples.

    Args:
        samples: held-out samples, or random ones if ``real`` is false.
        evaluation: labelled samples for the metric, or None.
        macs: multiplications of the original's linear nodes.
    """

    def __init__(
        self,
        original: Model,
        samples: Samples,
        *,
        real: bool = True,
        evaluation: Samples | None = None,
        metric: str = "top1",
        providers: Sequence[str] = ("CPUExecutionProvider",),
        jobs: int = 1,
        track: Track[Any] = untracked,
    ) -> None:
        self.original, self.samples, self.real = original, samples, real
        self._evaluation, self._metric = evaluation, metric
        self._providers, self._jobs, self._track = providers, jobs, track
        self._remembered: dict[int, list[Sequence[Array]]] = {}  # by how many samples

    @cached_property
    def _reference(self) -> Session:
        return Session(runnable(self.original), self._providers)

    @cached_property
    def baseline(self) -> float | None:
        """The original's metric, None without labels.

        Raises:
            MetricError: it is not finite.
        """
        found = self.metric_of(self.original)
        if found is not None and not np.isfinite(found):
            raise MetricError(f"the metric {self._metric!r} gives the original {found}, no number")
        return found

    def fidelity(self, model: Model, limit: int | None = None) -> Fidelity:
        """How far the model's outputs are from the original's, on at most ``limit`` samples."""
        samples = self.samples
        if limit is not None and limit < len(samples):
            samples = samples[: max(limit, samples.batch if samples.exact else 1)]
        session = Session(runnable(model), self._providers)
        result, batches = Fidelity(), samples.batches(samples.even)
        if limit is None:  # else it is a short step of a longer one
            batches = self._track(batches, "comparing outputs", -(-len(samples) // samples.even))
        # The original's outputs come first: only when these are asked for one more are they kept.
        pairs = zip(self._expected(samples), each(session.run, batches, self._jobs), strict=True)
        for expected, outputs in pairs:
            result.add(session.outputs, expected, outputs)
        return result

    def metric_of(self, model: Model) -> float | None:
        """The model's metric on the labelled samples, None without them."""
        if self._evaluation is None:
            return None
        return self._measure(Session(runnable(model), self._providers))

    def holds(self, model: Model, target: Target) -> bool:
        """Whether the model reaches the fidelity that the target asks for."""
        fidelity = self.fidelity(model)
        drop = None
        if target.max_drop is not None:
            drop = (self.baseline or 0) - (self.metric_of(model) or 0)
        return not _missed(target, fidelity.worst_snr, fidelity.agreement, drop, fidelity.finite)

    def compare(self, model: Model, macs: tuple[int | None, int | None]) -> Comparison:
        """Everything that the report says about the two models; macs before and after."""
        fidelity = self.fidelity(model)
        baseline, after = self.baseline, self.metric_of(model)
        self.__dict__.pop("_reference", None)  # the clock loads both models, which may be large
        parted = any(map(in_steps, (self.original, model)))
        timed: Latency | None = None
        if not parted:
            one = next(iter(self.samples.batches(1)))
            timed = latency(runnable(self.original), runnable(model), one, self._providers)
        return Comparison(
            before=Size(self.original.nbytes, self.original.weight_bytes, macs[0], baseline),
            after=Size(model.nbytes, model.weight_bytes, macs[1], after),
            samples=len(self.samples),
            real=self.real,
            snr=fidelity.snr,
            agreement=fidelity.agreement if self.real else None,
            metric=self._metric if self._evaluation is not None else None,
            latency=timed,
            finite=fidelity.finite,
            parted=parted,
        )

    @property
    def scores(self) -> bool:
        """Whether the model's outputs are class scores."""
        outputs = self._reference.run(next(iter(self.samples.batches(1))))
        return any(isinstance(y, np.ndarray) and has_class_scores(y) for y in outputs)

    def _expected(self, samples: Samples) -> Iterator[Sequence[Array]]:
        """The original's outputs, from memory where they are small enough to be kept."""
        if len(samples) in self._remembered:
            yield from self._remembered[len(samples)]
            return
        kept: list[Sequence[Array]] = []
        filled = 0
        for outputs in each(self._reference.run, samples.batches(samples.even), self._jobs):
            filled += sum(y.nbytes for y in outputs if isinstance(y, np.ndarray))
            if filled < REMEMBERED_BYTES:
                kept.append(outputs)
            yield outputs
        if filled < REMEMBERED_BYTES:
            self._remembered[len(samples)] = kept

    def _measure(self, session: Session) -> float:
        samples = self._evaluation
        assert samples is not None
        labels = samples.labels
        if labels is None:
            raise MetricError("the evaluation samples have no labels")
        metric: Callable[[Array, Array], Array] = find_metric(self._metric)
        total, seen = 0.0, 0
        batches = self._track(samples, "evaluating", -(-len(samples) // samples.batch))
        for outputs in each(session.run, batches, self._jobs):
            count = len(outputs[0])
            total += float(np.sum(metric(outputs[0], labels[seen : seen + count])))
            seen += count
        return total / seen


def failures(comparison: Comparison, target: Target) -> Iterator[str]:
    """Why a result is worse than the original, or misses what was asked; in sentences."""
    before, after = comparison.before, comparison.after
    drop = None
    if before.metric is not None and after.metric is not None:
        drop = before.metric - after.metric
    if not comparison.finite:
        yield "its outputs hold NaN or infinities where the original's do not"
    if after.nbytes > before.nbytes:
        yield f"the file grew from {before.nbytes:,} to {after.nbytes:,} bytes"
    if target.ratio is not None and comparison.ratio < target.ratio:
        yield f"the file is {comparison.ratio:.3f} times smaller instead of {target.ratio:g}"
    if target.macs is not None and before.macs and after.macs is not None:
        share = after.macs / before.macs
        if share > target.macs * (1 + 1e-9):
            yield f"{share:.4f} of the multiplications are left instead of {target.macs:g}"
    spent = comparison.latency
    if spent and target.latency is not None and spent.low > target.latency:
        yield f"it takes {spent.ratio:.2f} of the time instead of {target.latency:g}"
    slower = comparison.latency is not None and comparison.latency.verdict == "slower"
    if slower and comparison.latency and target.faster and target.macs != 1:
        yield f"it is slower: {comparison.latency.ratio:.2f} of the original's time"
    yield from _missed(target, comparison.worst_snr, comparison.agreement, drop, True)


def _missed(
    target: Target, snr: float, agreement: float | None, drop: float | None, finite: bool
) -> list[str]:
    found = [] if finite else ["its outputs are not finite"]
    if target.min_snr is not None and snr < target.min_snr:
        found.append(f"the output SNR is {snr:.2f} dB instead of {target.min_snr:g}")
    if target.min_agreement is not None and (agreement or 0) < target.min_agreement:
        reached = "unknown" if agreement is None else f"{agreement:.4f}"
        found.append(f"the agreement is {reached} instead of {target.min_agreement:g}")
    if drop is not None and not np.isfinite(drop):
        found.append("its metric is not finite, and the original's is")
    elif target.max_drop is not None and drop is not None and drop > target.max_drop:
        found.append(f"the metric fell by {drop:.3f} instead of at most {target.max_drop:g}")
    return found


def warnings(comparison: Comparison) -> Iterator[str]:
    """What is no failure but should be known."""
    if not comparison.samples:
        yield "nothing was compared but the layers, each by itself, on random inputs"
    elif not comparison.real:
        yield "no calibration data: the outputs were compared on random inputs, which say little"
    if comparison.parted:
        yield (
            "the model is too large to be loaded as a whole: it was run in parts, one after the "
            "other, and no latency was measured"
        )
    if comparison.latency and comparison.latency.verdict == "slower":
        yield f"it takes {comparison.latency.ratio:.2f} of the original's time"
