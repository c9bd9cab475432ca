"""How many samples a model runs on at the same time, and how many stay in memory.

Whatever runs a model on several samples asks here for the batch that it makes, and for the threads
that it runs batches on: together they hold `ACTIVATION_BYTES`, or one sample.  The size
of a batch does not depend on the number of threads: the last digits of a result depend on the
batch, and they must not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

# All samples that run at the same time take at most so many bytes, as estimated.
ACTIVATION_BYTES = 1 << 29
# Where memory is short, batches are small enough for so many of them to run at the same time.
THREADS = 8
# All samples whose activations are kept from one layer to the next take at most so many bytes.
KEPT_BYTES = 1 << 30
# A sample takes so many times the bytes of the largest input of a layer: beside it lies what it
# came from, and what is made of it.
COPIES = 4
KEPT_COPIES = 6  # It takes so many times these bytes in the original and the compressed model.


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
