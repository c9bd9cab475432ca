"""Which layers compute in int8, and with what ranges.

Convolutions and what follows them have fixed ranges; other matrix products find theirs in every
run.  Layers are chosen by predicted times (`Regions`), then by the measured time of whole models:
the fastest of a few choices, or none where none is faster.  Of these, layers that are sensitive for
what they gain go back to float (`int8_sensitive`); how far ranges are cut is chosen by the error
of the outputs (`int8_ranges`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcompress.compression.measure.int8_times import time_dynamic
from onnxcompress.compression.measure.observe import observe
from onnxcompress.compression.search.int8_choice import (
    FASTER,
    Choice,
    fastest,
    robust,
    together,
)
from onnxcompress.compression.search.int8_ranges import CLIPS, OutputLoss, TensorErrors
from onnxcompress.compression.search.int8_smooth import smoothing
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
from onnxcompress.graph.passes.smooth_inputs import smooth_inputs

# Layers that take at most the first share of the time gain alone; those up to the second may gain
# in the whole model.
QUICK = (FASTER, 1.2)
PIECES = 3  # A plan is made in so many pieces, which take about as long: times, errors, ranges.
RANGES = 32  # Ranges are drawn from at most so many samples.
TRIED = 16  # At most so many samples decide how far they are cut, which takes runs of many models.


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
    least: float | None = None,
    piece: Callable[[], object] = lambda: None,
) -> Int8Plan:
    """The fastest choice of layers but for sensitive ones, with the ranges that harm least.

    Args:
        original: whose time counts; ``model`` computes the same.
        layers: those that may be changed.
        batches: calibration samples, one by one.
        static: whether the samples are good enough for fixed ranges.
        least: SNR of the outputs, in dB, for which layers stay in float.
        piece: called when one of the ``PIECES`` of this work is done, but the last.
    """
    reasons = {name: r for name, layer in layers.items() if (r := _unfit(model, name, layer))}
    able = {name: layer for name, layer in layers.items() if name not in reasons}
    fixed = _static(model, able) if static and not model.large else []
    first = batches[0]
    dynamic = [name for name in able if name not in fixed and able[name].op_type != "Conv"]
    times = time_dynamic(model, {n: able[n] for n in dynamic}, _reads(model, able, first))
    quick = [{n: t for n, t in times.items() if t.after <= most * t.before} for most in QUICK]
    values = _values(model, fixed, first)
    first_choice = fastest(original, model, able, fixed, quick, values, first)
    piece()
    fast = first_choice.only(together(layers, first_choice.chosen))
    compared = batches[: TRIED if fast.chosen and not model.large else 1]
    loss = OutputLoss.beside(model, compared, jobs)
    region = int8_region(model, fast.static)
    seen = observe(model, able, region.ranged, batches[:RANGES], jobs) if fast.static else {}
    tensors = TensorErrors.measured(model, region, seen, loss)
    piece()
    kept = robust(original, model, able, fast, tensors, loss, least)
    for name in (name for name in able if name not in kept.chosen):
        slow = _not_faster(model, able[name], name in fixed, static)
        reasons[name] = _left(name, fast, first_choice) or slow
    floats = {name: Arithmetic(reason=reason) for name, reason in reasons.items()}
    kinds = dict.fromkeys(kept.dynamic, Arithmetic("dynamic"))
    plan = Int8Plan(floats | kinds, int8_region(model, kept.static), {}, kept.share)
    if not kept.static:
        return plan
    names = {name: region.source[name] for name in plan.region.ranged}
    own = {name: tensors.best[source][0] for name, source in names.items()}
    return _ranged(model, able, plan, {n: seen[s] for n, s in names.items()}, own, kept, loss)


def _left(name: str, fast: Choice, first: Choice) -> str:
    """Why a layer stays float that int8 would make faster; "" where it would not."""
    if name in fast.chosen:
        return "int8 would cost the outputs more there than it gains time"
    return "another layer computes with its weight in float" if name in first.chosen else ""


def _not_faster(model: Model, layer: Layer, ranged: bool, static: bool) -> str:
    """Why int8 gains no time for a layer that could compute in it.

    Args:
        ranged: whether what it reads has a fixed range.
        static: whether fixed ranges may be used at all.
    """
    if ranged:
        return "int8 is not faster there, what it takes to round its input counted"
    if layer.op_type == "Conv":
        return _no_ranges(model, static)
    return "int8 is not faster there"


def smoothed(
    model: Model, layers: Mapping[str, Layer], batches: Sequence[Sample], static: bool
) -> Model:
    """The model, which computes the same, with smoothed inputs where dynamic ranges may serve.

    Args:
        layers, batches, static: as `plan_int8` takes them.
    """
    able = {name: layer for name, layer in layers.items() if not _unfit(model, name, layer)}
    taken = {*(_static(model, able) if static else ())}
    readers = Counter(layer.shared for layer in layers.values())
    products = {
        name: layer
        for name, layer in able.items()
        if name not in taken and layer.op_type != "Conv" and readers[layer.shared] == 1
    }
    scales = smoothing(model, products, batches) if products else {}
    return smooth_inputs(model, scales) if scales else model


def stays_float(model: Model, name: str, layer: Layer) -> str:
    """Why a layer cannot compute in int8, whatever its time and the samples; "" if it can."""
    ranges = _no_ranges(model, static=True) if layer.op_type == "Conv" else ""
    return _unfit(model, name, layer) or ranges


def _unfit(model: Model, name: str, layer: Layer) -> str | None:
    """Why a layer cannot compute in int8, whatever its time."""
    if layer.weight.dtype in (np.int8, np.uint8):
        return "it computes in 8 bits as it is"
    if layer.op_type == "Constant":
        return "nodes that compute in float read it"
    if layer.op_type not in ("Conv", "Gemm", "MatMul"):
        return f"{layer.op_type} computes in float"
    if name not in linear_nodes(model):
        return "it lies in the body of another node"
    if layer.weight.dtype != np.float32:
        return f"its type is {layer.weight.dtype.name}"
    if layer.attributes.get("lead"):
        return "its weight is a stack of matrices"
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
    return "" if static else "fixed ranges need samples: give samples=..."


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


def _ranged(
    model: Model,
    layers: Mapping[str, Layer],
    plan: Int8Plan,
    seen: Mapping[str, Seen],
    own: Mapping[str, Range],
    fast: Choice,
    loss: OutputLoss,
) -> Int8Plan:
    """The plan with the ranges that harm the outputs least: one cut for all, or ``own`` ones."""
    weights = {name: Rounded.of(layers[name].read().weight) for name in fast.chosen}
    nodes = linear_nodes(model)
    best, least = plan, np.inf
    for ranges in (own, *({n: Range.best(s, clip) for n, s in seen.items()} for clip in CLIPS)):
        tried = replace(plan, ranges=ranges)
        kinds = {
            name: Arithmetic("static", tried.rounded(layer_input(nodes[name], layers[name])))
            for name in fast.static
        }
        tried = replace(tried, arithmetic={**plan.arithmetic, **kinds})
        changed = compute_int8(
            model, weights, tried.arithmetic, ranges, failed={}, region=plan.region
        )
        error = loss.of(changed)
        if error < least:
            best, least = tried, error
    return best
