"""Weights as bytes that stand for the rows of a table, times a scale for every output channel.

A byte picks one of at most 256 rows of a table (256, d), which are d neighbouring weights::

    W[o, j d ... (j + 1) d] = scale[o] * table[byte[o, j]]                    8 / d bits a weight

One row lookup both unpacks and decodes.  A table of vectors is a vector code.  A table that counts
in base L holds d evenly spaced numbers of L levels (see `uniform`); where the levels do not fill
bytes well, a number has several digits, each with bytes and a table of its own: 8 levels = 2 * (4
levels) + (2 levels).  256 levels need no table.

Codes and scales are fitted in turn in the metric of the inputs (see `error_feedback`): error
feedback, coordinate descent, least-squares scales, and for a table of the layer's own its least
squares too.  Every row keeps the best of these, plain rounding included.  A table of the layer's
own starts from k-means over its pieces; a row of it that no piece uses is moved to the piece that
errs most.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxcompress.core.layer import Layer
from onnxcompress.core.parallel import side_by_side
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.blind import fit_blind, together
from onnxcompress.methods.lookup.coded import CHUNKED, LEARNED, Coded, Grid, Rows
from onnxcompress.methods.lookup.error_feedback import cautious, metrics
from onnxcompress.methods.lookup.kmeans import seeded
from onnxcompress.methods.lookup.own_table import learn_table
from onnxcompress.methods.lookup.row_fit import Block, RowFit, State

ROUNDS = 4  # A fit takes at most so many rounds of error feedback, coordinate descent and scales.
GAIN = 0.01  # It ends with the round that lowers the error by less than this share.
SWEEPS = 2  # A round has so many sweeps of coordinate descent.
# Where bytes remember, scales are known, and more rounds and sweeps gain less than 0.1 dB; nor may
# each row keep the best that it has had.
TOGETHER = (1, 1)
# From so many multiplications of a sweep there are fewer rounds: they gain little there.
WORK = 2**29
SMALL = 2**14  # Up to so many weights, a fit that knows nothing of the inputs is looked at too.
# So many rows are rounded together at least, as each takes numpy little time, unless that is more
# weights than the next, and no fewer than the last at all.
CHUNK_ROWS, CHUNK_MOST, FEWEST_ROWS = 256, 2**23, 32
# With every first scale, so many weights are rounded to choose one: in a fit, and in a trial.
STARTS, TRIAL_STARTS = 2**20, 2**16
TRIAL_USUAL = 2**16  # A trial of more weights starts from the usual scale alone.
# A trial, of which only the error is wanted, looks at so many inputs of a filter, and at rows for
# so many multiplications of a sweep, but at no fewer rows than these.
TRIAL_INPUTS, TRIAL_WORK, TRIAL_ROWS = 4096, 2**27, 32
TRIAL_LEARNED = 2**17  # A trial learns a table from so many weights.


def encode(
    layer: Layer,
    statistics: Statistics,
    rows: Rows,
    grid: Grid,
    trial: bool = False,
    most: int = ROUNDS,
) -> Coded:
    """Round a layer's rows to the values of a grid, times scales.

    Args:
        trial: look at some rows alone, when the error is all that matters.
        most: rounds.
    """
    grid = grid.astype(rows.weight.dtype)
    if not statistics.count:
        return together(rows, grid, trial) if grid.segment else fit_blind(rows, grid, trial)
    statistics = cautious(statistics)
    blocks = _blocks(rows, statistics, grid, trial)
    rounds, sweeps = _effort(layer, blocks, grid.learn, trial)
    effort = TOGETHER if grid.segment else (min(rounds, most), sweeps)
    if trial:
        rows = rows.starting(rows.usual) if rows.weight.size > TRIAL_USUAL else rows
        rows = _some_rows(rows, blocks, grid.learn).whole(grid.together)
    started = replace(grid, table=seeded(rows, grid.table)) if grid.learn else grid
    rows = RowFit(rows, blocks, started.table).promising(TRIAL_STARTS if trial else STARTS)
    fitted = _fit_rows(rows, blocks, started, effort)
    if rows.weight.size <= SMALL and not trial and not grid.segment:
        blind = fit_blind(rows, grid)
        error = statistics.error(layer.weight, blind.decoded(layer))
        return min(fitted, replace(blind, error=error), key=lambda fit: fit.error)
    return fitted


def _fit_rows(rows: Rows, blocks: list[Block], grid: Grid, effort: tuple[int, int]) -> Coded:
    """Rows are fitted side by side, all at once only where they learn a table together."""
    table, learn, weight = grid.table, grid.learn, rows.weight
    if learn and weight.size > LEARNED:
        some = rows.some(slice(None, None, -(-weight.size // LEARNED)))
        lesson = RowFit(some, blocks, table)
        _run(lesson, learn, effort)
        table, learn = lesson.table, False
    row = weight.shape[0] * weight.shape[2]
    height = max(CHUNKED // row, min(CHUNK_ROWS, CHUNK_MOST // row), FEWEST_ROWS)
    height = -(-height // grid.together) * grid.together
    chunks = rows.chunks(weight.shape[1] if learn else height)
    fits = [RowFit(chunk, blocks, table, grid.segment) for chunk in chunks]
    states = side_by_side(lambda fit: _run(fit, learn, effort), fits)
    codes = [fit.ordered(state.codes) for fit, state in zip(fits, states, strict=True)]
    error = sum(float(state.error.sum(dtype=np.float64)) for state in states)
    return Coded(
        np.concatenate(codes, axis=1).reshape(-1, codes[0].shape[2]),
        np.concatenate([state.scale for state in states], axis=1).reshape(-1, rows.parts),
        fits[-1].table,
        max(error, 0.0) / max(sum(fit.energy for fit in fits), 1e-30),
        None if rows.zero is None else rows.zero.reshape(-1, rows.parts),
    )


def _run(fit: RowFit, learn: bool, effort: tuple[int, int]) -> State:
    """The best state of every row; with ``learn`` the fit's table follows the codes."""
    rounds, sweeps = effort
    scale, best = fit.started(), None
    if fit.width == 1 and not learn:  # plain rounding is always in the running
        usual = fit.rows.starts[fit.rows.usual]
        best = fit.nearest(usual, sweeps - 1)
    for turn in range(rounds):
        state = fit.turn(scale, sweeps)
        before, best = best, state.better(best)
        scale = state.scale
        if turn and before is not None and best.total > (1 - GAIN) * before.total:
            break
        if learn and turn < rounds - 1:
            best = learn_table(fit, best)
            scale = best.scale
    assert best is not None
    return best


