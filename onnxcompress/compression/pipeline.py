"""The whole way from a model to a smaller one; every step is public and usable alone.

prepare      which layers there are, on which samples, and what target can be judged
measure      find layers, calibrate, fit every candidate, measure sensitivities
search       one price for the whole model; a fidelity target bisects it with real models
build        fit again in network order, and leave out the layer that hurts
judge        refine, compare with the original, report
deliver      write the result, unless it is worse
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache as remember
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from onnxcompress.compression.auto import arithmetic, auto
from onnxcompress.compression.build.best import build
from onnxcompress.compression.build.builder import Builder
from onnxcompress.compression.choose_layers import Only, Patterns, choose_layers
from onnxcompress.compression.deliver import deliver
from onnxcompress.compression.job import Job, Refine, Settings
from onnxcompress.compression.judge import judge
from onnxcompress.compression.method_spec import Spelled, as_methods
from onnxcompress.compression.prepare import open_samples, prepare
from onnxcompress.compression.provenance import recorded, source_digest
from onnxcompress.compression.search.bisect import search
from onnxcompress.compression.search.candidates import Measured, measure
from onnxcompress.compression.search.size_limit import check_ratio, reachable
from onnxcompress.compression.search.trade_off import Curves, price, units_of
from onnxcompress.compression.target import Target
from onnxcompress.core.errors import ArgumentError, BudgetError, TargetError
from onnxcompress.core.method import Method
from onnxcompress.core.parallel import cores
from onnxcompress.core.progress import Track, untracked
from onnxcompress.core.scratch import check_place
from onnxcompress.graph import Model
from onnxcompress.graph.load import as_model
from onnxcompress.report.report import Point, Report


def compress(
    model: Any,
    *,
    methods: Spelled | None = None,
    target: Target | None = None,
    samples: Any = None,
    evaluation: Any = None,
    metric: str = "top1",
    classes: Mapping[str, int | None] | None = None,
    states: Mapping[str, str] | None = None,
    only: Only | None = None,
    skip: Patterns = (),
    correct: bool = True,
    shapes: Mapping[str, Sequence[int]] | None = None,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    jobs: int | None = None,
    engine: str = "local",
    providers: str | Sequence[str] = ("CPUExecutionProvider",),
    progress: bool | Track[Any] = True,
    cache: str | PathLike[str] | None = None,
    refinement: Refine | None = None,
    strip: bool = False,
    simplify: bool | None = None,
    compute: str = "float",
    output: str | PathLike[str] | None = None,
    force: bool = False,
) -> tuple[Model, Report]:
    """Replace layers by smaller subgraphs until the target is met.

    Args:
        model: a path, a ModelProto, its bytes, or a Model.
        methods: what to choose from, as objects or spellings such as ``"integer:bits=4"``, for all
            layers or by a function of the layer; one for which nothing helps keeps its weight.
            None for those that `auto` finds worth trying for the target.
        target: None means what settings that are fixed give, else 98 % agreement where the
            model decides something (classes, classes at positions, whole numbers), 25 dB where
            it does not.  A result with less than 90 % agreement, or 10 dB, is worse in any case
            unless the target has a fidelity of its own.
        samples: unlabelled inputs: an array, arrays by input name, what yields batches of these
            (a list, a generator, a torch DataLoader), or Samples.  Without any, photographs that
            ship with the package stand in where the model reads pictures, else the fits use the
            weights alone.
        evaluation: labelled inputs for the metric, as ``samples``: arrays by input name with the
            labels under ``y``, a DataLoader of pairs, or Samples.
        classes: output name -> axis of the class scores that it holds, or None for the usual one;
            no other output decides anything then.  None to find out by graph and values.
        states: output name -> input that it is fed back into, from one sample to the next.  None
            to find out by names and shapes.
        only: which layers may be changed: patterns such as ``["head/*"]``, or a function of the
            name.  None for all.
        skip: patterns of layers that stay as they are.
        correct: fit again in network order and match the statistics of each layer's outputs.
        shapes: input name -> shape, for inputs whose dimensions the model leaves open.
        metadata: entries for the result's metadata_props; they count in its size.  The result has
            those of the command line besides, which say how it was made.
        seed: of the random inputs that stand in where there are no samples.
        jobs: threads, and processes that fit layers; None for all cores.
        engine: what calibrates and fits layers: local, or ``dask://HOST:PORT`` of a cluster.
        progress: show how far it is, and about how long it still takes: a bar in a terminal or a
            notebook, else a line of Python's logging (``onnxcompress``, level INFO) every few
            seconds.  A function, as `core.progress.Track`, gets told instead.
        cache: a folder that keeps what the candidates gave, for another target.
        refinement: trains the compressed model, given that, the original and all samples, and
            ``track`` by name: `refine.refine` with its settings.  The report is about what it
            returns.
        strip: drop what no runtime reads first: notes of the exporter, types that can be inferred.
        simplify: apply lossless passes first, see `onnxcompress.simplify`; None where the target
            is one of time.
        compute: what layers compute in: ``float``, as they did; ``int8``, those that are measured
            to be faster in it; ``auto``, int8 where ``latency`` is asked for.
        output: the file to write, as the command line writes it: whole or not at all.
        force: write a result that is worse, marked as such in its metadata; allow ``output`` to be
            the file of the model.

    Returns:
        The compressed model, and the report.  Without ``output`` it is for the caller to look at
        ``report.worse`` before using the model.

    Raises:
        CompressionError: the result is worse, and was not written to ``output``; its ``report``
            says why.
        BudgetError: the target is out of reach; the message names what can be attained.
        TargetError: what is needed to judge the target is missing, such as samples.
        WorkerError: a process or a cluster that was to do some of the work did not.
        OutputError: ``output`` could not be written; found out before the work.
    """
    original, compute = as_model(model), arithmetic(compute, target)
    _check_output(output, model, original, force)
    settings = Settings(
        auto(target, compute) if methods is None else as_methods(methods, target),
        target, metric, choose_layers(original, only, skip), correct, shapes or {}, metadata or {},
        seed, jobs or cores(), engine, providers, untracked, _folder(cache), refinement, classes,
        states, strip, simplify, compute,
    ).checked()  # fmt: skip
    begun = time.perf_counter()
    with settings.workers(), settings.progress(progress) as settings:
        given, labelled = open_samples(reachable(original, settings, samples), samples, evaluation)
        settings = recorded(settings, partial(source_digest, model, original), given, labelled)
        job = check_ratio(prepare(original, given, labelled, settings))
        measured = measure(job)
        curves = price(job, measured, units_of(job, measured.candidates))
        builder = Builder(job, measured.observed)
        result, report = judge(job, curves, build(builder, curves, search(builder, curves)))
    report = replace(report, seconds=time.perf_counter() - begun)
    if output is not None:
        deliver(result, report, Path(output), force)
    return result, report


def _folder(cache: Any) -> Path | None:
    if not isinstance(cache, str | PathLike | None):
        raise ArgumentError(f"cache must be a folder, not {type(cache).__name__}")
    return None if cache is None else Path(cache)


def _check_output(output: Any, model: Any, read: Model, force: bool) -> None:
    """Find out before the work whether the result could be written; no file of the model is."""
    if output is not None:
        named = {Path(model)} if isinstance(model, str | PathLike) else set[Path]()
        check_place(Path(output), {*named, *read.data_files}, force)


def trade_off(
    model: Any,
    targets: Sequence[Target],
    *,
    methods: Spelled | None = None,
    samples: Any = None,
    evaluation: Any = None,
    metric: str = "top1",
    classes: Mapping[str, int | None] | None = None,
    states: Mapping[str, str] | None = None,
    only: Only | None = None,
    skip: Patterns = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    metadata: Callable[[Target], Mapping[str, str]] = lambda target: {},
    seed: int = 0,
    jobs: int | None = None,
    engine: str = "local",
    providers: str | Sequence[str] = ("CPUExecutionProvider",),
    progress: bool | Track[Any] = True,
    cache: str | PathLike[str] | None = None,
) -> Iterator[Point]:
    """What `compress` would give for each of these size targets, from one fit of all candidates.

    A point says why `compress` would refuse it; of a target out of reach that is all it says.  The
    other arguments are those of `compress`.

    Args:
        metadata: for each target entries of the file's metadata that count in its size, besides
            those that say how it was made.

    Raises:
        TargetError: no methods are given, and `auto` has not the same for all of these targets.
    """
    original = as_model(model)
    settings = Settings(
        _common_auto(targets) if methods is None else as_methods(methods, targets[0]),
        targets[0], metric, choose_layers(original, only, skip), True, shapes or {}, {}, seed,
        jobs or cores(), engine, providers, untracked, _folder(cache), None, classes, states,
    ).checked()  # fmt: skip
    with settings.workers(), settings.progress(progress, len(targets)) as settings:
        given, labelled = open_samples(original, samples, evaluation)
        source = remember(partial(source_digest, model, original))
        aims = [replace(settings, target=aim, metadata=metadata(aim)) for aim in targets]
        asked = [recorded(aim, source, given, labelled) for aim in aims]
        first = prepare(original, given, labelled, asked[0])
        measured = measure(first, targets)
        priced = remember(partial(price, first, measured))
        for job in map(first.towards, asked):
            yield _point(job, measured, priced(units_of(job, measured.candidates)))


def _point(job: Job, measured: Measured, curves: Curves) -> Point:
    """What is reached, or what speaks against it."""
    try:
        builder = Builder(check_ratio(job), measured.observed)
        compressed = build(builder, curves, search(builder, curves))
        return judge(job, curves, compressed)[1].point
    except BudgetError as error:
        return Point(str(job.target), failures=(str(error),))


def _common_auto(targets: Sequence[Target]) -> list[Method]:
    """The methods that `auto` has for all of these targets."""
    methods = auto(targets[0])
    if any(auto(target) != methods for target in targets):
        raise TargetError("sizes and multiplications need methods of their own: give methods")
    return methods
