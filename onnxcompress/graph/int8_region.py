"""Which tensors are bytes where some layers compute in int8.

A tensor that a layer with fixed ranges reads is stored as bytes, and what a convolution or Gemm
of these gives, behind its Relu or Clip.  Nodes between them compute with bytes too where the
runtime can: those of `LINEAR` and `TABLES` have a range of their own, those of `KEEPING` that of
what they read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from onnx import NodeProto

from onnxcompress.graph.model import Model
from onnxcompress.graph.nodes import attributes_of

# What these give has a range of its own, since several values or tensors go into it.
LINEAR = ("Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat")
# What these give has a range of its own; it depends on one byte alone, as in a table.
TABLES = ("Sigmoid", "LeakyRelu")

KEEPING = (
    *("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Resize"),
    *("Gather", "Expand", "Split"),
)  # Their outputs hold nothing but what they read.

CUTTING = ("Relu", "Clip")  # The range of what they give replaces them.


@dataclass(frozen=True, eq=False)
class Int8Region:
    """The bytes of a model in which the named layers have fixed ranges.

    Attributes:
        source: tensor of bytes -> the tensor whose range it has, mostly itself.
        nodes: indices of nodes of the main graph that compute with bytes.
        made: those tensors that such a node gives: nothing reads them as floats.
        cuts: node -> the Relu or Clip behind it, which is one of the nodes too.
    """

    source: dict[str, str] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    cuts: dict[int, int] = field(default_factory=dict)

    @property
    def ranged(self) -> list[str]:
        """The tensors whose ranges are to be known."""
        return list(dict.fromkeys(self.source.values()))


def int8_region(model: Model, layers: Collection[str], between: bool = True) -> Int8Region:
    """The region that these layers of the main graph span.

    Args:
        between: whether other nodes compute with bytes too.
    """
    return _Search(model, set(layers), between).result()


class _Search:
    """Walks the main graph in order, until nothing is added."""

    def __init__(self, model: Model, layers: set[str], between: bool) -> None:
        self.model, self.between = model, between
        self.nodes = list(model.graph.node)
        self.outputs = {output.name for output in model.graph.output}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(index)
        self.inner = {scope.key(n) for scope in model.scopes[1:]
                      for node in scope.graph.node for n in node.input if n}  # fmt: skip
        self.layers = [i for i, key in enumerate(model.keys) if key in layers]
        self.region = Int8Region()

    @cached_property
    def floats(self) -> set[str]:
        """Tensors that are constants, or computed from them."""
        return self.model.constants.keys() | self.model.makers.keys()

    def result(self) -> Int8Region:
        region = self.region
        for index in self.layers:
            node = self.nodes[index]
            region.nodes.add(index)
            self.reads(node.input[0])
            if node.op_type == "Conv":
                self.gives(index)
        while self.between and sum(map(self.joins, range(len(self.nodes)))):
            pass  # Every node is asked again once others have joined.
        return region

    def reads(self, name: str) -> None:
        self.region.source.setdefault(name, name)

    def gives(self, index: int, of: str = "") -> None:
        """What a node of the region makes, behind what cuts it, is bytes."""
        cut = self.cut(index) if not of else None
        if cut is not None:
            self.region.nodes.add(cut)
            self.region.cuts[index] = cut
            index = cut
        for name in filter(None, self.nodes[index].output):
            self.region.made.add(name)
            self.region.source[name] = self.region.source[of] if of else name

    def cut(self, index: int) -> int | None:
        """The Relu or Clip that alone reads what a node gives."""
        output = self.nodes[index].output[0]
        readers = self.readers[output]
        if len(readers) != 1 or output in self.outputs or output in self.inner:
            return None
        node = self.nodes[readers[0]]
        constant = all(name in self.floats for name in node.input[1:] if name)
        return readers[0] if node.op_type in CUTTING and constant else None

    def joins(self, index: int) -> bool:
        """Whether a node begins to compute with bytes now."""
        node, region = self.nodes[index], self.region
        if index in region.nodes or node.domain not in ("", "ai.onnx"):
            return False
        keeps = node.op_type in KEEPING
        if not keeps and node.op_type not in (*LINEAR, *TABLES):
            return False
        if not self.possible(node):
            return False
        read = list(self.data(node))
        made = [name in region.made for name in read]
        if not any(made):
            return False
        after = self.cut(index) if not keeps else None
        outputs = self.nodes[index if after is None else after].output
        feeds = any(i in region.nodes for name in outputs for i in self.readers[name])
        if not all(made) and not feeds:
            return False
        for name in read:
            self.reads(name)
        region.nodes.add(index)
        self.gives(index, read[0] if keeps else "")
        return True

    def possible(self, node: NodeProto) -> bool:
        """Whether the runtime has a kernel for bytes, or just moves them."""
        constant = [name in self.floats for name in node.input]
        attributes = attributes_of(node)
        if node.op_type in ("Add", "Mul", "Concat"):
            return not any(constant)
        if node.op_type == "Resize":
            return attributes.get("mode", "nearest") == "nearest" and all(constant[1:])
        if node.op_type == "AveragePool":
            return not attributes.get("ceil_mode")
        if node.op_type == "MaxPool":
            return len(node.output) == 1
        return not constant[0]

    def data(self, node: NodeProto) -> Iterator[str]:
        """The tensors of numbers among what a node reads."""
        many = node.op_type in LINEAR
        yield from filter(None, node.input if many else node.input[:1])


def lone_region(model: Model) -> Int8Region:
    """The region of a model of one node, and perhaps of what cuts it, that is no layer."""
    search = _Search(model, set(), between=False)
    keeps, read = model.graph.node[0].op_type in KEEPING, list(search.data(model.graph.node[0]))
    for name in read:
        search.reads(name)
    search.region.nodes.update(range(len(model.graph.node)))
    search.outputs = set()
    search.gives(0, read[0] if keeps else "")
    return search.region
