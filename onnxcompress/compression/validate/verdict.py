"""Is a result worse than the original, or less than what was asked for?  In sentences."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from onnxcompress.compression.target import Target
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.report.report import Comparison
from onnxcompress.report.words import ALIKE, agreed, megabytes

# Where nothing else is asked for, this share of classes, positions or ids has to stay: a model that
# decides one case in ten another way no longer does the job that it was trained for.
FLOOR_AGREEMENT = 0.9

# Outputs that decide nothing need so many dB: there the error is a third of the signal.
FLOOR_SNR = 10.0


def failures(comparison: Comparison, target: Target) -> Iterator[str]:
    """Why a result is worse than the original, or misses what was asked."""
    before, after = comparison.before, comparison.after
    if not comparison.finite:
        yield "its outputs hold NaN or infinities where the original's do not"
    if after.nbytes > before.nbytes:
        yield f"the file grew from {before.nbytes:,} to {after.nbytes:,} bytes"
    if target.ratio is not None and comparison.ratio < target.ratio:
        yield f"the file is {comparison.ratio:.3f} times smaller instead of {target.ratio:g}"
    if target.macs is not None and before.macs and after.macs is not None:
        share = after.macs / before.macs
        if share > target.macs * (1 + 1e-9):
            yield f"{share:.4f} of the multiplications are left instead of {target.macs:g}"
    spent = comparison.latency
    if spent and target.latency is not None and spent.low > target.latency:
        yield f"it takes {spent.ratio:.2f} of the time instead of {target.latency:g}"
    slower = spent is not None and spent.verdict == "slower"
    if slower and spent and target.faster and target.macs != 1:
        yield f"it is slower: {spent.ratio:.2f} of the original's time"
    drop = None
    if before.metric is not None and after.metric is not None:
        drop = before.metric - after.metric
    yield from _missed(target, comparison, drop)
    if not target.faithful:
        yield from _under_the_floor(comparison)


def reaches(fidelity: Fidelity, drop: float | None, target: Target) -> bool:
    """Whether outputs so far from the original's are as near as the target asks for.

    Args:
        drop: loss of the metric; None without labels.
    """
    return fidelity.finite and not any(_missed(target, fidelity, drop))


def _missed(target: Target, reached: Fidelity | Comparison, drop: float | None) -> Iterator[str]:
    """The fidelity that was asked for and is not there, or cannot be judged."""
    snr, agreement = reached.worst_snr, reached.agreement
    compares = target.min_snr is not None or target.min_agreement is not None
    if compares and not reached.compared:
        yield "no output could be compared, so how near they are cannot be promised"
        return
    if target.min_snr is not None and snr is None:
        yield "no output holds numbers whose SNR could be told: ask for Target(min_agreement=...)"
    elif target.min_snr is not None and snr is not None and snr < target.min_snr:
        yield f"the output SNR is {snr:.2f} dB instead of {target.min_snr:g}"
    if target.min_agreement is not None and agreement is None:
        yield "no output decides anything that could agree: ask for Target(min_snr=...)"
    elif target.min_agreement and agreement is not None and agreement < target.min_agreement:
        yield f"{_share(reached)} instead of {target.min_agreement:.4g}"
    if drop is not None and not isfinite(drop):
        yield "its metric is not finite, and the original's is"
    elif target.max_drop is not None and drop is not None and drop > target.max_drop:
        yield f"the metric fell by {drop:.3f} instead of at most {target.max_drop:g}"


def _share(reached: Fidelity | Comparison) -> str:
    """The share of equal decisions, as counts where the samples are known."""
    if isinstance(reached, Comparison) and reached.worst_share is not None:
        return agreed(reached, *reached.worst_share)
    return f"the agreement is {reached.agreement:.4f}"


def _under_the_floor(both: Comparison) -> Iterator[str]:
    """Why a result no longer does the job.

    Decisions say little on random inputs, which lie outside of what the model was trained on, and
    one decision says little: there every output counts by its SNR.
    """
    if not both.compared:
        return
    worst, snr = both.worst_share, both.worst_snr
    if worst is not None and worst[1].total > 1 and (both.real or both.pictures):
        name, share = worst
        if share.value < FLOOR_AGREEMENT:
            accepting = "Target(min_agreement=0)" if both.real else "force=True"
            yield (
                f"it no longer does the job: {agreed(both, name, share)}, less than "
                f"{FLOOR_AGREEMENT:.0%}; {accepting} accepts that"
            )
    elif snr is not None and snr < FLOOR_SNR:
        yield (
            f"it no longer does the job: the output SNR is {snr:.2f} dB, less than "
            f"{FLOOR_SNR:g}; Target(min_snr=...) accepts less, as for sound whose phase may shift"
        )


def warnings(comparison: Comparison) -> Iterator[str]:
    """What is no failure but should be known."""
    if not comparison.samples:
        yield "no output was compared but the layers, each by itself, on random inputs"
    elif not comparison.real and not comparison.pictures:
        yield "no calibration data: the outputs were compared on random inputs, which say little"
    for name, (times, runs) in comparison.resized.items():
        yield (
            f"the output {name} has another number of rows, or another shape, in {times} of "
            f"{runs} runs, which count as if nothing was right in them"
        )
    if comparison.parted:
        yield (
            "the model is too large to be loaded as a whole: it was run in parts, one after the "
            "other, and no latency was measured"
        )
    if comparison.latency and comparison.latency.verdict == "slower":
        yield f"it takes {comparison.latency.ratio:.2f} of the original's time"
    before, after = comparison.before.memory, comparison.after.memory
    if before and after and after > ALIKE * before:
        yield (
            f"loading it takes {after / before:.1f} times the memory at its peak, "
            f"{megabytes(after)} instead of {megabytes(before)}"
        )
