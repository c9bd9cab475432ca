"""State that a model gives back to itself: a run in which each model feeds on its own outputs.

What one step loses is in the state of the next one, so errors of a recurrent model add up over a
run, which a comparison step by step does not show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnxcompress.core.errors import TargetError
from onnxcompress.core.messages import nearest
from onnxcompress.data.samples import Samples
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, declared_inputs, declared_outputs

# An output that becomes an input again may have the input's name with one of these suffixes.
SUFFIXES = {"n", "o", "out", "output", "next", "new", "updated"}


def find_states(model: Model) -> dict[str, str]:
    """Output name -> the input that it is fed back into, as far as names and shapes tell.

    An input is a state where exactly one output has its type and shape, and its name with one of
    `SUFFIXES`; there has to be another input, which moves the model on.
    """
    inputs, outputs = declared_inputs(model), declared_outputs(model)
    states = {}
    for name, dtype, shape in inputs:
        able = [
            other
            for other, kind, dims in outputs
            if kind == dtype and _continues(name, other) and _fits(dims, shape)
        ]
        if len(able) == 1:
            states[able[0]] = name
    return states if len(states) < len(inputs) else {}


def states_of(model: Model, stated: Mapping[str, str] | None) -> Mapping[str, str]:
    """Output name -> the input that it is fed back into: what was stated, else what is found."""
    return find_states(model) if stated is None else stated


def check_states(model: Model, states: Mapping[str, str]) -> None:
    """Raise unless these are outputs and inputs of the model.

    Raises:
        TargetError: one is not.
    """
    outputs = [name for name, _, _ in declared_outputs(model)]
    inputs = [name for name, _, _ in declared_inputs(model)]
    for output, state in states.items():
        for kind, name, names in (("output", output, outputs), ("input", state, inputs)):
            if name not in names:
                raise TargetError(f"the model has no {kind} {name!r}{nearest(name, names)}")


def run(session: Session, samples: Samples, states: Mapping[str, str]) -> Iterator[Sequence[Any]]:
    """The outputs for each sample, in order, as one sequence; the first one gives the state."""
    state: dict[str, Any] = {}
    for sample in samples.batches(1):
        outputs = session.run({**sample, **state})
        named = dict(zip(session.outputs, outputs, strict=True))
        state = {name: named[output] for output, name in states.items()}
        yield outputs


def _continues(name: str, other: str) -> bool:
    """Whether the second name is the first one with a suffix."""
    name, other = name.lower(), other.lower()
    return other.startswith(name) and other[len(name) :].strip("_.") in SUFFIXES


def _fits(dims: Sequence[Any] | None, others: Sequence[Any] | None) -> bool:
    """Whether two declared shapes may be the same; what is open may be anything."""
    if not dims or not others:
        return dims == others or not dims
    return len(dims) == len(others) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int))
        for a, b in zip(dims, others, strict=True)
    )
