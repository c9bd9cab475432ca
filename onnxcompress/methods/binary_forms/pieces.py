"""How a binary layer's weight is cut into pieces, and the metric of the inputs of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from onnxcompress.core.layer import Array, Shape
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.error_feedback import WIDEST


@dataclass(frozen=True)
class Form:
    """How a layer's weight is cut up: sizes alone.

    Attributes:
        shape: of the weight.
        groups, stacks: of the layer, and of binary filters.
        channels: of a piece; ``parts`` of them make a filter, the last one padded.
        filters: m; 0 where every piece has its own.
        feature: whether it is emitted in the feature form.
    """

    shape: Shape
    groups: int
    stacks: int
    channels: int
    filters: int
    feature: bool

    @property
    def parts(self) -> int:
        return -(-self.shape[1] // self.channels)

    @property
    def width(self) -> int:
        """Weights of a piece."""
        return self.channels * prod(self.shape[2:])

    @property
    def scales(self) -> int:
        return self.stacks * self.shape[0] * self.parts

    @property
    def index_bits(self) -> int:
        return self.filters.bit_length() - 1

    @property
    def bits(self) -> tuple[int, int]:
        """Of the signs and of the selections."""
        if not self.filters:
            return self.scales * self.width, 0
        return self.filters * self.width, self.scales * self.index_bits

    def split(self, grouped: Array) -> Array:
        """``(groups, out, fan_in)`` with zeros after the last channel, so that pieces fit."""
        missing = self.parts * self.width - grouped.shape[2]
        return np.pad(grouped, ((0, 0), (0, 0), (0, missing)))


# These are columns, and their metric, which is None where nothing is known.
Block = tuple[slice, Array | None]


def metric_blocks(statistics: Statistics, group: int, form: Form, columns: int) -> list[Block]:
    """The metric of one group: in one block, or in several where it would be too wide."""
    if not statistics.count:
        return [(slice(0, columns), None)]
    inside = statistics.total.shape[1]
    step = max(1, WIDEST // form.width) * form.width
    blocks = []
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        metric = np.eye(stop - start)
        known = statistics.block(start, min(stop, inside))[group]
        metric *= np.trace(known) / len(known)
        metric[: len(known), : len(known)] = known
        blocks.append((slice(start, stop), metric))
    return blocks
