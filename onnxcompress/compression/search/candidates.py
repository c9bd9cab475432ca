"""Fit every setting of every layer, and measure its error on what the layer reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from onnxcompress.compression.job import Job, Methods, any_sampled
from onnxcompress.compression.measure.observed import Observed
from onnxcompress.compression.measure.sensitivity import largest_first, weigh
from onnxcompress.compression.search.screen import by_numbers, is_first, worth_fitting
from onnxcompress.compression.target import Target
from onnxcompress.core.errors import BudgetError
from onnxcompress.core.layer import Array, Layer, Unread
from onnxcompress.core.method import Candidate, Method, all_candidates
from onnxcompress.core.parallel import apart, each, elsewhere, portable
from onnxcompress.core.progress import FURTHER, Track, Uneven, untracked
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.cache import Cache
from onnxcompress.graph import digest

FITTING = "fitting"  # Progress calls what `sweep` does so.
FEW = 4  # Fits follow fewer patches for each input of a patch closely.
JUDGED = 4  # Then so many settings are tried on held-out patches.
FILTERS = 64  # They are tried with at most so many filters of a layer.
# Outputs count as varying on held-out patches by at least this share of what they vary on others.
VARIES = 0.01
MOST = 1e3  # A setting counts as at most so many times worse there.
USUAL = 8  # A method has about so many settings of a layer.
# Processes fit more weights than these, once for every setting: each takes a second to start, and
# keeps to itself what it derives of the metrics, which the refit needs too.
HEAVY = 4_000_000
# What a fit does for a weight, in what it takes to pass its error on to FEEDBACK inputs: rounding
# takes little; looking for a table to round to takes long, and errors are passed on twice.
FEEDBACK, ROUNDED, SEARCHED = 40, 0.1, 4.0


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of every weight before any choice.

    Attributes:
        candidates: of every weight, those that make it smaller.
        sensitivities: how much the error of each weight reaches the output; 1 where there is no
            choice that they could decide.
        observed: what the layers read.
    """

    candidates: Mapping[str, Sequence[Candidate]]
    sensitivities: Mapping[str, float]
    observed: Observed


def measure(job: Job, targets: Sequence[Target] = ()) -> Measured:
    """Fit and measure every candidate, or remember what was measured before.

    Args:
        targets: those that are to be reached; the job's alone where there are none.

    Raises:
        BudgetError: there is nothing to choose from.
    """
    _ = job.validation.baseline  # A metric of no use is found out before the work.
    only = _only_settings(job)
    if only is not None:
        return Measured(only, dict.fromkeys(only, 1.0), Observed(job))
    cache = Cache(job.settings.cache)
    key = _key(job) if cache.folder else None
    stored = cache.find(key)
    if stored is None:
        measured = find_candidates(job, targets or [job.target])
        cache.store(key, (measured.candidates, measured.sensitivities))
    else:
        measured = Measured(stored[0], stored[1], Observed(job))
    if not measured.candidates:
        raise BudgetError(f"no layer can be compressed by these methods: {_why_not(job)}")
    refitted = set(job.model.keys) if job.fit is not None and job.settings.correct else set()
    # What the others read is taken anew.
    observed = measured.observed.keeping(job.leaders.keys() - refitted)
    return replace(measured, observed=observed)


def _why_not(job: Job) -> str:
    """Why there is nothing to choose from."""
    offer = job.settings.methods
    assert callable(offer)
    if not job.layers:
        return "onnxcompress inspect says by which"
    if (job.fit is None or job.stand_ins) and any_sampled(offer, job.leaders.values()):
        return "they need to know what samples read: give samples=..."
    return "nothing is left to save, each takes as few bytes in the file already"


def _only_settings(job: Job) -> dict[str, Sequence[Candidate]] | None:
    """The one setting of every weight where refitting alone has to fit it; None elsewhere.

    Their errors are not known, and nothing depends on them.
    """
    offer = job.settings.methods
    assert callable(offer)
    if job.target != Target() or job.fit is None or not job.settings.correct or job.model.large:
        return None
    only = dict[str, Sequence[Candidate]]()
    for name, layer in job.leaders.items():
        settings = [s for method in offer(layer) for s in method.settings(layer)]
        if name not in job.model.keys or len(settings) > 1:
            return None
        for setting in settings:
            blank = setting.blank(layer)
            only[name] = [Candidate(setting, blank.nbytes, blank.factors, 0.0)]
    return only or None


