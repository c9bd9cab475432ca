"""The compressed model as torch trains it."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxcompress.core.errors import RefineError
from onnxcompress.core.layer import Array
from onnxcompress.core.sample import Sample
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, expose, with_values
from onnxcompress.refinement.losses import Loss
from onnxcompress.refinement.parameters import Free, Parameters, find_parameters
from onnxcompress.refinement.teacher import Lessons, floating, tensors
from onnxcompress.refinement.torch_graph import TorchGraph
from onnxcompress.refinement.torch_ops.operator import tensor

AGREES = 0.02  # torch may differ from onnxruntime by this share of the outputs.
ROUNDING = 1e-6  # It may also differ by this much, for outputs that are all zeros.


@dataclass(frozen=True, eq=False)
class Student:
    """A model, what of it is trained, and the graph that computes with it.

    Attributes:
        model: as it came; what is trained takes the place of its constants.
        graph: its outputs and the hints.
        compared: places of those outputs and hints that the teacher's are compared with.
    """

    model: Model
    parameters: Parameters
    graph: TorchGraph
    compared: Sequence[int]
    device: str

    def outputs(self, sample: Sample, free: Free) -> list[Tensor]:
        """What is compared, in float32; a GPU multiplies in bfloat16."""
        kind = torch.device(self.device).type
        inputs = {name: tensor(array, self.device) for name, array in sample.items()}
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            outputs = self.graph(inputs, self.parameters.rounded(free))
        return [outputs[place].float() for place in self.compared]

    def stored(self, free: Free) -> Model:
        """The model with what is trained in its constants."""
        return with_values(self.model, self.parameters.arrays(free))


def prepare_student(model: Model, lessons: Lessons, loss: Loss, seed: int) -> Student:
    """Find out what can be trained; what does not change the outputs is left out.

    Args:
        loss: of the outputs.
        seed: of where the latents of codes start.

    Raises:
        RefineError: torch does not compute what onnxruntime does; or there is nothing to train.
    """
    device = lessons.device
    shown = expose(model, [*(output.name for output in model.graph.output), *lessons.hints])
    parameters = find_parameters(model, seed, device)
    graph = TorchGraph(shown, list(parameters.start), device)
    free = parameters.begin()
    sample, expected = next(lessons.held_out.batches())
    inputs = {name: tensor(array, device) for name, array in sample.items()}
    values = graph(inputs, parameters.rounded(free))
    outputs = [values[place] for place in lessons.compared[: lessons.outputs]]
    _check_agreement(outputs, floating(Session(model).run(sample)))
    total = loss(outputs, tensors(expected, device))
    if total.requires_grad:
        total.backward()
    parameters = parameters.without([name for name, value in free.items() if value.grad is None])
    if not parameters.start:
        raise RefineError("the model has no floating-point weights to train")
    graph = TorchGraph(shown, list(parameters.start), device)
    return Student(model, parameters, graph, lessons.compared, device)


def _check_agreement(outputs: Sequence[Tensor], reference: Sequence[Array]) -> None:
    """Raise unless torch computes what onnxruntime does.

    Raises:
        RefineError: it does not.
    """
    for ours, theirs in zip(outputs, reference, strict=True):
        a, b = ours.detach().cpu().numpy(), theirs.astype(np.float32)
        off = np.linalg.norm(a - b) if a.shape == b.shape else np.inf
        if not off <= AGREES * np.linalg.norm(b) + ROUNDING:
            raise RefineError("torch computes something else than onnxruntime for this model")
