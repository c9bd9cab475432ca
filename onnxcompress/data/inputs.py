"""What a model declares of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxcompress.core.errors import DataError
from onnxcompress.core.messages import nearest
from onnxcompress.graph import Model, declared_inputs, declared_outputs, sequences

Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class InputSpec:
    """What a model declares of an input.

    Attributes
    ----------
    shape : tuple or None
        Per axis the size, a symbolic name, or None; None where the rank is unknown.
    sequence : bool
        Whether it takes a list of such arrays.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | str | None, ...] | None
    sequence: bool = False

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f" or self.dtype.name == "bfloat16"  # Its kind is "V".

    @property
    def layout(self) -> Layout | None:
        """Where the channels of an image input are: the axis declared as 1 or 3."""
        if self.shape is None or len(self.shape) != 4:
            return None
        if self.shape[1] in (1, 3):
            return "NCHW"
        return "NHWC" if self.shape[3] in (1, 3) else None

    def fits(self, shape: tuple[int, ...], first: int = 0) -> bool:
        """Whether an array of this shape can be fed; axes before ``first`` may be anything."""
        if self.shape is None:
            return True
        if len(shape) != len(self.shape):
            return False
        pairs = zip(shape[first:], self.shape[first:], strict=True)
        return all(size == dim for size, dim in pairs if isinstance(dim, int) and dim > 0)

    @property
    def batched(self) -> bool:
        """Whether the first axis takes any number of rows."""
        if self.shape is None:
            return True
        first = self.shape[0] if self.shape else 0
        return not isinstance(first, int) or first < 0

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join(str(d or "?") for d in self.shape)
        return f"{self.name!r} ({self.dtype} [{dims}])"


def with_shapes(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> list[InputSpec]:
    """The inputs, some of them with the shapes that the user states.

    Raises
    ------
    DataError
        There is no such input, or it declares another shape.
    """
    for name, shape in shapes.items():
        spec = next((spec for spec in specs if spec.name == name), None)
        if spec is None:
            near = nearest(name, [spec.name for spec in specs])
            raise DataError(f"the model has no input {name!r}{near}")
        if not spec.fits(tuple(shape)):
            dims = ", ".join(map(str, shape))
            raise DataError(f"samples of shape [{dims}] do not fit the input {spec}")
    return [replace(s, shape=tuple(shapes[s.name])) if s.name in shapes else s for s in specs]


def input_specs(model: Model) -> list[InputSpec]:
    """What a model declares of its inputs."""
    lists = sequences(model)
    return [
        InputSpec(name, dtype, None if shape is None else tuple(shape), name in lists)
        for name, dtype, shape in declared_inputs(model)
    ]


def output_specs(model: Model) -> list[InputSpec]:
    """What a model declares of its outputs."""
    return [
        InputSpec(name, dtype, None if shape is None else tuple(shape))
        for name, dtype, shape in declared_outputs(model)
    ]
