"""Where a training stands, kept after every epoch: an interrupted run goes on from there."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from io import BytesIO
from pickle import UnpicklingError
from typing import Any

import torch

from onnxcompress.execution.cache import Cache
from onnxcompress.refinement.parameters import Free
from onnxcompress.report.report import Epoch

KIND = "checkpoint"  # The file's name ends so.


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What the rest of a training depends on.

    Attributes:
        rate: that was chosen.
        epochs: those that are over, the model that came in first.
        best: the parameters with the least held-out loss; empty where the model came with them.
        free: the parameters now.
        optimizers: their states.
    """

    rate: float
    epochs: Sequence[Epoch]
    best: Free
    free: Free
    optimizers: Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """The place of one training's last checkpoint.

    Attributes:
        key: whatever the result depends on.
        device: where tensors are put.
    """

    cache: Cache
    key: str
    device: str

    def load(self) -> Checkpoint | None:
        """What was kept last; None where there is nothing, or nothing whole."""
        data = self.cache.load(self.key, KIND)
        if data is None:
            return None
        try:
            state = torch.load(BytesIO(data), map_location=self.device, weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError):
            return None
        if not isinstance(state, dict) or state.pop("key", None) != self.key:
            return None
        epochs = [Epoch(*row) for row in state.pop("epochs")]
        return Checkpoint(epochs=epochs, **state)

    def keep(self, state: Checkpoint) -> None:
        """Keep this in place of what was there."""
        if self.cache.folder is not None:
            stream = BytesIO()
            rows = [astuple(epoch) for epoch in state.epochs]
            torch.save(vars(state) | {"epochs": rows, "key": self.key}, stream)
            self.cache.keep(self.key, stream.getvalue(), KIND)


def key_of(*parts: Any) -> str:
    """A name for what a result depends on, by the ``repr`` of its parts."""
    return sha256(repr(parts).encode()).hexdigest()
