"""Integer: every weight becomes one of a few evenly spaced values.  Smaller files.

With L levels and a scale for each output channel (or for each group of its inputs)::

    W[o, i] = scale[o] * (2 k[o, i] - (L - 1))        0 <= k < L

The levels lie symmetrically around zero; with an odd number of them zero is one.  Numbers are
rounded with error feedback in the metric of the inputs, scales are least squares (see `coded`);
without data they are the nearest.

References:
    Frantar, Ashkboos, Hoefler, Alistarh. GPTQ. ICLR 2023. https://arxiv.org/abs/2210.17323
    Frantar, Alistarh. Optimal brain compression. NeurIPS 2022. https://arxiv.org/abs/2208.11580
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Candidate, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.coded import Coded, Grid
from onnxcompress.methods.lookup.fit import encode
from onnxcompress.methods.lookup.tables import DIGITS, LEVELS, some_codes
from onnxcompress.methods.lookup.weight import CodedWeight

OPEN = (4, 8, 16, 32, 64, 128, 256)  # levels that are tried
SPREADS = (0.75, 0.9, 1.0, 1.1, 1.3)  # of first scales around the best for normal weights
NORMAL = {  # half the best step for normal weights in units of their deviation (Max 1960)
    2: 0.798, 3: 0.612, 4: 0.498, 6: 0.367, 8: 0.293, 12: 0.211, 16: 0.168, 24: 0.119, 32: 0.094,
    64: 0.052, 128: 0.0284, 256: 0.0154,
}  # fmt: skip


@dataclass(frozen=True)
class Integer(Method):
    """Store whole numbers of few bits and a scale per channel: a smaller file, the same speed.

    Attributes:
        bits: of a number, 2 to 8.
        levels: the same as a number of levels: 3 takes 1.6 bits, 6 takes 2.67, 12 takes 3.67.
        group: input channels that share a scale; by default all of them.
    """

    auto: ClassVar[bool] = True
    packs: ClassVar[bool] = True

    bits: int | None = None
    levels: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, got {self.bits}")
        if self.bits is not None and self.levels is not None:
            raise ValueError("give bits or levels, not both")
        if self.levels is not None and self.levels not in LEVELS:
            raise ValueError(f"levels must be one of {', '.join(map(str, LEVELS))}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group must be at least 1, got {self.group}")

    @property
    def fixed(self) -> bool:
        return self.count is not None

    @property
    def count(self) -> int | None:
        """Levels."""
        return 2**self.bits if self.bits else self.levels

    def settings(self, layer: Layer) -> list[Integer]:
        found = [replace(self, **_spelled(n)) for n in ([self.count] if self.count else OPEN)]
        return [s for s in found if s._nbytes(layer) < layer.weight.nbytes]

    def _nbytes(self, layer: Layer) -> int:
        size = layer.weight.size
        numbers = sum(-(-size // DIGITS[radix]) for radix in LEVELS[self.count or 256])
        return numbers + 2 * len(layer.weight) * self._parts(layer)

    def _parts(self, layer: Layer) -> int:
        """Scales of a filter: groups of inputs are equal, so one may be smaller than asked for."""
        inputs = layer.weight.shape[1]
        wanted = min(self.group or inputs, inputs)
        return inputs // max(n for n in range(1, wanted + 1) if inputs % n == 0)

    def fit(self, layer: Layer, statistics: Statistics) -> CodedWeight:
        found = self._encoded(layer, statistics)
        return CodedWeight.of_levels(found.codes, found.scale, self.count or 256, layer)

    def blank(self, layer: Layer) -> CodedWeight:
        levels = self.count or 256
        numbers, scale = some_codes(layer, 1, self._parts(layer), levels)
        return CodedWeight.of_levels(numbers, scale, levels, layer)

    def _encoded(self, layer: Layer, statistics: Statistics, trial: bool = False) -> Coded:
        levels = self.count or 256
        table = (2.0 * np.arange(levels) - (levels - 1))[:, None]
        first = [NORMAL[levels] * spread for spread in SPREADS]
        return encode(layer, statistics, Grid(table, first, self._parts(layer)), trial)

    def candidates(self, layer: Layer, statistics: Statistics) -> Iterator[Candidate]:
        """Errors from some of the filters, where there are many."""
        for setting in self.settings(layer):
            found = setting._encoded(layer, statistics, trial=True)
            shape = (layer.weight.shape,)
            yield Candidate(setting, setting._nbytes(layer), shape, found.error)


def _spelled(levels: int) -> dict[str, int | None]:
    """Bits where they say it, else levels."""
    bits = levels.bit_length() - 1
    if levels == 1 << bits and bits > 1:
        return {"bits": bits, "levels": None}
    return {"bits": None, "levels": levels}