def _key(job: Job) -> list[Any]:
    """What the candidates depend on."""
    offer = job.settings.methods
    assert callable(offer)
    key: list[Any] = [*map(version, ("onnxcompress", "numpy", "onnxruntime"))]
    key += [digest(job.model), str(job.shapes)]
    key += [(name, *map(str, offer(layer))) for name, layer in job.layers.items()]
    if job.fit and job.held_out:
        key += [job.fit.content, job.held_out.content]
    return key


def sweep(
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistics],
    methods: Methods,
    *,
    jobs: int = 1,
    track: Track[Any] = untracked,
    what: str = FITTING,
) -> dict[str, list[Candidate]]:
    """Every setting of every method on every layer, with its size and its predicted error.

    Args:
        methods: for all layers, or a function that says which for each one.
        what: the work, as ``track`` is told.
    """
    offered = methods if callable(methods) else lambda _: methods
    order = largest_first(layers)
    work = [(layers[name], statistics[name], list(offered(layers[name]))) for name in order]
    in_memory = not any(isinstance(layer.weight, Unread) for layer in layers.values())
    run = _way(_fits(work) if in_memory else 0, [own for _, _, own in work])
    tasks: Iterable[Any] = work
    if run is apart:
        tasks = ((layer.read(), seen, own) for layer, seen, own in work)
    fits = Uneven(run(all_candidates, tasks, jobs, len(work)), map(_cost, work), jobs, "fits")
    candidates = track(fits, what, len(work))
    fitted = dict(zip(order, candidates, strict=True))
    return {name: fitted[name] for name in layers}


def _way(weights: int, methods: object) -> Any:
    """Threads, or processes where fits of so many weights take long and pickle can hold them."""
    away = elsewhere() or weights > HEAVY
    return apart if away and portable(methods) else each


def _cost(work: tuple[Layer, Statistics, Sequence[Method]]) -> float:
    """About what the fits of one layer take, of all methods and layers in one unit."""
    layer, statistics, methods = work
    feedback, effort = layer.fan_in / FEEDBACK if statistics.count else 0.0, 0.0
    for method in methods:
        # Of a weight that is not read, some methods would have to read it.
        read = not isinstance(layer.weight, Unread)
        settings = len(method.settings(layer)) if read else USUAL
        each = ROUNDED + feedback if is_first(method) else SEARCHED + 2 * feedback
        effort += settings * each
    return layer.weight.size * effort


def _fits(work: Iterable[tuple[Layer, Statistics, Sequence[Method]]]) -> int:
    """Weights of all fits that take long."""
    return sum(
        layer.weight.size * len(method.settings(layer))
        for layer, _, methods in work
        for method in methods
        if not method.quick
    )


def find_candidates(job: Job, targets: Sequence[Target] = ()) -> Measured:
    """The candidates of every weight, and how much each weight's error reaches the output."""
    observed, settings = Observed(job), job.settings
    first, rest = _in_two(job, targets)

    def fit(
        methods: Mapping[str, Sequence[Method]], read: Mapping[str, Statistics], what: str = FITTING
    ) -> dict[str, list[Candidate]]:
        layers = {name: job.leaders[name] for name in methods}
        offered, track = lambda layer: methods[layer.name], settings.track
        return sweep(layers, read, offered, jobs=settings.jobs, track=track, what=what)

    candidates, statistics = dict[str, Sequence[Candidate]](), dict[str, Statistics]()
    for names in observed.groups(job.leaders):
        read = observed.of(names)
        fitted = fit({name: first[name] for name in names}, read)
        if job.model.large:
            fitted = {n: [replace(c, weight=None) for c in some] for n, some in fitted.items()}
        else:
            statistics |= read
        candidates |= fitted
    observed = replace(observed, kept=statistics)
    sensitivities = dict.fromkeys(candidates, 1.0)
    if job.has_choice:
        sensitivities = weigh(job, candidates, statistics)
    if any(rest.values()):
        more = worth_fitting(job, targets, candidates, sensitivities, rest)
        more = {name: own for name, own in more.items() if own}
        fitted = fit(more, statistics, FURTHER)
        candidates |= {name: [*candidates[name], *some] for name, some in fitted.items()}
    candidates = {name: some for name, some in candidates.items() if some}
    if job.has_choice:
        candidates |= dict(_judged(job, observed, candidates))
    return Measured(candidates, {n: sensitivities[n] for n in candidates}, observed)


