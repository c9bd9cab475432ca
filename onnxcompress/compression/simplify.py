"""Take out what exporters leave behind, before anything else, and prove that the outputs stay."""

from __future__ import annotations

from collections.abc import Callable

from onnxcompress.compression.expand import run_alone
from onnxcompress.compression.validate.deviation import COARSE_ROUNDING, distance, outputs_of
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.random import random_samples
from onnxcompress.data.samples import Samples
from onnxcompress.graph import (
    Model,
    ModelError,
    drop_identities,
    drop_unread,
    fold_affine,
    fold_pads,
    fold_smaller,
    has_bfloat16,
    has_float16,
    name_nodes,
    strip,
)
from onnxcompress.report.report import Change

PROVED_ON = 2  # A step is tried on so many samples: what is exact on two is so on all.
# Outputs may differ by this share of the largest: deep networks add up 2**-24 of every layer.
FLOAT32_ROUNDING = 1e-4

Pass = Callable[[Model], Model]

STEPS: dict[str, Pass] = {
    "nodes and constants that nothing reads": drop_unread,
    "nodes that do nothing": drop_identities,
    "constants that are smaller than what computes them": lambda model: fold_smaller(
        model, run_alone
    ),
    "paddings folded into convolutions": fold_pads,
    "scales and shifts folded into layers": fold_affine,
}


def simplify(model: Model, samples: Samples | None = None) -> tuple[Model, list[Change]]:
    """A model that computes the same with fewer nodes, and what was done.

    Every step of `STEPS` is proven on real runs: where the outputs differ by more than the rounding
    of floats, it is left out.

    Args:
        samples: inputs for these runs; random ones if there are none.

    Raises:
        ModelError: the model itself does not run.
    """
    samples = samples or random_samples(input_specs(model), PROVED_ON, 0)
    samples = samples.spread(PROVED_ON) if len(samples) > PROVED_ON else samples
    result, changes = model, list[Change]()
    expected, most = outputs_of(model, samples), _rounding(model)
    for what, step in STEPS.items():
        try:
            other = step(result)
            if other.proto == result.proto or distance(expected, outputs_of(other, samples)) > most:
                continue
        except ModelError:
            continue
        changes.append(change(what, result, other))
        result = other
    return result, changes


def without_ballast(
    model: Model, stripped: bool, simplified: bool, samples: Samples | None
) -> tuple[Model, list[Change]]:
    """The model that is compressed, and what was done to it.

    Layers keep the names that they had, also those that are unnamed: these are made from the number
    of the node, which simplifying changes.
    """
    result, changes = model, list[Change]()
    if stripped:
        result = strip(model)
        what = "notes of the exporter, and types that can be inferred"
        if result.nbytes < model.nbytes:
            changes.append(change(what, model, result))
    if simplified:
        other, steps = simplify(name_nodes(result), samples)
        result, changes = (other, changes + steps) if steps else (result, changes)
    return result, changes


def change(what: str, before: Model, after: Model) -> Change:
    """What a pass has saved."""
    nodes = len(before.graph.node) - len(after.graph.node)
    return Change(what, nodes, before.nbytes - after.nbytes)


def _rounding(model: Model) -> float:
    coarse = has_bfloat16(model) or has_float16(model)
    return COARSE_ROUNDING if coarse else FLOAT32_ROUNDING
