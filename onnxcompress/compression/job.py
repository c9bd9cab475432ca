"""What all steps of one compression share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from onnxcompress.core.layer import Layer
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.random import random_samples
from onnxcompress.data.samples import Samples
from onnxcompress.graph import Model, layer_inputs

T = TypeVar("T")

Track = Callable[[Iterable[T], str, int], Iterable[T]]  # (items, what is being done, how many)


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
