"""How long steps say how far they are, and what is left of the run that they are steps of."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapreplace
from threading import RLock
from typing import Any, Generic, TypeVar

T = TypeVar("T")

# The numbers beside steps are the times that they usually take, in a unit that all of them share.
# Fitting takes the first where all methods are quick, the second where whole numbers come first and
# only some of the other settings follow, the third where all settings are fitted at once.
QUICK, NUMBERS, EVERY_SETTING = 0.04, 0.15, 0.5
INT8 = "choosing what computes in int8"
FURTHER = "fitting further settings"
MEASURED = {  # These steps come before the search, each with what goes before it.
    INT8: 0.18,
    "calibrating": 0.06,
    "fitting": EVERY_SETTING,
    "measuring sensitivity": 0.1,
    FURTHER: 0.22,
    "estimating errors on held-out samples": 0.04,
}
# These come again where one of several methods alone is tried.
AGAIN = ("refitting", 0.03), ("checking corrections", 0.01)
BUILT = (  # These steps come after those, for every result.
    ("timing layers", 0.1),
    ("comparing settings", 0.04),
    ("looking for the size", 0.04),
    ("searching", 0.9),
    ("refitting", 0.15),
    ("checking corrections", 0.04),
    *AGAIN,
    ("trying fits without data", 0.06),
    ("looking for layers that hurt", 0.03),
    ("training", 5.0),
    ("comparing outputs", 0.01),
    ("evaluating", 0.01),
    ("measuring time and memory", 0.04),
)
# These need samples, or pictures that stand in for them.
SAMPLED = {
    "calibrating",
    "measuring sensitivity",
    "estimating errors on held-out samples",
    "refitting",
    "checking corrections",
    "trying fits without data",
}
TIMED = 1.0  # Both models are timed for at least so many seconds, however small they are.
# Until such a share of its work is done, what a step takes is partly a guess: the first where its
# items are unlike, the second where they are steps of a training.
FEW, FEW_ALIKE = 0.5, 0.05


# It takes items, what is being done with them, and how many they are.
Track = Callable[[Iterable[T], str, int], Iterable[T]]


def untracked(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """No progress is shown."""
    return items


class Uneven(Generic[T]):
    """Items of which some take longer than others.

    Attributes:
        ends: when each item is done, after all before it, in any unit.

    Args:
        costs: of each item what it takes, in any unit.
        workers: so many items are worked on at a time.
        unit: of the costs, where it is that of another step too.
    """

    def __init__(
        self, items: Iterable[T], costs: Iterable[float], workers: int = 1, unit: str = ""
    ) -> None:
        self._items, self.ends, self.unit = items, [0.0], unit
        free = [0.0] * workers
        for cost in costs:
            end = free[0] + cost
            heapreplace(free, end)
            self.ends.append(max(self.ends[-1], end))

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)


@dataclass(frozen=True)
class Foreseen:
    """No items of a step, but how many seconds it will take when it comes."""

    seconds: float

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@contextmanager
def doing(
    track: Track[Any], what: str, costs: Sequence[float] = (1,)
) -> Iterator[Callable[[], object]]:
    """A step of some pieces; what it gives is to be called after each but the last.

    Args:
        costs: of each piece what it takes, in any unit.
    """
    step = iter(track(Uneven(costs, costs), what, len(costs)))
    next(step, None)
    yield lambda: next(step, None)
    for _ in step:
        pass


@dataclass
class Step:
    """A step that is being done.

    Attributes:
        share: the time that it usually takes; 0 where it is part of another, or was foreseen.
        foreseen: seconds that it was to take; None where nothing but its share is known.
        unit: of its costs, see `Uneven`; whole: all of them.
        begun: when it began.
        parts: how much of its work is over, 0 to 1, before each item and in the end.
        seen: when the last item was done.
    """

    what: str
    total: int
    share: float
    foreseen: float | None
    begun: float
    parts: Sequence[float]
    seen: float
    unit: str = ""
    whole: float = 0.0
    done: int = 0

    @property
    def apart(self) -> bool:
        """Whether how long it takes says nothing of other steps."""
        return self.foreseen is not None and not self.share

    @property
    def part(self) -> float:
        """How much of its work is done, 0 to 1."""
        return self.parts[min(self.done, len(self.parts) - 1)]


class Course:
    """Where a run is: `track` is what wraps its steps.

    What is left is the rest of this step, if its items go on as they did, and the steps to come,
    if they take what was foreseen, else as much longer than usual as those so far.

    Args:
        show: called with this course whenever something has changed, from one thread at a time.
        without: steps that this run does not have.
        fitting: the time that fitting usually takes: QUICK, NUMBERS or EVERY_SETTING.
        results: how many models are built from one fit of the candidates.
    """

    def __init__(
        self,
        show: Callable[[Course], None],
        without: Collection[str] = (),
        fitting: float = EVERY_SETTING,
        results: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._show, self._clock, self._begun = show, clock, clock()
        self._lock = RLock()
        measured = MEASURED | {"fitting": fitting}
        if fitting != NUMBERS:
            del measured[FURTHER]
        built = [step for step in BUILT if not (fitting == QUICK and step in AGAIN)]
        every = [*measured.items(), *built * results]
        self._ahead = [(what, share) for what, share in every if what not in without]
        self._usual = 0.0  # Of steps that are done.
        self._foreseen = dict[str, float]()  # Seconds of steps that are to come.
        self._apart = 0.0  # Seconds of steps that were foreseen: they say nothing of others.
        self._rates = dict[str, float]()  # Seconds that a unit of costs took the last time.
        self._steps = list[Step]()

    def track(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """The items; it is shown how many of them are done.

        Of a step without items nothing is shown, and it is not to come any more unless its time is
        `Foreseen`.
        """
        if isinstance(items, Foreseen):
            self._foreseen[what] = items.seconds
            return
        if total <= 0:
            self._ahead = [step for step in self._ahead if step[0] != what]
            yield from items
            return
        uneven = isinstance(items, Uneven)
        ends, unit = (items.ends, items.unit) if uneven else (range(total + 1), "")
        step = self._enter(what, total, ends, unit)
        try:
            for item in items:
                self.show()
                yield item
                step.done, step.seen = step.done + 1, self._clock()
            self.show()
        finally:
            with self._lock:
                self._steps.remove(step)
                if not self._steps:
                    self._leave(step, self._clock() - step.begun)

    def show(self) -> None:
        """Show where it is."""
        with self._lock:
            self._show(self)

    def _enter(self, what: str, total: int, ends: Sequence[float], unit: str) -> Step:
        now, parts = self._clock(), [end / (ends[-1] or 1.0) for end in ends]
        with self._lock:
            share, foreseen = self._begin(what)
            if unit in self._rates:
                foreseen = self._rates[unit] * ends[-1]
            step = Step(what, total, share, foreseen, now, parts, now, unit, ends[-1])
            self._steps.append(step)
        return step

    def _leave(self, step: Step, seconds: float) -> None:
        self._usual += step.share
        if step.apart:
            self._apart += seconds
        if step.unit and step.whole and step.done == step.total:
            self._rates[step.unit] = seconds / step.whole

    def _begin(self, what: str) -> tuple[float, float | None]:
        """What a step usually takes, and foreseen seconds; those before it will not come."""
        names, kind = [name for name, _ in self._ahead], what.partition(" (")[0]
        if self._steps or kind not in names:
            return 0.0, None
        at = names.index(kind)
        share, foreseen = self._ahead[at][1], self._foreseen.get(kind)
        del self._ahead[: at + 1]
        return (share, None) if foreseen is None else (0.0, foreseen)

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
        rest, usual, spent = self._rest_of_step(), self._usual, self.elapsed - self._apart
        if rest is None:
            return None
        if self._steps:
            step = self._steps[0]
            usual += step.share
            spent += step.begun - self._clock() if step.apart else rest
        per_share = spent / usual if usual else 0.0
        ahead = sum(self._foreseen.get(what, per_share * share) for what, share in self._ahead)
        return rest + ahead + TIMED

    def _rest_of_step(self) -> float | None:
        """Seconds that the outermost step still takes."""
        if not self._steps:
            return 0.0 if self._usual else None
        step = self._steps[0]
        spent, part = self._clock() - step.begun, step.part
        told = (step.seen - step.begun) / part if part else 0.0
        expected = step.foreseen
        if expected is None and self._usual:
            expected = step.share * (step.begun - self._begun - self._apart) / self._usual
        few = FEW_ALIKE if step.apart else FEW
        sure = 1.0 if expected is None else min(part / few, 1.0)
        whole = sure * told + (1 - sure) * (expected or 0.0)
        return max(whole - spent, (1 - part) * whole / 2) if whole else None
