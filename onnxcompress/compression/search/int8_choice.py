"""Which layers compute in int8: the fastest of a few choices, but for those that are sensitive."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np

from onnxcompress.compression.measure.int8_times import Times, spent, time_region
from onnxcompress.compression.search.int8_layers import Regions
from onnxcompress.compression.search.int8_ranges import OutputLoss, TensorErrors
from onnxcompress.compression.search.int8_sensitive import neighbours, without_sensitive
from onnxcompress.core.arithmetic import Arithmetic, Range, Rounded
from onnxcompress.core.layer import Array, Layer
from onnxcompress.execution.session import Sample
from onnxcompress.graph import Model, compute_int8
from onnxcompress.graph.int8_region import int8_region

FASTER = 0.97  # A model or a layer counts as faster if it takes at most this share of the time.
SECONDS = 2.0  # Whole models run in turns for about so many seconds.
# Rounded inputs leave so many dB of a target to rounded weights, which is half of the error.
SPARE = 3.0
ENDS = ("before", "after")


@dataclass(frozen=True, eq=False)
class Choice:
    """Layers that compute in int8, and what that takes.

    Attributes:
        static, dynamic: the layers; the latter with their times alone.
        seconds, original: of this model and of the original, measured.
        regions: predicts the time of other choices among the static ones.
    """

    static: Sequence[str]
    dynamic: Mapping[str, Times]
    seconds: float
    original: float
    regions: Regions | None = None

    @property
    def chosen(self) -> list[str]:
        return [*self.static, *self.dynamic]

    def only(self, names: Collection[str]) -> Choice:
        """The same with these layers alone; the time is that of all."""
        dynamic = {name: times for name, times in self.dynamic.items() if name in names}
        return replace(self, static=[n for n in self.static if n in names], dynamic=dynamic)

    @property
    def share(self) -> float:
        return self.seconds / self.original if self.chosen else 1.0


def fastest(
    original: Model,
    model: Model,
    layers: Mapping[str, Layer],
    static: Sequence[str],
    dynamic: Sequence[Mapping[str, Times]],
    values: Mapping[str, Array],
    sample: Sample,
) -> Choice:
    """The fastest of a few choices of layers, none if none is faster than the original.

    A model that runs in parts is not timed as a whole: what is faster alone is taken.

    Args:
        dynamic: sets of layers to be tried, with their times alone; first those that gain.
    """
    if model.large:
        before, after = (sum(getattr(t, end) for t in dynamic[0].values()) for end in ENDS)
        return Choice([], dynamic[0], after, before or 1.0)
    regions, choices = None, list[Sequence[str]]([[]])
    if static:
        region = int8_region(model, static)
        times, border = time_region(model, region, layers, values)
        regions = Regions(model, times, {n: v.size for n, v in values.items()}, border)
        pruned = regions.best(static)
        choices += [static, pruned] if pruned != list(static) else [static]
    sets = [some for i, some in enumerate(dynamic) if some not in dynamic[:i]]
    pairs = [(c, some) for c, some in product(choices, sets) if c or some]
    models = [_in_int8(model, layers, static, [*c, *some]) for c, some in pairs]
    first, *after = spent([original, *models], [sample] * (1 + len(models)), SECONDS)
    best = int(np.argmin(after)) if after else -1
    if best < 0 or after[best] > FASTER * first:
        return Choice([], {}, first, first)
    chosen, quick = pairs[best]
    return Choice(list(chosen), quick, after[best], first, regions)


def _in_int8(
    model: Model, layers: Mapping[str, Layer], static: Sequence[str], chosen: Sequence[str]
) -> Model:
    """A model that takes the time of one with these layers in int8."""
    fixed = [name for name in chosen if name in static]
    region = int8_region(model, fixed)
    ranges = dict.fromkeys(region.ranged, Range(1 / 256, 128))
    behind = {name for i in region.cuts.values() for name in model.graph.node[i].output}
    # This range lies within any Clip.
    ranges |= {name: Range(1 / 256, 0) for name in behind if name in ranges}
    kinds = {
        n: Arithmetic("static" if n in static else "dynamic", Range(1 / 256, 128)) for n in chosen
    }
    weights = {name: Rounded.of(layers[name].read().weight) for name in chosen}
    return compute_int8(model, weights, kinds, ranges, failed={}, region=region)


def robust(
    original: Model,
    model: Model,
    layers: Mapping[str, Layer],
    fast: Choice,
    tensors: TensorErrors,
    loss: OutputLoss,
    least: float | None,
) -> Choice:
    """The choice without layers too sensitive for what they gain of the time of ``original``.

    Args:
        least: SNR of the outputs, in dB, from which no layer is too sensitive.
    """
    if not fast.chosen or model.large:
        return fast
    alone = _dynamic_errors(model, layers, fast, loss)
    regions = cache(lambda names: int8_region(model, names))

    def static(names: Collection[str]) -> tuple[str, ...]:
        return tuple(name for name in fast.static if name in names)

    @cache
    def error(names: Sequence[str]) -> float:
        rounded = tensors.of(regions(static(names)).ranged)
        return rounded + sum(alone[n] for n in names if n in alone)

    @cache
    def seconds(names: Sequence[str]) -> float:
        spent = fast.seconds
        if fast.regions is not None:
            spent += fast.regions.seconds(static(names)) - fast.regions.seconds(fast.static)
        return spent + sum(t.before - t.after for n, t in fast.dynamic.items() if n not in names)

    def groups(names: Sequence[str]) -> Iterator[list[str]]:
        others = ([name] for name in names if name in alone)
        for group in (*neighbours(model, regions(static(names)), static(names)), *others):
            leaders = {layers[name].shared for name in group}
            yield [name for name in names if layers[name].shared in leaders]

    enough = 0.0 if least is None else 10 ** (-(least + SPARE) / 10)
    most = FASTER * fast.original
    kept = without_sensitive(fast.chosen, groups, error, seconds, most, enough)
    if len(kept) == len(fast.chosen):
        return fast
    tried = _in_int8(model, layers, fast.static, kept)
    before, after = spent([original, tried], [loss.batches[0]] * 2, SECONDS)
    slow = after > FASTER * before
    return fast if slow else replace(fast.only(kept), seconds=after, original=before)


def together(layers: Mapping[str, Layer], chosen: Collection[str]) -> set[str]:
    """Those of the chosen that share their weight with no layer that is not: it is stored once."""
    others = {
        layer.shared
        for name, layer in layers.items()
        if name not in chosen and layer.op_type != "Constant"
    }
    return {name for name in chosen if layers[name].shared not in others}


def _dynamic_errors(
    model: Model, layers: Mapping[str, Layer], fast: Choice, loss: OutputLoss
) -> dict[str, float]:
    """Layer -> the error of the outputs where it alone finds a range for what it reads."""

    def changed(name: str) -> Model:
        weight = {name: Rounded.of(layers[name].read().weight)}
        return compute_int8(model, weight, {name: Arithmetic("dynamic")}, {})

    return dict(zip(fast.dynamic, loss.of_each(changed, fast.dynamic), strict=True))
