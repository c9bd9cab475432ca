"""How far the outputs of two models are apart.

Decisions count by the share that is equal, everything that is a number by::

    SNR = 10 log10(sum a² / sum (a - b)²)          a of the original, b of the other model

over all samples together.  Probabilities p are compared as log max(p, least), where least is 1e-12,
in float16 the least that it holds: what is below has no decimal that anybody could rely on, and
one value that is rounded to 0 would outweigh all others.

An output that has another shape than the original's, such as that of a detector which finds
another number of objects, counts as if it were 0, and none of its decisions as equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcompress.compression.validate.decisions import (
    Decision,
    decided_by_values,
    has_class_scores,
    probabilities,
)
from onnxcompress.compression.validate.detections import looks_like_detections, matches, parts
from onnxcompress.core.layer import Array
from onnxcompress.report.report import Share

# A smaller probability counts as this one: nobody could rely on its decimals.
LEAST = 1e-12
NOTHING = 1e-200  # A sum of squares in float64 below this counts as this, and is likely 0.
LEAST_FLOAT16 = 2.0**-24  # In float16 this is the least one, since it holds no smaller number.


def scores(*outputs: Array) -> list[Array]:
    """Class scores ``(N, K)`` in float64; as logarithms where the first are probabilities."""
    flat = [output.reshape(len(output), -1) for output in outputs]
    if flat[0].size and probabilities(flat[0], 1) == "plain":
        return [_logarithms(one) for one in flat]
    return [one.astype(np.float64) for one in flat]


@dataclass
class Fidelity:
    """Distance of a model's outputs from the original's, summed over batches.

    Attributes:
        decisions: output name -> what it decides, or None; of those that are not there the
            values tell.
        counted: the outputs that count; None for all.
        signal, noise: output name -> sum of squares, and of squared differences.
        agreed, decided: output name -> decisions that are equal, and all.
        scores: output name -> the same two sums for the scores of detections alone.
        matched, detected: output name -> detections of either model that the other has, and all.
        resized: output name -> runs in which its shape was another one.
        runs: how many there were.
        finite: whether NaN and infinities are where the original has the same.
    """

    decisions: dict[str, Decision | None] = field(default_factory=dict)
    counted: set[str] | None = None
    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    agreed: dict[str, int] = field(default_factory=dict)
    decided: dict[str, int] = field(default_factory=dict)
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    matched: dict[str, int] = field(default_factory=dict)
    detected: dict[str, int] = field(default_factory=dict)
    resized: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    finite: bool = True
    _logs: dict[str, bool] = field(default_factory=dict)
    _nested: set[str] = field(default_factory=set)

    def add(self, names: Sequence[str], reference: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take in one batch of the original's outputs and of the other model's."""
        self.runs += 1
        for name, a, b in zip(names, reference, outputs, strict=True):
            if self.counted is None or name in self.counted:
                self._compare(name, a, b)

    def _compare(self, name: str, a: Any, b: Any) -> None:
        if _is_maps(a) and _is_maps(b):
            a, b = _aligned(a, b)
        if isinstance(a, list) and isinstance(b, list):  # This is a sequence.
            if len(a) != len(b):
                self._resize(name)
            for i, (item, other) in enumerate(zip(a, b, strict=False)):
                self._compare(f"{name}[{i}]", item, other)
        elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            self._compare_arrays(name, a, b)
        # One of them leaves out an optional output.
        elif a is not None or b is not None:
            self._resize(name)
            self._decide(name, 1, 0)

    def _compare_arrays(self, name: str, a: Array, b: Array) -> None:
        if not a.size and not b.size:
            return
        a, b = _in_numpy(a), _in_numpy(b)
        if name not in self.decisions:
            self.decisions[name] = decided_by_values(a if a.size else b)
        decision, alike = self.decisions[name], a.shape == b.shape
        if not alike:
            self._resize(name)
        if a.dtype.kind == "f" or (decision is None and a.dtype.kind in "iub"):
            self._subtract(name, a, b, decision)
        if decision is None:
            if alike and looks_like_detections(a):
                self._detect(name, a, b)
            return
        if decision.kind == "positions" or (decision.kind == "ids" and a.ndim > 1):
            self._nested.add(name)
        if not alike:
            self._decide(name, max(_count(a, decision), _count(b, decision)), 0)
            return
        if decision.kind != "ids":
            a, b = a.argmax(decision.axis), b.argmax(decision.axis)
        self._decide(name, a.size, int(np.sum(a == b)))

    def _subtract(self, name: str, a: Array, b: Array, decision: Decision | None) -> None:
        """Add the squares of numbers, and of what they differ by."""
        if name not in self._logs:
            axis, some = decision.axis if decision else 0, a if a.size else b
            self._logs[name] = decision is not None and probabilities(some, axis) == "plain"
        if self._logs[name]:
            a, b = _logarithms(a), _logarithms(b)
        a, b = a.astype(np.float64), b.astype(np.float64)
        if a.shape != b.shape:
            a, b = (a, np.zeros_like(a)) if a.size else (np.zeros_like(b), b)
        known = np.isfinite(a) & np.isfinite(b)
        if not known.all():
            self.finite &= np.array_equal(a[~known], b[~known], equal_nan=True)
            a, b = a[known], b[known]
            if not a.size:  # This tells nothing of how close they are.
                return
        self.signal[name] = self.signal.get(name, 0) + float(np.sum(np.square(a)))
        self.noise[name] = self.noise.get(name, 0) + float(np.sum(np.square(a - b)))

    def _decide(self, name: str, total: int, agreed: int) -> None:
        self.decided[name] = self.decided.get(name, 0) + total
        self.agreed[name] = self.agreed.get(name, 0) + agreed

    def _detect(self, name: str, a: Array, b: Array) -> None:
        (_, a_scores), (_, b_scores) = parts(a), parts(b)
        whole, off = self.scores.get(name, (0.0, 0.0))
        whole += float(np.sum(np.square(a_scores, dtype=np.float64)))
        off += float(np.sum(np.square(a_scores - b_scores, dtype=np.float64)))
        self.scores[name] = whole, off
        matched, total = matches(a, b)
        self.matched[name] = self.matched.get(name, 0) + matched
        self.detected[name] = self.detected.get(name, 0) + total

    def _resize(self, name: str) -> None:
        self.resized[name] = self.resized.get(name, 0) + 1

    def merge(self, other: Fidelity, suffix: str) -> None:
        """Take in what was found another way, its outputs under a name with this suffix."""
        for mine, theirs in (
            (self.decisions, other.decisions),
            (self.signal, other.signal),
            (self.noise, other.noise),
            (self.agreed, other.agreed),
            (self.decided, other.decided),
            (self.scores, other.scores),
            (self.matched, other.matched),
            (self.detected, other.detected),
            (self.resized, other.resized),
        ):
            mine |= {f"{name}{suffix}": value for name, value in theirs.items()}
        self.finite &= other.finite

    @property
    def snr(self) -> dict[str, float]:
        """Output name -> signal-to-noise ratio in dB, at most 200."""
        return {name: decibel(self.signal[name], self.noise[name]) for name in self.signal}

    @property
    def worst_snr(self) -> float | None:
        return min(self.snr.values(), default=None)

    def shares(self, samples: int) -> dict[str, Share]:
        """Output name -> how many decisions are the same, on so many samples."""
        shares = {}
        for name, total in self.decided.items():
            decision = self.decisions.get(name) or Decision("ids")
            draws = min(total, samples) if name in self._nested else total
            shares[name] = Share(decision.kind, self.agreed[name], total, draws)
        return shares

    def detections(self, samples: int) -> dict[str, Share]:
        """Output name -> detections that both have, of those that either has, on these samples."""
        return {
            name: Share("detections", self.matched[name], total, min(total, samples))
            for name, total in self.detected.items()
        }

    @property
    def agreement(self) -> float | None:
        """Share of equal decisions, of the output with the least; None where nothing is decided."""
        shares = (self.agreed[name] / total for name, total in self.decided.items() if total)
        return min(shares, default=None)

    @property
    def compared(self) -> bool:
        """Whether any output was compared."""
        return bool(self.signal or self.decided)

    @property
    def loss(self) -> float:
        """Relative squared output error, the mean over the outputs.

        Of decisions without scores it is the share that is another one.  Scores of detections,
        which are small beside boxes in pixels, count as an output of their own.
        """
        if not self.finite:
            return np.inf
        errors = [self.noise[name] / max(self.signal[name], NOTHING) for name in self.signal]
        errors += [off / max(whole, NOTHING) for whole, off in self.scores.values()]
        errors += [
            1 - self.agreed[name] / total
            for name, total in self.decided.items()
            if total and name not in self.signal
        ]
        return float(np.mean(errors)) if errors else 0.0


