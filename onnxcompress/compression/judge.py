"""Judge the result: is it as good as was asked, and what has become of every layer?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from onnxcompress.compression.build.best import Compressed
from onnxcompress.compression.job import OURS, Job
from onnxcompress.compression.search.trade_off import Curves
from onnxcompress.compression.validate.layerwise import Layerwise
from onnxcompress.compression.validate.verdict import failures, warnings
from onnxcompress.core.errors import ModelError
from onnxcompress.core.progress import doing
from onnxcompress.execution.runnable import verify
from onnxcompress.graph import Model, annotate, check, emptied_inputs
from onnxcompress.report.report import Comparison, Refinement, Report, Row

WORTHWHILE = 0.05  # A fidelity target that saves a smaller share is not worth a changed model.
# Users are warned below so many dB of predicted SNR: there the error has half the signal's energy.
NOISE = 3.0
# Metadata under this key says why a result is worse, where it was written all the same.
FORCED = f"{OURS}forced"
TOO_MUCH_ERROR = "not compressed: too much error for the bytes it would save"
UNDONE = (
    "weights are decoded when the model is loaded; tools that fold constants would write them "
    "out in full again, but for onnxslim --skip-optimizations constant_folding, onnxsim "
    "--skip-constant-folding and quant_pre_process(skip_optimization=True)"
)


def judge(job: Job, curves: Curves, compressed: Compressed) -> tuple[Model, Report]:
    """Refine the model if that was asked, compare it with the original, and report.

    One that is worse says so in its metadata, wherever it goes.
    """
    built, result = compressed.built, compressed.built.model
    predicted = curves.snr(built.chosen) if job.has_choice else None
    skipped = {**job.skipped, **_without_candidates(job, curves), **built.failed}
    skipped |= compressed.left_out
    rows = tuple(_in_their_arithmetic(job, _rows(job, compressed, skipped)))
    macs = sum(job.macs.values())
    saved = sum(row.macs[0] - row.macs[1] for row in rows)
    comparison = refined = None
    noted = list[str]()
    try:
        if isinstance(job.validation, Layerwise):
            check(result, "the result")
        else:
            verify(result)
        if job.settings.refinement is not None:
            result, refined = _refine(job, result)
        comparison = job.validation.compare(result, (macs, macs - saved))
    except ModelError as error:
        failed = [f"the result is no valid model: {error}"]
    else:
        failed = [*failures(comparison, job.target), *_too_little(job, curves, comparison)]
        failed += _slower(job, comparison)
        noted += warnings(comparison)
    noted += _notes(job, compressed, result)
    report = Report(
        target=str(job.target),
        rows=rows,
        skipped=skipped,
        changes=tuple(job.changes),
        comparison=comparison,
        refined=refined,
        predicted=predicted,
        trade_off=curves.trade_off(built.chosen),
        hurting=compressed.hurting,
        skips={name: job.skip_hint(name) for name in compressed.hurting},
        failures=tuple(failed),
        curves={} if not job.target.faithful else curves.points(),
        warnings=(*job.warnings, *_doubts(job, compressed, predicted), *noted),
    )
    if report.worse:
        result = annotate(result, {FORCED: "; ".join(report.failures)})
    return result, report


def _without_candidates(job: Job, curves: Curves) -> dict[str, str]:
    names = job.leaders.keys() - curves.options.keys()
    return dict.fromkeys(names, "no setting makes it smaller")


def _refine(job: Job, model: Model) -> tuple[Model, Refinement]:
    """The model trained, and what it was before."""
    assert job.samples is not None and job.settings.refinement is not None
    with doing(job.settings.track, "comparing outputs before the refinement"):
        before, metric = job.validation.fidelity(model), job.validation.metric_of(model)
    result, epochs = job.settings.refinement(
        model, job.model, job.samples, track=job.settings.track
    )
    return result, Refinement(tuple(epochs), before.snr, before.agreement, metric)


def _unseen(job: Job, compressed: Compressed) -> Iterator[str]:
    """Tables of places whose last rows have few bits: longer inputs than the samples need them."""
    for name, candidate in compressed.built.chosen.items():
        known, setting = job.layers[name].attributes, candidate.setting
        if setting is not None and setting.sampled and "ends" in known:
            reached = np.count_nonzero(known["reads"])
            yield (
                f"{name} has few bits for the places after the first {reached}, which no sample "
                f"reaches; for longer inputs give some as long, or {job.skip_hint(name)}"
            )


def _doubts(job: Job, compressed: Compressed, predicted: float | None) -> Iterator[str]:
    """What was known to be bad before the result was compared."""
    if predicted is not None and predicted < NOISE:
        yield (
            f"the output SNR was predicted to be {predicted:.1f} dB: that is noise "
            "unless the corrections or a distillation recover it"
        )
    yield from _unseen(job, compressed)
    for name, share in compressed.hurting.items():
        readers = job.readers(name)
        which = name if len(readers) == 1 else f"the weight of {', '.join(readers)}"
        yield (
            f"{which} alone causes {share:.0%} of the output's error; "
            f"{job.skip_hint(name)} leaves it as it is"
        )


def _notes(job: Job, compressed: Compressed, result: Model) -> Iterator[str]:
    """What the user of the file should know."""
    if any(len(f.weight.factors) == 1 for f in compressed.built.fitted.values()):
        yield UNDONE
    if emptied := emptied_inputs(job.original, result):
        some = ", ".join(emptied[:3]) + ", ..." * (len(emptied) > 3)
        yield f"inputs that give weights ({some}) are still there, but nothing reads them"


def _slower(job: Job, comparison: Comparison) -> Iterator[str]:
    """A model that was to be faster in int8, and is slower."""
    spent = comparison.latency
    if job.int8 is None or not job.int8.layers or job.target.faster:
        return
    if spent and spent.verdict == "slower":
        yield f"it is slower: {spent.ratio:.2f} of the original's time"


def _in_their_arithmetic(job: Job, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows with what their layers compute in, and why where that is float."""
    plan = job.int8
    for row in rows:
        chosen = None if plan is None else plan.arithmetic.get(row.layer)
        if chosen is None:
            yield row
            continue
        notes = [note for note in (row.note, chosen.reason) if note]
        yield replace(row, arithmetic=str(chosen), note="; ".join(notes))


