"""Statistics of what every layer reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from onnxcompress.compression.measure.at_once import batch_size, largest_input, threads
from onnxcompress.compression.measure.patches import GATHERED_BYTES, patches
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.measure.unfit import blaming
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.parallel import apart, each, elsewhere
from onnxcompress.core.progress import Track, untracked
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.samples import DataError, Samples, from_batches
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, ModelError, Shown, expose, show_inputs

# A layer has at most so many patches: twice as many lowered held-out errors by 0.05 dB.
PATCHES = 8192
ENOUGH_PER_INPUT = 128  # Depthwise filters, which have few inputs, need no more for each of these.
# It has fewer where a second moment would take more multiplications, which bounds the time.
PATCH_WORK = 2**36
PATCHES_PER_INPUT = 2  # Even then it has so many per input of a patch, up to `PATCHES`.
# Activations that are read out of the model at a time take at most so many bytes per batch; those
# of one sample may take more, as every further group of layers runs the model once more.
EXPOSED_BYTES, EXPOSED_OF_ONE = 16 << 20, 160 << 20
WAITING_BYTES = 32 << 20  # Patches of all layers that wait to be multiplied take at most so many.


def calibrate(
    model: Model,
    layers: Mapping[str, Layer],
    samples: Iterable[Sample],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    exact: bool = False,
    jobs: int = 1,
    track: Track[Any] = untracked,
) -> dict[str, Statistics]:
    """Statistics of what every layer reads, summed over the samples in their order.

    Layers whose inputs cannot be read out, or that never run, are left out.  The inputs of so many
    layers are read at a time as fit ``EXPOSED_BYTES``, whatever the number of samples.

    Args:
        shapes: input shape of each layer for one sample, to plan the memory.
        exact: look at every patch instead of at most ``PATCHES`` drawn ones.

    Raises:
        DataError: with some samples a layer reads NaN, infinities, or what overflows if squared.
    """
    samples = samples if isinstance(samples, Samples) else from_batches(list(samples))
    shapes = input_shapes(model, next(iter(samples.batches(1))))[0] if shapes is None else shapes
    original, (model, read) = model, _readable(model, layers, samples)
    batch, count = batching(samples, shapes, EXPOSED_BYTES // _exposed(read, shapes))
    result: dict[str, Statistics] = {}
    for names in _groups({n: layers[n] for n in layers if n in read}, shapes, batch):
        most = {n: None if exact else quota(layers[n], count) for n in names}
        look = _Look(model, {n: (layers[n], read[n], most[n]) for n in names})
        batches = track(enumerate(samples.batches(batch)), "calibrating", count)
        waiting: dict[str, list[Array]] = {name: [] for name in names}
        full = min(GATHERED_BYTES, WAITING_BYTES // max(1, len(names)))

        def absorb(name: str, waiting: dict[str, list[Array]] = waiting) -> None:
            seen = Statistics.of(np.concatenate(waiting[name], axis=1), layers[name].correctable)
            result[name] = result[name] + seen if name in result else seen
            waiting[name].clear()

        some = threads(largest_input(shapes.values()), batch, jobs)
        with blaming(original, samples):
            for parts in apart(look, batches, jobs) if elsewhere() else each(look, batches, some):
                for name, part in parts.items():
                    waiting[name].append(part)
                    if sum(p.nbytes for p in waiting[name]) >= full:
                        absorb(name)
        for name in filter(waiting.get, names):
            absorb(name)
    return result


def _exposed(names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of what these layers read of one sample."""
    return sum(4 * prod(shapes.get(name, ())) for name in names) or 1


def _readable(
    model: Model, layers: Mapping[str, Layer], samples: Samples
) -> tuple[Model, dict[str, list[Shown]]]:
    """A model that shows what layers read, in bodies too where it runs."""
    shown, read = show_inputs(model, layers)
    inner = [one.tensor for places in read.values() for one in places if one.inner]
    if inner:
        try:
            Session(expose(shown, inner)).run(next(iter(samples.batches(1))))
        except ModelError:  # Turns of a loop may read other shapes, which cannot be stacked.
            return show_inputs(model, layers, bodies=False)
    return shown, read


class _Look:
    """What some layers read of a batch.  Where it is unpickled, the model is loaded anew.

    Raises:
        DataError: a layer reads what is not finite, or would not be if squared.
    """

    def __init__(
        self, model: Model, read: Mapping[str, tuple[Layer, list[Shown], int | None]]
    ) -> None:
        """
        Args:
            read: layer name -> the layer, what it reads, and how many patches to take.
        """
        self.model = replace(model)
        self.read = {
            name: (_bare(layer), places, limit) for name, (layer, places, limit) in read.items()
        }
        inputs = {value.name for value in model.graph.input}
        tensors = {shown.tensor for _, places, _ in read.values() for shown in places} - inputs
        self.session = Session(expose(model, sorted(tensors))) if tensors else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Look, (self.model, self.read)

    def __call__(self, job: tuple[int, Sample]) -> dict[str, Array]:
        index, sample = job
        values = dict(sample)
        if self.session is not None:
            values |= dict(zip(self.session.outputs, self.session.run(sample), strict=True))
        parts = {}
        for name, (layer, places, limit) in self.read.items():
            seen = [
                patches(layer, x, limit, index)
                for shown in places
                if (x := _in_one(values[shown.tensor], shown.turns, layer)).size
            ]
            if seen:
                parts[name] = seen[0] if len(seen) == 1 else np.concatenate(seen, axis=1)
        for name, part in parts.items():
            if not np.isfinite(np.vdot(part, part)):
                raise DataError(
                    f"with some samples layer {name!r} reads NaN or infinities, or values too "
                    "large to be squared; leave out these samples, or the layer (only=...)"
                )
        return parts


def _in_one(x: Array, turns: int, layer: Layer) -> Array:
    """What was read in all turns as one batch; that of a branch that did not run is empty."""
    return x.reshape(-1, *x.shape[turns + 1 :]) if turns and layer.kernel and x.size else x


def _bare(layer: Layer) -> Layer:
    """No more of a layer than its patches depend on."""
    weight = np.empty((0, *layer.weight.shape[1:]), layer.weight.dtype)
    return replace(layer, weight=weight, bias=None)


def quota(layer: Layer, batches: int) -> int:
    """Patches to look at in each of so many batches."""
    fan_in = layer.fan_in
    most = max(PATCH_WORK // fan_in**2, PATCHES_PER_INPUT * fan_in)
    most = min(PATCHES, ENOUGH_PER_INPUT * fan_in, most)
    return -(-most // batches)


def batching(samples: Samples, shapes: Mapping[str, tuple[int, ...]], most: int) -> tuple[int, int]:
    """Samples per batch so that one layer's input stays small, and how many batches that makes.

    Args:
        most: samples per batch in any case, where the model does not say how many.
    """
    size = batch_size(largest_input(shapes.values()), min(samples.even, most))
    size = samples.batch if samples.exact else size
    return size, -(-len(samples) // size)


def _groups(
    layers: Mapping[str, Layer], shapes: Mapping[str, tuple[int, ...]], batch: int
) -> list[list[str]]:
    """Layers, in order, in groups whose inputs fit into memory together."""
    groups: list[list[str]] = [[]]
    most, filled = EXPOSED_BYTES if batch > 1 else EXPOSED_OF_ONE, 0
    for name in layers:
        nbytes = 4 * batch * prod(shapes.get(name, ()))
        if groups[-1] and filled + nbytes > most:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    return groups if groups[0] else []
