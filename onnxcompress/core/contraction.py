"""A sum over the products of an input and a weight, as the equation of an Einsum spells it.

The letters of the weight are those of *groups*, which all three have, those of the *inputs*, which
are summed over, and those of the *outputs*, which the input has not::

    bshd,hde->bse       weight hde: inputs h d, outputs e
    ebk,ekn->ebn        weight ekn: groups e, inputs k, outputs n
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from string import ascii_letters
from typing import Any, Self

import numpy as np

from onnxcompress.core.layer import Array, reshaped


@dataclass(frozen=True)
class Contraction:
    """The letters of an input, a weight and an output.

    Attributes:
        left: whether the weight is the first of the two that are multiplied.
        lengths: of the axes of the weight.
    """

    x: str
    weight: str
    y: str
    left: bool
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, equation: str, left: bool, lengths: Sequence[int]) -> Self | None:
        """What an equation says; None where that is no layer: a trace, a sum of one operand."""
        terms, arrow, y = equation.replace(" ", "").partition("->")
        first, _, second = terms.partition(",")
        weight, x = (first, second) if left else (second, first)
        parts = (x, weight, y)
        plain = arrow and all(part.isalpha() and len({*part}) == len(part) for part in parts)
        if not plain or len(weight) != len(lengths):
            return None
        alone = ({*weight} - {*x, *y}) | ({*x} - {*weight, *y}) | ({*y} - {*x, *weight})
        result = cls(x, weight, y, left, tuple(lengths))
        return result if not alone and result.inputs and result.outputs else None

    @property
    def groups(self) -> str:
        return "".join(c for c in self.weight if c in self.x and c in self.y)

    @property
    def inputs(self) -> str:
        return "".join(c for c in self.weight if c not in self.y)

    @property
    def outputs(self) -> str:
        return "".join(c for c in self.weight if c not in self.x)

    def length(self, letters: str) -> int:
        return prod(self._shape(letters))

    @property
    def _known(self) -> dict[str, int]:
        """Letter of the weight -> how long its axis is."""
        return dict(zip(self.weight, self.lengths, strict=True))

    def _shape(self, letters: str) -> list[int]:
        known = self._known
        return [known[c] for c in letters]

    def input_shape(self, free: int) -> tuple[int, ...]:
        """Of an input whose axes that the weight has not are so long."""
        known = self._known
        return tuple(known.get(c, free) for c in self.x)

    def rows(self, value: Array) -> Array:
        """The weight as a matrix a group, one below the other: ``(groups * out, in)``."""
        order = [self.weight.index(c) for c in self.groups + self.outputs + self.inputs]
        return np.ascontiguousarray(value.transpose(order)).reshape(-1, self.length(self.inputs))

    def patches(self, x: Array) -> Array:
        """What every output sees, ``(groups, count, in)``."""
        rest = "".join(c for c in self.x if c not in self.groups + self.inputs)
        order = [self.x.index(c) for c in self.groups + rest + self.inputs]
        shape = (self.length(self.groups), -1, self.length(self.inputs))
        return x.transpose(order).reshape(shape)

    def emit(self, op: Any, x: Any, weights: Sequence[Any], ranks: Sequence[int], bias: Any) -> Any:
        """Emit the sum with another weight, or as a chain of sums.

        Args:
            weights: ``(groups * rank, ...)``, each reads what the one before it gives.
            ranks: outputs of a group of each of them.
        """
        letters, reads, names = self.x, self.inputs, self.x + self.weight
        for index, (weight, rank) in enumerate(zip(weights, ranks, strict=True)):
            last = index == len(weights) - 1
            new = self.outputs if last else next(c for c in ascii_letters if c not in names)
            names += new
            result = self.y if last else "".join(c for c in letters if c not in reads) + new
            inner = self._shape(reads) if index == 0 else [ranks[index - 1]]
            outer = self._shape(new) if last else [rank]
            shape = [*self._shape(self.groups), *outer, *inner]
            own = self.groups + new + reads
            x = op.Einsum(x, reshaped(op, weight, shape), equation=f"{letters},{own}->{result}")
            letters, reads = result, new
        return x if bias is None else op.Add(x, self._spread(bias))

    def _spread(self, bias: Array) -> Array:
        """A number for every output of a group, in the shape of what comes out."""
        own = self.groups + self.outputs
        order = [own.index(c) for c in self.y if c in own]
        moved = bias.reshape(self._shape(own)).transpose(order)
        lengths = iter(moved.shape)
        return moved.reshape([next(lengths) if c in own else 1 for c in self.y])
