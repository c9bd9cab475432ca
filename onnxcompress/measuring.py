"""What running the original tells: shapes, what the layers read, and how much each one matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, TypeVar

import numpy as np

from onnxcompress.calibration import GATHERED_BYTES, patches
from onnxcompress.core import Array, Candidate, CompressedWeight, Layer, Plain, Statistics
from onnxcompress.data import DataError, Samples, from_batches, input_specs, random_samples
from onnxcompress.graph import (
    Model,
    expose,
    expose_shapes,
    inner_nodes,
    inner_shapes,
    layer_input,
    layer_inputs,
    linear_nodes,
    recurrent_inputs,
    rewrite,
    segment,
)
from onnxcompress.metrics import Fidelity
from onnxcompress.parallel import apart, each, elsewhere
from onnxcompress.runtime import Sample, Session, latency

T = TypeVar("T")
Track = Callable[[Iterable[T], str, int], Iterable[T]]  # (items, what is being done, how many)

PATCHES = 65536  # patches per layer, at most: more did not lower any error that we measured
PATCH_WORK = 2**36  # and no more multiplications for a second moment than this,
PATCHES_PER_INPUT = 2  # but at least so many per input of a patch
EXPOSED_BYTES = 128 << 20  # activations read out of the model at a time, per batch
WEIGH_WORK = 10**12  # multiplications spent on measuring sensitivities
WEIGH_SAMPLES = 64
WEIGH_WHOLE = 2**18  # weights of a layer above which only some of its filters are changed,
WEIGH_FILTERS = 128  # about so many
TIMED = 10  # candidates of a layer whose latency is measured,
TIMING_SECONDS = 0.1  # each for so long
FIRST_RUN = 600.0  # seconds that the first run of a model may take, on one sample
PROVIDERS = ("CPUExecutionProvider",)
WEIGH_ERROR = 0.05  # error of the setting with which a layer's sensitivity is measured


def untracked(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """No progress bar."""
    return items


@dataclass(frozen=True, eq=False)
class Job:
    """What all steps of one compression share.

    Attributes:
        original: the model that was given.
        model: the same, its local functions written out where layers are found in them;
            `runnable` is that where onnxruntime has all kernels, else its float32 twin.
        layers: those to compress, in network order.
        shapes: layer -> shape of its input for the first sample, where it is known.
        macs: multiplications of every linear node for the first sample.
        fit, held_out: samples to fit with, and to validate with; None without data.
        given: shapes of model inputs that the user states.
        seed: of the random inputs.
    """

    original: Model
    model: Model
    runnable: Model
    layers: Mapping[str, Layer]
    shapes: Mapping[str, tuple[int, ...]]
    macs: Mapping[str, int]
    fit: Samples | None
    held_out: Samples | None
    given: Mapping[str, Sequence[int]]
    seed: int
    jobs: int
    track: Track[Any]

    @cached_property
    def random(self) -> Samples:
        """Random inputs, for what no samples are there."""
        return random_samples(input_specs(self.original), 2, self.seed, self.given)

    @cached_property
    def calibrated(self) -> dict[str, Layer]:
        """The layers whose inputs can be read out."""
        return {name: self.layers[name] for name in layer_inputs(self.runnable, self.layers)}

    @property
    def leaders(self) -> dict[str, Layer]:
        """One layer for every weight: the first to read it."""
        return {name: layer for name, layer in self.layers.items() if layer.shared == name}

    def readers(self, leader: str) -> list[str]:
        """The layers that read the weight of this one."""
        return [name for name, layer in self.layers.items() if layer.shared == leader]

    def macs_of(self, leader: str, factors: Sequence[tuple[int, ...]]) -> int:
        """Multiplications of a setting, over all layers that share the weight."""
        readers = [name for name in self.readers(leader) if name in self.shapes]
        return sum(self.layers[name].macs(self.shapes[name], *factors) for name in readers)


def input_shapes(model: Model, sample: Sample) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """For one sample: the input shape of every linear node, and its multiplications.

    Of recurrent weights the shape of what they are multiplied with.
    In the bodies of If, Loop and Scan they are those of one turn, and left out where nobody knows.
    """
    nodes = linear_nodes(model)
    read = {key: (node, [*node.input[:2], node.output[0]]) for key, node in nodes.items()}
    recurrent = {key: tensor for key, (tensor, _) in recurrent_inputs(model).items()}
    tensors = {t for _, names in read.values() for t in names} | {*recurrent.values()}
    known = {name: tuple(c.dims) for name, c in model.constants.items() if name in tensors}
    asked = sorted(tensors - set(known))
    if asked:
        exposed, names = expose_shapes(model, asked)
        session = Session(exposed, optimize=False)
        found = dict(zip(session.outputs, session.run(sample, FIRST_RUN), strict=True))
        known |= {name: tuple(int(n) for n in found[names[name]]) for name in asked}
    known |= inner_shapes(model, {n: x.shape for n, x in sample.items() if hasattr(x, "shape")})
    shapes, macs = {key: known[tensor] for key, tensor in recurrent.items()}, {}
    for key, (node, names) in (read | inner_nodes(model)).items():
        if not known.keys() >= set(names):
            continue
        left, right, out = (known[t] for t in names)
        constant_left = model.fixed(names[0]) and not model.fixed(names[1])
        shapes[key] = right if constant_left else left
        if node.op_type == "Conv":
            macs[key] = prod(out) * prod(right[1:])
        elif node.op_type == "ConvTranspose":
            macs[key] = prod(left) * prod(right[1:])
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            macs[key] = prod(out) * left[-2 if transposed else -1]
    return shapes, macs


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

    Memory depends on the layers and on one batch, not on the number of samples: the inputs of
    so many layers are read at a time as fit ``EXPOSED_BYTES``.

    Args:
        shapes: input shape of each layer for one sample, to plan the memory.
        exact: look at every patch instead of at most ``PATCHES`` drawn ones.

    Raises:
        DataError: with some samples a layer reads NaN, infinities, or what overflows if squared.
    """
    samples = samples if isinstance(samples, Samples) else from_batches(list(samples))
    if shapes is None:
        shapes, _ = input_shapes(model, next(iter(samples.batches(1))))
    read = layer_inputs(model, layers)
    batch, count = batching(samples, shapes)
    result: dict[str, Statistics] = {}
    for names in _groups(layers, shapes, batch):
        limits = {n: None if exact else quota(layers[n], count) for n in names}
        look = _Look(model, {n: (layers[n], read[n], limits[n]) for n in names})
        batches = track(enumerate(samples.batches(batch)), "calibrating", count)
        waiting: dict[str, list[Array]] = {name: [] for name in names}

        def absorb(name: str, waiting: dict[str, list[Array]] = waiting) -> None:
            patches = np.concatenate(waiting[name], axis=1)
            seen = Statistics.of(patches, centred=layers[name].correctable)
            result[name] = result[name] + seen if name in result else seen
            waiting[name].clear()

        for found in (apart if elsewhere() else each)(look, batches, jobs):
            for name, part in found.items():
                waiting[name].append(part)
                if sum(p.nbytes for p in waiting[name]) >= GATHERED_BYTES:
                    absorb(name)
        for name in names:
            if waiting[name]:
                absorb(name)
    return result


