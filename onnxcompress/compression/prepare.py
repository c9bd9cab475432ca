"""The first step: which layers there are, on which samples, and what target can be judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from onnxcompress.compression.job import Job, Methods, Settings, any_sampled, random_inputs
from onnxcompress.compression.measure.at_once import largest_input
from onnxcompress.compression.measure.batch_axis import fit_batches
from onnxcompress.compression.measure.no_data import find_stand_ins
from onnxcompress.compression.measure.open_axes import shapes_that_run
from onnxcompress.compression.measure.reads import having, with_reads
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.measure.unfit import blaming
from onnxcompress.compression.search.plan_int8 import PIECES, plan_int8, smoothed
from onnxcompress.compression.simplify import without_ballast
from onnxcompress.compression.target import Target
from onnxcompress.compression.validate.layerwise import Layerwise
from onnxcompress.compression.validate.states import states_of
from onnxcompress.compression.validate.validation import Validation
from onnxcompress.core.errors import BudgetError, DataError, TargetError
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Method
from onnxcompress.core.parallel import elsewhere
from onnxcompress.core.progress import INT8, SAMPLED, Foreseen, doing
from onnxcompress.data.convert import as_samples
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.quality import check_samples
from onnxcompress.data.samples import Samples
from onnxcompress.data.stand_ins import StandIns
from onnxcompress.execution.runnable import runnable, unknown_operators
from onnxcompress.execution.session import Session
from onnxcompress.graph import (
    Model,
    find_constants,
    find_layers,
    fold_affine,
    fold_pads,
    inline_functions,
)
from onnxcompress.report.report import Change
from onnxcompress.report.words import MOST_AGREE

# The outputs have so many dB where there are no decisions: the error is 6 % of the signal.
DEFAULT_SNR = 25.0
STAND_IN_RANGES = "ACTIVATION RANGES FROM STAND-INS: give samples=..."
TIMED = 5  # The least time of so many runs says what one takes; the first ones take longer.
PLANNED = 64  # At most so many samples decide which layers compute in int8, which bounds the time.

Offer = Callable[[Layer], list[Method]]


def open_samples(
    model: Model, samples: Any, evaluation: Any
) -> tuple[Samples | None, Samples | None]:
    """Samples of what people have, each looked at once, and labelled ones.

    Raises:
        DataError: they cannot be used.
    """
    inputs, given, labelled = input_specs(model), None, None
    if samples is not None:
        given = fit_batches(model, check_samples(as_samples(samples, inputs)))
    if evaluation is not None:
        labelled = fit_batches(model, as_samples(evaluation, inputs))
        if labelled.read_labels is None:
            raise DataError("evaluation=... needs labels: give them under 'y', or pairs")
    return given, labelled


def prepare(
    model: Model,
    samples: Samples | None,
    evaluation: Samples | None,
    settings: Settings,
) -> Job:
    """The job that the other steps do.

    Raises:
        TargetError: what is needed to judge the target is missing, such as samples.
        BudgetError: the methods need a newer opset.
        ModelError: the model does not run on random inputs, and there are no others.
    """
    if settings.refinement is not None and not _differ(samples):
        raise TargetError("a refinement needs calibration samples that differ: give samples=...")
    if model.large and elsewhere():
        raise TargetError(
            "a model this large is read in parts, on one machine: leave engine=... out"
        )
    unknown = unknown_operators(model)
    if unknown:
        samples = evaluation = None
    elif samples is None and not model.large:
        settings = replace(settings, shapes=shapes_that_run(model, settings.shapes, settings.seed))
    job = _job(model, samples, evaluation, settings, unknown)
    target = _target(job, unknown, evaluation is not None)
    job = replace(job, target=target, warnings=tuple(_warnings(job, unknown)))
    _foresee_training(job)
    if job.fit is None:
        for step in SAMPLED:  # So it is not waited for.
            list(settings.track((), step, 0))
    if settings.compute != "int8" or unknown:
        return job
    blamed = blaming(model, job.samples or job.random, real=job.samples is not None)
    with blamed, doing(settings.track, INT8, [1.0] * PIECES) as piece:
        return _planned(job, piece)


def _foresee_training(job: Job) -> None:
    """Tell how long a refinement will take if it knows its work: no other step says that."""
    refinement, fit = job.settings.refinement, job.fit
    work = getattr(getattr(refinement, "func", None), "work", None)
    if refinement is None or work is None or fit is None:
        return
    runs = work(job.samples, **getattr(refinement, "keywords", {}))
    if runs is None:
        return
    batch, times = next(fit.batches()), list[float]()
    session = Session(job.runnable, threads=job.settings.jobs)
    for _ in range(TIMED):
        begun = time.perf_counter()
        session.run(batch)
        times.append(time.perf_counter() - begun)
    spent = min(times) / len(next(iter(batch.values())))
    list(job.settings.track(Foreseen(runs * spent), "training", 0))


def _job(
    model: Model,
    samples: Samples | None,
    evaluation: Samples | None,
    settings: Settings,
    unknown: Sequence[str],
) -> Job:
    """The layers, the samples to fit with and to judge by, and all that is known of both."""
    offer = usable(settings.methods, model.opset)
    changed, changes = model, list[Change]()
    if not unknown:
        proof = random_inputs(model, settings) if samples is None else samples.split()[0]
        with blaming(model, proof, real=samples is not None):
            changed, changes = without_ballast(model, settings.strip, settings.simplifies, proof)
    if settings.compute == "int8":
        changed = fold_pads(fold_affine(changed))
    opened, layers, skipped = _find_layers(changed, offer, settings.only)
    leaders = {name: layer for name, layer in layers.items() if layer.shared == name}
    lacking = not _differ(samples) and not unknown and not model.large and layers
    instead = find_stand_ins(model, settings.seed, settings.shapes) if lacking else None
    fit, held_out = _parts(samples, instead, model, settings)
    run, shapes, macs = runnable(opened), dict[str, tuple[int, ...]](), dict[str, int]()
    if not unknown:
        first = (None if settings.shapes else samples or fit) or random_inputs(model, settings)
        with blaming(model, first, real=first is samples):
            shapes, macs = input_shapes(run, next(first.batches(1)))
    largest = largest_input(shapes.values())
    if fit is not None and instead is None and any_sampled(offer, layers.values()):
        layers = with_reads(run, layers, fit)
    return Job(
        settings=replace(settings, methods=offer),
        original=model,
        model=opened,
        runnable=run,
        layers=layers,
        skipped=skipped,
        shapes=shapes,
        macs=macs,
        pinned=frozenset(n for n, layer in leaders.items() if all(m.fixed for m in offer(layer))),
        samples=samples,
        fit=fit,
        held_out=held_out,
        stand_ins=instead,
        validation=Layerwise(model, settings.seed)
        if unknown
        else _validation(model, samples, held_out, evaluation, settings, largest, instead),
        target=Target(),
        changes=changes,
    )


def _planned(job: Job, piece: Callable[[], object]) -> Job:
    """The job with the layers chosen that compute in int8; ``piece`` as `plan_int8` takes it."""
    static = job.telling
    samples = (job.fit if static else job.samples) or job.random
    batches = list(islice(samples.batches(1), PLANNED))
    least = job.target.min_snr if job.samples is not None else None
    smooth = job
    if static and not job.model.large:
        smooth = _on(job, smoothed(job.model, job.layers, batches, static))
    jobs = job.settings.jobs
    plan = plan_int8(job.original, smooth.model, smooth.layers, batches, jobs, static, least, piece)
    if any(kind.kind == "dynamic" for kind in plan.arithmetic.values()):
        job = smooth
    elif smooth is not job:
        plan = plan_int8(job.original, job.model, job.layers, batches, jobs, static)
    said = [*job.warnings, STAND_IN_RANGES] if job.stand_ins and plan.ranges else job.warnings
    return replace(job, int8=plan, warnings=tuple(said))


def _on(job: Job, model: Model) -> Job:
    """The same job with another model that has the same layers."""
    if model is job.model:
        return job
    offer = job.settings.methods
    assert callable(offer)
    found, _ = find_compressible(model, offer, job.layers.__contains__)
    layers = {n: having(x, job.layers[n].attributes.get("reads")) for n, x in found.items()}
    return replace(job, model=model, runnable=runnable(model), layers=layers)


def _parts(
    samples: Samples | None, instead: StandIns | None, model: Model, settings: Settings
) -> tuple[Samples | None, Samples | None]:
    """Samples to fit with and to validate with, or what stands in for them.

    What a model with a state makes of a run shows only in samples that follow one another.  A fit
    to one sample would follow it: that serves for validation alone.
    """
    states = {} if samples is None else states_of(model, settings.states)
    if samples is not None and not states:
        samples = samples.unrepeated()
    if samples is None or not _differ(samples):
        fit, held_out = (None, None) if instead is None else (instead.fit, instead.held_out)
        return fit, samples or held_out
    fit, held_out = samples.split(sequence=bool(states))
    if states and fit is not held_out:
        said = f"its state is fed back: the last {len(held_out)} samples, in order, are held out"
        held_out = replace(held_out, notes=(*held_out.notes, said))
    return fit, held_out


def _differ(samples: Samples | None) -> bool:
    """Whether there are samples to fit to."""
    return samples is not None and samples.distinct > 1


def usable(methods: Methods, opset: int) -> Offer:
    """Says for each layer which of the methods a model of this opset can hold.

    Raises:
        BudgetError: all of them need a newer opset (when it is called).
    """

    def offered(layer: Layer) -> list[Method]:
        own = methods(layer) if callable(methods) else methods
        fitting = [method for method in own if method.opset <= opset]
        if own and not fitting:
            needed = min(own, key=lambda method: method.opset)
            raise BudgetError(
                f"{needed.name} needs opset {needed.opset}, and the model has {opset}"
            )
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
    led = {n: layer if layer.shared in layers else replace(layer, shared=n)
           for n, layer in layers.items()}  # fmt: skip
    return led, skipped


def _find_layers(
    model: Model, offer: Offer, only: Callable[[str], bool] | None
) -> tuple[Model, dict[str, Layer], dict[str, str]]:
    """The layers, local functions written out if that shows more of them."""
    layers, skipped = find_compressible(model, offer, only)
    opened = inline_functions(model)
    if opened is not model:
        more, reasons = find_compressible(opened, offer, only)
        if len(more) > len(layers):
            return opened, more, reasons
    return model, layers, skipped


def _validation(
    model: Model,
    samples: Samples | None,
    held_out: Samples | None,
    evaluation: Samples | None,
    settings: Settings,
    largest: int,
    instead: StandIns | None,
) -> Validation:
    """What compares models with the original; ``largest`` as it takes it.

    Signals that were made up tell filters from one another, but a silence in them is as if all
    were wrong: noise is fairer.
    """
    pictures = instead is not None and instead.pictures
    compared = held_out if samples is not None or pictures else None
    return Validation(
        model,
        compared or random_inputs(model, settings),
        real=samples is not None,
        pictures=pictures,
        evaluation=evaluation,
        metric=settings.metric,
        classes=settings.classes,
        states=settings.states,
        providers=settings.providers,
        largest=largest,
        jobs=settings.jobs,
        track=settings.track,
    )


def _warnings(job: Job, unknown: Sequence[str]) -> Iterator[str]:
    """What the user should know before the work begins."""
    if unknown:
        yield (
            f"onnxruntime does not know {', '.join(unknown)}: the fits use the weights "
            "alone, and no output was compared; extensions=... takes a library"
        )
    parts = (part for part in (job.fit, job.held_out) if part is not None)
    yield from dict.fromkeys(note for part in parts for note in part.notes)
    alone = job.samples is not None and not _differ(job.samples)
    missing = "no two samples differ, so the fits use none" if alone else "no samples were given"
    if job.stand_ins:
        yield f"{missing}: in their place are {job.stand_ins.words}"
    elif alone:
        yield f"{missing} but the weights alone"
    if job.original.large and job.fit is not None and not job.all_pinned:
        yield "the model is too large to measure how much each layer matters: all count alike"


def _target(job: Job, unknown: Sequence[str], evaluated: bool) -> Target:
    """What to reach.

    Raises:
        TargetError: it cannot be judged.
    """
    target, refined = job.settings.target, job.settings.refinement is not None
    if target is None and job.all_pinned:
        target = Target()
    if unknown and (target is None or target.faithful or target.faster or refined):
        names = ", ".join(unknown)
        raise TargetError(
            f"onnxruntime does not know {names}, so only Target(ratio=...) can be asked"
        )
    if target is None:
        target = _default_target(job)
    if job.model.large and (target.latency or refined):
        raise TargetError(
            "the model is too large to be loaded as a whole, which Target(latency=...) and "
            "refinement=... need"
        )
    named = job.settings.target or Target()
    if (named.min_snr, named.min_agreement) != (None, None) and job.samples is None:
        raise TargetError("a fidelity target needs calibration samples: give samples=...")
    if target.min_agreement is not None and not job.validation.decides:
        raise TargetError(
            "the model has no class scores or ids to agree on: use Target(min_snr=...)"
        )
    if target.max_drop is not None and not evaluated:
        raise TargetError("Target(max_drop=...) needs labelled samples: give evaluation=...")
    return target


def _default_target(job: Job) -> Target:
    """As small as keeps nearly all decisions, or outputs that are close.

    Decisions on random inputs, or on one, say little.
    """
    if job.telling and len(job.held_out or ()) > 1 and job.validation.decides:
        return Target(min_agreement=MOST_AGREE)
    return Target(min_snr=DEFAULT_SNR)
