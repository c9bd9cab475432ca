"""What lies behind a layer: a model from there on, and what it reads.

To see what a changed layer does to the outputs, nothing before it needs to run again: half of the
nodes of a chain, on average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxcompress.core.layer import Array
from onnxcompress.core.method import CompressedWeight
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, declared_inputs, reads, rewrite, segment


def typed(value: Any, dtype: Any) -> Any:
    """An array, or a list of arrays, in the type of a model, which may be a float32 twin."""
    if isinstance(value, list):
        return [typed(item, dtype) for item in value]
    return value.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Tail:
    """The nodes of a model from one on.

    Attributes:
        model: of these nodes alone.
        keys: of a layer of the whole model -> of the same layer here.
        batches: what the nodes read.
        places: of its outputs among those of the whole model.
    """

    model: Model
    keys: Mapping[str, str]
    batches: Sequence[Sample]
    places: Sequence[int]

    def outputs(
        self,
        weights: Mapping[str, CompressedWeight],
        biases: Mapping[str, Array],
        expected: Sequence[Sequence[Any]],
    ) -> Iterator[list[Any]]:
        """All outputs of every batch with these weights in place; ``expected`` are those without.

        What no node from here on computes is as expected.
        """
        if not self.places:  # No output reads what the layer gives.
            yield from map(list, expected)
            return
        own = {self.keys[name]: weight for name, weight in weights.items()}
        shifted = {self.keys[name]: bias for name, bias in biases.items()}
        session = Session(rewrite(self.model, own, shifted, {}))
        for batch, before in zip(self.batches, expected, strict=True):
            after = list(before)
            for place, value in zip(self.places, session.run(batch), strict=True):
                after[place] = value
            yield after


def behind(
    model: Model, readers: Mapping[str, Sequence[str]], batches: Sequence[Sample]
) -> Iterator[tuple[str, Tail]]:
    """For every weight, what lies behind the first of the layers that read it, itself included.

    It is all of the model for layers in bodies of other nodes.

    Args:
        readers: of weights in network order.
    """
    walk = _Walk(model, [{**batch} for batch in batches])
    places = {key: i for i, key in enumerate(model.keys)}
    for name, keys in readers.items():
        first = min(places.get(key, -1) for key in keys)
        if first >= walk.place:
            walk.to(first)
            yield name, walk.tail()
        else:
            everywhere = range(len(model.graph.output))
            yield name, Tail(model, {key: key for key in keys}, batches, everywhere)


@dataclass(eq=False)
class _Walk:
    """The values of a model's tensors at one of its nodes.

    Attributes:
        values: of every batch, those that nodes from ``place`` on read; replaced, not changed.
    """

    model: Model
    values: list[dict[str, Any]]
    place: int = 0
    outputs: list[str] = field(init=False)

    def __post_init__(self) -> None:
        model = self.model
        kinds = {name: dtype for name, dtype, _ in declared_inputs(model)}
        self.values = [
            {name: typed(value, kinds[name]) for name, value in batch.items() if name in kinds}
            for batch in self.values
        ]
        self.outputs = [output.name for output in model.graph.output]
        constants = {*model.constants, *model.makers, *model.views}
        # Whatever is computed of constants comes with the nodes that read it.
        self.running = [i for i, node in enumerate(model.graph.node)
                        if constants.isdisjoint(node.output)]  # fmt: skip

    def to(self, index: int) -> None:
        """Run the nodes before this one."""
        nodes = [self.model.graph.node[i] for i in self.running if self.place <= i < index]
        self.place = index
        after = self._read(self._after())
        made = [name for node in nodes for name in node.output if name in after]
        if made:  # Of a head, nothing is read later but what it reads itself.
            read = self._read(nodes)
            session = Session(segment(self.model, nodes, _some(self.values[0], read), made))
            self.values = [
                values | dict(zip(session.outputs, session.run(_some(values, read)), strict=True))
                for values in self.values
            ]
        self.values = [_some(values, after) for values in self.values]

    def tail(self) -> Tail:
        after, keys = self._after(), self.model.keys
        made = {name for node in after for name in node.output}
        places = [i for i, name in enumerate(self.outputs) if name in made]
        batches = self.values
        model = segment(self.model, after, batches[0], [self.outputs[i] for i in places])
        running = [i for i in self.running if i >= self.place]
        own = model.keys[len(model.keys) - len(running) :]
        return Tail(model, dict(zip((keys[i] for i in running), own, strict=True)), batches, places)

    def _after(self) -> list[Any]:
        return [self.model.graph.node[i] for i in self.running if i >= self.place]

    def _read(self, nodes: Sequence[Any]) -> set[str]:
        return {name for node in nodes for name in reads(node)}


def _some(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names}