class _Look:
    """What some layers read of a batch.  Where it is unpickled, the model is loaded anew.

    Raises:
        DataError: a layer reads what is not finite, or would not be if squared.
    """

    def __init__(self, model: Model, read: Mapping[str, tuple[Layer, str, int | None]]) -> None:
        """
        Args:
            read: layer name -> the layer, the tensor that it reads, and how many patches to take.
        """
        self.model = replace(model)
        self.read = {
            name: (_bare(layer), tensor, limit) for name, (layer, tensor, limit) in read.items()
        }
        given = {value.name for value in model.graph.input}
        inner = sorted({tensor for _, tensor, _ in read.values()} - given)
        self.session = Session(expose(model, inner)) if inner else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Look, (self.model, self.read)

    def __call__(self, job: tuple[int, Sample]) -> dict[str, Array]:
        index, sample = job
        values = dict(sample)
        if self.session is not None:
            values |= dict(zip(self.session.outputs, self.session.run(sample), strict=True))
        found = {
            name: patches(layer, values[tensor], limit, index)
            for name, (layer, tensor, limit) in self.read.items()
        }
        for name, part in found.items():
            if not np.isfinite(np.vdot(part, part)):
                raise DataError(
                    f"with some samples layer {name!r} reads NaN or infinities, or values too "
                    "large to be squared; leave out these samples, or the layer (--skip)"
                )
        return found


def _bare(layer: Layer) -> Layer:
    """No more of a layer than its patches depend on."""
    weight = np.empty((0, *layer.weight.shape[1:]), layer.weight.dtype)
    return replace(layer, weight=weight, bias=None)


