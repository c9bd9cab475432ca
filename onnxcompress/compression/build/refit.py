"""Fit the chosen settings again, in network order, on what the compressed model really computes.

A layer of the compressed model reads inputs p that earlier layers have already changed, while
the original reads q and answers ``y = W q + b``.  The *asymmetric* target is the weight that
answers best on p (Zhang et al. 2016), and stays near W where the inputs hardly vary::

    T = W (cov(q, p) + d I) (cov(p, p) + d I)⁻¹           d = 0.05 mean variance

The setting is fitted to T in the metric of p.  A layer that computes in int8 is fitted to W
itself: p carries the rounding noise of all tensors before it, and least squares would answer noise
with smaller weights, layer after layer (regression dilution).  Then comes the *statistics
correction*: the mean of each output channel is matched to the original's, and its standard
deviation too where that helps::

    gain = clip(std(y) / std(ŷ), 1/2, 2)       b' = b + W E[q] - gain Ŵ E[p]

Where the model itself computes the bias nothing can be added to it: then moments are not centred,
as if all means were 0.

Samples that stand in for the user's are unlike these, and so are small errors on them.  With
stand-ins the target is W, and no deviation is matched, where the error is below a thousandth.

Both models advance together, so every node runs once per batch and model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxcompress.compression.build.fitted import Fitted
from onnxcompress.compression.build.streams import Streams
from onnxcompress.compression.measure.patches import gathered, patches
from onnxcompress.compression.search.plan_int8 import Int8Plan
from onnxcompress.compression.validate.fidelity import decibel
from onnxcompress.core.arithmetic import in_integers, rounded_by_sample
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.method import CompressedWeight, Method
from onnxcompress.core.parallel import each
from onnxcompress.core.statistics import DOUBT, Statistics
from onnxcompress.graph import layer_input

# This share of the mean input variance is d above, which keeps a target near the original weight.
SHRINK = 0.05
ENOUGH = 2  # With fewer patches per input of a patch, the plain weight is the target.
HARDLY = 1e-3  # Inputs whose variance is less than this share of their energy hardly vary.
WIDE = 1 << 24  # In a layer of so many weights, memory counts more than time.
FAINT = 1e-3  # Stand-ins do not tell how to correct a layer with less relative squared error.
GAIN = 2.0  # A standard deviation is corrected by at most this factor, either way.


def refit(
    streams: Streams,
    layers: Mapping[str, Layer],
    settings: Mapping[str, Method],
    int8: Int8Plan | None = None,
    limit: Callable[[Layer], int] | None = None,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
    doubt: float = DOUBT,
    guessed: bool = False,
) -> dict[str, Fitted]:
    """Fit every setting in network order against the original's responses.

    Args:
        streams: at the first node of both models.
        settings: layer name -> what to fit; other layers stay as they are.
        int8: the layers that compute in int8: they are fitted to what is left of their inputs.
        limit: patches to look at per batch, for a layer; None for all.
        track: wraps the layer names, for a progress bar.
        doubt, guessed: as `Statistics` takes it; whether the samples stand in for the user's.
    """
    model, fitted = streams.model, dict[str, Fitted]()
    nodes = dict(zip(model.keys, model.graph.node, strict=True))
    for name in track([key for key in model.keys if key in settings]):
        layer, node = layers[name].read(), nodes[name]
        original, compressed = streams.inputs_of(name, layer_input(node, layer))
        if int8 is not None and int8.kind(name) == "dynamic":
            compressed = [rounded_by_sample(x) for x in compressed]
        pairs = zip(compressed, original, strict=True)
        # Shapes differ behind a selection, which takes other rows now.
        compressed = [p if p.shape == q.shape else q for p, q in pairs]
        most = limit(layer) if limit else None
        fit = _Fit(layer, original, compressed, most, streams.jobs, doubt, guessed)
        if layer.shared in fitted:
            weight = fitted[layer.shared].weight
            fitted[name] = fit.corrected(weight, gain=False)
        else:
            readers = [n for n, other in layers.items() if other.shared == layer.shared]
            alone = len(readers) == 1
            whole = int8 is not None and any(int8.kind(n) != "float" for n in readers)
            target = fit.target() if alone and not whole else layer
            weight = settings[name].fit(target, fit.statistics)
            if whole:
                weight = in_integers(weight)
            fitted[name] = fit.corrected(weight, gain=alone)
        if model.large:
            fitted[name] = fitted[name].mapped(model.keep)
        del fit
        streams.replace(fitted[name], fold=layer.weight.size < WIDE)
    return fitted


class _Fit:
    """What one layer reads in both streams."""

    def __init__(
        self,
        layer: Layer,
        original: Sequence[Array],
        compressed: Sequence[Array],
        limit: int | None,
        jobs: int,
        doubt: float,
        guessed: bool,
    ) -> None:
        self.layer = layer
        self.changed = original is not compressed
        self.least = FAINT if guessed else 0.0
        weight = layer.grouped.astype(np.float32)

        def look(job: tuple[int, Array, Array]) -> tuple[Array, Array]:
            index, q, p = job
            seen = patches(layer, p, limit, index)
            return seen, patches(layer, q, limit, index) if self.changed else seen

        self.statistics = Statistics.white(layer)
        self.cross = np.zeros(weight.shape, np.float32)
        self.answers = np.zeros(weight.shape[:2])
        self.squares = np.zeros(weight.shape[:2])

        def summed(group: list[tuple[Array, Array]]) -> tuple[Statistics, Array, Array, Array]:
            seen, truth = (np.concatenate(parts, axis=1) for parts in zip(*group, strict=True))
            responses = truth @ weight.swapaxes(1, 2)
            squares = np.square(responses, dtype=np.float64).sum(1)
            cross = responses.swapaxes(1, 2) @ seen if self.changed else self.cross
            centred = layer.correctable  # Otherwise all means count as 0.
            return Statistics.of(seen, centred), squares, responses.sum(1) * centred, cross

        work = zip(range(len(original)), original, compressed, strict=True)
        groups = gathered(each(look, work, jobs), layer.fan_in)
        for statistics, squares, answers, cross in each(summed, groups, jobs, ahead=jobs - 1):
            self.statistics = self.statistics + statistics
            self.squares += squares
            self.answers += answers
            if self.changed:
                self.cross += cross
        self.statistics = replace(self.statistics, doubt=doubt)
        # For a layer that no sample reaches, all sums are 0.
        count = max(self.statistics.count, 1)
        self.mean = self.answers / count
        self.variance = np.maximum(self.squares / count - np.square(self.mean), 0)
        if self.changed:
            means = self.mean[:, :, None] * self.statistics.mean[:, None]
            self.cross = self.cross / count - means

    def target(self) -> Layer:
        """The layer with the asymmetric target for its weight."""
        statistics = self.statistics
        enough = statistics.count >= ENOUGH * statistics.total.shape[1]
        if not self.changed or not enough or statistics.moment is None:
            return self.layer
        whole, result = self.layer.grouped.astype(np.float32), []
        if self.least:
            noise = self._noise(whole, _variance(statistics, whole))
            if noise < self.least * self.variance.sum():
                return self.layer
        for g, weight in enumerate(whole):
            mean = statistics.mean[g].astype(np.float32)
            moment = statistics.moment[g] / statistics.count
            energy = np.trace(moment)
            moment = moment - np.outer(mean, mean)
            if np.trace(moment) <= HARDLY * energy:  # What is left is rounding.
                result.append(weight)
                continue
            shrink = SHRINK * np.trace(moment) / len(moment) + 1e-12
            moment[np.diag_indices_from(moment)] += shrink
            cross = self.cross[g] + shrink * weight
            result.append(np.linalg.solve(moment, cross.T).T)
        target = np.stack(result).reshape(self.layer.weight.shape)
        return replace(self.layer, weight=target.astype(self.layer.weight.dtype))

    def corrected(self, weight: CompressedWeight, gain: bool) -> Fitted:
        """The weight with the mean, and if asked the deviation, of each channel corrected."""
        decoded = weight.astype(np.float32).decode().reshape(self.layer.grouped.shape)
        decoded = decoded.astype(np.float32, copy=False)
        spread = _variance(self.statistics, decoded)
        plain = self._centred(weight, decoded, spread)
        if not gain or plain.error < self.least:
            return plain
        ratio = np.sqrt(self.variance) / np.maximum(np.sqrt(spread), 1e-9)
        alive = self.variance > 1e-12 * self.variance.mean() + 1e-30
        gains = np.where(alive, np.clip(ratio, 1 / GAIN, GAIN), 1)
        scaled = decoded * gains[:, :, None].astype(np.float32)
        better = self._centred(weight.scaled(gains.ravel()), scaled, spread * np.square(gains))
        return replace(better, plain=plain)

    def _centred(self, weight: CompressedWeight, decoded: Array, spread: Array) -> Fitted:
        """The weight, and the bias that keeps the mean of every channel."""
        layer, statistics = self.layer, self.statistics
        snr = decibel(float(self.variance.sum()), self._noise(decoded, spread))
        if layer.bias is not None and not isinstance(layer.bias, np.ndarray):
            return Fitted(weight, None, snr)  # The model computes its bias.
        shift = self.mean - (decoded @ statistics.mean[:, :, None])[:, :, 0]
        bias = (0 if layer.bias is None else layer.bias) + shift.ravel()
        return Fitted(weight, bias.astype(np.float32), snr)

    def _noise(self, decoded: Array, spread: Array) -> float:
        """Variance of ``W q - Ŵ p``, summed over the channels."""
        if not self.changed:
            return float(_variance(self.statistics, decoded, self.layer.grouped).sum())
        both = np.einsum("gof,gof->go", self.cross, decoded, dtype=np.float64)
        return float(np.maximum(self.variance + spread - 2 * both, 0).sum())


def _variance(statistics: Statistics, weight: Array, other: Array | None = None) -> Array:
    """Output variances ``(groups, out // groups)`` of a grouped weight, or of its difference from
    another one; without the ridge."""
    rows, parts = max(1, WIDE // weight.shape[2]), []
    for start in range(0, weight.shape[1], rows):
        flat = weight[:, start : start + rows]
        if other is not None:
            flat = other[:, start : start + rows].astype(np.float32) - flat
        product = statistics.times(flat) - np.asarray(statistics.ridge, flat.dtype) * flat
        parts.append(np.einsum("gof,gof->go", product, flat, dtype=np.float64))
    return np.maximum(np.concatenate(parts, axis=1), 0)
