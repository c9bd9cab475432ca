"""How many samples a model runs on at the same time, and how many stay in memory.

Whatever runs a model on several samples asks here for the batch that it makes, and for the threads
that it runs batches on: together they hold `ACTIVATION_BYTES`, or one sample.  The size
of a batch does not depend on the number of threads: the last digits of a result depend on the
batch, and they must not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

ACTIVATION_BYTES = 1 << 29  # of all samples that run at the same time, as estimated,
THREADS = 8  # of which so many find something to do: batches are smaller where memory is short
KEPT_BYTES = 1 << 30  # of all samples whose activations are kept from one layer to the next
COPIES = 4  # of the largest input of a layer: beside it what it came from, and what is made of it
KEPT_COPIES = 6  # of the same in the original and in the compressed model


def largest_input(shapes: Iterable[tuple[int, ...]]) -> int:
    """Bytes of the largest input of a layer for one sample, by their shapes."""
    return max((4 * prod(shape) for shape in shapes), default=0)


def batch_size(largest: int, most: int) -> int:
    """Samples per batch, ``most`` or fewer.

    Args:
        largest: bytes of the `largest_input`.
    """
    return max(1, min(most, _at_once(largest) // THREADS))


def threads(largest: int, batch: int, jobs: int) -> int:
    """Threads that run batches of so many samples at the same time, ``jobs`` or fewer."""
    return max(1, min(jobs, _at_once(largest) // batch))


def kept(largest: int) -> int:
    """Samples whose activations are kept in memory."""
    return max(1, KEPT_BYTES // (KEPT_COPIES * max(largest, 1)))


def _at_once(largest: int) -> int:
    return max(1, ACTIVATION_BYTES // (COPIES * max(largest, 1)))
