"""The whole way from a model to a smaller one; every step is public and usable alone.

find_layers ─► calibrate ─► sweep ─► weigh ─► choose ─► refit ─► rewrite ─► (refine) ─► validate
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from shlex import quote
from typing import Any

from onnxcompress.compression.auto import auto
from onnxcompress.compression.build.builder import Builder
from onnxcompress.compression.build.fitted import Fitted
from onnxcompress.compression.job import Job, Track, untracked
from onnxcompress.compression.measure.observed import Observed
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.search.candidates import (
    Methods,
    find_candidates,
    find_compressible,
    usable,
)
from onnxcompress.compression.search.size_limit import SPARE, size_limit, work_limit
from onnxcompress.compression.search.trade_off import Curves
from onnxcompress.compression.target import Target
from onnxcompress.compression.validate.layerwise import Layerwise
from onnxcompress.compression.validate.validation import Validation, failures, warnings
from onnxcompress.core.errors import BudgetError, TargetError
from onnxcompress.core.method import Candidate
from onnxcompress.core.parallel import cores, elsewhere, helped, one_thread_each
from onnxcompress.data.samples import Samples, from_batches
from onnxcompress.execution.cache import Cache
from onnxcompress.execution.dask import engine as opened
from onnxcompress.execution.runnable import runnable, unknown_operators, verify
from onnxcompress.execution.session import Sample
from onnxcompress.graph import Model, ModelError, check, digest, emptied_inputs, inline_functions
from onnxcompress.report.report import Comparison, Epoch, Point, Refinement, Report, Row

TRIALS = 9  # real evaluations of a fidelity target

LESS = 0.98  # of the cost found, at which a single method has to hold to be searched on

SIZE_TRIALS = 3  # further ones of a ratio that is missed

SUSPECTS = 6  # layers that are looked at as they were, the others compressed,

HURTS = 0.3  # named if that takes away this share of the outputs' error

FALLS_BACK = 0.5  # and left as it was

CLOSE = 2.0  # dB of predicted output SNR below the best that single methods are tried in,

SMALL = 1 << 25  # for files of so many bytes at most: more take minutes

WORTHWHILE = 0.05  # least saving for which a fidelity target is worth a changed model

UNDONE = (
    "weights are decoded when the model is loaded; tools that fold constants would write them "
    "out in full again, but for onnxslim --skip-optimizations constant_folding, onnxsim "
    "--skip-constant-folding and quant_pre_process(skip_optimization=True)"
)

NOISE = 3.0  # dB of predicted output SNR below which the user is warned

DEFAULT_AGREEMENT = 0.98

DEFAULT_SNR = 25.0

_Built = tuple[Mapping[str, Candidate], Model, dict[str, Fitted]]  # of what, and its layers

Refine = Callable[[Model, Model, Samples], tuple[Model, Sequence[Epoch]]]


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

    A point says why `compress` would refuse it; of a target out of reach that is all it says.  The
    other arguments are those of `compress`.

    Args:
        metadata: for each target the entries that count in the file's size.

    Raises:
        TargetError: no methods are given, and `auto` has not the same for all of these targets.
    """
    if methods is None:
        methods = auto(targets[0])
        if any(auto(target) != methods for target in targets):
            raise TargetError("sizes and multiplications need methods of their own: give methods")
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
        self.original, self.metadata = model, metadata
        self.cache, self.refinement = Cache(cache), refinement
        self.methods = usable(methods, model.opset)
        self.priced: dict[tuple[str, str], Curves] = {}  # by unit, and by what is limited besides
        self.warnings: list[str] = []
        self.unknown = unknown_operators(model)
        if self.unknown:
            self.warnings.append(
                f"onnxruntime does not know {', '.join(self.unknown)}: the fits use the weights "
                "alone, and no output was compared; --ort-extension takes a library"
            )
            samples = evaluation = None
        self.evaluated = evaluation is not None
        self.samples: Samples | None = None
        if samples is not None:
            self.samples = samples if isinstance(samples, Samples) else from_batches([*samples])
        self.job = self._job(only, shapes, seed, jobs, track)
        offered = {name: self.methods(layer) for name, layer in self.job.leaders.items()}
        self.pinned = {name for name, own in offered.items() if all(m.fixed for m in own)}
        self.all_pinned = self.pinned == offered.keys()
        if model.large and self.job.fit is not None and not self.all_pinned:
            self.warnings.append(
                "the model is too large to measure how much each layer matters: all count alike"
            )
        self.validation = Layerwise(model, seed) if self.unknown else Validation(
            model,
            self.job.held_out or self.job.random,
            real=self.job.held_out is not None,
            evaluation=evaluation,
            metric=metric,
            providers=providers,
            jobs=jobs,
            track=track,
        )  # fmt: skip
        self.target = self._target(target)
        self.observed = Observed(self.job)
        self.builder = Builder(self.job, self.observed, self.validation, correct)

    def _job(
        self,
        only: Callable[[str], bool] | None,
        given: Mapping[str, Sequence[int]],
        seed: int,
        jobs: int,
        track: Track[Any],
    ) -> Job:
        """The layers, where local functions are written out if that shows more of them; shapes."""
        original, opened = self.original, inline_functions(self.original)
        model, (layers, self.skipped) = original, find_compressible(original, self.methods, only)
        if opened is not original:
            found = find_compressible(opened, self.methods, only)
            if len(found[0]) > len(layers):
                model, (layers, self.skipped) = opened, found
        fit = held_out = None
        if self.samples is not None:
            fit, held_out = self.samples.split()
            self.warnings += [*dict.fromkeys((*fit.notes, *held_out.notes))]
        shapes: dict[str, tuple[int, ...]] = {}
        macs: dict[str, int] = {}
        job = Job(
            original, model, runnable(model), layers, shapes, macs,
            fit, held_out, given, seed, jobs, track,
        )  # fmt: skip
        if self.unknown:
            return job
        first = next(iter((job.random if given or not fit else fit).batches(1)))
        shapes, macs = input_shapes(job.runnable, first)
        return replace(job, shapes=shapes, macs=macs)

    def _target(self, target: Target | None) -> Target:
        if target is None and self.all_pinned:
            target = Target()
        judged = target is None or target.faithful or target.faster or self.refinement
        if self.unknown and judged:
            unknown = ", ".join(self.unknown)
            raise TargetError(f"onnxruntime does not know {unknown}, so only --ratio can be asked")
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
        compared = target.min_snr is not None or target.min_agreement is not None
        if compared and self.job.held_out is None:
            raise TargetError("a fidelity target needs calibration samples: give --calib")
        if target.min_agreement is not None and not self.validation.scores:
            raise TargetError("the model has no class scores to agree on: use --min-snr")
        if target.max_drop is not None and not self.evaluated:
            raise TargetError("--max-drop needs labelled samples: give --eval")
        return target

    def result(self) -> tuple[Model, Report]:
        self._look()
        return self._reached()

    def _reached(self) -> tuple[Model, Report]:
        """What the candidates give for the target."""
        self._price()
        if not self.target.sized and not self.target.faithful:
            return self._finished(self.curves.bounds[0] if self.all_pinned else inf)
        limit = size_limit(self.job, self.curves, self.target, self.metadata)
        method = None
        if self.target.faithful:
            limit, method = self._bisected(limit)
        return self._finished(limit, method)

    def trade_off(
        self, targets: Sequence[Target], metadata: Callable[[Target], Mapping[str, str]]
    ) -> Iterator[Point]:
        """What each of the targets gives, or what can be attained where it is out of reach."""
        self._look()
        for target in targets:
            self.target, self.metadata = target, metadata(target)
            try:
                yield self._reached()[1].point
            except BudgetError as error:
                yield Point(str(target), failures=(str(error),))

    def _look(self) -> None:
        """Fit and measure every candidate, or remember what was found before."""
        _ = self.validation.baseline  # a metric of no use is found out before the work
        job = self.job
        model = digest(self.original) if self.cache.folder else None
        key: list[Any] = [*map(version, ("onnxcompress", "numpy", "onnxruntime")), model]
        key += [(name, *map(str, self.methods(layer))) for name, layer in job.layers.items()]
        if self.cache.folder and job.fit and job.held_out:
            key += [job.fit.content, job.held_out.content]
        key.append(str(job.shapes))
        self.candidates, self.weights = self.cache.get(
            key, lambda: find_candidates(job, self.observed, self.methods)
        )
        for name in job.leaders.keys() - self.candidates.keys():
            self.skipped[name] = "no setting makes it smaller"
        if not self.candidates:
            raise BudgetError(
                "no layer can be compressed by these methods: onnxcompress inspect says by which"
            )
        again = set(job.model.keys) if job.fit is not None and self.builder.correct else set()
        self.observed.keep(job.leaders.keys() - again)  # what refit takes anew is large

    def _price(self) -> None:
        """The layers' trade-offs in the unit of the target."""
        candidates, weights, target = self.candidates, self.weights, self.target
        cost = self._cost(candidates)
        given = {"macs": target.macs, "latency": target.latency}
        second = next((u for u, limit in given.items() if limit is not None and u != cost), "")
        if (cost, second) not in self.priced:
            curves = Curves(self.job, candidates, weights, cost, self.pinned, second)
            self.priced[cost, second] = curves
        self.curves = self.priced[cost, second]
        if second == "macs":
            self.curves.work = work_limit(self.job, self.curves, target.macs or 1)

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

    def _bisected(self, limit: float) -> tuple[float, str | None]:
        """The least cost, up to ``limit``, at which the fidelity target holds on real runs.

        And the method that reaches it alone; None for all of them.
        """
        low, high = float(self.curves.bounds[0]), min(limit, float(self.curves.bounds[1]))
        if self.target.sized:  # the size target decides; fidelity is judged at the end
            return high, None
        found, best = self._searched(low, high, None), None
        less = LESS * found
        if self._alone and less > low:
            for method in self._close(less, self.curves.at(less)):
                if self._reaches(less, method):
                    found, best = self._searched(low, less, method), method
                    less = LESS * found
        return found, best

    def _searched(self, low: float, high: float, method: str | None) -> float:
        """The least cost in this range, by bisection; the greatest is not tried."""
        best, tries = high, range(TRIALS)
        for _ in self.job.track(tries, "searching", len(tries)):
            if high - low <= 0.005 * high:
                break
            middle = (low + high) / 2
            if self._reaches(middle, method):
                best = high = middle
            else:
                low = middle
        return best

    def _reaches(self, limit: float, method: str | None) -> bool:
        """Whether the fidelity target holds with layers of this cost."""
        try:
            chosen = self.curves.at(limit, method)
        except BudgetError:
            return False
        return self._holds(self.builder.build(chosen, self.metadata).model)

    @property
    def _alone(self) -> bool:
        """Whether single methods are worth trying beside the mix."""
        several = len(self.curves.methods) > 1 and not self.target.latency
        return several and self.job.held_out is not None and self.original.nbytes <= SMALL

    def _predicted(self, chosen: Mapping[str, Candidate]) -> float | None:
        """Output SNR in dB; None without data."""
        return None if self.job.fit is None else self.curves.snr(chosen)

    def _build(
        self, chosen: Mapping[str, Candidate], tried: bool = False
    ) -> tuple[Model, dict[str, Fitted]]:
        """The model with these settings, as a search tried it, or with all that may help."""
        predicted = self._predicted(chosen)
        told = "correcting" + (f", {predicted:.1f} dB predicted" if predicted is not None else "")
        built = self.builder.build(chosen, self.metadata, told=None if tried else told)
        self.skipped |= built.failed
        return built.model, built.fitted

    def _compressed(
        self, limit: float, method: str | None = None
    ) -> tuple[_Built, dict[str, float]]:
        """The best model within the limit, and the layers that hurt it: their shares.

        The one that hurts most is left as it was where that helps.

        Args:
            method: the only one, by name; None for all.
        """
        chosen, result, fitted = self._best(limit) if method is None else self._sized(limit, method)
        if self.target.faithful and not self._holds(result):
            result, fitted = self._build(chosen, tried=True)
        built, hurting = (chosen, result, fitted), self._hurting(chosen, fitted)
        free = {name: share for name, share in hurting.items() if name not in self.pinned}
        if free and max(free.values()) > FALLS_BACK:
            other = self._without(free, built)
            if other is not None:
                return other, self._hurting(other[0], other[2])
        return built, hurting

    def _best(self, limit: float) -> _Built:
        """The model predicted to be best, or one by a single method that turns out better.

        Predictions are off by some decibels where few samples tell what layers read, and more so
        where methods are mixed.
        """
        best = self._sized(limit)
        if not self.target.sized or not self._alone:
            return best
        close = [*self._close(limit, best[0])]
        loss = self.builder.loss(best[2]) if close else 0.0
        for method in close:
            other = self._sized(limit, method)
            error = self.builder.loss(other[2])
            if error < loss and self._keeps(other[1]):
                best, loss = other, error
        return best

    def _close(self, limit: float, mixed: Mapping[str, Candidate]) -> Iterator[str]:
        """The methods that alone are predicted to do nearly as well as the mix."""
        least = self.curves.snr(mixed) - CLOSE
        for method in self.curves.methods:
            with suppress(BudgetError):
                chosen = self.curves.at(limit, method)
                if chosen != mixed and self.curves.snr(chosen) >= least:
                    yield method

    def _keeps(self, model: Model) -> bool:
        """Whether the file is as small, and the answers as good, as was asked."""
        small = model.nbytes <= self._goal
        return small and (not self.target.faithful or self._holds(model))

    @property
    def _goal(self) -> float:
        """Bytes of the file, at most."""
        return inf if self.target.ratio is None else self.original.nbytes / self.target.ratio

    def _sized(self, limit: float, method: str | None = None) -> _Built:
        """The model within the limit, or with less where its file is larger than was foreseen.

        The size was found without data: scales that float16 does not hold take twice as much.
        """
        chosen = self.curves.at(limit, method)
        result, fitted = self._build(chosen)
        for _ in range(SIZE_TRIALS):
            excess = result.nbytes - self._goal
            if excess <= 0:
                break
            try:
                chosen = self.curves.at(self.curves.spent(chosen) - excess - SPARE, method)
            except BudgetError:
                break
            result, fitted = self._build(chosen)
        return chosen, result, fitted

    def _finished(self, limit: float, method: str | None = None) -> tuple[Model, Report]:
        (chosen, result, fitted), hurting = self._compressed(limit, method)
        predicted = self._predicted(chosen)
        if predicted is not None and predicted < NOISE:
            self.warnings.append(
                f"the output SNR was predicted to be {predicted:.1f} dB: that is noise "
                "unless the corrections or a distillation recover it"
            )
        skips = {name: self._skip(name) for name in hurting}
        self.warnings += [
            f"{self._together(name)} alone causes {share:.0%} of the output's error; "
            f"{skips[name]} leaves it as it is"
            for name, share in hurting.items()
        ]
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
            predicted=predicted,
            trade_off=self.curves.trade_off(chosen),
            hurting=hurting,
            skips=skips,
            failures=tuple(failed),
            curves={} if not self.target.faithful else self.curves.points(),
            warnings=(*self.warnings, *noted),
        )
        return result, report

    def _refined(self, refinement: Refine, model: Model) -> tuple[Model, Refinement]:
        """The model trained, and what it was before."""
        before, metric = self.validation.fidelity(model), self.validation.metric_of(model)
        assert self.samples is not None
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
        whole, found = self.builder.loss(fitted), {}
        for name in self.job.track(suspects, "looking for layers that hurt", len(suspects)):
            readers = self.job.readers(name)
            others = {key: f for key, f in fitted.items() if key not in readers}
            share = 1 - self.builder.loss(others) / max(whole, 1e-30)
            if share > HURTS:
                found[name] = share
        return found

    def _without(self, hurting: Mapping[str, float], built: _Built) -> _Built | None:
        """The same with the layer that hurts most as it was, if that is better at the same cost."""
        worst = max(hurting, key=lambda name: hurting[name])
        limit, options = self.curves.spent(built[0]), self.curves.options[worst]
        work = self.curves.work
        self.curves.options[worst] = [o for o in options if o.candidate.setting is None]
        try:
            if self.target.sized:
                limit = size_limit(self.job, self.curves, self.target, self.metadata)
            other = self._sized(limit)
        except BudgetError:
            return None
        finally:
            self.curves.options[worst], self.curves.work = options, work
        better = self.builder.loss(other[2]) < self.builder.loss(built[2])
        if not better or (self.target.faithful and not self._holds(other[1])):
            return None
        caused = f"it caused {hurting[worst]:.0%} of the output's error"
        reason = f"{caused}; {self._skip(worst)} leaves it out from the start"
        self.skipped |= dict.fromkeys(self.job.readers(worst), reason)
        return other

    def _together(self, leader: str) -> str:
        """A layer, or the weight that it shares with others."""
        readers = self.job.readers(leader)
        return leader if len(readers) == 1 else f"the weight of {', '.join(readers)}"

    def _skip(self, leader: str) -> str:
        """The options that leave a weight as it is: with one layer left out, others change it."""
        return " ".join(f"--skip {quote(name)}" for name in self.job.readers(leader))

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
