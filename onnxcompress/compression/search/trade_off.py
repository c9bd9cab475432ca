"""The trade-off of every layer: cost and error of its candidates, in the unit that is limited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from math import inf
from typing import NamedTuple

from onnxcompress.compression.job import Job
from onnxcompress.compression.measure.timing import Times, time_layers
from onnxcompress.compression.search.candidates import Measured
from onnxcompress.compression.search.knapsack import Option, choose, frontier, hull, leanest, spent
from onnxcompress.compression.validate.fidelity import decibel
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.method import Candidate
from onnxcompress.graph import overhead
from onnxcompress.report.report import TradeOff


class Limits(NamedTuple):
    """The most that the layers may cost, in the unit of the curves, and of the second unit."""

    cost: float
    work: float = inf


@dataclass(frozen=True, eq=False)
class Curves:
    """The trade-off of every weight, and where the model stands between its extremes.

    Attributes:
        sensitivities: how much the error of each weight reaches the output.
        cost: what is limited: bytes, macs, or latency.
        second: what is limited besides: macs or latency; "" for nothing.
        options: of every weight; those of a pinned one, or one of a layer in int8, do not leave it
            as it is, unless nothing makes it smaller.
        whole: what the layers cost as they are.
    """

    job: Job
    sensitivities: Mapping[str, float]
    cost: str
    second: str
    options: Mapping[str, Sequence[Option]]
    whole: Mapping[str, float]

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
        every = [[option.work for option in own] for own in self.options.values()]
        return sum(map(min, every)), sum(map(max, every))

    def snr(self, chosen: Mapping[str, Candidate]) -> float:
        """Of the outputs, in dB, if the errors of the layers, each measured alone, add up."""
        errors = [self.sensitivities[name] ** 2 * c.error for name, c in chosen.items()]
        return decibel(1.0, float(sum(errors)))

    def trade_off(self, chosen: Mapping[str, Candidate]) -> TradeOff | None:
        """What all candidates allowed beside what was chosen; None where there was no choice."""
        if not self.job.has_choice:
            return None
        whole = self._model_cost()
        outside = whole - sum(self.whole.values())

        def pair(choice: Mapping[str, Option]) -> tuple[float, float]:
            return outside + spent(choice), self.snr({n: o.candidate for n, o in choice.items()})

        fours = {name: next(filter(_is_grid, own), own[-1]) for name, own in self.options.items()}
        known = any(map(_is_grid, fours.values()))
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
        settings = [o.candidate.setting for own in self.options.values() for o in own]
        return sorted({setting.name for setting in settings if setting is not None})

    def at(
        self, limit: float, work: float = inf, method: str | None = None
    ) -> dict[str, Candidate]:
        """What each weight gets so that the layers cost at most ``limit``.

        Args:
            work: the most that they may take of the second unit.
            method: the only one that is allowed, by name; None for all.

        Raises:
            BudgetError: the limit is out of reach.
        """
        options = self.options
        if method is not None:
            options = {
                name: [o for o in own if getattr(o.candidate.setting, "name", method) == method]
                for name, own in options.items()
            }
            if not all(options.values()):
                raise BudgetError(f"some layers cannot become smaller by {method} alone")
        chosen = choose(options, limit, work)
        return {name: option.candidate for name, option in chosen.items()}

    def without(self, name: str) -> Curves:
        """The same with one weight left as it is."""
        kept = [o for o in self.options[name] if o.candidate.setting is None]
        return replace(self, options={**self.options, name: kept})


def _is_grid(option: Option) -> bool:
    """Whether it is the grid of 4 bits, which trade-offs are compared with."""
    setting = option.candidate.setting
    known = {name: getattr(setting, name, None) for name in ("name", "bits", "group")}
    return known == {"name": "integer", "bits": 4, "group": None}


def price(job: Job, measured: Measured, units: tuple[str, str]) -> Curves:
    """The layers' trade-offs.

    Args:
        units: what is limited: bytes, macs, or latency; and what besides, "" for nothing.
    """
    times = time_layers(job, measured.candidates) if "latency" in units else {}
    options, whole = dict[str, list[Option]](), dict[str, float]()
    every = measured.candidates.items()
    for name, candidates in job.settings.track(every, "comparing settings", len(every)):
        costs = _Costs(job, name, measured.sensitivities[name], times.get(name), units)
        if times:  # Of chains, only those that were measured are offered.
            known = times[name].after if name in times else ()
            candidates = [c for c in candidates if len(c.factors) < 2 or c.factors in known]
        kept = costs.of_original()
        useful = [o for o in map(costs.of, candidates) if o.cost < kept.cost]
        # A layer in int8 has whole numbers in any case.
        fixed = name in job.pinned or job.in_int8(name)
        options[name] = useful if fixed and useful else [*useful, kept]
        whole[name] = float(kept.cost)
    return Curves(job, measured.sensitivities, *units, options, whole)


@dataclass(frozen=True, eq=False)
class _Costs:
    """What one weight costs with any candidate."""

    job: Job
    name: str
    sensitivity: float
    times: Times | None
    units: tuple[str, str]

    def of(self, candidate: Candidate) -> Option:
        """An option of the budget."""
        error, work = self.sensitivity * candidate.error, self._spent(self.units[1], candidate)
        if self.units[0] != "bytes":
            return Option(self._spent(self.units[0], candidate), error, candidate, work=work)
        assert candidate.setting is not None
        job, layers = self.job, self.job.layers
        blank = candidate.weight or candidate.setting.blank(layers[self.name])
        nodes = sum(overhead(job.model, layers[r], blank) for r in job.readers(self.name))
        shared = {(sha1(a.tobytes()).hexdigest(), a.nbytes) for a in blank.shared_arrays()}
        return Option(candidate.nbytes + nodes, error, candidate, frozenset(shared), work)

    def of_original(self) -> Option:
        """The option that leaves the weight as it is."""
        layer = self.job.layers[self.name]
        keep = Candidate(None, layer.nbytes, (layer.weight.shape,), 0.0)
        cost = layer.nbytes if self.units[0] == "bytes" else self._spent(self.units[0])
        return Option(cost, 0.0, keep, work=self._spent(self.units[1]))

    def _spent(self, unit: str, candidate: Candidate | None = None) -> float:
        """Multiplications or milliseconds of the weight's layers, as they are or otherwise."""
        factors = candidate.factors if candidate else ()
        if unit == "latency" and self.times is not None:
            return self.times.before if len(factors) < 2 else self.times.after[factors]
        return self.job.macs_of(self.name, factors) if unit == "macs" else 0


def units_of(job: Job, candidates: Mapping[str, Sequence[Candidate]]) -> tuple[str, str]:
    """What the target limits, and what it limits besides; "" for nothing.

    Without a size target it is multiplications where every candidate saves some, else bytes.
    Where layers compute in int8, and no chains are offered, time does not depend on the candidates.
    """
    target = job.target
    chained = any(len(c.factors) > 1 for some in candidates.values() for c in some)
    if target.ratio is not None or (job.int8 is not None and not chained and not target.macs):
        first = "bytes"
    elif target.faster:
        first = "latency" if target.latency else "macs"
    else:
        factored = bool(job.macs) and all(
            len(c.factors) > 1 for some in candidates.values() for c in some
        )
        first = "macs" if factored else "bytes"
    limits = {"macs": target.macs, "latency": target.latency}
    second = (unit for unit, limit in limits.items() if limit is not None and unit != first)
    return first, next(second, "")
