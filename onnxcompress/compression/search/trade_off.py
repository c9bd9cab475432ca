"""The trade-off of every layer: what its candidates cost, in the unit that is limited, and err."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from math import inf

from onnxcompress.compression.job import Job
from onnxcompress.compression.measure.timing import Times, time_layers
from onnxcompress.compression.search.knapsack import Option, choose, frontier, hull, leanest, spent
from onnxcompress.compression.validate.fidelity import decibel
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.method import Candidate
from onnxcompress.graph import overhead
from onnxcompress.report.report import TradeOff

GRID = "integer:bits=4"  # what a trade-off is compared with


@dataclass(eq=False)
class Curves:
    """The trade-off of every weight, and where the model stands between its extremes.

    Attributes:
        cost: what is limited: bytes, macs, or latency.
        pinned: layers that cannot stay as they are, unless nothing makes them smaller.
        second: what is limited besides: macs or latency; "" for nothing.
        work: the most that the layers may take of it.
        whole: what the layers cost as they are.
        times: of the layers, where the unit is latency.
    """

    job: Job
    candidates: Mapping[str, Sequence[Candidate]]
    weights: Mapping[str, float]
    cost: str
    pinned: Collection[str]
    second: str = ""
    work: float = inf
    options: dict[str, list[Option]] = field(init=False, default_factory=dict)
    whole: dict[str, float] = field(init=False, default_factory=dict)
    times: dict[str, Times] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if "latency" in (self.cost, self.second):
            self.times = time_layers(self.job, self.candidates)
        for name, candidates in self.candidates.items():
            layer = self.job.layers[name]
            whole = layer.nbytes if self.cost == "bytes" else self._spent(self.cost, name)
            keep = Candidate(None, layer.nbytes, (layer.weight.shape,), 0.0)
            kept = Option(whole, 0.0, keep, work=self._spent(self.second, name))
            useful = [o for o in self._offered(name, candidates) if o.cost < whole]
            self.options[name] = useful if name in self.pinned and useful else [*useful, kept]
            self.whole[name] = float(whole)

    def _offered(self, name: str, candidates: Sequence[Candidate]) -> Iterator[Option]:
        job, weight = self.job, self.weights[name]
        if self.times:  # of chains nothing but what was measured
            known = self.times[name].after if name in self.times else ()
            candidates = [c for c in candidates if len(c.factors) < 2 or c.factors in known]
        for candidate in candidates:
            error, work = weight * candidate.error, self._spent(self.second, name, candidate)
            if self.cost != "bytes":
                cost = self._spent(self.cost, name, candidate)
                yield Option(cost, error, candidate, work=work)
                continue
            assert candidate.setting is not None
            blank = candidate.weight or candidate.setting.blank(job.layers[name])
            nodes = sum(overhead(job.model, job.layers[r], blank) for r in job.readers(name))
            shared = {(sha1(a.tobytes()).hexdigest(), a.nbytes) for a in blank.shared_arrays()}
            yield Option(candidate.nbytes + nodes, error, candidate, frozenset(shared), work)

    def _spent(self, unit: str, name: str, candidate: Candidate | None = None) -> float:
        """Multiplications or milliseconds of a weight's layers, as they are or with a candidate."""
        factors = candidate.factors if candidate else ()
        if unit == "latency" and name in self.times:
            times = self.times[name]
            return times.before if len(factors) < 2 else times.after[factors]
        return self.job.macs_of(name, factors) if unit == "macs" else 0

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest cost of the layers."""
        cheapest = spent(leanest(self.options))
        most = sum(max(o.cost for o in points) for points in self.options.values())
        return cheapest, max(most, cheapest)

    def points(self) -> dict[str, list[tuple[float, float]]]:
        """For every layer, the share of its cost that is left against its relative error."""
        result = {}
        for name, options in self.options.items():
            whole = max(self.whole[name], 1e-9)
            result[name] = [(o.cost / whole, o.candidate.error) for o in frontier(options)]
        return result

    @property
    def outside(self) -> int:
        """Multiplications of the nodes that stay as they are."""
        within = sum(self.job.macs_of(name, ()) for name in self.options)
        return sum(self.job.macs.values()) - within

    @property
    def works(self) -> tuple[float, float]:
        """The least and the greatest that the layers take of what is limited besides."""
        every = [[option.work for option in found] for found in self.options.values()]
        return sum(map(min, every)), sum(map(max, every))

    def snr(self, chosen: Mapping[str, Candidate]) -> float:
        """Of the outputs, in dB, if the errors of the layers, each measured alone, add up."""
        errors = [self.weights[name] ** 2 * c.error for name, c in chosen.items()]
        return decibel(1.0, float(sum(errors)))

    def trade_off(self, chosen: Mapping[str, Candidate]) -> TradeOff | None:
        """What all candidates allowed beside what was chosen; None where no data tells errors."""
        if self.job.fit is None:
            return None
        whole = self._model_cost()
        outside = whole - sum(self.whole.values())

        def pair(choice: Mapping[str, Option]) -> tuple[float, float]:
            return outside + spent(choice), self.snr({n: o.candidate for n, o in choice.items()})

        fours = {
            name: next((o for o in found if str(o.candidate.setting) == GRID), found[-1])
            for name, found in self.options.items()
        }
        known = any(str(option.candidate.setting) == GRID for option in fours.values())
        points: list[tuple[float, float]] = []
        for cost, snr in sorted(map(pair, hull(self.options))):
            if not points or snr > points[-1][1]:
                points.append((cost, snr))
        return TradeOff(
            self.cost,
            whole,
            tuple(points),
            pair(self._options_of(chosen)),
            pair(fours) if known else None,
        )

    def spent(self, chosen: Mapping[str, Candidate]) -> float:
        """What the layers cost so, what they share included."""
        return spent(self._options_of(chosen))

    def _options_of(self, chosen: Mapping[str, Candidate]) -> dict[str, Option]:
        return {n: next(o for o in self.options[n] if o.candidate is c) for n, c in chosen.items()}

    def _model_cost(self) -> float:
        """Of the original."""
        if self.cost == "latency":
            return sum(self.whole.values())
        return self.job.model.nbytes if self.cost == "bytes" else sum(self.job.macs.values())

    @property
    def methods(self) -> list[str]:
        """Names of those that there are settings of."""
        settings = [o.candidate.setting for found in self.options.values() for o in found]
        return sorted({setting.name for setting in settings if setting is not None})

    def at(self, limit: float, method: str | None = None) -> dict[str, Candidate]:
        """What each weight gets so that the layers cost at most ``limit``.

        Args:
            method: the only one that is allowed, by name; None for all.

        Raises:
            BudgetError: the limit is out of reach.
        """
        options = self.options
        if method is not None:
            options = {
                name: [o for o in found if getattr(o.candidate.setting, "name", method) == method]
                for name, found in options.items()
            }
            if not all(options.values()):
                raise BudgetError(f"some layers cannot become smaller by {method} alone")
        chosen = choose(options, limit, self.work)
        return {name: option.candidate for name, option in chosen.items()}
