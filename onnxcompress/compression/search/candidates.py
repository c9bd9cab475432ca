"""Every setting of every layer: what the layers read, and how far each setting is off on that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxcompress.compression.job import Job, Track, untracked
from onnxcompress.compression.measure.observed import Observed
from onnxcompress.compression.measure.sensitivity import largest_first, weigh
from onnxcompress.core.layer import Array, Layer, Unread
from onnxcompress.core.method import Candidate, Method, all_candidates
from onnxcompress.core.parallel import apart, each, elsewhere, portable
from onnxcompress.core.statistics import Statistics
from onnxcompress.graph import Model, ModelError, find_constants, find_layers

FEW = 4  # patches for each input of a patch, below which fits follow them closely,

JUDGED = 4  # so many settings are tried on others,

FILTERS = 128  # with at most so many filters,

VARIES = 0.01  # where their outputs vary at least so much of what those of the others do,

MOST = 1e3  # and count as so many times worse at most

HEAVY = 400_000  # weights to fit, once for every setting: about 2 s, which processes halve

Methods = Sequence[Method] | Callable[[Layer], Sequence[Method]]


def usable(methods: Methods, opset: int) -> Callable[[Layer], list[Method]]:
    """Says for each layer which of the methods a model of this opset can hold.

    Raises:
        ModelError: all of them need a newer opset (when it is called).
    """

    def offered(layer: Layer) -> list[Method]:
        own = methods(layer) if callable(methods) else methods
        fitting = [method for method in own if method.opset <= opset]
        if own and not fitting:
            needed = min(own, key=lambda method: method.opset)
            raise ModelError(f"{needed.name} needs opset {needed.opset}, and the model has {opset}")
        return fitting

    return offered


def find_compressible(
    model: Model,
    offered: Callable[[Layer], Sequence[Method]],
    only: Callable[[str], bool] | None = None,
) -> tuple[dict[str, Layer], dict[str, str]]:
    """The layers and constants that the methods can compress, and why the other layers stay.

    Args:
        only: says by name which may be changed; None for all.
    """
    every, skipped = find_layers(model)
    layers = dict(every)
    for name, layer in every.items():
        methods = offered(layer)
        if not methods or (only is not None and not only(name)):
            skipped[name] = "it was left out on request"
        else:
            read = layer.read()
            reasons = [method.declined(read) for method in methods]
            if None in reasons:
                continue
            skipped[name] = reasons[0] or ""
        del layers[name]
    for name, layer in find_constants(model, every).items():
        if only is None or only(name):
            read = layer.read()
            if any(method.declined(read) is None for method in offered(layer)):
                layers[name] = layer
    found = {n: layer if layer.shared in layers else replace(layer, shared=n)
             for n, layer in layers.items()}  # fmt: skip
    return found, skipped


def sweep(
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistics],
    methods: Methods,
    *,
    jobs: int = 1,
    track: Track[Any] = untracked,
) -> dict[str, list[Candidate]]:
    """Every setting of every method on every layer, with its size and its predicted error.

    Args:
        methods: for all layers, or a function that says which for each one.
    """
    offered = methods if callable(methods) else lambda _: methods
    order = largest_first(layers)
    work = [(layers[name], statistics[name], list(offered(layers[name]))) for name in order]
    in_memory = not any(isinstance(layer.weight, Unread) for layer in layers.values())
    run = _way(_fits(work) if in_memory else 0, [own for _, _, own in work])
    tasks: Iterable[Any] = work
    if run is apart:
        tasks = ((layer.read(), seen, own) for layer, seen, own in work)
    found = track(run(all_candidates, tasks, jobs, len(work)), "fitting", len(work))
    fitted = dict(zip(order, found, strict=True))
    return {name: fitted[name] for name in layers}


def _way(weights: int, methods: object) -> Any:
    """Threads, or processes where fits of so many weights take long and pickle can hold them."""
    away = elsewhere() or weights > HEAVY
    return apart if away and portable(methods) else each


def _fits(work: Iterable[tuple[Layer, Statistics, Sequence[Method]]]) -> int:
    """Weights of all fits that take long."""
    return sum(
        layer.weight.size * len(method.settings(layer))
        for layer, _, methods in work
        for method in methods
        if not method.quick
    )


def find_candidates(
    job: Job, observed: Observed, methods: Methods
) -> tuple[dict[str, list[Candidate]], dict[str, float]]:
    """The candidates of every weight, and how much each weight's error reaches the output."""
    found = dict[str, list[Candidate]]()
    for names in observed.groups(job.leaders):
        layers, seen = {name: job.leaders[name] for name in names}, observed.of(names)
        found |= sweep(layers, seen, methods, jobs=job.jobs, track=job.track)
        if job.model.large:
            found |= {n: [replace(c, weight=None) for c in found[n]] for n in names}
        else:
            observed.kept = seen
    found = {name: candidates for name, candidates in found.items() if candidates}
    if job.model.large:
        return found, dict.fromkeys(found, 1.0)
    weights = weigh(job, found, observed.kept)
    return found | dict(_judged(job, observed, found)), weights


def _judged(
    job: Job, observed: Observed, found: Mapping[str, Sequence[Candidate]]
) -> Iterator[tuple[str, list[Candidate]]]:
    """The candidates of layers that see few patches, with their errors on held-out samples.

    A fit follows few patches closely: what it errs on others may be a hundred times as much.
    """
    seen, layers = observed.kept, job.leaders
    few = [
        name
        for name in largest_first({n: layers[n] for n in found})
        if layers[name].groups == 1 and 0 < seen[name].count < FEW * layers[name].fan_in
    ]
    unseen = Observed(replace(job, fit=job.held_out)).of(few)
    few = [name for name in few if unseen[name].count > 1]
    work = [(_tried(found[n]), _part(layers[n].read()), seen[n], unseen[n]) for n in few]
    weights = sum(len(tried) * layer.weight.size for tried, layer, *_ in work)
    run = _way(weights, [tried for tried, *_ in work])
    more = job.track(run(_on_others, work, job.jobs, len(few)), "judging errors", len(few))
    for name, known in zip(few, more, strict=True):
        yield name, _adjusted(found[name], known)


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
    seen, weight = replace(seen), layer.weight  # what fits derive is let go with the copy
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
