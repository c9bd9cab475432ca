"""How long steps say how far they are, and what is left of the run that they are steps of."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

# The numbers beside steps are the times that they usually take, in a unit that all of them share.
QUICK, SLOW = 0.1, 0.6  # Fitting takes one of these, by the kind of methods.
MEASURED = {  # These steps come before the search, each with what goes before it.
    "calibrating": 0.06,
    "fitting": SLOW,
    "timing layers": 0.1,
    "measuring sensitivity": 0.05,
    "fitting further settings": 0.05,
    "estimating errors on held-out samples": 0.02,
}
# These come again where one of several methods alone is tried.
AGAIN = ("refitting", 0.15), ("checking corrections", 0.02)
BUILT = (  # These steps come after those, for every result.
    ("searching", 0.3),
    ("refitting", 0.06),
    ("checking corrections", 0.01),
    *AGAIN,
    ("looking for layers that hurt", 0.01),
    ("trying rates", 0.5),
    ("refining", 2.0),
    ("comparing outputs", 0.01),
    ("evaluating", 0.01),
)
TIMED = 2.0  # Both models are timed for so many seconds in the end, however large they are.
# The items of this step take the longer the earlier they come.
LARGEST_FIRST = "fitting"
FEW = 0.2  # Until this share of its work is done, what a step takes is partly a guess.


# It takes items, what is being done with them, and how many they are.
Track = Callable[[Iterable[T], str, int], Iterable[T]]


def untracked(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """No progress is shown."""
    return items


@dataclass
class Step:
    """A step that is being done.

    Attributes:
        share: the time that it usually takes; 0 where it is part of another.
        begun: when the step before it ended: some work is not tracked.
    """

    what: str
    total: int
    share: float
    begun: float
    done: int = 0

    @property
    def part(self) -> float:
        """How much of its work is done, 0 to 1."""
        part = self.done / self.total
        return 1 - (1 - part) ** 2 if self.what == LARGEST_FIRST else part


class Course:
    """Where a run is: `track` is what wraps its steps.

    What is left is the rest of this step, if its items go on as they did, and the steps to come,
    if they take as much longer than usual as those so far.

    Args:
        show: called with this course whenever something has changed.
        without: steps that this run does not have.
        quick: whether all fits are; so are those of a single method, as a rule.
        results: how many models are built from one fit of the candidates.
    """

    def __init__(
        self,
        show: Callable[[Course], None],
        without: Collection[str] = (),
        quick: bool = False,
        results: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._show, self._clock, self._begun = show, clock, clock()
        measured = MEASURED | {"fitting": QUICK if quick else SLOW}
        if quick:
            del measured["fitting further settings"]
        built = [step for step in BUILT if not (quick and step in AGAIN)]
        every = [*measured.items(), *built * results]
        self._ahead = [(what, share) for what, share in every if what not in without]
        self._usual, self._ended = 0.0, self._begun  # Both are of steps that are done.
        self._steps = list[Step]()

    def track(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """The items; it is shown how many of them are done."""
        if total <= 0:
            yield from items
            return
        step = Step(what, total, self._begin(what), self._ended)
        self._steps.append(step)
        try:
            for item in items:
                self._show(self)
                yield item
                step.done += 1
            self._show(self)
        finally:
            self._steps.remove(step)
            if not self._steps:
                self._usual, self._ended = self._usual + step.share, self._clock()

    def _begin(self, what: str) -> float:
        """What a step usually takes; those that were to come before it are left out."""
        names, kind = [name for name, _ in self._ahead], what.partition(" (")[0]
        if self._steps or kind not in names:
            return 0.0
        at = names.index(kind)
        share = self._ahead[at][1]
        del self._ahead[: at + 1]
        return share

    @property
    def now(self) -> Step | None:
        """What is being done, of the steps within each other the innermost."""
        return self._steps[-1] if self._steps else None

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._begun

    @property
    def left(self) -> float | None:
        """Seconds that are left; None as long as nothing tells."""
        rest, usual = self._rest_of_step(), self._usual
        if rest is None:
            return None
        if self._steps:
            usual += self._steps[0].share
        per_share = (self.elapsed + rest) / usual if usual else 0.0
        return rest + per_share * sum(share for _, share in self._ahead) + TIMED

    def _rest_of_step(self) -> float | None:
        """Seconds that the outermost step still takes."""
        if not self._steps:
            return 0.0 if self._usual else None
        step = self._steps[0]
        spent, part = self._clock() - step.begun, step.part
        usual = self._usual and step.share * (step.begun - self._begun) / self._usual
        if not usual:
            return spent * (1 - part) / part if part else None
        sure = min(part / FEW, 1.0)
        whole = sure * spent / part + (1 - sure) * usual if part else usual
        return max(whole - spent, (1 - part) * whole / 2)