def _in_two(
    job: Job, targets: Sequence[Target]
) -> tuple[dict[str, list[Method]], dict[str, list[Method]]]:
    """The methods of every weight: those to be fitted, and those of which only some settings are.

    All are fitted where the price is not known, or where a cache keeps them for other targets.
    """
    offer = job.settings.methods
    assert callable(offer)
    all_first = job.settings.cache is not None or not by_numbers(job, targets)
    first, rest = dict[str, list[Method]](), dict[str, list[Method]]()
    for name, layer in job.leaders.items():
        offered = list(offer(layer))
        early = [method for method in offered if all_first or is_first(method)] or offered
        first[name], rest[name] = early, [method for method in offered if method not in early]
    return first, rest


def _judged(
    job: Job, observed: Observed, candidates: Mapping[str, Sequence[Candidate]]
) -> Iterator[tuple[str, list[Candidate]]]:
    """The candidates of layers that see few patches, with their errors on held-out samples.

    A fit follows few patches closely: what it errs on others may be a hundred times as much.
    """
    seen, layers = observed.kept, job.leaders
    few = [
        name
        for name in largest_first({n: layers[n] for n in candidates})
        if layers[name].groups == 1 and 0 < seen[name].count < FEW * layers[name].fan_in
    ]
    unseen = Observed(replace(job, fit=job.held_out)).of(few)
    few = [name for name in few if unseen[name].count > 1]
    work = [(_tried(candidates[n]), _part(layers[n].read()), seen[n], unseen[n]) for n in few]
    weights = sum(len(tried) * layer.weight.size for tried, layer, *_ in work)
    run = _way(weights, [tried for tried, *_ in work])
    tried = Uneven(
        run(_on_others, work, job.settings.jobs, len(few)),
        [layer.weight.size * layer.fan_in for _, layer, *_ in work],
        job.settings.jobs,
    )
    more = job.settings.track(tried, "estimating errors on held-out samples", len(few))
    for name, known in zip(few, more, strict=True):
        yield name, _adjusted(candidates[name], known)


def _tried(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Some decoded settings, from those that err least to those that err most."""
    decoded = [replace(c, weight=None) for c in candidates if len(c.factors) == 1 and c.error > 0]
    decoded.sort(key=lambda c: c.error)
    places = np.linspace(0, len(decoded) - 1, JUDGED).astype(int) if decoded else []
    return [decoded[i] for i in np.unique(places)]


def _part(layer: Layer) -> Layer:
    """Some of the filters; a copy, as a view would keep the others."""
    return replace(layer, weight=layer.weight[:FILTERS].copy())


def _on_others(
    job: tuple[Sequence[Candidate], Layer, Statistics, Statistics],
) -> tuple[list[float], list[float]]:
    """Errors of settings, and how many times as much they err on unseen patches."""
    candidates, layer, seen, unseen = job
    seen, weight = replace(seen), layer.weight  # What fits derive is let go with the copy.
    whole = max(_energy(unseen, weight), VARIES * seen.energy(weight), 1e-30)
    factors = []
    for candidate in candidates:
        assert candidate.setting is not None
        approximation = candidate.setting.fit(layer, seen).decode()
        fitted = seen.error(weight, approximation)
        others = _energy(unseen, weight - approximation) / whole
        factors.append(float(np.clip(others / fitted, 1, MOST)) if fitted > 0 else 1.0)
    return [c.error for c in candidates], factors


def _adjusted(
    candidates: Sequence[Candidate], known: tuple[Sequence[float], Sequence[float]]
) -> list[Candidate]:
    """Errors times what others like them err more, by interpolation."""
    if not known[0]:
        return [*candidates]
    errors, factors = np.log(known)
    return [
        replace(c, error=c.error * float(np.exp(np.interp(np.log(c.error), errors, factors))))
        if c.error > 0 else c
        for c in candidates
    ]  # fmt: skip


def _energy(statistics: Statistics, weight: Array) -> float:
    """Output variance as these statistics have it, without what fits add to them."""
    ridge = statistics.ridge * float(np.sum(np.square(weight, dtype=np.float64)))
    return max(statistics.energy(weight) - ridge, 0.0)
