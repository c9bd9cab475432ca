"""Codes and scales where nothing is known of the inputs: the nearest rows of the table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import side_by_side
from onnxcompress.methods.lookup.coded import CHUNKED, LEARNED, TRIED, Coded, Grid
from onnxcompress.methods.lookup.kmeans import means, nearest, pieces, seeded, sizes
from onnxcompress.methods.lookup.tables import in_bytes, stored

BLIND_ROUNDS = 3  # of codes and scales


def fit_blind(weight: Array, grid: Grid, trial: bool = False) -> Coded:
    """Round a weight ``(groups, rows, n)``."""
    n, table, first = weight.shape[2], grid.table, grid.first
    rows, part = pieces(weight, table.shape[1], grid.parts)
    if grid.learn:
        table = seeded(weight, grid, first)
        lesson = rows[:: -(-rows.size // LEARNED)]
        codes, scale, _ = _by_turns(lesson, n, table, first, part)
        table = in_bytes(means(lesson, codes, scale[:, part], table))
    if trial:
        step = max(1, rows.size // TRIED)  # a large weight has rows enough to judge by
        rows = rows[step // 2 :: step]
    height = max(1, CHUNKED // rows.shape[1])
    chunks = [rows[i : i + height] for i in range(0, len(rows), height)]
    found = side_by_side(lambda chunk: _by_turns(chunk, n, table, first, part), chunks)
    codes, scale, error = (np.concatenate(each) for each in zip(*found, strict=True))
    energy = float(np.square(rows).sum(dtype=np.float64))
    return Coded(codes, scale, table, float(error.sum(dtype=np.float64)) / max(energy, 1e-30))


def _by_turns(
    weight: Array, n: int, table: Array, first: Sequence[float], part: Array
) -> tuple[Array, Array, Array]:
    """Codes, scales and the squared error of every row, from the best of the first scales.

    Args:
        weight: ``(rows, pieces * width)``, padded with zeros after ``n`` columns.
        part: of every piece.
    """
    columns = np.repeat(part, table.shape[1])
    size = sizes(weight[None, :, :n], int(part[-1]) + 1)[0]

    def turn(scale: Array) -> tuple[Array, Array, Array]:
        scale, codes = scale.copy(), nearest(weight, table, scale[:, part])
        unit = table[codes].reshape(len(weight), -1)
        for p in range(scale.shape[1]):
            own = columns == p if scale.shape[1] > 1 else slice(None)
            z, w = unit[:, own], weight[:, own]
            gain = np.einsum("rn,rn->r", z, w) / np.maximum(np.einsum("rn,rn->r", z, z), 1e-30)
            scale[:, p] = stored(np.maximum(gain, 1e-12))
        return codes, scale, np.square(weight - unit * scale[:, columns]).sum(1)

    def better(one: tuple[Array, ...], other: tuple[Array, ...]) -> Any:
        wins = other[2] < one[2]
        pairs = zip(one[:2], other[:2], strict=True)
        codes, scale = (np.where(wins[:, None], b, a) for a, b in pairs)
        return codes, scale, np.minimum(one[2], other[2])

    best = reduce(better, (turn(size * factor) for factor in first))
    for _ in range(BLIND_ROUNDS - 1):
        best = better(best, turn(best[1]))
    return best[0].astype(np.uint8), *best[1:]
