"""Codes that are trained: constants that pick rows of a table, and what rounds to such rows.

A code c stands for the row T[c].  In training a latent z of the row's size takes its place and is
rounded to the nearest row on the way forward; its gradient is that of the row::

    forward  T[argmax over c of z . T[c] - |T[c]|^2 / 2]        backward  dL/dz = dL/drow

(straight-through estimation).  Where the rows are all combinations of signs this is the sign of z.
As there, z stays within the table's range, so that it can always come back.  It starts at a random
place that rounds to the given row: from the rows themselves all latents have the same way to go,
and change at the same moment, whatever the others do.

References:
    Bengio, Léonard, Courville. Estimating or propagating gradients through stochastic neurons for
    conditional computation. 2013. https://arxiv.org/abs/1308.3432
    Courbariaux, Hubara, Soudry, El-Yaniv, Bengio. Binarized neural networks. 2016.
    https://arxiv.org/abs/1602.02830
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxcompress.core.layer import Array
from onnxcompress.graph import Model, Operation, operations

# At the start, latents are off by at most so many half-distances to the next row.
SPREAD = 0.9
# So many pieces are compared with a table at a time, which bounds the memory.
CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class Lookup:
    """A constant of codes, used for nothing else than the rows that they pick.

    Attributes:
        codes: the constant's name; uint8 ``(pieces,)``.
        rows: the name of the looked-up rows, ``(pieces, d)``, which the graph makes floats of.
        table: float32 ``(k, d)``.
    """

    codes: str
    rows: str
    table: Array


def find_lookups(model: Model) -> list[Lookup]:
    """Codes of vectors, and bytes of signs.

    Not numbers of three and more levels: on ResNet-20 that brought nothing, and of several
    digits one alone cannot carry.  Not selections: they pick rows that are themselves trained.
    """
    readers = _Readers(model)
    lookups = (_lookup(model, readers, name) for name in model.constants)
    return [lookup for lookup in lookups if lookup is not None]


def _lookup(model: Model, readers: _Readers, name: str) -> Lookup | None:
    """What a constant picks, where it is one of codes."""
    cast = readers.only(name)
    if cast is None or cast.op_type != "Cast":
        return None
    codes = model.read(name)
    if codes.dtype != np.uint8 or codes.ndim != 1:
        return None
    rows, table = _looked_up(model, readers, cast)
    if table is None or codes.max(initial=0) >= len(table) or not readers.floats(rows):
        return None
    if (table == table[0]).all() or _counts(table):
        return None
    return Lookup(name, rows, table.astype(np.float32))


class _Readers:
    """Which nodes read a value."""

    def __init__(self, model: Model) -> None:
        self._counts = model.consumers
        self._of: dict[str, list[Operation]] = defaultdict(list)
        for operation in operations(model):
            for name in operation.inputs:
                self._of[name].append(operation)

    def only(self, name: str) -> Operation | None:
        """The node that reads it where there is but one."""
        return self._of[name][0] if self._counts[name] == len(self._of[name]) == 1 else None

    def floats(self, name: str) -> bool:
        """Whether it becomes floats, in whatever shape, and nothing else, and no digit of a sum."""
        read = self._of[name]
        return len(read) == self._counts[name] > 0 and all(self._float(name, r) for r in read)

    def _float(self, name: str, operation: Operation) -> bool:
        made = operation.outputs[0]
        if operation.op_type in ("Reshape", "Slice") and operation.inputs[0] == name:
            return self.floats(made)
        floats = operation.op_type == "Cast" and operation.attributes["to"].startswith("float")
        return floats and not self._is_digit(made)

    def _is_digit(self, name: str) -> bool:
        """Whether an Add comes next, but for shapes and the factor of the digit."""
        passed = ("Reshape", "Slice", "Mul")
        return any(
            operation.op_type == "Add"
            or (operation.op_type in passed and self._is_digit(operation.outputs[0]))
            for operation in self._of[name]
        )


def _looked_up(model: Model, readers: _Readers, cast: Operation) -> tuple[str, Array | None]:
    """The rows that codes pick, and the table: a constant, or the numbers in every byte."""
    index = cast.outputs[0]
    step = readers.only(index)
    if step is None:
        return "", None
    if step.op_type == "Gather":
        name = step.inputs[0]
        if step.inputs[1] != index or step.attributes.get("axis", 0) or name not in model.constants:
            return "", None
        table = model.read(name)
        return step.outputs[0], table if table.ndim == 2 and table.dtype.kind in "iu" else None
    if step.op_type != "Reshape" or _value(model, step.inputs[1:]) != [-1, 1]:
        return "", None
    divided = readers.only(step.outputs[0])
    rest = None if divided is None else readers.only(divided.outputs[0])
    if divided is None or rest is None or (divided.op_type, rest.op_type) != ("Div", "Mod"):
        return "", None
    parts, width = _value(model, divided.inputs[1:]), _value(model, rest.inputs[1:])
    if not isinstance(parts, list) or not isinstance(width, int):
        return "", None
    return rest.outputs[0], np.arange(256)[:, None] // np.array(parts) % width


def _counts(table: Array) -> bool:
    """Whether the rows are all combinations of three or more values."""
    values = [len(np.unique(column)) for column in table.T]
    return max(values) > 2 and prod(values) == len(np.unique(table, axis=0))


def _value(model: Model, names: Sequence[str]) -> Any:
    """A constant input as plain numbers; None where it is none."""
    return model.read(names[0]).tolist() if names and names[0] in model.constants else None


@dataclass(frozen=True, eq=False)
class Latents:
    """What stands for the codes of one lookup in training.

    Attributes:
        table: of the lookup, float32 ``(k, d)``.
        start: ``(pieces, d)``; anywhere around the rows that the model came with, but rounded to
            these.
        reach: half the distance from a row to its nearest neighbour, in the mean.
    """

    lookup: Lookup
    table: Tensor
    start: Tensor
    reach: float

    def nearest(self, z: Tensor) -> Tensor:
        """Numbers of the nearest rows."""
        return _nearest(z, self.table)

    def rounded(self, z: Tensor) -> Tensor:
        """The nearest rows; the gradient passes straight through."""
        with torch.no_grad():
            rows = self.table[self.nearest(z)]
        return rows + (z - z.detach())

    def inside(self, z: Tensor) -> Tensor:
        """Within the range of the table's columns."""
        return _clamp(z, self.table)


def start_latents(lookup: Lookup, codes: Array, rng: np.random.Generator, device: str) -> Latents:
    """Latents at random places that round to the rows of these codes ``(pieces,)``."""
    table = torch.from_numpy(lookup.table).to(device)
    index = torch.from_numpy(codes.astype(np.int64)).to(device)
    rows = table[index]
    away = torch.cdist(table, table)
    away[away == 0] = torch.inf
    reach = float(away.amin(1)[index].mean() / 2)
    spread = torch.from_numpy(rng.uniform(-SPREAD, SPREAD, rows.shape).astype(np.float32))
    around = _clamp(rows + reach * spread.to(device), table)
    stays = (table[_nearest(around, table)] == rows).all(1, keepdim=True)
    return Latents(lookup, table, torch.where(stays, around, rows), reach)


def _nearest(z: Tensor, table: Tensor) -> Tensor:
    half = table.square().sum(1) / 2
    return torch.cat([(part @ table.T - half).argmax(1) for part in z.split(CHUNK)])


def _clamp(z: Tensor, table: Tensor) -> Tensor:
    return torch.clamp(z, table.amin(0), table.amax(0))