def _logarithms(p: Array) -> Array:
    least = LEAST_FLOAT16 if p.dtype == np.float16 else LEAST
    return np.log(np.maximum(p.astype(np.float64), least))


def _count(value: Array, decision: Decision) -> int:
    """Decisions in an output."""
    if decision.kind == "ids" or value.ndim <= decision.axis:
        return value.size
    return value.size // max(value.shape[decision.axis], 1)


def _is_maps(value: Any) -> bool:
    maps = value if isinstance(value, list) else [value]
    return bool(maps) and all(isinstance(one, Mapping) for one in maps)


def _in_numpy(value: Array) -> Array:
    """An array in a type of numpy's own."""
    return value.astype(np.float32) if value.dtype.kind == "V" else value


def _aligned(a: Any, b: Any) -> tuple[Any, Any]:
    """Maps, one a sample or a single one, as arrays ``[N, keys]``; what a map lacks is 0 or ""."""
    first, second = (value if isinstance(value, list) else [value] for value in (a, b))
    keys = sorted({key for one in (*first, *second) for key in one}, key=str)
    numbers = all(isinstance(v, float | np.floating) for one in first for v in one.values())
    lacking = 0.0 if numbers else ""
    dtype = np.float64 if numbers else object

    def rows(maps: Sequence[Mapping[Any, Any]]) -> Array:
        table = [[one.get(key, lacking) for key in keys] for one in maps]
        return np.array(table, dtype).reshape(len(maps), len(keys))

    return rows(first), rows(second)


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB, between -100 and 200."""
    if noise == 0:
        return 200.0
    return float(np.clip(10 * np.log10(max(signal, NOTHING) / max(noise, NOTHING)), -100, 200))


__all__ = ["Fidelity", "decibel", "has_class_scores", "scores"]
