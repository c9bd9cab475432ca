"""How long layers take, as they are and as chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.compression.job import Job
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.method import Candidate
from onnxcompress.execution.latency import latency
from onnxcompress.graph import Model, layer_input, linear_nodes, rewrite, segment

TIMED = 10  # The latency of at most so many candidates of a layer is measured.
TIMING_SECONDS = 0.1  # Each of them is timed for about so many seconds.
PROVIDERS = ("CPUExecutionProvider",)


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
    chains = {n: [c for c in some if len(c.factors) > 1] for n, some in candidates.items()}
    timed = [n for n, some in chains.items() if some and set(job.readers(n)) <= nodes.keys()]
    for name in job.settings.track(timed, "timing layers", len(timed)):
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
