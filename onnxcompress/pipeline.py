"""The whole way from a model to a smaller one; every step is public and usable alone.

find_layers ─► calibrate ─► sweep ─► weigh ─► choose ─► refit ─► rewrite ─► (refine) ─► validate
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from math import inf, prod
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from onnxcompress.budget import BudgetError
from onnxcompress.cache import Cache
from onnxcompress.cluster import engine as opened
from onnxcompress.core import (
    Candidate,
    CompressedWeight,
    Layer,
    Method,
    Statistics,
    Unread,
    all_candidates,
    moment_bytes,
)
from onnxcompress.curves import Curves
from onnxcompress.data import Samples, from_batches, input_specs, random_samples
from onnxcompress.graph import (
    Model,
    ModelError,
    annotate,
    check,
    digest,
    emptied_inputs,
    find_constants,
    find_layers,
    inline_functions,
    rewrite,
)
from onnxcompress.measuring import (
    PROVIDERS,
    Job,
    Track,
    batching,
    calibrate,
    input_shapes,
    largest_first,
    quota,
    untracked,
    weigh,
)
from onnxcompress.parallel import (
    apart,
    cores,
    each,
    elsewhere,
    helped,
    one_thread_each,
    portable,
)
from onnxcompress.refit import Fitted, refit
from onnxcompress.report import Comparison, Epoch, Point, Refinement, Report, Row
from onnxcompress.runtime import Latency, Sample, latency
from onnxcompress.specs import auto
from onnxcompress.targets import Target, TargetError
from onnxcompress.validation import (
    Layerwise,
    Validation,
    failures,
    runnable,
    unknown_operators,
    verify,
    warnings,
)

STATISTICS_BYTES = 1 << 29  # of the layers of a large model whose statistics are kept together
REFIT_BYTES = 1 << 30  # activations that refit keeps in memory
TRIALS = 9  # real evaluations of a fidelity target
LATENCY_TRIALS = 4  # of a limit for the layers, until the whole model keeps the target
BYTE_TRIALS = 10  # files built, without data, to find what graph overhead leaves of a ratio
CORRECTION_TRIALS = 8  # real runs that decide where corrections stay,
CORRECTION_SAMPLES = 64  # each with at most so many held-out samples,
CORRECTION_WORK = 10**12  # and all together with about so many multiplications
SUSPECTS = 6  # layers that are looked at as they were, the others compressed,
HURTS = 0.3  # named if that takes away this share of the outputs' error
FALLS_BACK = 0.5  # and left as it was
WORTHWHILE = 0.05  # least saving for which a fidelity target is worth a changed model
HEAVY = 400_000  # weights to fit, once for every setting: about 2 s, which processes halve
UNDONE = (
    "weights are decoded when the model is loaded; tools that fold constants would write them "
    "out in full again, but for onnxslim --skip-optimizations constant_folding, onnxsim "
    "--skip-constant-folding and quant_pre_process(skip_optimization=True)"
)
NOISE = 3.0  # dB of predicted output SNR below which the user is warned
DEFAULT_AGREEMENT = 0.98
DEFAULT_SNR = 25.0

Refine = Callable[[Model, Model, Samples], tuple[Model, Sequence[Epoch]]]
Methods = Sequence[Method] | Callable[[Layer], Sequence[Method]]


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
    away = elsewhere() or (in_memory and _heavy(work))
    run: Any = each
    tasks: Iterable[Any] = work
    if away and portable([own for _, _, own in work]):
        run, tasks = apart, ((layer.read(), seen, own) for layer, seen, own in work)
    found = track(run(all_candidates, tasks, jobs, len(work)), "fitting", len(work))
    fitted = dict(zip(order, found, strict=True))
    return {name: fitted[name] for name in layers}


def _heavy(work: Iterable[tuple[Layer, Statistics, Sequence[Method]]]) -> bool:
    """Whether fits take long enough to be worth processes of their own."""
    fits = (
        layer.weight.size * len(method.settings(layer))
        for layer, _, methods in work
        for method in methods
        if not method.quick
    )
    return sum(fits) > HEAVY


# ----------------------------------------------------------------------- the whole compression


def compress(
    model: Model,
    *,
    methods: Methods | None = None,
    target: Target | None = None,
    samples: Samples | Iterable[Sample] | None = None,
    evaluation: Samples | None = None,
    metric: str = "top1",
    only: Callable[[str], bool] | None = None,
    correct: bool = True,
    shapes: Mapping[str, Sequence[int]] | None = None,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    jobs: int | None = None,
    engine: str = "local",
    providers: Sequence[str] = ("CPUExecutionProvider",),
    track: Track[Any] = untracked,
    cache: Path | None = None,
    refinement: Refine | None = None,
) -> tuple[Model, Report]:
    """Replace layers by smaller subgraphs until the target is met.

    Args:
        methods: what to choose from, for all layers or by a function of the layer; one for which
            nothing helps keeps its weight.  None for those that `auto` finds worth trying for
            the target.
        target: None means what settings that are fixed give, else 98 % agreement where the
            model has class scores, 25 dB where it has not.
        samples: unlabelled inputs; without any, the fits use the weights alone.
        evaluation: labelled inputs for the metric.
        only: says by name which layers may be changed; None for all.
        correct: fit again in network order and match the statistics of each layer's outputs.
        shapes: input name -> shape, for inputs whose dimensions the model leaves open.
        metadata: entries for the result's metadata_props; they count in its size.
        seed: of the random inputs that stand in where there are no samples.
        jobs: threads, and processes that fit layers; None for all cores.
        engine: what calibrates and fits layers: local, or ``dask://HOST:PORT`` of a cluster.
        cache: a folder that keeps what the candidates gave, for another target.
        refinement: trains the compressed model, given that, the original and all samples:
            `refine.refine` with its settings.  The report is about what it returns.

    Returns:
        The compressed model, and the report.  It is for the caller to look at ``report.worse``
        before using the model.

    Raises:
        BudgetError: the target is out of reach; the message names what can be attained.
        TargetError: what is needed to judge the target is missing, such as samples.
        WorkerError: a process or a cluster that was to do some of the work did not.
    """
    methods = auto(target) if methods is None else methods
    jobs = jobs or cores()
    with one_thread_each(), helped(jobs), opened(engine):
        run = _Run(
            model, methods, target, samples, evaluation, metric, only, correct,
            shapes or {}, metadata or {}, seed, jobs, providers, track, cache, refinement,
        )  # fmt: skip
        return run.result()


def trade_off(
    model: Model,
    targets: Sequence[Target],
    *,
    methods: Methods | None = None,
    samples: Samples | Iterable[Sample] | None = None,
    evaluation: Samples | None = None,
    metric: str = "top1",
    only: Callable[[str], bool] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    metadata: Callable[[Target], Mapping[str, str]] = lambda target: {},
    seed: int = 0,
    jobs: int | None = None,
    engine: str = "local",
    providers: Sequence[str] = ("CPUExecutionProvider",),
    track: Track[Any] = untracked,
    cache: Path | None = None,
) -> Iterator[Point]:
    """What `compress` would give for each of these size targets, from one fit of all candidates.

    Targets out of reach are left out; the other arguments are those of `compress`.

    Args:
        metadata: for each target the entries that count in the file's size.
    """
    methods = auto(targets[0]) if methods is None else methods
    jobs = jobs or cores()
    with one_thread_each(), helped(jobs), opened(engine):
        run = _Run(
            model, methods, targets[0], samples, evaluation, metric, only, True,
            shapes or {}, metadata(targets[0]), seed, jobs, providers, track, cache,
        )  # fmt: skip
        yield from run.trade_off(targets, metadata)


class _Run:
    """One compression: the steps in order, and what they hand on."""

    def __init__(
        self,
        model: Model,
        methods: Methods,
        target: Target | None,
        samples: Samples | Iterable[Sample] | None,
        evaluation: Samples | None,
        metric: str,
        only: Callable[[str], bool] | None,
        correct: bool,
        shapes: Mapping[str, Sequence[int]],
        metadata: Mapping[str, str],
        seed: int,
        jobs: int,
        providers: Sequence[str],
        track: Track[Any],
        cache: Path | None,
        refinement: Refine | None = None,
    ) -> None:
        if refinement is not None and samples is None:
            raise TargetError("a refinement needs calibration samples: give --calib")
        if model.large and elsewhere():
            raise TargetError("a model this large is read in parts, on one machine: no --engine")
        self.cache, self.refinement = Cache(cache), refinement
        self.priced: dict[tuple[str, float], Curves] = {}  # by unit and limit of multiplications
        self.predicted: float | None = None
        self.methods, self.opset = methods, model.opset
        self.evaluation, self.metric = evaluation, metric
        self.correct, self.metadata = correct, metadata
        self.skipped: dict[str, str] = {}
        self.warnings: list[str] = []
        self.unknown = unknown_operators(model)
        if self.unknown:
            self.warnings.append(
                f"onnxruntime does not know {', '.join(self.unknown)}: the fits use the weights "
                "alone, and no output was compared; --ort-extension takes a library"
            )
            samples = evaluation = None
        self.shapes, self.seed = shapes, seed
        self.original = model
        opened = inline_functions(model)
        more = opened is not model and len(self._found(opened, only)) > len(
            self._found(model, only)
        )
        model = opened if more else model
        self.job = self._job(model, samples, only, jobs, track)
        offered = {name: self._offered(layer) for name, layer in self.job.leaders.items()}
        self.pinned = {name for name, own in offered.items() if all(m.fixed for m in own)}
        self.all_pinned = self.pinned == offered.keys()
        if model.large and self.job.fit is not None and not self.all_pinned:
            self.warnings.append(
                "the model is too large to measure how much each layer matters: all count alike"
            )
        validating = self.job.held_out or self.random
        self.validation = Layerwise(model, seed) if self.unknown else Validation(
            self.original,
            validating,
            real=self.job.held_out is not None,
            evaluation=evaluation,
            metric=metric,
            providers=providers,
            jobs=jobs,
            track=track,
        )  # fmt: skip
        self.target = self._target(target)

    def _offered(self, layer: Layer) -> list[Method]:
        """The methods for this layer.

        Raises:
            ModelError: all of them need a newer opset.
        """
        methods = self.methods(layer) if callable(self.methods) else self.methods
        usable = [method for method in methods if method.opset <= self.opset]
        if methods and not usable:
            needed = min(methods, key=lambda method: method.opset)
            raise ModelError(
                f"{needed.name} needs opset {needed.opset}, and the model has {self.opset}"
            )
        return usable

    def _job(
        self,
        model: Model,
        samples: Samples | Iterable[Sample] | None,
        only: Callable[[str], bool] | None,
        jobs: int,
        track: Track[Any],
    ) -> Job:
        twin = runnable(model)
        fit = held_out = None
        if samples is not None:
            samples = samples if isinstance(samples, Samples) else from_batches(list(samples))
            self.samples = samples
            fit, held_out = samples.split()
            self.warnings += [*dict.fromkeys((*fit.notes, *held_out.notes))]
        layers = self._found(model, only)
        if self.unknown:
            return Job(model, twin, layers, {}, {}, None, None, jobs, track)
        first = next(iter((self.random if self.shapes or not fit else fit).batches(1)))
        shapes, macs = input_shapes(twin, first)
        return Job(model, twin, layers, shapes, macs, fit, held_out, jobs, track)

    @cached_property
    def random(self) -> Samples:
        """Random inputs, for what no samples are there."""
        return random_samples(input_specs(self.original), 2, self.seed, self.shapes)

    def _found(self, model: Model, only: Callable[[str], bool] | None) -> dict[str, Layer]:
        """The layers and constants that the methods can compress; ``skipped`` says why not more."""
        every, self.skipped = find_layers(model)
        layers = dict(every)
        for name, layer in every.items():
            methods = self._offered(layer)
            read = layer.read()
            reasons = [method.declined(read) for method in methods]
            if not methods or (only is not None and not only(name)):
                self.skipped[name] = "it was left out on request"
            elif None not in reasons:
                self.skipped[name] = reasons[0] or ""
            else:
                continue
            del layers[name]
        for name, layer in find_constants(model, every).items():
            wanted = only is None or only(name)
            read = layer.read()
            if wanted and any(m.declined(read) is None for m in self._offered(layer)):
                layers[name] = layer
        return {
            name: layer if layer.shared in layers else replace(layer, shared=name)
            for name, layer in layers.items()
        }

    def _target(self, target: Target | None) -> Target:
        if target is None and self.all_pinned:
            return Target()
        if target is None:
            if self.job.held_out is None:
                raise TargetError(
                    "without calibration samples no quality can be promised: give --calib, or a "
                    "size target (--ratio, --macs)"
                )
            if self.validation.scores:
                target = Target(min_agreement=DEFAULT_AGREEMENT)
            else:
                target = Target(min_snr=DEFAULT_SNR)
        if self.job.model.large and (target.latency or self.refinement):
            raise TargetError(
                "the model is too large to be loaded as a whole, which --latency and --refine need"
            )
        if self.unknown and target.faster:
            raise TargetError("onnxruntime cannot run the model, so only --ratio can be asked for")
        if (target.min_snr or target.min_agreement) and self.job.held_out is None:
            raise TargetError("a fidelity target needs calibration samples: give --calib")
        if target.min_agreement and not self.validation.scores:
            raise TargetError("the model has no class scores to agree on: use --min-snr")
        if target.max_drop is not None and self.evaluation is None:
            raise TargetError("--max-drop needs labelled samples: give --eval")
        return target

    def result(self) -> tuple[Model, Report]:
        self._look()
        if not self.target.sized and not self.target.faithful:
            return self._finished(self.curves.at(self.curves.bounds[0] if self.all_pinned else inf))
        limit = self._size_limit()
        if self.target.faithful:
            limit = self._bisected(limit)
        return self._finished(self.curves.at(limit))

    def trade_off(
        self, targets: Sequence[Target], metadata: Callable[[Target], Mapping[str, str]]
    ) -> Iterator[Point]:
        """What each of the targets gives; those out of reach are left out."""
        self._look()
        for target in targets:
            self.target, self.metadata = target, metadata(target)
            try:
                self._price()
                chosen = self.curves.at(self._size_limit())
            except BudgetError:
                continue
            self.predicted = self._predicted(chosen)
            model, fitted = self._build(chosen, final=True)
            rows = list(self._rows(chosen, fitted))
            fidelity = self.validation.fidelity(model)
            yield Point(
                str(target),
                self.original.nbytes / model.nbytes,
                sum(row.macs[1] for row in rows) + self.curves.outside,
                fidelity.worst_snr,
                fidelity.agreement,
                self.validation.metric_of(model),
                self.validation.baseline,
            )

    def _look(self) -> None:
        """Fit and measure every candidate, or remember what was found before."""
        job = self.job
        model = digest(self.original) if self.cache.folder else None
        key: list[Any] = [version("onnxcompress"), model]
        key += [(name, *map(str, self._offered(layer))) for name, layer in job.layers.items()]
        key += [str(job.shapes), job.fit and self.cache.folder and job.fit.content]
        self.statistics: dict[str, Statistics] = {}
        self.candidates, self.weights = self.cache.get(key, self._candidates)
        for name in job.leaders.keys() - self.candidates.keys():
            self.skipped[name] = "no setting makes it smaller"
        if not self.candidates:
            raise BudgetError(
                "no layer can be compressed by these methods: onnxcompress inspect says by which"
            )
        self._price()
        if job.fit is not None and self.correct:
            self.statistics.clear()  # refit takes its own; these are large
        elif not self.statistics and (job.fit is None or not job.model.large):
            self.statistics = self._statistics(job.leaders)

    def _candidates(self) -> tuple[dict[str, list[Candidate]], dict[str, float]]:
        job, found = self.job, dict[str, list[Candidate]]()
        for names in self._groups(job.leaders):
            layers, seen = {name: job.leaders[name] for name in names}, self._statistics(names)
            found |= sweep(layers, seen, self._offered, jobs=job.jobs, track=job.track)
            if job.model.large:
                found |= {n: [replace(c, weight=None) for c in found[n]] for n in names}
            else:
                self.statistics = seen
        found = {name: candidates for name, candidates in found.items() if candidates}
        if job.model.large:
            return found, dict.fromkeys(found, 1.0)
        return found, weigh(job, found, self.statistics)

    def _groups(self, leaders: Iterable[str]) -> list[list[str]]:
        """The weights of a large model in groups whose statistics and fits fit into memory."""
        groups: list[list[str]] = [[]]
        filled = 0
        for name in leaders:
            layer = self.job.layers[name]
            moments = moment_bytes(layer) if self.job.fit is not None else 0
            nbytes = self.job.model.large * (layer.weight.nbytes + moments)
            if groups[-1] and filled + nbytes > STATISTICS_BYTES:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += nbytes
        return groups

    def _seen(self, names: Iterable[str]) -> Iterator[tuple[str, Statistics]]:
        """These layers with what they read: of a large model, for some of them at a time."""
        layers = self.job.layers
        if self.statistics:
            yield from ((name, self.statistics[layers[name].shared]) for name in names)
            return
        wanted = [*names]
        for group in self._groups(dict.fromkeys(layers[name].shared for name in wanted)):
            seen = self._statistics(group)
            yield from ((n, seen[layers[n].shared]) for n in wanted if layers[n].shared in seen)

    def _price(self) -> None:
        """The layers' trade-offs in the unit of the target."""
        candidates, weights = self.candidates, self.weights
        cost, total = self._cost(candidates), sum(self.job.macs.values())
        both = cost == "bytes" and self.target.macs is not None
        work = (self.target.macs or 1) * total if both else inf
        if (cost, work) not in self.priced:
            curves = Curves(self.job, candidates, weights, cost, self.pinned, work)
            self.priced[cost, work] = curves
        self.curves = self.priced[cost, work]
        if self.curves.least_work > work:
            raise BudgetError(_too_much(self.target.macs, self.curves.least_work / total))

    def _statistics(self, leaders: Collection[str]) -> dict[str, Statistics]:
        """What the layers with these weights read, for each weight."""
        job = self.job
        layers = {name: layer for name, layer in job.layers.items() if layer.shared in leaders}
        if job.fit is None:
            return {name: Statistics.white(job.layers[name]) for name in leaders}
        reading = {name: layer for name, layer in layers.items() if name in job.calibrated}
        seen = calibrate(
            job.runnable, reading, job.fit, shapes=job.shapes, jobs=job.jobs, track=job.track
        )
        seen |= {n: Statistics.white(layers[n]) for n in layers.keys() - reading.keys()}
        merged: dict[str, Statistics] = {}
        for name, layer in layers.items():
            known = merged.get(layer.shared)
            merged[layer.shared] = seen[name] if known is None else known + seen[name]
        return merged

    def _cost(self, candidates: Mapping[str, Sequence[Candidate]]) -> str:
        """What the layers are priced by: multiplications too if every setting saves some."""
        if self.target.ratio is not None:
            return "bytes"
        if self.target.faster:
            return "latency" if self.target.latency else "macs"
        factored = bool(self.job.macs) and all(
            len(c.factors) > 1 for found in candidates.values() for c in found
        )
        return "macs" if factored else "bytes"

    def _size_limit(self) -> float:
        """The most that the layers may cost under the size target."""
        least, most = self.curves.bounds
        target, job = self.target, self.job
        limit = float(most)
        if target.latency is not None:
            return self._latency_limit(target.latency)
        if target.macs is not None and self.curves.cost == "macs":
            total, outside = sum(job.macs.values()), self.curves.outside
            limit = target.macs * total - outside
            if limit < least:
                raise BudgetError(_too_much(target.macs, (least + outside) / total))
        if target.ratio is not None:
            limit = self._byte_limit(target.ratio)
        return limit

    def _latency_limit(self, share: float) -> float:
        """The time of the layers at which the whole model takes this share, by measurement."""
        smallest, most = self.curves.bounds
        one = next(iter((self.job.held_out or self.random).batches(1)))

        def spent(limit: float) -> Latency:
            chosen = self.curves.at(limit)
            return latency(self.job.runnable, self._rough(chosen), one, PROVIDERS)

        first = spent(most)
        goal, limit = share * first.before, most - (1 - share) * first.before
        for _ in range(LATENCY_TRIALS):
            if limit < smallest:
                break
            found = spent(limit)
            if found.ratio <= share:
                return limit
            limit -= 1.1 * (found.ratio * found.before - goal)
        reached = spent(smallest).ratio
        raise BudgetError(
            f"{share:g} of the time is out of reach; the least that was measured is {reached:.3f}"
        )

    def _rough(self, chosen: Mapping[str, Candidate]) -> Model:
        """The model with these settings; the values do not matter."""
        return rewrite(self.job.runnable, self._blanks(chosen), {}, {})

    def _blanks(self, chosen: Mapping[str, Candidate]) -> dict[str, CompressedWeight]:
        """Weights of these settings for every layer that reads them, with any values."""
        job = self.job

        def blank(item: tuple[str, Candidate]) -> CompressedWeight:
            name, candidate = item
            assert candidate.setting is not None
            made = candidate.weight or candidate.setting.blank(job.layers[name])
            return made.mapped(job.model.keep)

        picked = [(name, c) for name, c in chosen.items() if c.setting is not None]
        made = zip(picked, each(blank, picked, job.jobs), strict=True)
        return {reader: weight for (name, _), weight in made for reader in job.readers(name)}

    def _byte_limit(self, ratio: float) -> float:
        """The layer bytes that make the file, graph overhead included, so many times smaller."""
        least, most = self.curves.bounds
        before = self.original.nbytes
        goal = before / ratio
        limit, best = goal - (before - most), None
        for _ in range(BYTE_TRIALS):
            limit = float(np.clip(limit, least, most))
            size = self._file_bytes(self.curves.at(limit))
            if size <= goal:
                best = limit if best is None else max(best, limit)
                if size > 0.99 * goal or limit >= most:
                    break
                limit += 0.999 * goal - size
            elif limit <= least:
                raise BudgetError(
                    f"a ratio of {ratio:g} is out of reach; the most that the layers allow is "
                    f"{before / size:.2f}"
                )
            else:
                limit -= 1.001 * (size - goal) + 64
        if best is None:
            raise BudgetError(f"no choice of settings makes the file {ratio:g} times smaller")
        return best

    def _file_bytes(self, chosen: Mapping[str, Candidate]) -> int:
        """Bytes of the file with these settings; the values do not matter."""
        job = self.job
        every = self._blanks(chosen)
        biases = {  # all different, as equal ones would be stored once
            name: index + np.arange(len(job.layers[name].weight)) / 7
            for index, name in enumerate(every)
            if job.fit is not None and _may_correct(job.layers[name])
        }
        return annotate(rewrite(job.model, every, biases, {}), self.metadata).nbytes

    def _bisected(self, limit: float) -> float:
        """The least cost, up to ``limit``, at which the fidelity target holds on real runs."""
        low, high = float(self.curves.bounds[0]), min(limit, float(self.curves.bounds[1]))
        if self.target.sized:  # the size target decides; fidelity is judged at the end
            return high
        best, tries = high, range(TRIALS)
        for _ in self.job.track(tries, "searching", len(tries)):
            if high - low <= 0.005 * high:
                break
            middle = (low + high) / 2
            model, _ = self._build(self.curves.at(middle))
            if self._holds(model):
                best = high = middle
            else:
                low = middle
        return best

    def _build(
        self, chosen: Mapping[str, Candidate], final: bool = False
    ) -> tuple[Model, dict[str, Fitted]]:
        """The model with these settings, fitted in place."""
        job = self.job
        settings = {
            reader: candidate.setting
            for name, candidate in chosen.items()
            if candidate.setting is not None
            for reader in job.readers(name)
        }
        fixed = {
            name: Fitted(self._fit(name, s, Statistics.white(job.layers[name])))
            for name, s in settings.items()
            if name not in job.calibrated
        }
        settings = {name: s for name, s in settings.items() if name not in fixed}
        if job.fit is None or not settings:
            alone = {
                n: self._fit(n, s, self.statistics[n])
                for n, s in settings.items()
                if job.layers[n].shared == n
            }
            fitted = {name: Fitted(alone[job.layers[name].shared]) for name in settings}
        elif self.correct:
            fitted = self._refitted(settings, fixed, final)
        else:
            fitted = self._plainly(settings)
        fitted = fitted | fixed
        failed: dict[str, str] = {}
        weights = {name: f.weight for name, f in fitted.items()}
        biases = {name: f.bias for name, f in fitted.items() if f.bias is not None}
        result = rewrite(job.model, weights, biases, failed)
        self.skipped |= failed
        return annotate(result, self.metadata), {
            name: f for name, f in fitted.items() if name not in failed
        }

    def _fit(self, name: str, setting: Method, statistics: Statistics) -> CompressedWeight:
        """A layer's weight in this setting."""
        found = setting.fit(self.job.layers[name].read(), statistics)
        return found.mapped(self.job.model.keep)

    def _plainly(self, settings: Mapping[str, Method]) -> dict[str, Fitted]:
        """Every layer fitted for itself, with nothing but its mean output kept."""
        fitted = {}
        for name, statistics in self._seen(settings):
            layer = self.job.layers[name].read()
            first = fitted.get(layer.shared)
            weight = first.weight if first else self._fit(name, settings[name], statistics)
            bias = None
            if _may_correct(layer):
                shift = statistics.shift(layer.weight, weight.astype(np.float32).decode())
                bias = shift if layer.bias is None else layer.bias + shift
            fitted[name] = Fitted(weight, bias)
        return fitted

    def _refitted(
        self, settings: Mapping[str, Method], fixed: Mapping[str, Fitted], final: bool
    ) -> dict[str, Fitted]:
        job = self.job
        assert job.fit is not None
        size, _ = batching(job.fit, job.shapes)
        largest = max(4 * prod(job.shapes[name]) for name in job.calibrated)
        fitting = max(1, REFIT_BYTES // (6 * largest))
        chosen = job.fit if fitting >= len(job.fit) else job.fit.spread(fitting)
        batches = list(chosen.batches(size))

        def track(keys: Iterable[str]) -> Iterable[str]:
            if not final:
                return keys
            told = f"correcting, {self.predicted:.1f} dB predicted"
            return job.track(keys, told, len(settings))

        fitted = refit(
            job.runnable,
            job.layers,
            settings,
            batches,
            jobs=job.jobs,
            limit=lambda layer: quota(layer, len(batches)),
            fixed={name: f.weight for name, f in fixed.items()},
            track=track,
        )
        return self._helpful({**fitted, **fixed}) if final else fitted

    def _helpful(self, fitted: dict[str, Fitted]) -> dict[str, Fitted]:
        """Keep the correction of the deviations only where it lowers the held-out error.

        Neighbouring layers are judged together where there are more than ``CORRECTION_TRIALS``.
        """
        job = self.job
        names = [name for name, f in fitted.items() if f.plain is not None]

        best, least = fitted, self._loss(fitted)
        groups = (
            [list(group) for group in np.array_split(names, min(len(names), CORRECTION_TRIALS))]
            if names
            else []
        )
        for group in job.track([names, *groups], "checking corrections", len(groups) + 1):
            undone = {name: best[name].plain or best[name] for name in group}
            error = self._loss(best | undone)
            if error < least:
                best, least = best | undone, error
        return best

    def _predicted(self, chosen: Mapping[str, Candidate]) -> float | None:
        """Output SNR in dB; None without data."""
        return None if self.job.fit is None else self.curves.snr(chosen)

    def _finished(self, chosen: Mapping[str, Candidate]) -> tuple[Model, Report]:
        self.predicted = self._predicted(chosen)
        if self.predicted is not None and self.predicted < NOISE:
            self.warnings.append(
                f"the output SNR was predicted to be {self.predicted:.1f} dB: that is noise "
                "unless the corrections or a distillation recover it"
            )
        result, fitted = self._build(chosen, final=True)
        if self.target.faithful and not self._holds(result):
            result, fitted = self._build(chosen)  # as it was when the search found it to hold
        hurting = self._hurting(chosen, fitted)
        free = {name: share for name, share in hurting.items() if name not in self.pinned}
        if free and max(free.values()) > FALLS_BACK:
            chosen, result, fitted = self._without(free, chosen, result, fitted)
        rows = tuple(self._rows(chosen, fitted))
        macs = sum(self.job.macs.values())
        saved = sum(row.macs[0] - row.macs[1] for row in rows)
        comparison, refined, noted = None, None, []
        try:
            if self.unknown:
                check(result, "the result")
            else:
                verify(result)
            if self.refinement is not None:
                result, refined = self._refined(self.refinement, result)
            comparison = self.validation.compare(result, (macs, macs - saved))
        except ModelError as error:
            failed = [f"the result is no valid model: {error}"]
        else:
            failed = [*failures(comparison, self.target), *self._too_little(comparison)]
            noted = [*warnings(comparison)]
        if any(len(f.weight.factors) == 1 for f in fitted.values()):
            noted.append(UNDONE)
        if emptied := emptied_inputs(self.original, result):
            some = ", ".join(emptied[:3]) + ", ..." * (len(emptied) > 3)
            noted.append(
                f"inputs that give weights ({some}) are still there, but nothing reads them"
            )
        report = Report(
            target=str(self.target),
            rows=rows,
            skipped=self.skipped,
            comparison=comparison,
            refined=refined,
            predicted=self.predicted,
            trade_off=self.curves.trade_off(chosen),
            hurting={name: share for name, share in hurting.items() if name not in self.skipped},
            failures=tuple(failed),
            curves={} if not self.target.faithful else self.curves.points(),
            warnings=(*self.warnings, *noted),
        )
        return result, report

    def _refined(self, refinement: Refine, model: Model) -> tuple[Model, Refinement]:
        """The model trained, and what it was before."""
        before, metric = self.validation.fidelity(model), self.validation.metric_of(model)
        result, epochs = refinement(model, self.job.model, self.samples)
        return result, Refinement(tuple(epochs), before.snr, before.agreement, metric)

    def _hurting(
        self, chosen: Mapping[str, Candidate], fitted: Mapping[str, Fitted]
    ) -> dict[str, float]:
        """Layers that alone cause much of the output's error on held-out samples: their share."""
        if self.job.held_out is None or len(fitted) < 2:
            return {}
        expected = {n: self.weights[n] ** 2 * c.error for n, c in chosen.items() if c.setting}
        suspects = sorted(expected, key=lambda name: -expected[name])[:SUSPECTS]
        whole, found = self._loss(fitted), {}
        for name in self.job.track(suspects, "looking for layers that hurt", len(suspects)):
            readers = self.job.readers(name)
            others = {key: f for key, f in fitted.items() if key not in readers}
            share = 1 - self._loss(others) / max(whole, 1e-30)
            if share > HURTS:
                found[name] = share
                self.warnings.append(
                    f"{name} alone causes {share:.0%} of the output's error; "
                    f"--skip {quote(name)} leaves it as it is"
                )
        return found

    def _without(
        self,
        hurting: Mapping[str, float],
        chosen: Mapping[str, Candidate],
        result: Model,
        fitted: dict[str, Fitted],
    ) -> tuple[Mapping[str, Candidate], Model, dict[str, Fitted]]:
        """The same with the layer that hurts most as it was, if that is better at the same cost."""
        worst = max(hurting, key=lambda name: hurting[name])
        spent = sum(o.cost for n, c in chosen.items() for o in self.curves.options[n]
                    if o.candidate is c)  # fmt: skip
        options = self.curves.options[worst]
        self.curves.options[worst] = [o for o in options if o.candidate.setting is None]
        try:
            other = self.curves.at(self._size_limit() if self.target.sized else spent)
        except BudgetError:
            self.curves.options[worst] = options
            return chosen, result, fitted
        model, fits = self._build(other, final=True)
        if self._loss(fits) >= self._loss(fitted):
            self.curves.options[worst] = options
            return chosen, result, fitted
        self.skipped[worst] = f"it caused {hurting[worst]:.0%} of the output's error"
        return other, model, fits

    def _loss(self, fitted: Mapping[str, Fitted]) -> float:
        """Error of the outputs on some held-out samples with these weights in place."""
        weights = {name: f.weight for name, f in fitted.items()}
        biases = {name: f.bias for name, f in fitted.items() if f.bias is not None}
        model = rewrite(self.job.runnable, weights, biases, {})
        work = CORRECTION_WORK // (CORRECTION_TRIALS * max(sum(self.job.macs.values()), 1))
        return self.validation.fidelity(model, int(np.clip(work, 1, CORRECTION_SAMPLES))).loss

    def _holds(self, model: Model) -> bool:
        """Whether a model reaches the fidelity target; one that does not run does not."""
        try:
            return self.validation.holds(model, self.target)
        except ModelError:
            return False

    def _too_little(self, comparison: Comparison) -> Iterable[str]:
        """A fidelity target that allows next to nothing is a miss: the layers' curves say why."""
        before, after = comparison.before, comparison.after
        if not self.target.faithful or self.target.sized or after.nbytes > before.nbytes:
            return
        saved, what = 1 - after.nbytes / before.nbytes, "of the file"
        if self.curves.cost != "bytes" and before.macs and after.macs is not None:
            saved, what = 1 - after.macs / before.macs, "of the multiplications"
        if saved < WORTHWHILE:
            yield f"at that fidelity only {saved:.1%} {what} can be saved, which is not worth it"

    def _rows(self, chosen: Mapping[str, Candidate], fitted: Mapping[str, Fitted]) -> Iterable[Row]:
        for name, layer in self.job.layers.items():
            candidate = chosen.get(layer.shared)
            macs = self.job.macs.get(name, 0)
            before = layer.nbytes if layer.shared == name else 0
            kept = Row(
                name, layer.op_type, layer.weight.shape, "", (before, before), (macs, macs),
                note=self.skipped.get(name) or "kept: its error would cost more than it saves",
            )  # fmt: skip
            if candidate is None or candidate.setting is None or name not in fitted:
                yield kept
                continue
            after = fitted[name].weight.nbytes if layer.shared == name else 0
            shape = self.job.shapes.get(name)
            cost = layer.macs(shape, *candidate.factors) if shape else 0
            yield Row(
                name, layer.op_type, layer.weight.shape, str(candidate.setting), (before, after),
                (macs, cost), candidate.error, fitted[name].snr,
                "" if layer.shared == name else f"shares the weight of {layer.shared}",
            )  # fmt: skip


def _too_much(macs: float | None, share: float) -> str:
    return (
        f"{macs:g} of the multiplications is out of reach; "
        f"the least that the layers allow is {share:.3f}"
    )


def _may_correct(layer: Layer) -> bool:
    changeable = layer.bias is None or isinstance(layer.bias, np.ndarray)
    return changeable and layer.op_type != "Constant"
