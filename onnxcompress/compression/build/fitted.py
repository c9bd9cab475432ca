"""A layer's compressed weight in its place in the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxcompress.core.layer import Array
from onnxcompress.core.method import CompressedWeight


@dataclass(frozen=True, eq=False)
class Fitted:
    """A layer's compressed weight in its place in the model.

    Attributes:
        bias: ``(out,)``, corrected; None to keep the original's.
        snr: of the layer's output on the compressed stream against the original, in dB.
        plain: the same without the correction of the standard deviations, if there is one.
    """

    weight: CompressedWeight
    bias: Array | None = None
    snr: float | None = None
    plain: Fitted | None = None

    @property
    def error(self) -> float:
        """Relative squared error of the layer's output; 0 where it was not compared."""
        return 0.0 if self.snr is None else float(10 ** (-self.snr / 10))

    def mapped(self, change: Callable[[Array], Array]) -> Fitted:
        """The same with every array of its weights changed."""
        plain = self.plain and self.plain.mapped(change)
        return replace(self, weight=self.weight.mapped(change), plain=plain)
