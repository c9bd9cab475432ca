"""What a compression did, in numbers.  The text tables, the JSON and the page come from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxcompress.execution.latency import Latency


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        shape: of its weight, output first.
        method: the setting as the command line spells it; "" where the layer was kept.
        nbytes, macs: before and after; a weight that several layers share counts once.
        error: predicted relative squared output error, 0 where kept.
        snr: measured in dB on the calibration stream, corrections included, before a refinement;
            None without data.
        note: why it was kept, or what else is to be known.
    """

    layer: str
    op_type: str
    shape: tuple[int, ...]
    method: str
    nbytes: tuple[int, int]
    macs: tuple[int, int]
    error: float = 0.0
    snr: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Size:
    """Of one model.

    Attributes:
        nbytes: of the file, external data included.
        weights: bytes of all initializers and Constant nodes.
        macs: multiplications at the shape of the first sample; None where it could not run.
        metric: by labels; None without them.
        memory: bytes that loading the file takes at its peak; None where that was not measured.
    """

    nbytes: int
    weights: int
    macs: int | None = None
    metric: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Comparison:
    """Two models side by side.

    Attributes:
        samples: how many the outputs were compared on; random where ``real`` is false.
        snr: output name -> dB.
        agreement: share of samples with the same top class; None without class scores.
        metric: its name; the values are in before and after.
        finite: whether the outputs are free of NaN and infinities that the original's have not.
        parted: whether the models ran in parts, as they are too large to be loaded.
    """

    before: Size
    after: Size
    samples: int
    real: bool
    snr: Mapping[str, float]
    agreement: float | None
    metric: str | None
    latency: Latency | None
    finite: bool = True
    parted: bool = False

    @property
    def ratio(self) -> float:
        return self.before.nbytes / self.after.nbytes

    @property
    def worst_snr(self) -> float:
        return min(self.snr.values(), default=200.0)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        result: dict[str, Any] = asdict(self) | {"ratio": self.ratio}
        if self.latency:
            result["latency"]["verdict"] = self.latency.verdict
        return result


@dataclass(frozen=True)
class Epoch:
    """One pass of a refinement over its samples.

    Attributes:
        epoch: 0 for the model as it was given, whose loss is not known.
        loss: on the samples trained with, the mean over the epoch.
        held_out: loss of the model as it would be stored, run by onnxruntime.
    """

    epoch: int
    loss: float
    held_out: float
    seconds: float


@dataclass(frozen=True)
class Refinement:
    """How the compressed model was trained, and what it was before; see Comparison for after.

    Attributes:
        epochs: the training curve; the result is the model of the least held-out loss.
        snr: output name -> dB.
        agreement: share of samples with the same top class; None without class scores.
        metric: by labels; None without them.
    """

    epochs: tuple[Epoch, ...]
    snr: Mapping[str, float]
    agreement: float | None
    metric: float | None

    @property
    def best(self) -> Epoch:
        return min(self.epochs, key=lambda epoch: epoch.held_out)

    @property
    def worst_snr(self) -> float:
        return min(self.snr.values(), default=200.0)


@dataclass(frozen=True)
class Point:
    """One point of a trade-off.

    Attributes:
        target: for which `compress` gives exactly this model, in words.
        ratio: file bytes before / after; None, as all that follows, where there is no such model.
        macs: multiplications of the model.
        snr: of the worst output, in dB.
        agreement: share of samples with the same top class; None without class scores.
        metric: by labels; None without them.
        baseline: the original's metric.
        samples: how many the outputs were compared on; random where ``real`` is false.
        failures: why `compress` would not write it; empty if it would.
    """

    target: str
    ratio: float | None = None
    macs: int | None = None
    snr: float | None = None
    agreement: float | None = None
    metric: float | None = None
    baseline: float | None = None
    samples: int = 0
    real: bool = True
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class TradeOff:
    """What the model could cost, and the SNR of its outputs in dB that single layers predict.

    Attributes:
        cost: its unit: bytes (of the file), macs, or latency (milliseconds of the layers).
        whole: cost of the original.
        points: pairs (cost, SNR), the cheapest first: nothing is predicted to do better.
        chosen: the pair of the settings taken; without what fitting the layers together gains.
        grid: the pair where every layer is stored as 4-bit integers; None if that was not fitted.
    """

    cost: str
    whole: float
    points: tuple[tuple[float, float], ...]
    chosen: tuple[float, float]
    grid: tuple[float, float] | None


@dataclass(frozen=True)
class Report:
    """What `compress` did; of `compare` and `sweep` the parts that they have.

    Attributes:
        target: what was asked for, in words.
        rows: the layers, in network order.
        skipped: layer -> reason that completes "layer X was skipped: ...".
        comparison: the original against the result; None if there is no result.
        refined: what a refinement did; None where nobody asked for one.
        predicted: output SNR in dB from the errors of single layers, known before the layers
            were fitted together; None without data, or where the settings are fixed.
        trade_off: what the candidates allowed; None without data.
        points: of a sweep.
        hurting: layer -> the share of the outputs' error that it alone causes, where that is much.
        skips: such a layer -> options that leave it, and all that share its weight, as they are.
        failures: why the result is worse or misses its target; empty if all is well.
        warnings: what the user should know all the same.
        curves: layer -> pairs (share of its cost left, relative error), cheapest first; of a
            fidelity target only.
        provenance: versions, hashes, configuration and seed, enough to repeat the run.
    """

    target: str = ""
    rows: tuple[Row, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    refined: Refinement | None = None
    predicted: float | None = None
    trade_off: TradeOff | None = None
    points: tuple[Point, ...] = ()
    hurting: Mapping[str, float] = field(default_factory=dict)
    skips: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worse(self) -> bool:
        return bool(self.failures)

    @property
    def point(self) -> Point:
        """What a trade-off shows of it."""
        both = self.comparison
        if both is None:
            return Point(self.target, failures=self.failures)
        return Point(
            self.target,
            both.ratio,
            both.after.macs,
            both.worst_snr,
            both.agreement,
            both.after.metric,
            both.before.metric,
            both.samples,
            both.real,
            self.failures,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        result = asdict(self) | {"worse": self.worse}
        if self.comparison:
            result["comparison"] = self.comparison.to_dict()
        return result
