"""Is the result as good as was asked?  The original against the compressed model, on real runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from onnxcompress.core import Array, Layer
from onnxcompress.data import Samples
from onnxcompress.graph import (
    Model,
    ModelError,
    as_float32,
    check,
    custom_operators,
    find_constants,
    find_layers,
    has_bfloat16,
    in_steps,
    layer_input,
    linear_inputs,
    needs_float32,
    part,
)
from onnxcompress.measuring import Track, untracked
from onnxcompress.metrics import Fidelity, MetricError, find_metric, has_class_scores
from onnxcompress.parallel import each
from onnxcompress.report import Comparison, Size
from onnxcompress.runtime import Latency, Session, latency
from onnxcompress.targets import Target

ROUNDING = 1e-5  # of the largest output: what a model may differ by and still compute the same
COARSE_ROUNDING = 2.0**-6  # where weights are bfloat16, which has 8 bits
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


class Layerwise:
    """Compares the layers of a model that onnxruntime cannot run, each by itself.

    What computes a layer in the one model runs against what does in the other, on random inputs.
    """

    scores, baseline = False, None

    def __init__(self, original: Model, seed: int = 0) -> None:
        self.original, self._seed = original, seed
        layers, _ = find_layers(original)
        self._layers = layers | find_constants(original, layers)

    def fidelity(self, model: Model, limit: int | None = None) -> Fidelity:
        """How far the outputs of the layers are apart; those that are the same are left out.

        Raises:
            ModelError: onnxruntime cannot run a layer either.
        """
        rng, result = np.random.default_rng(self._seed), Fidelity()
        for name, layer in self._layers.items():
            if layer.op_type == "Constant":
                made = part(model, name, {}, name)
                if made.graph.node:
                    result.add([name], [self.original.read(name)], Session(made).run({}))
                continue
            node = self.original.nodes[name][1]
            read = {t: _random_input(rng, layer, t == layer_input(node, layer))
                    for t in linear_inputs(self.original, name)}  # fmt: skip
            both = [part(m, name, read, node.output[0]) for m in (self.original, model)]
            if list(both[0].graph.node) != list(both[1].graph.node):
                result.add([name], *(Session(runnable(m)).run(read) for m in both))
        return result

    def metric_of(self, model: Model) -> None:
        """Nothing can be measured by labels."""

    def holds(self, model: Model, target: Target) -> bool:
        """Nothing can be promised of the outputs."""
        return False

    def compare(self, model: Model, macs: tuple[int | None, int | None]) -> Comparison:
        """Sizes, and how far the layers are apart, under their names."""
        fidelity = self.fidelity(model)
        return Comparison(
            before=Size(self.original.nbytes, self.original.weight_bytes),
            after=Size(model.nbytes, model.weight_bytes),
            samples=0,
            real=False,
            snr=fidelity.snr,
            agreement=None,
            metric=None,
            latency=None,
            finite=fidelity.finite,
        )


def _random_input(rng: np.random.Generator, layer: Layer, read: bool) -> Array:
    """What a layer multiplies with its weight, or else a bias that it is given."""
    out, inputs = len(layer.weight), layer.weight.shape[1] * layer.groups
    shape: tuple[int, ...] = (out,)
    if read and layer.kernel:
        dilations = layer.attributes.get("dilations", [1] * len(layer.kernel))
        extents = [d * (k - 1) + 1 for d, k in zip(dilations, layer.kernel, strict=True)]
        shape = (1, inputs, *(2 * extent + 2 for extent in extents))
    elif read:
        turned = layer.attributes.get("transA") or layer.attributes.get("left")
        shape = (inputs, 4) if turned else (4, inputs)
    return rng.standard_normal(shape).astype(layer.weight.dtype)


def unknown_operators(model: Model) -> list[str]:
    """The operators for which onnxruntime has no kernel and no library, if it cannot load it."""
    found = custom_operators(model)
    try:
        if found:
            Session(model)
    except ModelError:
        return found
    return []


def runnable(model: Model) -> Model:
    """The model, or its float32 twin where onnxruntime lacks kernels for its types."""
    return as_float32(model) if needs_float32(model) else model


def verify(model: Model) -> None:
    """Raise unless onnx.checker and onnxruntime accept the model as it would be written.

    Raises:
        ModelError: one of them does not.
    """
    check(model, "the result")
    Session(model)


def rounding(model: Model) -> float:
    """The `deviation` up to which a model that stores the same weights computes the same."""
    return COARSE_ROUNDING if has_bfloat16(model) else ROUNDING


def deviation(original: Model, model: Model, samples: Samples) -> float:
    """The largest difference of two models' outputs, as a share of that output's largest entry.

    It is infinite where shapes differ, or NaN and infinities lie elsewhere.  One model is loaded
    at a time.
    """
    first, second = (_outputs(which, samples) for which in (original, model))
    return max((_distance(a, b) for a, b in zip(first, second, strict=True)), default=0.0)


def _outputs(model: Model, samples: Samples) -> list[Any]:
    session = Session(runnable(model))
    return [y for batch in samples.batches(samples.even) for y in session.run(batch)]


def _distance(a: Any, b: Any) -> float:
    """Of one output; what is no array of numbers has to be the same."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):  # a sequence
        return max(map(_distance, a, b), default=0.0)
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else np.inf
    if a.shape != b.shape:
        return np.inf
    a, b = a.astype(np.float64), b.astype(np.float64)
    known = np.isfinite(a)
    if not np.array_equal(a[~known], b[~known], equal_nan=True):
        return np.inf
    scale = np.abs(a[known]).max(initial=0)
    error = np.abs(a - b)[known].max(initial=0)
    if not np.isfinite(error):
        return np.inf
    return float(error / scale) if scale else (np.inf if error else 0.0)


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
