"""Vectors that depend on two bytes: trellis-coded vector quantization.

The byte of the row before, modulo P, says in which of P tables the byte of a row is looked up::

    W[o, j d ... (j + 1) d] = scale[o] * table[byte[o - 1, j] % P, byte[o, j]]

So every byte has P vectors, of which the one before leaves one, and the Viterbi algorithm finds the
best bytes of all rows of a segment together.  At equal bytes normal numbers err 0.8 to 1.4 dB less
than with one table: together, the vectors of a segment fill a space of many more dimensions, where
they can be nearer to what they stand for.  Every segment starts with the first table, so that
segments are coded side by side.

References:
    Marcellin, Fischer. Trellis coded quantization of memoryless and Gauss-Markov sources. IEEE
    Transactions on Communications 38, 1990.
    Fischer, Marcellin, Wang. Trellis-coded vector quantization. IEEE Transactions on Information
    Theory 37, 1991.
    Tseng et al. QTIP. 2024. https://arxiv.org/abs/2406.11235 (of the weights of networks)
    Forney. The Viterbi algorithm. Proceedings of the IEEE 61, 1973.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from onnxcompress.core.layer import Array, Emitter, Value
from onnxcompress.methods.lookup.error_feedback import Pick
from onnxcompress.methods.lookup.tables import shared

WORDS = 255  # Bytes up to 254: 255 times the one before + the byte is a number of its own.
LONGEST, SHORTEST = 16, 8  # A segment has so many rows.
NEVER = -1e30  # The match of a vector that does not exist.
INTEGER_CONVOLUTION = 10  # ConvInteger is there from this opset on.
WIDTHS = (2, 3, 4)  # There are tables for so many weights a byte: with more, memory gains little.
MOST = 3  # A table is chosen by so many bits at most.
FILE = Path(__file__).with_name("normal_trellis.npz")


def segment_of(rows: int) -> int:
    """Rows of a segment where a group has so many; 0 where it cannot be cut into such."""
    return next((n for n in range(LONGEST, SHORTEST - 1, -1) if rows % n == 0), 0)


def places(codes: Array, segment: int, table: Array) -> Array:
    """The rows of a table that bytes ``(rows, pieces)`` pick, like the bytes."""
    before = np.zeros_like(codes)
    before[1:] = codes[:-1]
    before[::segment] = 0
    return (before % (len(table) // WORDS)).astype(np.intp) * WORDS + codes


def emit_places(op: Emitter, table: Array, codes: Array) -> tuple[Value, Value]:
    """Nodes that compute a longer table, and the places in it that bytes pick, int32.

    A convolution puts two bytes together at once, where all that is computed on the way stays in
    memory until all layers are decoded.  The tables repeat so that no state needs to be computed;
    that is done once for all layers.

    Args:
        codes: ``(segments, 1, rows of a segment, pieces)``.
    """
    states = len(table) // WORDS
    longer = op.Tile(table, np.array([256 // states, 1]))
    kernel, pads = np.array([WORDS, 1], np.uint8).reshape(1, 1, 2, 1), [1, 0, 0, 0]
    if op.opset >= INTEGER_CONVOLUTION:
        return longer, op.ConvInteger(codes, kernel, pads=pads)
    exact = op.Conv(op.Cast(codes, to=np.float32), kernel.astype(np.float32), pads=pads)
    return longer, op.Cast(exact, to=np.int32)


def remembering(table: Array, scale: Array, part: Array, segment: int, metrics: Array) -> Pick:
    """Rounds all rows of a segment together, see `row_fit.picker`.

    Args:
        table: ``(P * WORDS, d)``; codes are rows of it.
        scale: ``(parts, groups, rows)``.
    """
    states, width = len(table) // WORDS, table.shape[1]
    tables = _by_branch(table)
    sizes, units = scale[:, :, None], 1 / np.maximum(scale, 1e-30)[:, :, None]
    squares = np.square(scale)
    extended = np.ones((scale.shape[1], width + 1, scale.shape[2]), table.dtype)

    def pick(target: Array, piece: int) -> tuple[Array, Array]:
        p = part[piece]
        np.multiply(target, units[p], out=extended[:, :-1])
        image = tables[:, :-1] @ metrics[:, piece]
        energy = np.einsum("gkd,kd->gk", image, tables[:, :-1]) / -2 + tables[:, -1]
        matched = np.concatenate([image, energy[:, :, None]], axis=2) @ extended
        codes = np.stack(
            [_viterbi(m, s, states, segment) for m, s in zip(matched, squares[p], strict=True)]
        )
        return codes, table[codes].swapaxes(1, 2) * sizes[p]

    return pick


def _by_branch(table: Array) -> Array:
    """Vectors ``(words * P * P, d + 1)`` in the order word, state, next state.

    What follows a vector is added to its match: `NEVER` where there is none.
    """
    width = table.shape[1]
    states = len(table) // WORDS
    padded = np.zeros((states, WORDS + 1, width + 1), table.dtype)
    padded[:, :WORDS, :width] = table.reshape(states, WORDS, width)
    padded[:, WORDS, width] = NEVER
    split = padded.reshape(states, -1, states, width + 1)
    return np.ascontiguousarray(split.transpose(1, 0, 2, 3)).reshape(-1, width + 1)


def _viterbi(matched: Array, squares: Array, states: int, segment: int) -> Array:
    """The rows of the table whose matches add up to most.

    Args:
        matched: ``(words * P * P, rows)``, in the order of `_by_branch`.
        squares: what the matches of a row are multiplied by.
    """
    rows = len(squares)
    branches, count = states * states, rows // segment
    every = matched.reshape(-1, branches, rows)
    best = every.max(0) * squares
    # (state, next state, row of the segment, segment)
    steps = best.reshape(states, states, count, segment).transpose(3, 0, 1, 2)
    totals = np.full((segment, states, states, count), NEVER, matched.dtype)
    totals[0, 0] = steps[0, 0]
    for t in range(1, segment):
        np.add(totals[t - 1].max(0)[:, None], steps[t], out=totals[t])
    origins = totals.argmax(1)
    state = totals[-1].max(0).argmax(0)
    branch, each = np.empty((count, segment), np.intp), np.arange(count)
    for t in range(segment - 1, -1, -1):
        origin = origins[t, state, each]
        branch[:, t] = origin * states + state
        state = origin
    branch = branch.ravel()
    word = every[:, branch, np.arange(rows)].argmax(0)
    origin, following = np.divmod(branch, states)
    return origin * WORDS + word * states + following


@cache
def normal_tables(d: int, bits: int) -> tuple[Array, float]:
    """The shared tables for normal numbers ``(2**bits * WORDS, d)``, int8, and what 1 stands for.

    They are what 150 rounds of the algorithm of `trained` came to, rounded to 8 bits.
    """
    with np.load(FILE) as tables:
        return shared(tables[f"{d}_{bits}"]), float(tables[f"{d}_{bits}_unit"])


def trained(d: int, bits: int, rounds: int, kept: float = 0.98, drawn: int = 2**14) -> Array:
    """Tables for normal numbers ``(2**bits * WORDS, d)`` by Lloyd's algorithm.

    A vector is the mean of what the Viterbi algorithm gives it.  Every round draws other numbers,
    and counts what was drawn before it less, by the share ``kept``.
    """
    rng = np.random.default_rng(d)
    count = 2**bits * WORDS
    table = rng.standard_normal((count, d), np.float32)
    sums, counts = np.zeros((count, d)), np.zeros(count)
    one, ones = np.eye(d, dtype=np.float32)[None, None], np.ones((1, 1, drawn), np.float32)
    for turn in range(rounds):
        points = rng.standard_normal((d, drawn), np.float32)
        pick = remembering(table, ones, np.zeros(1, int), LONGEST, one)
        codes = pick(points[None], 0)[0].ravel()
        share = min(kept, turn / (turn + 10))
        counts = share * counts + np.bincount(codes, minlength=count)
        sums = share * sums + np.stack([np.bincount(codes, x, count) for x in points], axis=1)
        used = counts > 1e-3
        table[used] = sums[used] / counts[used, None]
    return table
