"""The original and the compressed model computed side by side, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcompress.compression.build.fitted import Fitted
from onnxcompress.compression.measure.tails import typed
from onnxcompress.core.arithmetic import Range
from onnxcompress.core.layer import Array
from onnxcompress.core.method import CompressedWeight
from onnxcompress.core.parallel import each
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, declared_inputs, reads, rewrite, segment


class Streams:
    """The activations of the original and of the compressed model, node by node.

    Tensors that nothing needs any more are let go, and where nothing is fixed the two streams are
    one until the first replaced layer.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[Sample],
        fixed: Mapping[str, CompressedWeight],
        jobs: int,
        ranges: Mapping[str, Range] | None = None,
    ) -> None:
        """
        Args:
            batches: calibration samples; their activations are kept in memory.
            fixed: what is in the compressed model already: constants, and layers in bodies.
            jobs: threads that compute batches.
            ranges: of the tensors that are bytes in the compressed model.
        """
        self.model, self.jobs, self.batches = model, jobs, len(batches)
        self._ranges = ranges or {}
        self._changed = rewrite(model, fixed, failed={}) if fixed else model
        self._constants = {*model.constants, *model.makers, *model.views}
        self._nodes = list(model.graph.node)
        self._twins = self._counterparts()
        self._keys = model.keys
        self._last = {name: i for i, node in enumerate(self._nodes) for name in reads(node)}
        inputs = {
            name: [typed(batch[name], dtype) for batch in batches]
            for name, dtype, _ in declared_inputs(model)
            if name in batches[0]
        }
        self._original = dict(inputs)
        self._compressed = self._rounded(inputs)
        self._pending: tuple[list[Any], list[Any]] = ([], [])
        self._next = 0

    def _counterparts(self) -> dict[str, list[Any]]:
        """Output of a node of the original -> the nodes of the compressed model that compute it.

        There are several where rows of a table are looked up as codes, and decoded.
        """
        ours = {name for node in self._nodes for name in node.output}
        constants = {*self._changed.makers, *self._changed.views}
        result: dict[str, list[Any]] = {}
        group: list[Any] = []
        for node in self._changed.graph.node:
            if constants.isdisjoint(node.output):
                group.append(node)
                if not ours.isdisjoint(node.output):
                    result |= dict.fromkeys(filter(None, node.output), group)
                    group = []
        return result

    def inputs_of(self, name: str, tensor: str) -> tuple[list[Array], list[Array]]:
        """What the named layer reads in both streams, batch by batch; one object if equal."""
        position = self._keys.index(name)
        for node in self._nodes[self._next : position]:
            if not self._constants & set(node.output):
                self._pending[0].append(node)
                self._pending[1].extend(self._twins[next(filter(None, node.output))])
        self._next = position
        self._flush()
        return self._original[tensor], self._compressed[tensor]

    def replace(self, fitted: Fitted, fold: bool) -> None:
        """Go past the layer: the original as it is, the compressed stream with its new weight.

        Args:
            fold: as `Session` takes it.
        """
        node = self._nodes[self._next]
        read = [t for t in reads(node) if t in self._compressed]
        values = {t: self._compressed[t] for t in read}
        alone = segment(self.model, [node], {t: v[0] for t, v in values.items()}, node.output)
        key = alone.keys[0]
        biases = {} if fitted.bias is None else {key: fitted.bias}
        # What fails here fails in the result too, which reports it.
        alone = rewrite(alone, {key: fitted.weight}, biases, failed={})
        self._pending[0].append(node)
        self._next += 1
        self._compressed |= self._rounded(self._run(alone, values, fold))
        self._forget(self._compressed, self._pending[1])

    def _flush(self) -> None:
        first, second = self._pending
        before = dict(self._original)
        self._advance(self.model, self._original, first)
        if (
            self._changed is self.model
            and [id(node) for node in first] == [id(node) for node in second]
            and self._ranges.keys().isdisjoint(name for node in second for name in node.output)
            and all(
                self._compressed.get(name) is before.get(name)
                for node in second
                for name in reads(node)
                if name in before or name in self._compressed
            )
        ):
            made = {name for node in second for name in node.output}
            self._compressed |= {n: v for n, v in self._original.items() if n in made}
        else:
            for nodes in self._up_to_bytes(second):
                self._advance(self._changed, self._compressed, nodes)
        first.clear()
        second.clear()
        self._forget(self._original, first)
        self._forget(self._compressed, second)

    def _advance(self, model: Model, values: dict[str, list[Array]], nodes: Sequence[Any]) -> None:
        if not nodes:
            return
        made = {name for node in nodes for name in node.output if name}
        rounded = made & self._ranges.keys() if values is self._compressed else set[str]()
        waiting = (
            {name for node in self._pending[1] for name in reads(node)} if self._ranges else ()
        )
        needed = sorted(
            name
            for name in made
            if self._last.get(name, -1) >= self._next or name in rounded or name in waiting
        )
        if not needed:
            return
        read = {name for node in nodes for name in reads(node)} - made
        inputs = {name: values[name] for name in sorted(read) if name in values}
        first = {name: value[0] for name, value in inputs.items()}
        computed = self._run(segment(model, nodes, first, needed), inputs)
        values |= self._rounded(computed) if values is self._compressed else computed

    def _up_to_bytes(self, nodes: Sequence[Any]) -> list[list[Any]]:
        """The nodes in runs, each of which ends where a tensor becomes bytes."""
        runs: list[list[Any]] = [[]]
        for node in nodes:
            runs[-1].append(node)
            if not self._ranges.keys().isdisjoint(node.output):
                runs.append([])
        return runs

    def _rounded(self, values: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """What is left of the tensors that are bytes."""
        return {
            name: [self._ranges[name].rounded(x) for x in some] if name in self._ranges else some
            for name, some in values.items()
        }

    def _run(
        self, model: Model, inputs: Mapping[str, list[Array]], fold: bool = True
    ) -> dict[str, list[Array]]:
        session = Session(model, fold=fold)

        def one(index: int) -> Sequence[Any]:
            return session.run({name: values[index] for name, values in inputs.items()})

        results = list(each(one, range(self.batches), self.jobs))
        return {name: [r[i] for r in results] for i, name in enumerate(session.outputs)}

    def _forget(self, values: dict[str, list[Array]], pending: Sequence[Any]) -> None:
        needed = {name for node in pending for name in reads(node)}
        for name in list(values):
            if self._last.get(name, -1) < self._next and name not in needed:
                del values[name]
