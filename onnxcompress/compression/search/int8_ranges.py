"""How far the ranges of tensors are cut, and what rounding a tensor costs the outputs.

A clipped value is an error that neighbours share, which a count of values does not tell: so each
tensor is rounded alone in the real model, by ranges that are cut by more and less, and then all
together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.core.arithmetic import Range, Seen
from onnxcompress.core.parallel import each
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model
from onnxcompress.graph.int8_region import Int8Region
from onnxcompress.graph.passes.compute_int8 import with_bytes

# A clipped value counts so many times as much as a rounded one; at infinity nothing is cut.
CLIPS = (1.0, 4.0, 16.0, 64.0, np.inf)
APART = 1.02  # Two ranges of a tensor are both tried if scales differ by more than this factor.
FEWEST = 2  # The outputs are compared on at least so many samples.
# They are compared on more where runs of all models together take no more than so many seconds.
SECONDS = 40.0

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OutputLoss:
    """Relative squared error of a model's outputs.

    Attributes:
        names: of the outputs.
        batches: the samples, one by one.
        expected: what the original gives for each of them.
        seconds: of one run of the original.
        jobs: models that run side by side.
    """

    names: Sequence[str]
    batches: Sequence[Sample]
    expected: Sequence[Sequence[Any]]
    seconds: float
    jobs: int

    @classmethod
    def beside(cls, model: Model, batches: Sequence[Sample], jobs: int) -> OutputLoss:
        session = Session(model)
        began = time.thread_time()
        expected = [session.run(batch) for batch in batches]
        seconds = (time.thread_time() - began) / len(batches)
        return cls(session.outputs, batches, expected, seconds, jobs)

    def of(self, model: Model) -> float:
        session, fidelity = Session(model), Fidelity()
        for batch, outputs in zip(self.batches, self.expected, strict=True):
            fidelity.add(self.names, outputs, session.run(batch))
        return fidelity.loss

    def of_each(self, change: Callable[[T], Model], work: Collection[T]) -> list[float]:
        """The error of every one of these models, on no more samples than time allows."""
        judge = self.within(len(work))
        return [*each(lambda job: judge.of(change(job)), work, self.jobs, len(work))]

    def within(self, runs: int) -> OutputLoss:
        """On as few samples as so many models take no longer with."""
        few = int(SECONDS / max(self.seconds * runs, 1e-9))
        count = min(max(few, FEWEST), len(self.batches))
        return replace(self, batches=self.batches[:count], expected=self.expected[:count])


def tried_ranges(seen: Seen) -> list[Range]:
    """Ranges of a tensor that are cut by more and less, from the narrowest."""
    result: list[Range] = []
    for clip in CLIPS:
        one = Range.best(seen, clip)
        if not result or one.scale > APART * result[-1].scale:
            result.append(one)
    return result


@dataclass(frozen=True, eq=False)
class TensorErrors:
    """What rounding the tensors of a region costs the outputs, each alone.

    Attributes:
        best: tensor -> its best range, and the error of the outputs with it.
    """

    region: Int8Region
    best: Mapping[str, tuple[Range, float]]

    def of(self, names: Iterable[str]) -> float:
        """The error of all these tensors together, each counted once where it has several names."""
        return sum(self.best[n][1] for n in {self.region.source.get(n, n) for n in names})

    @classmethod
    def measured(
        cls, model: Model, region: Int8Region, seen: Mapping[str, Seen], loss: OutputLoss
    ) -> TensorErrors:
        """Every tensor rounded alone, by several ranges."""
        work = [(name, one) for name, own in seen.items() for one in tried_ranges(own)]

        def rounded(job: tuple[str, Range]) -> Model:
            name, own = job
            names = {n for n, source in region.source.items() if source == name}
            alone = replace(region, source=dict.fromkeys(names, name), made=region.made & names)
            return with_bytes(model, alone, {name: own})

        best: dict[str, tuple[Range, float]] = {}
        for (name, own), error in zip(work, loss.of_each(rounded, work), strict=True):
            if name not in best or error < best[name][1]:
                best[name] = own, error
        return cls(region, best)
