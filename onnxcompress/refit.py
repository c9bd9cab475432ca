"""Fit the chosen settings again, in network order, on what the compressed model really computes.

A layer of the compressed model reads inputs p that earlier layers have already changed, while
the original reads q and answers ``y = W q + b``.  The *asymmetric* target is the weight that
answers best on p (Zhang et al. 2016), drawn toward W where the inputs do not say::

    T = W (cov(q, p) + d I) (cov(p, p) + d I)⁻¹           d = 0.05 mean variance

The setting is fitted to T in the metric of p.  Then the *statistics correction*: each output
channel's mean, and where it helps its standard deviation too, is matched to the original's::

    gain = clip(std(y) / std(ŷ), 1/2, 2)       b' = b + W E[q] - gain Ŵ E[p]

Where the model computes the bias, means count as 0: moments are not centred.

Both streams advance together, so every node runs once per batch and model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcompress.calibration import gathered, patches
from onnxcompress.core import Array, CompressedWeight, Layer, Method, Statistics
from onnxcompress.graph import (
    Model,
    declared_inputs,
    layer_input,
    reads,
    rewrite,
    segment,
)
from onnxcompress.metrics import decibel
from onnxcompress.parallel import each
from onnxcompress.runtime import Sample, Session

SHRINK = 0.05  # toward the original weight, share of the mean input variance
ENOUGH = 2  # patches per input of a patch; with fewer, the plain weight is the target
HARDLY = 1e-3  # inputs whose variance is less than this share of their energy hardly vary
WIDE = 1 << 24  # weights of a layer from which memory counts more than time
GAIN = 2.0  # largest correction of a standard deviation, and its inverse the smallest


@dataclass(frozen=True, eq=False)
class Fitted:
    """A layer's compressed weight in its place in the model.

    Attributes:
        bias: ``(out,)``, corrected; None to keep the original's.
        snr: of the layer's output on the compressed stream against the original, in dB.
        plain: the same without the correction of the standard deviations, if there is one.
    """

    weight: CompressedWeight
    bias: Array | None = None
    snr: float | None = None
    plain: Fitted | None = None

    def mapped(self, change: Callable[[Array], Array]) -> Fitted:
        """The same with every array of its weights changed."""
        plain = self.plain and self.plain.mapped(change)
        return replace(self, weight=self.weight.mapped(change), plain=plain)


def refit(
    model: Model,
    layers: Mapping[str, Layer],
    settings: Mapping[str, Method],
    batches: Sequence[Sample],
    *,
    gain: bool = True,
    asymmetric: bool = True,
    limit: Callable[[Layer], int] | None = None,
    fixed: Mapping[str, CompressedWeight] | None = None,
    jobs: int = 1,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> dict[str, Fitted]:
    """Fit every setting in network order against the original's responses.

    Args:
        settings: layer name -> what to fit; other layers stay as they are.
        batches: calibration samples; their activations are kept in memory.
        limit: patches to look at per batch, for a layer.
        fixed: what is in the compressed model already: constants, and layers in bodies.
        track: wraps the layer names, for a progress bar.
    """
    streams = _Streams(model, batches, fixed or {}, jobs)
    fitted: dict[str, Fitted] = {}
    nodes = dict(zip(model.keys, model.graph.node, strict=True))
    for name in track([key for key in model.keys if key in settings]):
        layer, node = layers[name].read(), nodes[name]
        original, compressed = streams.inputs_of(name, layer_input(node, layer))
        fit = _Fit(layer, original, compressed, limit(layer) if limit else None, jobs)
        if layer.shared in fitted:
            weight = fitted[layer.shared].weight
            fitted[name] = fit.corrected(weight, gain=False)
        else:
            alone = sum(other.shared == layer.shared for other in layers.values()) == 1
            target = fit.target() if asymmetric and alone else layer
            weight = settings[name].fit(target, fit.statistics)
            fitted[name] = fit.corrected(weight, gain and alone)
        if model.large:
            fitted[name] = fitted[name].mapped(model.keep)
        del fit
        streams.replace(name, fitted[name], fold=layer.weight.size < WIDE)
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
    ) -> None:
        self.layer = layer
        self.changed = original is not compressed
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
            centred = layer.correctable  # or else all means count as 0
            return Statistics.of(seen, centred), squares, responses.sum(1) * centred, cross

        work = zip(range(len(original)), original, compressed, strict=True)
        groups = gathered(each(look, work, jobs))
        for statistics, squares, answers, cross in each(summed, groups, jobs, ahead=jobs - 1):
            self.statistics = self.statistics + statistics
            self.squares += squares
            self.answers += answers
            if self.changed:
                self.cross += cross
        count = self.statistics.count
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
        result = []
        for g, weight in enumerate(self.layer.grouped.astype(np.float32)):
            mean = statistics.mean[g].astype(np.float32)
            moment = statistics.moment[g] / statistics.count
            energy = np.trace(moment)
            moment = moment - np.outer(mean, mean)
            if np.trace(moment) <= HARDLY * energy:  # what is left is rounding
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
        if not gain:
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
            return Fitted(weight, None, snr)  # the model computes its bias
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
    rows, found = max(1, WIDE // weight.shape[2]), []
    for start in range(0, weight.shape[1], rows):
        flat = weight[:, start : start + rows]
        if other is not None:
            flat = other[:, start : start + rows].astype(np.float32) - flat
        product = statistics.times(flat) - np.asarray(statistics.ridge, flat.dtype) * flat
        found.append(np.einsum("gof,gof->go", product, flat, dtype=np.float64))
    return np.maximum(np.concatenate(found, axis=1), 0)


class _Streams:
    """The activations of the original and of the compressed model, node by node.

    Tensors that nothing needs any more are let go, and where nothing is fixed the two streams are
    one until the first replaced layer.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Sample],
        fixed: Mapping[str, CompressedWeight],
        jobs: int,
    ) -> None:
        self._model, self._jobs, self._count = model, jobs, len(batches)
        self._changed = rewrite(model, fixed, failed={}) if fixed else model
        self._constants = model.constants.keys() | model.makers.keys()
        self._nodes = list(model.graph.node)
        self._twins = {name: node for node in self._changed.graph.node for name in node.output}
        self._keys = model.keys
        self._last = {name: i for i, node in enumerate(self._nodes) for name in reads(node)}
        inputs = {  # in the types of the model, which may be the float32 twin of another one
            name: [_typed(batch[name], dtype) for batch in batches]
            for name, dtype, _ in declared_inputs(model)
            if name in batches[0]
        }
        self._original = dict(inputs)
        self._compressed = dict(inputs)
        self._pending: tuple[list[Any], list[Any]] = ([], [])
        self._next = 0

    def inputs_of(self, name: str, tensor: str) -> tuple[list[Array], list[Array]]:
        """What the named layer reads in both streams, batch by batch; one object if equal."""
        position = self._keys.index(name)
        for node in self._nodes[self._next : position]:
            if not self._constants & set(node.output):
                self._pending[0].append(node)
                self._pending[1].append(self._twins[next(filter(None, node.output))])
        self._next = position
        self._flush()
        return self._original[tensor], self._compressed[tensor]

    def replace(self, name: str, fitted: Fitted, fold: bool) -> None:
        """Go past the layer: the original as it is, the compressed stream with its new weight.

        Args:
            fold: as `Session` takes it.
        """
        node = self._nodes[self._next]
        read = [t for t in reads(node) if t in self._compressed]
        values = {t: self._compressed[t] for t in read}
        alone = segment(self._model, [node], {t: v[0] for t, v in values.items()}, node.output)
        key = alone.keys[0]
        biases = {} if fitted.bias is None else {key: fitted.bias}
        alone = rewrite(alone, {key: fitted.weight}, biases, failed={})  # the result reports it
        self._pending[0].append(node)
        self._next += 1
        self._compressed |= self._run(alone, values, fold)
        self._forget(self._compressed, self._pending[1])

    def _flush(self) -> None:
        first, second = self._pending
        before = dict(self._original)
        self._advance(self._model, self._original, first)
        if (
            self._changed is self._model
            and [id(node) for node in first] == [id(node) for node in second]
            and all(
                self._compressed.get(name) is before.get(name)
                for node in second
                for name in reads(node)
                if name in before or name in self._compressed
            )
        ):
            made = {name for node in second for name in node.output}
            self._compressed |= {n: v for n, v in self._original.items() if n in made}
        else:
            self._advance(self._changed, self._compressed, second)
        first.clear()
        second.clear()
        self._forget(self._original, first)
        self._forget(self._compressed, second)

    def _advance(self, model: Model, values: dict[str, list[Array]], nodes: Sequence[Any]) -> None:
        if not nodes:
            return
        made = {name for node in nodes for name in node.output if name}
        needed = sorted(name for name in made if self._last.get(name, -1) >= self._next)
        if not needed:
            return
        read = {name for node in nodes for name in reads(node)} - made
        inputs = {name: values[name] for name in sorted(read) if name in values}
        first = {name: value[0] for name, value in inputs.items()}
        values |= self._run(segment(model, nodes, first, needed), inputs)

    def _run(
        self, model: Model, inputs: Mapping[str, list[Array]], fold: bool = True
    ) -> dict[str, list[Array]]:
        session = Session(model, fold=fold)

        def one(index: int) -> Sequence[Any]:
            return session.run({name: values[index] for name, values in inputs.items()})

        results = list(each(one, range(self._count), self._jobs))
        return {name: [r[i] for r in results] for i, name in enumerate(session.outputs)}

    def _forget(self, values: dict[str, list[Array]], pending: Sequence[Any]) -> None:
        wanted = {name for node in pending for name in reads(node)}
        for name in list(values):
            if self._last.get(name, -1) < self._next and name not in wanted:
                del values[name]


def _typed(value: Any, dtype: Any) -> Any:
    """An array, or a list of arrays, in this type."""
    if isinstance(value, list):
        return [_typed(item, dtype) for item in value]
    return value.astype(dtype, copy=False)
