"""Which layers gain time by computing in int8, the borders of their regions counted.

The time of a model is predicted from that of its nodes::

    t(S) = sum of nodes in the region of S with bytes, of the others in float
           + what it costs to round what comes into the region and to restore what leaves it

Starting from all layers, those without which it is less are taken out, alone or as a whole chain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from onnxcompress.compression.measure.int8_times import Border, Times
from onnxcompress.graph import Model, reads
from onnxcompress.graph.int8_region import Int8Region, int8_region

PASSES = 3  # At most so many passes go over all layers.
GAIN = 0.005  # Layers are left out if that saves more than this share of the time.


@dataclass(frozen=True, eq=False)
class Regions:
    """Predicts times of a model.

    Attributes:
        times: of nodes of the largest region, by index.
        sizes: values of each tensor of it.
    """

    model: Model
    times: Mapping[int, Times]
    sizes: Mapping[str, int]
    border: Border

    def seconds(self, layers: Collection[str]) -> float:
        """Of the nodes that are known, where these layers compute in int8."""
        region = int8_region(self.model, layers)
        total = sum(t.after if i in region.nodes else t.before for i, t in self.times.items())
        return total + self._border(region)

    def _border(self, region: Int8Region) -> float:
        outside = {output.name for output in self.model.graph.output}
        for index, node in enumerate(self.model.graph.node):
            if index not in region.nodes:
                outside |= reads(node)
        rounded = sum(self.sizes.get(n, 0) for n in region.source if n not in region.made)
        restored = sum(self.sizes.get(n, 0) for n in region.made & outside)
        return rounded * self.border.rounding + restored * self.border.restoring

    def best(self, layers: Iterable[str]) -> list[str]:
        """Those of the layers with which the least time is predicted."""
        chosen = list(layers)
        least = self.seconds(chosen)
        for _ in range(PASSES):
            before = len(chosen)
            for group in [*self._chains(chosen), *([name] for name in list(chosen))]:
                rest = [name for name in chosen if name not in group]
                if len(rest) < len(chosen) and (time := self.seconds(rest)) < least * (1 - GAIN):
                    chosen, least = rest, time
            if len(chosen) == before:
                break
        return chosen

    def _chains(self, layers: Collection[str]) -> list[list[str]]:
        """Layers that bytes connect, each group as long as there are several."""
        region, keys = int8_region(self.model, layers), self.model.keys
        owner: dict[str, int] = {}
        groups: dict[int, set[int]] = {}
        for index in sorted(region.nodes):
            node = self.model.graph.node[index]
            joined = {owner[n] for n in node.input if n in owner}
            members = {index}.union(*(groups.pop(g) for g in joined))
            groups[index] = members
            for name, group in owner.items():
                if group in joined:
                    owner[name] = index
            owner.update(dict.fromkeys(node.output, index))
        members = set(layers)
        chains = [[keys[i] for i in sorted(g) if keys[i] in members] for g in groups.values()]
        return [group for group in chains if len(group) > 1] if len(chains) > 1 else chains
