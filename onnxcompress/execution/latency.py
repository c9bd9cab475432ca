"""How long two models take, in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from onnxcompress.execution.session import Sample, session_of
from onnxcompress.graph import Model


@dataclass(frozen=True)
class Latency:
    """Paired measurement of two models, run in turn.

    Attributes:
        before, after: median milliseconds of one run.
        ratio: median of after / before over the pairs; below 1 is faster.
        low, high: quartiles of that ratio.
    """

    before: float
    after: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """faster, slower, or inconclusive where the spread is larger than the effect."""
        if self.high < 0.98:
            return "faster"
        return "slower" if self.low > 1.02 else "inconclusive"


def latency(
    original: Model, compressed: Model, sample: Sample, providers: Sequence[str], seconds: float = 3
) -> Latency:
    """Run both models on one sample in turn, A B B A, until the time is up (at least 7 pairs)."""
    sessions = [session_of(model, providers) for model in (original, compressed)]
    for session in sessions:
        session.run(sample)
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < 7 or (time.perf_counter() - start < seconds and len(times) < 200):
        order = (0, 1) if len(times) % 2 else (1, 0)
        spent = [0.0, 0.0]
        for which in order:
            began = time.perf_counter()
            sessions[which].run(sample)
            spent[which] = time.perf_counter() - began
        times.append((spent[0], spent[1]))
    ratios = np.array([after / before for before, after in times])
    low, high = np.quantile(ratios, [0.25, 0.75])
    before, after = (1000 * median(column) for column in zip(*times, strict=True))
    return Latency(before, after, float(np.median(ratios)), float(low), float(high))
