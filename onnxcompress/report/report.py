"""What a compression did, in numbers.  The text tables, the JSON and the page come from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

from onnxcompress.core.errors import PageError, TableError
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
        arithmetic: what it computes in.
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
    arithmetic: str = "float"


@dataclass(frozen=True)
class Change:
    """What one lossless step has done to the model before its layers were compressed.

    Attributes:
        what: in words.
        nodes, nbytes: how many it saved.
    """

    what: str
    nodes: int
    nbytes: int


@dataclass(frozen=True)
class Size:
    """Of one model.

    Attributes:
        nbytes: of the file, external data included.
        weights: bytes of all initializers and Constant nodes.
        macs: multiplications at the shape of the first sample; None where it could not run.
        metric: by labels; None without them.
        memory: bytes that loading the file takes at its peak; None where that was not measured.
        resting: bytes that the loaded model takes afterwards; None where that was not measured.
    """

    nbytes: int
    weights: int
    macs: int | None = None
    metric: float | None = None
    memory: int | None = None
    resting: int | None = None


NINETY_FIVE = NormalDist().inv_cdf(0.975)  # 95 % lie within so many standard deviations.


@dataclass(frozen=True)
class Share:
    """How many decisions of an output are those of the original.

    Attributes:
        kind: "classes" are one a sample, "positions" several, "ids" whole numbers or labels,
            "detections" boxes of objects.
        agreed, total: decisions that are the same, and all.
        draws: how many are independent: those of one sample are not.
    """

    kind: Literal["classes", "positions", "ids", "detections"]
    agreed: int
    total: int
    draws: int

    @property
    def value(self) -> float:
        return self.agreed / max(self.total, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share (Wilson 1927)."""
        n, p, z = max(self.draws, 1), self.value, NINETY_FIVE
        middle, scale = p + z**2 / (2 * n), 1 + z**2 / n
        reach = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)

    def to_dict(self) -> dict[str, Any]:
        """The share as JSON types."""
        return asdict(self) | {"value": self.value, "interval": self.interval}


@dataclass(frozen=True)
class Comparison:
    """Two models side by side.

    Attributes:
        before, after: the sizes of the original and of the result, each with its metric by labels.
        latency: how long both take, measured in turns; None where that was not measured.
        samples: how many the outputs were compared on; 0 where no output could be, and the
            layers were compared one by one.
        real: whether they are the user's own, and not stand-ins.
        snr: output name -> dB.
        agreement: share of equal decisions, of the output with the least; None where nothing is
            decided.
        metric: its name; the values are in before and after.
        finite: whether NaN and infinities are where the original has the same.
        parted: whether the models ran in parts, as they are too large to be loaded.
        shares: output name -> how many decisions are the same.
        resized: output name -> in how many runs its shape was another one, as of a detector that
            finds another number of objects, and how many runs there were.
        pictures: whether the stand-ins are pictures, and not random.
        detections: output name -> boxes of either model that match one of the other.
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
    shares: Mapping[str, Share] = field(default_factory=dict)
    resized: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pictures: bool = False
    detections: Mapping[str, Share] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Bytes of the file before over after: 4 is four times smaller."""
        return self.before.nbytes / self.after.nbytes

    @property
    def worst_snr(self) -> float | None:
        """Of the output that is furthest from the original's, in dB; None without any."""
        return min(self.snr.values(), default=None)

    @property
    def compared(self) -> bool:
        """Whether any output was."""
        return self.samples > 0 and bool(self.snr or self.shares)

    @property
    def worst_share(self) -> tuple[str, Share] | None:
        """The output with the least share of equal decisions; None where nothing is decided."""
        return min(self.shares.items(), key=lambda pair: pair[1].value, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        result: dict[str, Any] = asdict(self) | {"ratio": self.ratio}
        for key in ("shares", "detections"):
            result[key] = {name: share.to_dict() for name, share in getattr(self, key).items()}
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
        agreement: share of equal decisions, as of a Comparison.
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
    def worst_snr(self) -> float | None:
        return min(self.snr.values(), default=None)


@dataclass(frozen=True)
class Point:
    """One point of a trade-off.

    Attributes:
        target: for which `compress` gives exactly this model, in words.
        ratio: file bytes before / after; None, as all that follows, where there is no such model.
        macs: multiplications of the model.
        snr: of the worst output, in dB.
        agreement: share of equal decisions; None where nothing is decided.
        metric: by labels; None without them.
        baseline: the original's metric.
        samples: how many the outputs were compared on; random where ``real`` is false.
        failures: why `compress` would not write it; empty if it would.
        share: of the output with the least share of equal decisions; None where nothing is decided.
        pictures: whether the stand-ins are pictures, and not random.
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
    share: Share | None = None
    pictures: bool = False


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


@dataclass(frozen=True, repr=False)
class Report:
    """What `compress` did; of `compare` and `sweep` the parts that they have.

    ``print(report)`` prints the tables of the command line; a notebook shows the page.

    Attributes:
        target: what was asked for, in words.
        rows: the layers, in network order.
        skipped: layer -> reason that completes "layer X was skipped: ...".
        changes: what `strip` and `simplify` did before.
        comparison: the original against the result; None if there is no result.
        refined: what a refinement did; None where nobody asked for one.
        predicted: output SNR in dB from the errors of single layers, known before the layers
            were fitted together; None without data, or where the settings are fixed.
        trade_off: what the candidates allowed; None without data.
        points: of a sweep.
        hurting: layer -> the share of the outputs' error that it alone causes, where that is much.
        skips: such a layer -> the argument, or on the command line the options, that leave it,
            and all that share its weight, as they are.
        failures: why the result is worse or misses its target; empty if all is well.
        warnings: what the user should know all the same.
        curves: layer -> pairs (share of its cost left, relative error), cheapest first; of a
            fidelity target only.
        seconds: that `compress` took.
        provenance: versions, hashes, configuration and seed, enough to repeat the run.
    """

    target: str = ""
    rows: tuple[Row, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
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
    seconds: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worse(self) -> bool:
        """Whether the result misses its target, or no longer does the original's job."""
        return bool(self.failures)

    def __str__(self) -> str:
        from onnxcompress.report import tables

        return tables.plain(self)

    def __repr__(self) -> str:
        from onnxcompress.report import words

        return f"<Report: {words.reached(self)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from onnxcompress.report import page

        try:
            return page.core(self)
        except PageError:  # jinja2 is an extra.
            return f"<pre>{escape(str(self))}</pre>"

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
            both.worst_share[1] if both.worst_share else None,
            both.pictures,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        result = asdict(self) | {"worse": self.worse}
        if self.comparison:
            result["comparison"] = self.comparison.to_dict()
        return result

    def to_dataframe(self) -> Any:
        """The layers, or the points of a sweep, as a pandas DataFrame with a row for each.

        Raises:
            TableError: pandas is not installed.
        """
        try:
            from pandas import DataFrame  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise TableError("to_dataframe needs pandas: pip install pandas") from None
        return DataFrame([*map(_flat, self.points or self.rows)])


def _flat(record: Row | Point) -> dict[str, Any]:
    """The fields as columns: of a pair the first is before, the second after."""
    values = asdict(record)
    for name in ("nbytes", "macs") if isinstance(record, Row) else ():
        before, after = values.pop(name)
        values |= {f"{name}_before": before, f"{name}_after": after}
    return values
