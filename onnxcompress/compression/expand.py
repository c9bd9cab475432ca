"""Compressed models with their weights written out again, for runtimes that fold no constants."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from onnxcompress.execution.session import Session
from onnxcompress.graph import DECODED, Model, fold_constants


def expand(model: Model) -> Model:
    """A copy in which stored weights take the place of the nodes that decode them.

    Decoders are known by the names of their tensors, see `DECODED` of `onnxcompress.graph.nodes`.
    What else a model computes from constants, such as a grid of positions, stays as it is: written
    out it may be many times larger.

    Raises:
        ModelError: onnxruntime cannot compute one of them.
    """
    return fold_constants(model, run_alone, _decodes)


def _decodes(node: Any) -> bool:
    """Whether a node is part of a decoder; the last one gives a tensor of the model's own name."""
    own = re.compile(DECODED).fullmatch
    return all(map(own, filter(None, node.output))) or all(map(own, filter(None, node.input)))


def run_alone(part: Model) -> Sequence[Any]:
    """The outputs of a model without inputs; as each node runs once, nothing is gained by folding
    them first, and each tensor would be held twice."""
    return Session(part, optimize=False).run({})
