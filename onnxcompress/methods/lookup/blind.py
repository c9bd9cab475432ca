"""Codes and scales where nothing is known of the inputs: the nearest rows of the table."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import side_by_side
from onnxcompress.methods.lookup.coded import CHUNKED, JUDGED, LEARNED, Coded, Grid, Rows
from onnxcompress.methods.lookup.kmeans import means, nearest, pieces, seeded
from onnxcompress.methods.lookup.tables import in_bytes, levels_of, stored
from onnxcompress.methods.lookup.trellis import remembering

BLIND_ROUNDS = 3  # Codes and scales are fitted in turn for so many rounds.


def fit_blind(rows: Rows, grid: Grid, trial: bool = False) -> Coded:
    """Round rows to the nearest values, with least-squares scales."""
    table, width = grid.table, grid.table.shape[1]
    if grid.learn:
        table = seeded(rows, table)
        lesson = rows.some(slice(None, None, -(-rows.weight.size // LEARNED)))
        flat, part = pieces(lesson.weight, width, rows.parts)
        codes, scale, _ = _by_turns(lesson, table)
        table = in_bytes(means(flat, codes, scale[:, part], table))
    if trial:
        # A large weight has rows enough to be judged by some of them.
        step = max(1, rows.weight.size // JUDGED)
        rows = rows.some(slice(step // 2, None, step))
    groups, count, n = rows.weight.shape
    chunks = rows.chunks(max(1, CHUNKED // (groups * n)))
    results = side_by_side(lambda chunk: _by_turns(chunk, table), chunks)
    codes, scale, error = (
        np.concatenate([each.reshape(groups, -1, each.shape[-1]) for each in parts], axis=1)
        for parts in zip(*results, strict=True)
    )
    energy = float(np.square(rows.weight).sum(dtype=np.float64))
    return Coded(
        codes.reshape(groups * count, -1),
        scale.reshape(groups * count, -1),
        table,
        float(error.sum(dtype=np.float64)) / max(energy, 1e-30),
        None if rows.zero is None else rows.zero.reshape(groups * count, -1),
    )


def together(rows: Rows, grid: Grid, trial: bool = False) -> Coded:
    """Round rows whose bytes remember, from scales that are known, see `trellis`."""
    if trial:
        step = max(1, min(rows.weight.size // JUDGED, rows.weight.shape[1] // grid.segment))
        rows = rows.some(slice(step // 2, None, step)).whole(grid.segment)
    groups, count, n = rows.weight.shape
    height = max(1, CHUNKED // (groups * n * grid.segment)) * grid.segment
    fits = side_by_side(lambda chunk: _together(chunk, grid), rows.chunks(height))
    codes, scale, error = (np.concatenate(parts, axis=1) for parts in zip(*fits, strict=True))
    energy = float(np.square(rows.weight).sum(dtype=np.float64))
    off = float(error.sum(dtype=np.float64)) / max(energy, 1e-30)
    return Coded(codes.reshape(groups * count, -1), scale.reshape(-1, 1), grid.table, off)


def _together(rows: Rows, grid: Grid) -> tuple[Array, Array, Array]:
    """Codes, least-squares scales and squared errors, by row."""
    table, scale = grid.table, rows.starts[0]
    groups, count, n = rows.weight.shape
    width = table.shape[1]
    targets = np.pad(rows.weight, ((0, 0), (0, 0), (0, -n % width))).swapaxes(1, 2)
    number = targets.shape[1] // width
    alike = np.broadcast_to(np.eye(width, dtype=table.dtype), (groups, number, width, width))
    part = np.zeros(number, int)
    pick = remembering(table, scale.transpose(2, 0, 1), part, grid.segment, alike)
    pieces = (pick(targets[:, j * width : (j + 1) * width], j)[0] for j in range(number))
    codes = np.stack([*pieces], axis=2)
    units = table[codes].reshape(groups, count, -1)[:, :, :n]
    above, below = (np.einsum("grn,grn->gr", units, x) for x in (rows.weight, units))
    scale = stored(np.maximum(above / np.maximum(below, 1e-30), 0), levels_of([table]))[:, :, None]
    return codes, scale, np.square(rows.weight - units * scale).sum(2)


def _by_turns(rows: Rows, table: Array) -> tuple[Array, Array, Array]:
    """Codes, scales and the squared error of every row, from the best of the first scales."""
    weight, part = pieces(rows.weight, table.shape[1], rows.parts)
    columns = np.repeat(part, table.shape[1])
    zero = None if rows.zero is None else rows.zero.reshape(-1, rows.parts)

    def turn(scale: Array) -> tuple[Array, Array, Array]:
        scale = scale.copy()
        codes = nearest(weight, table, scale[:, part], None if zero is None else zero[:, part])
        unit = table[codes].reshape(len(weight), -1)
        if zero is not None:
            unit -= zero[:, columns]
        for p in range(scale.shape[1]):
            own = columns == p if scale.shape[1] > 1 else slice(None)
            z, w = unit[:, own], weight[:, own]
            gain = np.einsum("rn,rn->r", z, w) / np.maximum(np.einsum("rn,rn->r", z, z), 1e-30)
            gain = np.maximum(gain, 0)
            scale[:, p] = gain if rows.single else stored(gain, levels_of([table]))
        return codes, scale, np.square(weight - unit * scale[:, columns]).sum(1)

    def better(one: tuple[Array, ...], other: tuple[Array, ...]) -> Any:
        wins = other[2] < one[2]
        pairs = zip(one[:2], other[:2], strict=True)
        codes, scale = (np.where(wins[:, None], b, a) for a, b in pairs)
        return codes, scale, np.minimum(one[2], other[2])

    best = reduce(better, (turn(start.reshape(-1, rows.parts)) for start in rows.starts))
    for _ in range(BLIND_ROUNDS - 1):
        best = better(best, turn(best[1]))
    return best[0].astype(np.uint8), best[1], best[2][:, None]
