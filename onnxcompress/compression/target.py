"""What a compression is asked to reach."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from onnxcompress.core.errors import TargetError


def check_target(target: Any) -> None:
    """Refuse what is no target.

    Raises:
        TargetError: it is something else.
    """
    if target is not None and not isinstance(target, Target):
        kind = type(target).__name__
        raise TargetError(f"target must be a Target, such as Target(ratio=4), not {kind}")


def _is_number(value: Any) -> bool:
    try:
        return isfinite(value)
    except TypeError:
        return False


@dataclass(frozen=True)
class Target:
    """What to reach; two size targets, and fidelity targets, may be given together.

    Attributes:
        ratio: file bytes before over after, external data included.
        macs: share of the multiplications kept, 0 to 1.
        latency: share of the time kept, 0 to 1, measured on this machine.
        max_drop: loss of the metric, in its own unit (points, dB); needs labelled samples.
        min_agreement: share of equal decisions (classes, classes at positions, ids) on held-out
            samples, 0 to 1; 0 accepts any.
        min_snr: of every output on held-out samples, in dB.
    """

    ratio: float | None = None
    macs: float | None = None
    latency: float | None = None
    max_drop: float | None = None
    min_agreement: float | None = None
    min_snr: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not _is_number(value):
                raise TargetError(f"{name} must be a number, got {value!r}")
        if self.ratio is not None and not self.ratio >= 1:
            raise TargetError(f"ratio must be at least 1, got {self.ratio}")
        for name in ("macs", "latency"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise TargetError(f"{name} must be above 0 and at most 1, got {value}")
        if None not in (self.ratio, self.macs, self.latency):
            raise TargetError("two of ratio, macs and latency go together, not all three")
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise TargetError(f"agreement must be from 0 to 1, got {self.min_agreement}")
        if self.max_drop is not None and self.max_drop < 0:
            raise TargetError(f"max_drop must not be negative, got {self.max_drop}")

    @property
    def sized(self) -> bool:
        return self.ratio is not None or self.faster

    @property
    def faster(self) -> bool:
        """Whether less work is asked for."""
        return self.macs is not None or self.latency is not None

    @property
    def faithful(self) -> bool:
        return any(v is not None for v in (self.max_drop, self.min_agreement, self.min_snr))

    def __str__(self) -> str:
        words = {
            "ratio": "{:g} times smaller file",
            "macs": "{:.4g} of the multiplications",
            "latency": "{:.4g} of the time",
            "max_drop": "at most {:g} lost by labels",
            "min_agreement": "at least {:.4g} agreement",
            "min_snr": "at least {:g} dB output SNR",
        }
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        parts = [words[name].format(value) for name, value in values if value is not None]
        return ", ".join(parts) or "what the settings give"
