"""How far the outputs of the compressed model are from the original's.

Class scores: T² times the Kullback-Leibler divergence of the class probabilities at the
temperature T (Hinton, Vinyals, Dean 2015, section 2).  All else: squared error relative to the
variance.  The activations that both models share count as *hints* (Romero et al. 2015), by their
relative squared error; where there are any, class scores count little beside them.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onnxcompress.compression.validate.fidelity import has_class_scores
from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array

# This is the temperature of class probabilities: at 1, those that matter are too few to learn from.
TEMPERATURE = 4.0
# The error of an output that hardly varies is divided by this, instead of by nearly 0.
LEAST_VARIANCE = 1e-12
LEAST_PROBABILITY = 1e-12  # Below this, logarithms say nothing but rounding.

# It turns (outputs, expected) into one number.
Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]

# It turns (outputs, class numbers) into one number.
LabelLoss = Callable[[Sequence[Tensor], Tensor], Tensor]


def output_loss(reference: Sequence[Sequence[Array]]) -> Loss:
    """The loss that fits the teacher's outputs, as the module says; the mean over the outputs.

    Args:
        reference: outputs of the teacher, batch by batch.
    """
    parts = [_one_output_loss(batches) for batches in zip(*reference, strict=True)]

    def loss(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
        triples = zip(parts, outputs, expected, strict=True)
        return torch.stack([part(a, b) for part, a, b in triples]).mean()

    return loss


def _one_output_loss(batches: Sequence[Array]) -> Callable[[Tensor, Tensor], Tensor]:
    values = [torch.from_numpy(y.astype(np.float32)) for y in batches]
    if not all(map(has_class_scores, batches)):
        variance = float(torch.cat([y.flatten() for y in values]).var(correction=0))
        return lambda a, b: _relative_error(a, b, variance)
    probable = all(_are_probabilities(y.flatten(1)) for y in values)

    def divergence(a: Tensor, b: Tensor) -> Tensor:
        a, b = (_logits(y.flatten(1), probable) / TEMPERATURE for y in (a, b))
        ours, theirs = torch.log_softmax(a, 1), torch.log_softmax(b, 1)
        return TEMPERATURE**2 * (theirs.exp() * (theirs - ours)).sum(1).mean()

    return divergence


def relative_loss(reference: Sequence[Array]) -> Loss:
    """Squared error relative to the variance, the mean over outputs and hints alike.

    Args:
        reference: outputs and hints of the teacher for one batch.
    """
    variances = [float(np.var(y.astype(np.float64))) for y in reference]

    def loss(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
        triples = zip(outputs, expected, variances, strict=True)
        return torch.stack([_relative_error(a, b, variance) for a, b, variance in triples]).mean()

    return loss


def training_loss(scores: Loss, relative: Loss, weight: float, outputs: int) -> Loss:
    """``weight`` times the loss of the first outputs, plus that of outputs and hints alike.

    Args:
        outputs: how many come before the hints.
    """

    def loss(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
        return weight * scores(ours[:outputs], theirs[:outputs]) + relative(ours, theirs)

    return loss


def label_loss(reference: Sequence[Sequence[Array]]) -> tuple[LabelLoss, int]:
    """Cross-entropy of the first output that holds class scores, and how many classes there are.

    Args:
        reference: outputs of the teacher, batch by batch.

    Raises:
        DataError: there are no class scores.
    """
    outputs = enumerate(zip(*reference, strict=True))
    place, scores = next(((i, y) for i, y in outputs if all(map(has_class_scores, y))), (0, ()))
    if not scores:
        raise DataError("labels to train on need a model with class scores")
    rows = [torch.from_numpy(y.astype(np.float32)).flatten(1) for y in scores]
    probable = all(map(_are_probabilities, rows))

    def loss(outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        return cross_entropy(_logits(outputs[place].flatten(1), probable), labels)

    return loss, rows[0].shape[1]


def _relative_error(a: Tensor, b: Tensor, variance: float) -> Tensor:
    return (a - b).square().mean() / max(variance, LEAST_VARIANCE)


def _are_probabilities(rows: Tensor) -> bool:
    """Whether the rows of ``(N, K)`` are probabilities."""
    ones = torch.ones(len(rows))
    return bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-3)


def _logits(scores: Tensor, probable: bool) -> Tensor:
    """Centred logits ``(N, K)`` of class scores, or of probabilities."""
    scores = torch.log(scores.clamp_min(LEAST_PROBABILITY)) if probable else scores
    return scores - scores.mean(1, keepdim=True)