def quota(layer: Layer, batches: int) -> int:
    """Patches to look at in each of so many batches."""
    fan_in = layer.fan_in
    wanted = min(PATCHES, max(PATCH_WORK // fan_in**2, PATCHES_PER_INPUT * fan_in))
    return -(-wanted // batches)


def batching(samples: Samples, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Samples per batch so that one layer's input stays small, and how many batches that makes."""
    largest = max((4 * prod(shape) for shape in shapes.values()), default=1)
    size = min(int(np.clip(EXPOSED_BYTES // 2 // largest, 1, 64)), samples.even)
    size = samples.batch if samples.exact else size
    return size, -(-len(samples) // size)


def _groups(
    layers: Mapping[str, Layer], shapes: Mapping[str, tuple[int, ...]], batch: int
) -> list[list[str]]:
    """Layers, in order, in groups whose inputs fit into memory together."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in layers:
        nbytes = 4 * batch * prod(shapes[name])
        if groups[-1] and filled + nbytes > EXPOSED_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    return groups if groups[0] else []


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
    names = [n for n in largest_first(job.layers) if candidates.get(n)]
    if job.fit is None or not names:
        return dict.fromkeys(candidates, 1.0)
    work = sum(job.macs.values()) * (len(names) + 1)
    count = int(np.clip(WEIGH_WORK // max(work, 1), 1, WEIGH_SAMPLES))
    batches = list(job.fit.spread(min(count, len(job.fit))).batches(16))
    reference = list(map(Session(job.runnable).run, batches))

    def sensitivity(name: str) -> float:
        layer = job.layers[name].read()
        setting = min(candidates[name], key=lambda c: (abs(c.error - WEIGH_ERROR), c.nbytes))
        weight, error = _changed(layer, setting, statistics[name])
        readers = job.readers(name)
        shift = statistics[name].shift(layer.weight, weight.astype(np.float32).decode())
        biases = {
            reader: shift if (bias := job.layers[reader].bias) is None else bias + shift
            for reader in readers
            if job.layers[reader].correctable
        }
        alone = Session(rewrite(job.runnable, dict.fromkeys(readers, weight), biases, {}))
        fidelity = Fidelity()
        for batch, expected in zip(batches, reference, strict=True):
            fidelity.add(alone.outputs, expected, alone.run(batch))
        return float(np.sqrt(fidelity.loss / max(error, 1e-9)))

    found = job.track(each(sensitivity, names, job.jobs, len(names)), "weighing layers", len(names))
    weights = dict(zip(names, found, strict=True))
    typical = float(np.median(list(weights.values()))) or 1.0
    usable = {name: w if np.isfinite(w) and w > 0 else typical for name, w in weights.items()}
    return dict.fromkeys(candidates, typical) | usable


def _changed(
    layer: Layer, candidate: Candidate, statistics: Statistics
) -> tuple[CompressedWeight, float]:
    """A layer's weight in a setting, and its error; of a large one some filters, to save time."""
    step, decoded = len(layer.weight) // WEIGH_FILTERS, len(candidate.factors) == 1
    if layer.weight.size <= WEIGH_WHOLE or layer.groups > 1 or step < 2 or not decoded:
        return candidate.fitted(layer, replace(statistics)), candidate.error
    assert candidate.setting is not None
    some, weight = slice(step // 2, None, step), layer.weight.copy()
    part = replace(layer, weight=layer.weight[some])
    weight[some] = candidate.setting.fit(part, replace(statistics)).decode()
    energy = max(statistics.energy(layer.weight), 1e-30)
    error = statistics.energy(part.weight - weight[some]) / energy
    return Plain(weight), error


def largest_first(layers: Mapping[str, Layer]) -> list[str]:
    """The layers with the most work first, so that none is left for the end."""
    return sorted(layers, key=lambda name: -layers[name].weight.size)


@dataclass(frozen=True)
class Times:
    """Milliseconds of a weight's layers.

    Attributes:
        before: as they are, and with weights that are decoded when the model is loaded.
        after: with chains in their place, by the shapes of these.
    """

    before: float
    after: Mapping[tuple[tuple[int, ...], ...], float]


def time_layers(job: Job, candidates: Mapping[str, Sequence[Candidate]]) -> dict[str, Times]:
    """Times of the weights that chains may take the place of, by some of these.

    A layer runs by itself, the original and the chain in turn; equal ones are timed once.
    """
    nodes = linear_nodes(job.runnable)
    known: dict[Any, tuple[float, float]] = {}

    def both(name: str, candidate: Candidate) -> tuple[float, float]:
        layer, shape = job.layers[name], job.shapes[name]
        like = (layer.op_type, layer.weight.shape, str(layer.attributes), layer.bias is None)
        key = (*like, shape, candidate.factors)
        if key not in known:
            assert candidate.setting is not None
            alone, sample = _alone(job.runnable, nodes[name], layer, shape)
            changed = rewrite(alone, {alone.keys[0]: candidate.setting.blank(layer)})
            spent = latency(alone, changed, sample, PROVIDERS, TIMING_SECONDS)
            known[key] = spent.before, spent.before * spent.ratio
        return known[key]

    result: dict[str, Times] = {}
    chains = {n: [c for c in found if len(c.factors) > 1] for n, found in candidates.items()}
    timed = [n for n, found in chains.items() if found and set(job.readers(n)) <= nodes.keys()]
    for name in job.track(timed, "timing layers", len(timed)):
        tried = _fastest(job, name, chains[name])
        spent = np.array([[both(r, c) for r in job.readers(name)] for c in tried]).sum(1)
        before, shares = float(np.median(spent[:, 0])), spent[:, 1] / spent[:, 0]
        after = {c.factors: before * share for c, share in zip(tried, shares, strict=True)}
        result[name] = Times(before, after)
    return result


def _fastest(job: Job, name: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most ``TIMED`` of those that no other beats in multiplications and in error."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (job.macs_of(name, c.factors), c.error)):
        if not best or candidate.error < best[-1].error:
            best.append(candidate)
    return best[:: max(1, -(-len(best) // TIMED))]


def _alone(
    model: Model, node: Any, layer: Layer, shape: Sequence[int]
) -> tuple[Model, dict[str, Array]]:
    """A model of one node, and an input."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    read = {layer_input(node, layer): x}
    return segment(model, [node], read, node.output), read
