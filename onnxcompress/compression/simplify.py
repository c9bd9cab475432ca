"""What exporters leave behind, taken out of a model before anything else, and proven harmless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxcompress.compression.expand import run_alone
from onnxcompress.compression.validate.deviation import deviation
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
)

PROVED_ON = 2  # random samples, where none are given: what is exact on two is so on all

FLOAT32_ROUNDING = 1e-4  # of the largest output: deep networks add up 2**-24 of every layer

COARSE_ROUNDING = 2.0**-6  # where tensors are bfloat16, which has 8 bits, or float16

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


@dataclass(frozen=True)
class Change:
    """What one step has done: how many nodes and bytes it saved."""

    what: str
    nodes: int
    nbytes: int


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
    result, changes = model, list[Change]()
    for what, step in STEPS.items():
        try:
            other = step(result)
            same = _is_same(result, other) or deviation(result, other, samples) <= _rounding(model)
        except ModelError:
            same, other = False, result
        if same and not _is_same(result, other):
            changes.append(change(what, result, other))
            result = other
    return result, changes


def change(what: str, before: Model, after: Model) -> Change:
    """What a pass has saved."""
    nodes = len(before.graph.node) - len(after.graph.node)
    return Change(what, nodes, before.nbytes - after.nbytes)


def _is_same(a: Model, b: Model) -> bool:
    return a is b or a.proto == b.proto


def _rounding(model: Model) -> float:
    coarse = has_bfloat16(model) or has_float16(model)
    return COARSE_ROUNDING if coarse else FLOAT32_ROUNDING
