"""What is trained: float constants of a model, and codes.

Constants have masters in float32.  What is stored in 16 bits is rounded on the way forward, and its
gradient passes as if it were not: what is trained is what is stored.  Codes have latents, see
`straight_through`.

Steps are equally long for all tensors: each tensor is divided by its root mean square, so that a
step is a share of it, and latents by half the distance between rows.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onnxcompress.core.layer import Array
from onnxcompress.graph import OPERATORS as LINEAR
from onnxcompress.graph import Model, operations
from onnxcompress.refinement.straight_through import Latents, find_lookups, start_latents
from onnxcompress.refinement.torch_ops import OPERATORS
from onnxcompress.refinement.torch_ops.operator import tensor

LARGEST = 1e4  # A constant of a greater magnitude is a mask, and is not trained.
LEAST_SIZE = 1e-6  # A tensor of a smaller root mean square counts as all zeros.
SIZE_OF_ZEROS = 1e-2  # Steps of such a tensor are shares of this, so that it can move.

Free = dict[str, Tensor]  # The optimizers change what a name has, in units of its size.


@dataclass(frozen=True, eq=False)
class Parameters:
    """The tensors of a model that are trained, as it came.

    Attributes:
        types: constant -> the type that it is stored in.
        latents: name of looked-up rows -> what stands for their codes.
        start: masters of the constants, and latents.
        sizes: what each of them is divided by.
        matrices: constants that linear nodes multiply with as they are stored.
    """

    types: Mapping[str, np.dtype]
    latents: Mapping[str, Latents]
    start: Mapping[str, Tensor]
    sizes: Mapping[str, float]
    matrices: Collection[str]

    def begin(self) -> Free:
        """The values that the model came with, to be trained."""
        return {
            name: (self._flat(name, value) / self.sizes[name]).requires_grad_()
            for name, value in self.start.items()
        }

    def groups(self, free: Free) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Matrices, other floats, and latents: each kind has steps of its own."""
        matrices = [free[name] for name in self.types if name in self.matrices]
        others = [free[name] for name in self.types if name not in self.matrices]
        return matrices, others, [free[name] for name in self.latents]

    def without(self, names: Collection[str]) -> Parameters:
        """All but these."""
        types = {name: kind for name, kind in self.types.items() if name not in names}
        latents = {name: value for name, value in self.latents.items() if name not in names}
        start = {name: value for name, value in self.start.items() if name not in names}
        return replace(self, types=types, latents=latents, start=start)

    def bound(self, free: Free) -> None:
        """Keep latents, in place, where their codes can still change."""
        with torch.no_grad():
            for name, latents in self.latents.items():
                free[name].copy_(latents.inside(self._master(free, name)) / self.sizes[name])

    def rounded(self, free: Free) -> dict[str, Tensor]:
        """The tensors to compute with: constants as their types store them, and rows."""
        floats = {n: _stored(self._master(free, n), kind.name) for n, kind in self.types.items()}
        rows = {n: v.rounded(self._master(free, n)) for n, v in self.latents.items()}
        return floats | rows

    def arrays(self, free: Free) -> dict[str, Array]:
        """The constants to store, in their types."""
        with torch.no_grad():
            floats = {
                name: self._master(free, name).cpu().numpy().astype(kind)
                for name, kind in self.types.items()
            }
            codes = {
                latents.lookup.codes: latents.nearest(self._master(free, name))
                for name, latents in self.latents.items()
            }
        return floats | {name: c.cpu().numpy().astype(np.uint8) for name, c in codes.items()}

    def _master(self, free: Free, name: str) -> Tensor:
        return (free[name] * self.sizes[name]).reshape(self.start[name].shape)

    def _flat(self, name: str, value: Tensor) -> Tensor:
        """A matrix in the shape that its optimizer makes orthogonal."""
        return value.flatten(1) if name in self.matrices else value


def find_parameters(model: Model, seed: int, device: str) -> Parameters:
    """All that can be trained, as far as the nodes tell.

    Args:
        seed: of where latents start.
    """
    rng = np.random.default_rng(seed)
    values = {name: model.read(name) for name in trainable(model)}
    latents = {
        lookup.rows: start_latents(lookup, model.read(lookup.codes), rng, device)
        for lookup in find_lookups(model)
    }
    start = {name: tensor(value, device) for name, value in values.items()}
    sizes = {name: _size(value) for name, value in values.items()}
    return Parameters(
        {name: value.dtype for name, value in values.items()},
        latents,
        start | {name: one.start for name, one in latents.items()},
        sizes | {name: one.reach for name, one in latents.items()},
        matrices(model) & values.keys(),
    )


def trainable(model: Model) -> list[str]:
    """The floating-point constants that are weights, as far as the nodes tell."""
    settings, biases = set(), set()
    for operation in operations(model):
        if operator := OPERATORS.get(operation.op_type):
            settings.update(n for i, n in enumerate(operation.inputs) if i in operator.settings)
            biases.update(n for i, n in enumerate(operation.inputs) if i == operator.bias)
    return [
        name
        for name in model.constants
        if name not in settings and _is_weight(model.read(name), 1 if name in biases else 2)
    ]


def _is_weight(value: Array, least: int) -> bool:
    """Whether an array holds at least so many floats of more than a byte, and no masks."""
    floating = value.dtype.name.startswith(("float", "bfloat")) and value.itemsize > 1
    return (
        floating and value.size >= least and bool(np.abs(value.astype(np.float32)).max() < LARGEST)
    )


def matrices(model: Model) -> set[str]:
    """The constants that linear nodes multiply by as they are stored: ``(out, ...)`` and alike."""
    return {
        name
        for operation in operations(model)
        for place, name in enumerate(operation.inputs[:2])
        if operation.op_type in LINEAR and name in model.constants
        if place or operation.op_type == "MatMul"
        if len(model.constants[name].dims) > 1
    }


def _size(value: Array) -> float:
    size = float(np.sqrt(np.mean(np.square(value.astype(np.float64)))))
    return size if size > LEAST_SIZE else SIZE_OF_ZEROS


def _stored(master: Tensor, kind: str) -> Tensor:
    """Rounded to 16 bits; the gradient passes straight through."""
    if kind not in ("float16", "bfloat16"):
        return master
    rounded = master.detach().to(getattr(torch, kind)).to(torch.float32)
    return master + (rounded - master.detach())
