"""How much each layer's error reaches the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.compression.job import Job
from onnxcompress.compression.measure.at_once import batch_size, kept, largest_input, threads
from onnxcompress.compression.measure.tails import Tail, behind
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Candidate, CompressedWeight, Plain
from onnxcompress.core.parallel import each
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import session_of

WEIGH_WORK = 3 * 10**11  # To measure sensitivities takes about so many multiplications.
# The outputs of so many samples are compared: one alone says little of the others.
WEIGH_FEWEST, WEIGH_SAMPLES = 4, 64
WEIGH_BATCH = 16  # A batch has at most so many samples.
WEIGH_ERROR = 0.05  # A layer's sensitivity is measured with about this relative squared error.


def weigh(
    job: Job,
    candidates: Mapping[str, Sequence[Candidate]],
    statistics: Mapping[str, Statistics],
) -> dict[str, float]:
    """How much each layer's error reaches the output: measured with one compressed at a time.

    The square root of the ratio of the model's error to the layer's: the plain ratio ignores
    that errors of other layers pile up on top, and was worse on every model that we measured,
    as were equal weights.
    """
    names = [name for name in job.layers if candidates.get(name)]
    if job.fit is None or not names:
        return dict.fromkeys(candidates, 1.0)
    work = sum(job.macs.values()) * (len(names) + 1)
    count = int(np.clip(WEIGH_WORK // max(work, 1), WEIGH_FEWEST, WEIGH_SAMPLES))
    largest = largest_input(job.shapes.values())
    size, count = batch_size(largest, WEIGH_BATCH), min(count, kept(largest), len(job.fit))
    batches = list(job.fit.spread(count).batches(size))
    reference = list(map(session_of(job.runnable).run, batches))

    def sensitivity(work: tuple[str, Tail]) -> float:
        name, tail = work
        layer = job.layers[name].read()
        weight, error = _changed(layer, candidates[name], statistics[name])
        readers = job.readers(name)
        shift = statistics[name].shift(layer.weight, weight.astype(np.float32).decode())
        biases = {
            reader: shift if (bias := job.layers[reader].bias) is None else bias + shift
            for reader in readers
            if job.layers[reader].correctable
        }
        changed, fidelity = dict.fromkeys(readers, weight), Fidelity()
        outputs = [output.name for output in job.runnable.graph.output]
        for before, after in zip(reference, tail.outputs(changed, biases, reference), strict=True):
            fidelity.add(outputs, before, after)
        return float(np.sqrt(fidelity.loss / max(error, 1e-9)))

    work = behind(job.runnable, {name: job.readers(name) for name in names}, batches)
    at_once = each(sensitivity, work, threads(largest, size, job.settings.jobs))
    measured = job.settings.track(at_once, "measuring sensitivity", len(names))
    weights = dict(zip(names, measured, strict=True))
    typical = float(np.median(list(weights.values()))) or 1.0
    usable = {name: w if np.isfinite(w) and w > 0 else typical for name, w in weights.items()}
    return dict.fromkeys(candidates, typical) | usable


def _changed(
    layer: Layer, candidates: Sequence[Candidate], statistics: Statistics
) -> tuple[CompressedWeight, float]:
    """A layer's weight as compression may change it, and its error.

    Rounding is like noise, which costs nothing; what low ranks leave out is not.
    """
    if any(len(candidate.factors) == 1 for candidate in candidates):
        return _noisy(layer, statistics)
    close = min(candidates, key=lambda c: (abs(c.error - WEIGH_ERROR), c.nbytes))
    return close.fitted(layer, replace(statistics)), close.error


def _noisy(layer: Layer, statistics: Statistics) -> tuple[CompressedWeight, float]:
    """A layer's weight with noise, in each filter in proportion to its size, and its error."""
    weight = layer.weight.astype(np.float32).reshape(len(layer.weight), -1)
    noise = np.random.default_rng(len(weight)).standard_normal(weight.shape, np.float32)
    noise *= np.sqrt(np.square(weight).mean(1, keepdims=True))
    size = statistics.error(weight, weight - noise)
    noise *= np.sqrt(WEIGH_ERROR / max(size, WEIGH_ERROR))
    changed = (weight + noise).reshape(layer.weight.shape).astype(layer.weight.dtype)
    return Plain(changed), statistics.error(layer.weight, changed)


def largest_first(layers: Mapping[str, Layer]) -> list[str]:
    """The layers with the most work first, so that none is left for the end."""
    return sorted(layers, key=lambda name: -layers[name].weight.size)
