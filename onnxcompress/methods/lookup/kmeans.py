"""Tables of a layer's own start from k-means over its pieces."""

from __future__ import annotations

import numpy as np

from onnxcompress.core.layer import Array
from onnxcompress.methods.lookup.coded import Rows
from onnxcompress.methods.lookup.tables import in_bytes

SEEDS = 2**13  # A table of the layer's own starts from about so many pieces.
SEED_ROUNDS = 8  # So many rounds of k-means make it from these.


def seeded(rows: Rows, table: Array) -> Array:
    """A table nearer to the pieces of a weight: k-means, with nothing known of the inputs."""
    width = table.shape[1]
    if width == 1:
        return table  # The best levels for normal numbers are near enough.
    some = rows.some(slice(None, None, -(-rows.weight.size // (SEEDS * width))))
    weight, part = pieces(some.weight, width, some.parts)
    scale = some.starts[some.usual].reshape(-1, some.parts)[:, part]
    for _ in range(SEED_ROUNDS):
        table = in_bytes(means(weight, nearest(weight, table, scale), scale, table))
    return table


def k_means(points: Array, centers: Array, rounds: int) -> Array:
    """Centers ``(k, d)`` from which the points ``(n, d)`` are less far (Lloyd 1957)."""
    scale = np.ones((1, len(points)))
    points = points.reshape(1, -1)
    for _ in range(rounds):
        centers = means(points, nearest(points, centers, scale), scale, centers)
    return centers


def pieces(weight: Array, width: int, parts: int) -> tuple[Array, Array]:
    """Rows ``(rows, pieces * width)``, padded with zeros, and of every piece the part it is in."""
    n = weight.shape[2]
    pieces = -(-n // width)
    part = np.minimum(np.arange(pieces) * width // -(-n // parts), parts - 1)
    return np.pad(weight.reshape(-1, n), ((0, 0), (0, pieces * width - n))), part


def largest(errors: Array, count: int) -> Array:
    """Where the largest ones are, at most so many, none of them 0."""
    worst = np.argsort(-errors, kind="stable")[:count]
    return worst[errors[worst] > 0]


def means(weight: Array, codes: Array, scale: Array, table: Array) -> Array:
    """Weighted means of what every row of the table stands for (k-means).

    Rows that stand for nothing become the pieces that err most.
    """
    flat, size = codes.ravel(), scale.reshape(-1, 1)
    targets = weight.reshape(-1, table.shape[1]) * size
    below = np.bincount(flat, size[:, 0] ** 2, len(table))
    sums = [np.bincount(flat, targets[:, i], len(table)) for i in range(table.shape[1])]
    centers = np.stack(sums, axis=1) / np.maximum(below, 1e-30)[:, None]
    unused = np.flatnonzero(below == 0)
    centers[unused] = table[unused]
    if table.shape[1] > 1:  # Single values stay in order.
        pieces = weight.reshape(-1, table.shape[1])
        worst = largest(np.square(pieces - centers[flat] * size).sum(1), len(unused))
        centers[unused[: len(worst)]] = pieces[worst] / np.maximum(size[worst], 1e-30)
    return centers.astype(table.dtype)


# So many pieces are compared with a table at a time: what they give stays in the cache.
CHUNK = 2**10


def sizes(weight: Array, parts: int) -> Array:
    """Root mean square of every part of every row, ``(groups, rows, parts)``."""
    size = -(-weight.shape[2] // parts)
    pieces = [weight[:, :, p * size : (p + 1) * size] for p in range(parts)]
    return np.stack([np.sqrt(np.square(part).mean(2)) for part in pieces], axis=2)


def nearest(weight: Array, table: Array, scale: Array, zero: Array | None = None) -> Array:
    """Rows of the table nearest to every piece, ``(rows, pieces)``; scale and zero likewise."""
    targets = weight.reshape(-1, table.shape[1]) / np.maximum(scale, 1e-30).reshape(-1, 1)
    if table.shape[1] == 1:
        units = targets[:, 0] if zero is None else targets[:, 0] + zero.ravel()
        return _places(table[:, 0], units).reshape(scale.shape)
    ones = np.ones((len(targets), 1), np.float32)
    points = np.concatenate([targets, ones], axis=1, dtype=np.float32)
    energy = np.square(table).sum(1, keepdims=True) / 2
    rows = np.concatenate([table, -energy], axis=1, dtype=np.float32).T
    codes, match = np.empty(len(targets), np.intp), np.empty((CHUNK, len(table)), np.float32)
    for start in range(0, len(targets), CHUNK):
        some = points[start : start + CHUNK]
        codes[start : start + CHUNK] = np.matmul(some, rows, out=match[: len(some)]).argmax(1)
    return codes.reshape(scale.shape)


def _places(table: Array, targets: Array) -> Array:
    """Where the nearest values of a sorted table are."""
    middle = (table[1:] + table[:-1]) / 2
    if len(table) > 2 and is_even(table):  # Arithmetic is faster than a search.
        step = (table[-1] - table[0]) / (len(table) - 1)
        places = np.ceil((targets - middle[0]) / step)
        return np.clip(places, 0, len(middle)).astype(np.intp)
    return np.searchsorted(middle, targets)


def is_even(table: Array) -> bool:
    """Whether the values of a sorted table are evenly spaced."""
    steps = np.diff(table)
    return bool(np.allclose(steps, steps.mean()))
