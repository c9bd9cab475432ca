"""Which layers compute in int8, and with what ranges.

Convolutions and what follows them have fixed ranges; other matrix products find theirs in every
run.  Layers are chosen by predicted times (`Regions`), then by the measured time of whole models:
the fastest of a few choices, or none where none is faster.  How far ranges are cut is chosen by
the error of the outputs: a clipped value is an error that neighbours share, which a count of
values does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcompress.compression.measure.int8_times import spent, time_dynamic, time_region
from onnxcompress.compression.measure.observe import observe
from onnxcompress.compression.search.int8_layers import Regions
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.core.arithmetic import Arithmetic, Range, Rounded, Seen
from onnxcompress.core.layer import Array, Layer
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, expose, layer_input, linear_nodes
from onnxcompress.graph.int8_region import Int8Region, int8_region
from onnxcompress.graph.passes.compute_int8 import (
    DYNAMIC_OPSET,
    STATIC_OPSET,
    compute_int8,
)

CLIPS = (1.0, 4.0, 16.0, 64.0, np.inf)  # by how much a clipped value counts more than a rounded
FASTER = 0.97  # of the time, at most, for a model or a layer to count as faster
SECONDS = 2.0  # for which whole models run in turns
RANGES = 32  # samples that ranges are drawn from,
TRIED = 16  # and that decide how far they are cut


@dataclass(frozen=True, eq=False)
class Int8Plan:
    """What every layer computes in.

    Attributes:
        arithmetic: layer -> static, dynamic, or float with a reason.
        region: of the static ones.
        ranges: of the tensors of the region.
        time: of the model so far, as a share of the original's.
    """

    arithmetic: Mapping[str, Arithmetic]
    region: Int8Region = field(default_factory=Int8Region)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    time: float = 1.0

    @property
    def layers(self) -> list[str]:
        """Those that compute in int8."""
        return [name for name, a in self.arithmetic.items() if a.kind != "float"]

    def kind(self, layer: str) -> str:
        """What a layer computes in: float, static or dynamic."""
        return self.arithmetic[layer].kind if layer in self.arithmetic else "float"

    @property
    def tensors(self) -> dict[str, Range]:
        """The ranges of all tensors that are bytes."""
        return {name: self.ranges[source] for name, source in self.region.source.items()}

    def rounded(self, name: str) -> Range | None:
        """The range of a tensor that is bytes."""
        return self.ranges.get(self.region.source.get(name, ""))


def plan_int8(
    original: Model,
    model: Model,
    layers: Mapping[str, Layer],
    batches: Sequence[Sample],
    jobs: int = 1,
    static: bool = True,
) -> Int8Plan:
    """The fastest choice of layers, with the ranges that harm the outputs least.

    Args:
        original: whose time counts; ``model`` computes the same.
        layers: those that may be changed.
        batches: calibration samples, one by one.
        static: whether the samples are good enough for fixed ranges.
    """
    reasons = {name: r for name, layer in layers.items() if (r := _unfit(model, name, layer))}
    able = {name: layer for name, layer in layers.items() if name not in reasons}
    fixed = _static(model, able) if static else []
    first = batches[0]
    values = _values(model, fixed, first)
    dynamic = [name for name in able if name not in fixed and able[name].op_type != "Conv"]
    shares = time_dynamic(model, {n: able[n] for n in dynamic}, _reads(model, able, first))
    slow = [name for name in dynamic if shares[name] > FASTER]
    quick = [name for name in dynamic if name not in slow]
    chosen, time = _fastest(original, model, able, fixed, quick, values, first)
    for name in able:
        if name in fixed and name not in chosen:
            reasons[name] = "int8 is not faster there, what it takes to round its input counted"
        elif name in slow or (name in quick and name not in chosen):
            reasons[name] = "int8 is not faster there"
        elif able[name].op_type == "Conv" and name not in fixed:
            reasons[name] = _no_ranges(model, static)
    floats = {name: Arithmetic(reason=reason) for name, reason in reasons.items()}
    fixed = [name for name in fixed if name in chosen]
    region = int8_region(model, fixed)
    seen = observe(model, able, region.ranged, batches[:RANGES], jobs) if fixed else {}
    kinds = {n: Arithmetic("dynamic") for n in quick if n in chosen}
    plan = Int8Plan(floats | kinds, region, {}, time)
    return _ranged(model, able, fixed, plan, seen, batches[:TRIED])


def _unfit(model: Model, name: str, layer: Layer) -> str | None:
    """Why a layer cannot compute in int8, whatever its time."""
    if layer.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"{layer.op_type} computes in float"
    if name not in linear_nodes(model):
        return "it lies in the body of another node"
    if layer.weight.dtype != np.float32:
        return f"its type is {layer.weight.dtype.name}"
    if layer.attributes.get("left") or layer.attributes.get("transA"):
        return "its weight is the left factor"
    if layer.bias is not None and not isinstance(layer.bias, Array):
        return "its bias is computed while the model runs"
    if layer.op_type == "Conv" and len(layer.kernel) > 3:
        return "the runtime has no kernel for so many axes"
    if model.opset < DYNAMIC_OPSET:
        return f"opset {model.opset} is too old"
    return None


def _no_ranges(model: Model, static: bool) -> str:
    if model.opset < STATIC_OPSET:
        return f"opset {model.opset} has no scale for each channel; {STATIC_OPSET} has"
    return "" if static else "fixed ranges need samples: give --calib"


def _static(model: Model, layers: Mapping[str, Layer]) -> list[str]:
    """Convolutions, and matrix products whose input is bytes already."""
    if model.opset < STATIC_OPSET:
        return []
    convs = [name for name, layer in layers.items() if layer.op_type == "Conv"]
    made, nodes = int8_region(model, convs).made, linear_nodes(model)
    return [name for name, layer in layers.items()
            if name in convs or layer_input(nodes[name], layer) in made]  # fmt: skip


def _read_out(model: Model, tensors: Sequence[str], sample: Sample) -> dict[str, Array]:
    """The values of tensors."""
    inner = sorted({*tensors} - {value.name for value in model.graph.input})
    values = dict(sample)
    if inner:
        session = Session(expose(model, inner))
        values |= dict(zip(session.outputs, session.run(sample), strict=True))
    return {name: values[name] for name in tensors if name in values}


def _values(model: Model, layers: Sequence[str], sample: Sample) -> dict[str, Array]:
    """What the nodes of the largest region read and give."""
    region = int8_region(model, layers)
    names = set(region.source) | {
        name
        for index in region.nodes
        for name in model.graph.node[index].input
        if name and not model.fixed(name) and name not in model.makers
    }
    return _read_out(model, sorted(names), sample)


def _reads(model: Model, layers: Mapping[str, Layer], sample: Sample) -> dict[str, Array]:
    """Layer -> what it reads, of the matrix products."""
    nodes = linear_nodes(model)
    read = {
        n: layer_input(nodes[n], layer) for n, layer in layers.items() if layer.op_type != "Conv"
    }
    values = _read_out(model, sorted({*read.values()}), sample)
    return {name: values[tensor] for name, tensor in read.items()}


def _fastest(
    original: Model,
    model: Model,
    layers: Mapping[str, Layer],
    static: Sequence[str],
    dynamic: Sequence[str],
    values: Mapping[str, Array],
    sample: Sample,
) -> tuple[set[str], float]:
    """The layers of the fastest of a few models, and its share of the original's time."""
    choices: list[list[str]] = []
    if static:
        region = int8_region(model, static)
        times, border = time_region(model, region, layers, values)
        regions = Regions(model, times, {n: v.size for n, v in values.items()}, border)
        pruned = regions.best(static)
        choices = [[*static, *dynamic], [*pruned, *dynamic]]
        choices = choices[: 1 + (pruned != list(static))]
    if dynamic:
        choices.append([*dynamic])
    choices = [choice for choice in choices if choice]
    models = [_plainly(model, layers, static, choice) for choice in choices]
    seconds = spent([original, *models], [sample] * (1 + len(models)), SECONDS)
    shares = [after / seconds[0] for after in seconds[1:]]
    best = int(np.argmin(shares)) if shares else -1
    if best < 0 or shares[best] > FASTER:
        return set(), 1.0
    return set(choices[best]), shares[best]


