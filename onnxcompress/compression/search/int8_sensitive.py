"""Which layers compute in float again, as int8 costs more there than it gains.

Errors of tensors that are rounded add up as noise does, and so do the times of nodes.  Layers go
back one group after the other, those first of which the error falls most for the time that it
takes::

    worth = - d log(error) / d log(time)

as long as that is worth more than `WORTH`, or the error is above the one that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import log

from onnxcompress.graph import Model
from onnxcompress.graph.int8_region import Int8Region

WORTH = 4.0  # At this worth, a decibel less of error may cost 6 % of the time.
UNSEEN = 1e-4  # So much relative squared error stays in any case: weights are rounded too.
# Layers that go back count as costing at least this share of the time: no worth is infinite.
NEXT_TO_NO_TIME = 1e-3

Names = tuple[str, ...]
Sum = Callable[[Names], float]


def without_sensitive(
    layers: Sequence[str],
    groups: Callable[[Names], Iterable[Collection[str]]],
    error: Sum,
    seconds: Sum,
    most: float,
    enough: float = 0.0,
) -> list[str]:
    """The layers that stay in int8.

    Args:
        groups: of some layers, those that may go back together.
        error: of the outputs with these layers in int8, and the seconds that the model takes.
        most: seconds that it may take.
        enough: the error that is to be reached where `most` allows it; 0 for none.
    """
    kept = tuple(layers)
    now, time = error(kept), seconds(kept)
    while kept:
        best: tuple[float, Names, float, float] | None = None
        for group in groups(kept):
            rest = tuple(name for name in kept if name not in group)
            after, longer = error(rest), seconds(rest)
            if after >= now or longer > most:
                continue
            gain = log((now + UNSEEN) / (after + UNSEEN))
            worth = gain / max(log(longer / time), NEXT_TO_NO_TIME)
            if best is None or worth > best[0]:
                best = worth, rest, after, longer
        if best is None or (best[0] < WORTH and (not enough or now <= enough)):
            break
        _, kept, now, time = best
    return list(kept)


def neighbours(model: Model, region: Int8Region, layers: Sequence[str]) -> Iterator[list[str]]:
    """Each layer alone, and those together that read or give the same tensor of bytes."""
    keys, known = model.keys, set(layers)
    around: dict[str, set[str]] = {}
    for index in region.nodes:
        if keys[index] not in known:
            continue
        last = model.graph.node[region.cuts.get(index, index)]
        for name in [model.graph.node[index].input[0], *last.output]:
            if name in region.source:
                around.setdefault(region.source[name], set()).add(keys[index])
    yield from ([name] for name in layers)
    groups = {tuple(sorted(group)) for group in around.values() if len(group) > 1}
    yield from map(list, sorted(groups))