def _too_little(job: Job, curves: Curves, comparison: Comparison) -> Iterable[str]:
    """A fidelity target that allows next to nothing is a miss: the layers' curves say why."""
    before, after = comparison.before, comparison.after
    if not job.target.faithful or job.target.sized or after.nbytes > before.nbytes:
        return
    saved, what = 1 - after.nbytes / before.nbytes, "of the file"
    if curves.cost != "bytes" and before.macs and after.macs is not None:
        saved, what = 1 - after.macs / before.macs, "of the multiplications"
    if saved < WORTHWHILE:
        yield f"at that fidelity only {saved:.1%} {what} can be saved, which is not worth it"


def _rows(job: Job, compressed: Compressed, skipped: dict[str, str]) -> Iterator[Row]:
    """What has become of every layer."""
    built = compressed.built
    for name, layer in job.layers.items():
        candidate = built.chosen.get(layer.shared)
        macs = job.macs.get(name, 0)
        before = layer.nbytes if layer.shared == name else 0
        kept = Row(
            name, layer.op_type, layer.weight.shape, "", (before, before), (macs, macs),
            note=skipped.get(name) or TOO_MUCH_ERROR,
        )  # fmt: skip
        if candidate is None or candidate.setting is None or name not in built.fitted:
            yield kept
            continue
        shape, fitted = job.shapes.get(name), built.fitted[name]
        after = fitted.weight.nbytes if layer.shared == name else 0
        cost = layer.macs(shape, *candidate.factors) if shape else 0
        yield Row(
            name, layer.op_type, layer.weight.shape, str(candidate.setting), (before, after),
            (macs, cost), candidate.error or fitted.error, fitted.snr,
            "" if layer.shared == name else f"shares the weight of {layer.shared}",
        )  # fmt: skip
