"""How long every step is, and when training is over.

Steps of what is stored as floats rise from nothing over ``WARM_UP`` of all steps, then fall to
nothing along a cosine (Loshchilov, Hutter 2017).  Codes stay as they are in the first ``ALONE`` of
the epochs; then each step moves their latents equally far, so that only those that keep their
direction reach another code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, cos, pi

import numpy as np

from onnxcompress.report.report import Epoch

# These are the longest steps to try, as shares of a tensor's size.
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
# A trial has at least and at most so many steps: fewer say too little, more take too long.
TRIAL_STEPS = (24, 64)
TRIAL_SHARE = 8  # Within those limits, a trial takes one of so many steps of the training.
# Before a long training, a trial takes one of so many of its steps if that is more: a long training
# needs a shorter step than the one that is best in a few steps.
LONG_SHARE = 64

# Rates are tried in rising order until the loss of one is so many times the least one.
ENOUGH = 1.1
WARM_UP = 0.05  # Steps become longer in this share of all steps.
ALONE = 0.5  # Codes stay in this share of the epochs: one that changes is a jolt for the floats.
# A latent that keeps its direction goes so many half-distances between rows in all.
TRAVEL = 0.5
LEAP = 0.1  # In one step, a latent goes at most so many half-distances.

# Training is over after so many epochs without a better one, or half of all if these are more: most
# is gained in the last ones, when steps are short.
PATIENCE = 5


@dataclass(frozen=True)
class Schedule:
    """The steps of one training.

    Attributes:
        rate: longest step of floats, as a share of a tensor's size.
        steps: of all epochs.
        alone: as many of them first in which codes stay as they are.
    """

    rate: float
    steps: int
    alone: int

    def float_step(self, step: int) -> float:
        """How far floats go in a step, as a share of their size."""
        return self.rate * _share(step, self.steps)

    def code_step(self, step: int) -> float:
        """How far latents of codes go in a step, in half-distances between rows."""
        step, steps = step - self.alone, self.steps - self.alone
        if step < 0 or not steps:
            return 0.0
        return min(2 * TRAVEL / steps, LEAP) * _share(step, steps)


def plan(rate: float, epochs: int, steps: int) -> Schedule:
    """The schedule of so many epochs of so many steps."""
    return Schedule(rate, epochs * steps, ceil(ALONE * epochs) * steps)


def plan_trial(rate: float, steps: int) -> Schedule:
    """A short schedule that shows what a rate is good for, before a training of so many steps."""
    least, most = TRIAL_STEPS
    few = int(np.clip(steps // TRIAL_SHARE, least, max(most, steps // LONG_SHARE)))
    return Schedule(rate, few, few)


def is_settled(rows: Sequence[Epoch], epochs: int) -> bool:
    """Whether the last epochs brought nothing better than others before them.

    The model that came in does not count: it is overtaken only when steps have become short.
    """
    best = min(rows[1:], key=lambda row: row.held_out, default=rows[0])
    return len(rows) - 1 - best.epoch >= max(PATIENCE, -(-epochs // 2))


def _share(step: int, steps: int) -> float:
    """Of the longest step: up from nothing, then down to nothing along a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / (warm + 1)
    return (1 + cos(pi * (step - warm) / max(steps - warm, 1))) / 2
