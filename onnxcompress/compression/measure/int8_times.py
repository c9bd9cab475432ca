"""How long each node takes in float and with bytes, measured alone at its real shape.

A layer and the Relu or Clip behind it are timed together.  A node with bytes reads bytes and gives
bytes; rounding and restoring values is counted once, where a region of such nodes ends (`Border`).
Times are processor time of one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from onnxcompress.core.arithmetic import Arithmetic, Range, Rounded
from onnxcompress.core.layer import Array, Layer
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, find_layers, layer_input, linear_nodes, segment
from onnxcompress.graph.int8_region import Int8Region, int8_region, lone_region
from onnxcompress.graph.passes.compute_int8 import border, bytes_only, compute_int8

SECONDS = 0.05  # Models run in turns for about so many seconds, but at least 5 times.
SIZES = (1 << 10, 1 << 18)  # The costs of a border are drawn from tensors of so many values.


@dataclass(frozen=True)
class Times:
    """Seconds of a node, and of what reads it alone: in float, and in int8."""

    before: float
    after: float


@dataclass(frozen=True)
class Border:
    """Seconds to round a value to a byte, to restore one, and to begin a run."""

    rounding: float
    restoring: float
    run: float


def spent(models: Sequence[Model], samples: Sequence[Sample], seconds: float) -> list[float]:
    """Median seconds of one run of each model, run in turns."""
    sessions = [Session(model) for model in models]
    for session, sample in zip(sessions, samples, strict=True):
        session.run(sample)
    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - start < seconds and len(times) < 1000):
        times.append([])
        for session, sample in zip(sessions, samples, strict=True):
            began = time.thread_time()
            session.run(sample)
            times[-1].append(time.thread_time() - began)
    return [median(column) for column in zip(*times, strict=True)]


def time_region(
    model: Model, region: Int8Region, layers: Mapping[str, Layer], values: Mapping[str, Array]
) -> tuple[dict[int, Times], Border]:
    """Times of the nodes of a region, by index, and what its borders cost.

    Args:
        layers: those of the region by name.
        values: of the tensors that its nodes read, for one sample.
    """
    ends = _border()
    known: dict[Any, Times] = {}
    result: dict[int, Times] = {}
    behind = set(region.cuts.values())
    for index in sorted(region.nodes - behind):
        nodes = [model.graph.node[i] for i in (index, region.cuts.get(index, index))]
        nodes = nodes[:1] if nodes[0] is nodes[1] else nodes
        read = {n: values[n] for n in dict.fromkeys(nodes[0].input) if n in values}
        key = _likeness(model, nodes, read)
        if key not in known:
            before, after = (max(t - ends.run, 0.0) for t in _timed(model, nodes, read))
            known[key] = Times(before, after)
        result[index] = known[key]
    return result, ends


def _likeness(model: Model, nodes: Sequence[Any], read: Mapping[str, Array]) -> Any:
    """What equal nodes have in common."""
    shapes = [read[n].shape if n in read else
              tuple(model.constants[n].dims) if n in model.constants else n
              for n in nodes[0].input]  # fmt: skip
    return str([(n.op_type, list(map(str, n.attribute))) for n in nodes]), str(shapes)


def _timed(model: Model, nodes: Sequence[Any], read: Mapping[str, Array]) -> list[float]:
    """One node in both arithmetics."""
    alone = segment(model, nodes, read, [n for n in nodes[-1].output if n])
    changed, sample = in_bytes(alone, read)
    return spent([alone, changed], [read, sample], SECONDS)


def in_bytes(alone: Model, read: Mapping[str, Array]) -> tuple[Model, dict[str, Array]]:
    """A model of one node as it is with bytes, and what it takes."""
    layers, _ = find_layers(alone)
    region = int8_region(alone, layers) if layers else lone_region(alone)
    ranges = dict.fromkeys(region.ranged, Range(0.05, 128))
    # This range lies within any Clip.
    ranges |= {n: Range(1 / 256, 0) for n in region.made if region.cuts}
    weights = {name: Rounded.of(layer.weight) for name, layer in layers.items()}
    kinds = {n: Arithmetic("static", Range(0.05, 128)) for n in layers}
    changed = bytes_only(compute_int8(alone, weights, kinds, ranges, region=region))
    rng = np.random.default_rng(0)
    shapes = {value.name: None for value in changed.graph.input}
    names = dict(zip((v.name for v in alone.graph.input), shapes, strict=True))
    sample = {
        names[n]: x if names[n] == n else rng.integers(0, 256, x.shape, np.uint8)
        for n, x in read.items()
    }
    return changed, sample


def _border() -> Border:
    """What it costs to round and to restore a value, from two sizes."""
    slopes, begun = [], []
    for op_type, kind in (("QuantizeLinear", np.float32), ("DequantizeLinear", np.uint8)):
        samples = [{"x": np.ones(size, kind)} for size in SIZES]
        small, large = spent([border(op_type)] * 2, samples, SECONDS)
        slopes.append(max(large - small, 0) / (SIZES[1] - SIZES[0]))
        begun.append(small)
    return Border(*slopes, run=min(begun))


def time_dynamic(
    model: Model, layers: Mapping[str, Layer], reads: Mapping[str, Array]
) -> dict[str, Times]:
    """Layer -> its times, alone, in float and with dynamic ranges."""
    nodes, run = linear_nodes(model), _border().run if layers else 0.0
    known: dict[Any, Times] = {}
    result = {}
    for name, layer in layers.items():
        node, x = nodes[name], reads[name]
        key = layer.op_type, layer.weight.shape, layer.bias is None, x.shape
        if key not in known:
            alone = segment(model, [node], {layer_input(node, layer): x}, node.output)
            weight = {alone.keys[0]: Rounded.of(layer.read().weight)}
            changed = compute_int8(alone, weight, {alone.keys[0]: Arithmetic("dynamic")}, {})
            sample = {layer_input(node, layer): x}
            before, after = spent([alone, changed], [sample] * 2, SECONDS)
            known[key] = Times(max(before - run, 1e-9), max(after - run, 0.0))
        result[name] = known[key]
    return result
