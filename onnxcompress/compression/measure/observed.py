"""Statistics of the layers' inputs, by weight."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from onnxcompress.compression.job import Job
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.core.statistics import Statistics, moment_bytes

# Layers of a large model whose statistics are kept together take at most so many bytes.
STATISTICS_BYTES = 1 << 29


@dataclass(frozen=True, eq=False)
class Observed:
    """Statistics of what the layers read, by weight; of a large model taken again when needed.

    Attributes:
        kept: those that stay in memory.
    """

    job: Job
    kept: Mapping[str, Statistics] = field(default_factory=dict)

    def of(self, leaders: Collection[str]) -> dict[str, Statistics]:
        """What the layers with these weights read, for each weight."""
        job, settings = self.job, self.job.settings
        layers = {name: layer for name, layer in job.layers.items() if layer.shared in leaders}
        if job.fit is None:
            return {name: Statistics.white(job.layers[name]) for name in leaders}
        seen = calibrate(
            job.runnable,
            layers,
            job.fit,
            shapes=job.shapes,
            jobs=settings.jobs,
            track=settings.track,
        )
        seen |= {n: Statistics.white(layers[n]) for n in layers.keys() - seen.keys()}
        merged: dict[str, Statistics] = {}
        for name, layer in layers.items():
            known = merged.get(layer.shared)
            merged[layer.shared] = seen[name] if known is None else known + seen[name]
        return {name: replace(one, doubt=job.doubt) for name, one in merged.items()}

    def each(self, names: Iterable[str]) -> Iterator[tuple[str, Statistics]]:
        """These layers with what they read."""
        layers, readers = self.job.layers, [*names]
        if all(layers[name].shared in self.kept for name in readers):
            yield from ((name, self.kept[layers[name].shared]) for name in readers)
            return
        for group in self.groups(dict.fromkeys(layers[name].shared for name in readers)):
            seen = self.of(group)
            yield from ((n, seen[layers[n].shared]) for n in readers if layers[n].shared in seen)

    def groups(self, leaders: Iterable[str]) -> list[list[str]]:
        """The weights of a large model in groups whose statistics and fits fit into memory."""
        groups: list[list[str]] = [[]]
        filled = 0
        for name in leaders:
            layer = self.job.layers[name]
            moments = moment_bytes(layer) if self.job.fit is not None else 0
            nbytes = self.job.model.large * (layer.weight.nbytes + moments)
            if groups[-1] and filled + nbytes > STATISTICS_BYTES:
                groups.append([])
                filled = 0
            groups[-1].append(name)
            filled += nbytes
        return groups

    def keeping(self, leaders: Iterable[str]) -> Observed:
        """The same with the statistics of these weights alone, where they fit into memory."""
        names = {*leaders}
        kept = {name: statistics for name, statistics in self.kept.items() if name in names}
        if self.job.fit is None or not self.job.model.large:
            kept |= self.of(names - kept.keys())
        return replace(self, kept=kept)
