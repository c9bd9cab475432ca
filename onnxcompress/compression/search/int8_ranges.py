"""How far the ranges of tensors are cut, and what rounding a tensor costs the outputs.

A clipped value is an error that neighbours share, which a count of values does not tell: so each
tensor is rounded alone in the real model, by ranges that are cut by more and less, and then all
together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.core.arithmetic import Range, Seen
from onnxcompress.core.parallel import each
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model
from onnxcompress.graph.int8_region import Int8Region
from onnxcompress.graph.passes.compute_int8 import with_bytes

CLIPS = (1.0, 4.0, 16.0, 64.0, np.inf)  # by how much a clipped value counts more than a rounded
APART = 1.02  # factor by which two ranges of a tensor differ to be tried both
FEWEST = 2  # samples that the outputs are compared on,
SECONDS = 40.0  # and more where all tensors alone take no longer together


@dataclass(frozen=True, eq=False)
class OutputError:
    """Relative squared error of a model's outputs.

    Attributes:
        names: of the outputs.
        batches: the samples, one by one.
        expected: what the original gives for each of them.
        seconds: of one run of the original.
    """

    names: Sequence[str]
    batches: Sequence[Sample]
    expected: Sequence[Sequence[Any]]
    seconds: float

    @classmethod
    def beside(cls, model: Model, batches: Sequence[Sample]) -> OutputError:
        session = Session(model)
        began = time.thread_time()
        expected = [session.run(batch) for batch in batches]
        seconds = (time.thread_time() - began) / len(batches)
        return cls(session.outputs, batches, expected, seconds)

    def of(self, model: Model) -> float:
        session, fidelity = Session(model), Fidelity()
        for batch, outputs in zip(self.batches, self.expected, strict=True):
            fidelity.add(self.names, outputs, session.run(batch))
        return fidelity.loss

    def within(self, runs: int) -> OutputError:
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


def rounding_errors(
    model: Model, region: Int8Region, seen: Mapping[str, Seen], judge: OutputError, jobs: int
) -> dict[str, tuple[Range, float]]:
    """Tensor -> its best range, and the error of the outputs where it alone is rounded."""
    work = [(name, one) for name, own in seen.items() for one in tried_ranges(own)]
    judge = judge.within(len(work))

    def error(job: tuple[str, Range]) -> float:
        name, own = job
        names = {n for n, source in region.source.items() if source == name}
        alone = replace(region, source=dict.fromkeys(names, name), made=region.made & names)
        return judge.of(with_bytes(model, alone, {name: own}))

    best: dict[str, tuple[Range, float]] = {}
    for (name, own), loss in zip(work, each(error, work, jobs, len(work)), strict=True):
        if name not in best or loss < best[name][1]:
            best[name] = own, loss
    return best