def _blocks(rows: Rows, statistics: Statistics, grid: Grid, trial: bool) -> list[Block]:
    """The metrics of the inputs; for a trial, of no more of them than its error needs."""
    fan_in, width = rows.weight.shape[2], grid.table.shape[1]
    parts = metrics(statistics, width, rows.weight.dtype)
    if trial:
        count = max(1, len(parts) * TRIAL_INPUTS // fan_in)
        parts = parts[:: -(-len(parts) // count)]
    size = -(-fan_in // rows.parts)
    place = [np.minimum(m.columns[::width] // size, rows.parts - 1) for m in parts]
    return [Block(m, part, np.repeat(part, width)) for m, part in zip(parts, place, strict=True)]


def _effort(layer: Layer, blocks: list[Block], learn: bool, trial: bool) -> tuple[int, int]:
    """Rounds, and sweeps in each: many rounds gain little, and large layers take long."""
    if trial:
        rounds, sweeps = 1, 1
    else:
        work = sum(layer.weight.size * len(b.metric.columns) for b in blocks)
        rounds, sweeps = ROUNDS if work < WORK else ROUNDS // 2 if work < 32 * WORK else 1, SWEEPS
    return max(rounds, 1 + learn), sweeps


def _some_rows(rows: Rows, blocks: list[Block], learn: bool) -> Rows:
    """Rows enough to know the error."""
    groups, count, _ = rows.weight.shape
    inputs = sum(len(b.metric.columns) for b in blocks)
    work = sum(len(b.metric.columns) ** 2 for b in blocks) * groups
    enough = max(TRIAL_ROWS, TRIAL_WORK // work, learn * TRIAL_LEARNED // inputs)
    step = -(-count // enough)
    return rows.some(slice(step // 2, None, step))
