"""How far the outputs of two models are apart, and how good they are by labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxcompress.core.layer import Array


def has_class_scores(output: Array) -> bool:
    """Whether an output holds class scores: float ``[N, K]`` or ``[N, K, 1, 1]``, K at least 2."""
    return (
        output.ndim in (2, 4)
        and np.issubdtype(output.dtype, np.floating)
        and output.shape[1] >= 2
        and output.shape[2:] in ((), (1, 1))
    )


def scores(*outputs: Array) -> list[Array]:
    """Class scores ``(N, K)`` in float64; as logarithms where the first are probabilities."""
    flat = [output.reshape(len(output), -1).astype(np.float64) for output in outputs]
    first = flat[0]
    if first.size and first.min() >= 0 and np.allclose(first.sum(1), 1, atol=1e-3):
        return [np.log(np.maximum(one, 1e-12)) for one in flat]
    return flat


@dataclass
class Fidelity:
    """Distance of a model's outputs from the original's, summed over batches.

    Attributes:
        signal, noise: output name -> sum of squares, and of squared differences.
        agreed, ranked: samples with the same top class, and samples with class scores.
        finite: whether every output was.
    """

    signal: dict[str, float] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    agreed: int = 0
    ranked: int = 0
    finite: bool = True

    def add(self, names: Sequence[str], reference: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Take in one batch; integers count by their values, what is no number not at all."""
        for name, a, b in zip(names, reference, outputs, strict=True):
            if isinstance(a, list) and isinstance(b, list):  # a sequence
                self.finite &= len(a) == len(b)
                for i, (item, other) in enumerate(zip(a, b, strict=False)):
                    self.add([f"{name}[{i}]"], [item], [other])
                continue
            if not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub":
                continue
            if a.shape != b.shape:
                self.finite = False
                continue
            if has_class_scores(a):
                a, b = scores(a, b)
                self.agreed += int(np.sum(a.argmax(1) == b.argmax(1)))
                self.ranked += len(a)
            a, b = a.astype(np.float64), b.astype(np.float64)
            self.finite &= bool(np.isfinite(b).all() or not np.isfinite(a).all())
            known = np.isfinite(a) & np.isfinite(b)
            self.signal[name] = self.signal.get(name, 0) + float(np.sum(np.square(a[known])))
            difference = float(np.sum(np.square((a - b)[known])))
            self.noise[name] = self.noise.get(name, 0) + difference

    @property
    def snr(self) -> dict[str, float]:
        """Output name -> signal-to-noise ratio in dB, at most 200."""
        return {name: decibel(self.signal[name], self.noise[name]) for name in self.signal}

    @property
    def worst_snr(self) -> float:
        return min(self.snr.values(), default=200.0)

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same top class; None without class scores."""
        return self.agreed / self.ranked if self.ranked else None

    @property
    def loss(self) -> float:
        """Relative squared output error, the mean over the outputs."""
        parts = [self.noise[name] / max(self.signal[name], 1e-30) for name in self.signal]
        return float(np.mean(parts)) if self.finite and parts else (0.0 if self.finite else np.inf)


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB, between -100 and 200."""
    if noise == 0:
        return 200.0
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)), -100, 200))