def _plainly(
    model: Model, layers: Mapping[str, Layer], static: Sequence[str], chosen: Sequence[str]
) -> Model:
    """A model that takes the time of one with these layers in int8."""
    fixed = [name for name in chosen if name in static]
    region = int8_region(model, fixed)
    ranges = dict.fromkeys(region.ranged, Range(1 / 256, 128))
    behind = {name for i in region.cuts.values() for name in model.graph.node[i].output}
    ranges |= {name: Range(1 / 256, 0) for name in behind if name in ranges}  # within any Clip
    kinds = {
        n: Arithmetic("static" if n in static else "dynamic", Range(1 / 256, 128)) for n in chosen
    }
    weights = {name: Rounded.of(layers[name].read().weight) for name in chosen}
    return compute_int8(model, weights, kinds, ranges, failed={}, region=region)


def _ranged(
    model: Model,
    layers: Mapping[str, Layer],
    static: Sequence[str],
    plan: Int8Plan,
    seen: Mapping[str, Seen],
    batches: Sequence[Sample],
) -> Int8Plan:
    """The plan with the ranges that harm the outputs least."""
    if not static:
        return plan
    weights = {name: Rounded.of(layers[name].read().weight) for name in [*static, *plan.layers]}
    session = Session(model)
    reference = [session.run(batch) for batch in batches]
    best, least = plan, np.inf
    for tried in _cuts(model, layers, static, plan, seen):
        changed = compute_int8(
            model, weights, tried.arithmetic, tried.ranges, failed={}, region=plan.region
        )
        error = _error(changed, batches, session.outputs, reference)
        if error < least:
            best, least = tried, error
    return best


def _cuts(
    model: Model,
    layers: Mapping[str, Layer],
    static: Sequence[str],
    plan: Int8Plan,
    seen: Mapping[str, Seen],
) -> Iterator[Int8Plan]:
    """The plan with ranges that are cut by more and less."""
    nodes = linear_nodes(model)
    for clip in CLIPS:
        ranges = {name: Range.best(one, clip) for name, one in seen.items()}
        tried = replace(plan, ranges=ranges)
        kinds = {
            name: Arithmetic("static", tried.rounded(layer_input(nodes[name], layers[name])))
            for name in static
        }
        yield replace(tried, arithmetic={**plan.arithmetic, **kinds})


def _error(
    model: Model, batches: Sequence[Sample], names: Sequence[str], reference: Sequence[object]
) -> float:
    """Relative squared error of the outputs."""
    session, fidelity = Session(model), Fidelity()
    for batch, outputs in zip(batches, reference, strict=True):
        fidelity.add(names, outputs, session.run(batch))  # type: ignore[arg-type]
    return fidelity.loss
