"""How long two models take, in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from onnxcompress.execution.session import Sample, session_of
from onnxcompress.graph import Model

LONG = 30.0  # Seconds that runs which take long may take all together.


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
    """Run both models on one sample in turn, A B B A, until the time is up.

    There are at least 7 pairs of runs, or as many as may be where one takes long.
    """
    sessions = [session_of(model, providers) for model in (original, compressed)]
    start = time.perf_counter()
    for session in sessions:
        session.run(sample)
    least = int(np.clip(LONG // (time.perf_counter() - start), 2, 7))
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < least or (time.perf_counter() - start < seconds and len(times) < 200):
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
