"""What a refined model learns from: samples, what they should give, and how far off outputs are."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from onnxcompress.compression.validate.fidelity import has_class_scores
from onnxcompress.core.errors import DataError
from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import each
from onnxcompress.data.samples import Samples, spread
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import Model, expose, operations

TEMPERATURE = 4.0  # of class probabilities: at 1, those that matter are too few to learn from

SHIFT = 4  # pixels that an image is moved by, at most

MIXED = 0.2  # parameter of the beta distribution of an image's share in a mixture

KEPT_BYTES = 2 << 30  # inputs up to which they are kept in memory


def in_memory(samples: Samples) -> Samples:
    """The same, read once and kept where they are small enough."""
    first = next(samples.batches(1))
    count = len(samples) // samples.batch if samples.exact else len(samples)
    if sum(array.nbytes for array in first.values()) * count > KEPT_BYTES:
        return samples
    if samples.exact:
        return _whole_batches(samples)
    parts = list(samples)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in first}
    labels = samples.labels

    def read(rows: Array) -> Sample:
        return {name: array[rows] for name, array in whole.items()}

    known = None if labels is None else labels.__getitem__
    return replace(samples, read=read, index=np.arange(len(samples)), read_labels=known)


def _whole_batches(samples: Samples) -> Samples:
    """Batches that must stay as they are, in memory: a sample of the result is such a batch."""
    parts = [samples[i : i + samples.batch] for i in range(0, len(samples), samples.batch)]
    batches = [next(iter(part)) for part in parts]
    labels = [] if samples.read_labels is None else [part.labels for part in parts]
    return Samples(
        read=lambda rows: batches[int(rows[0])],
        index=np.arange(len(batches)),
        read_labels=(lambda rows: np.concatenate([labels[i] for i in rows])) if labels else None,
    )


def _rows(
    samples: Samples, size: int, order: np.random.Generator | None, apart: bool
) -> Iterator[Array]:
    """Rows of batches, in the samples' order or in a random one.

    Args:
        apart: batches stay as they are; else any samples come together, and in a random order
            what fills no batch is left out.
    """
    count = len(samples)
    if apart:
        starts = np.arange(0, count, size)
        for start in starts if order is None else order.permutation(starts):
            yield np.arange(start, min(start + size, count))
        return
    rows = np.arange(count) if order is None else order.permutation(count)
    last = count if order is None or count < size else count - count % size
    for start in range(0, last, size):
        yield rows[start : start + size]


@dataclass(frozen=True, eq=False)
class Taught:
    """Samples with the teacher's outputs, in batches.

    Attributes:
        size: samples in a batch.
        outputs: of the teacher, those that are floating-point: for all samples, or for each batch
            where outputs do not go by samples; none where they are not kept.
    """

    samples: Samples
    size: int
    outputs: list[Array] | list[list[Array]]
    apart: bool

    @classmethod
    def by(
        cls, teacher: Session, samples: Samples, size: int, jobs: int, kept: bool = True
    ) -> Taught:
        """Samples, and what the teacher says to them unless that is not to be kept."""
        batches = [len(next(iter(b.values()))) for b in samples.batches(size)]
        asked = islice(samples.batches(size), None if kept else 1)
        found = [floating(y) for y in each(teacher.run, asked, jobs)]
        apart = samples.exact or any(
            y.ndim == 0 or len(y) != count or y.shape[1:] != first.shape[1:]
            for count, outputs in zip(batches, found, strict=False)
            for y, first in zip(outputs, found[0], strict=True)
        )
        size = samples.batch if samples.exact else size
        if apart or not kept:
            return cls(samples, size, found if kept else [], apart)
        return cls(samples, size, [np.concatenate(y) for y in zip(*found, strict=True)], False)

    def batches(self, order: np.random.Generator | None = None) -> Iterator[tuple[Sample, Any]]:
        """Inputs and the teacher's outputs, in the samples' order or in a random one."""
        for rows in _rows(self.samples, self.size, order, self.apart):
            part = self.samples.take(rows)
            outputs = self.outputs
            whole = outputs and self.apart
            yield (
                next(part.batches(self.size)),
                outputs[rows[0] // self.size] if whole else [y[rows] for y in outputs],
            )

    @property
    def steps(self) -> int:
        """Batches of an epoch in random order."""
        whole = len(self.samples) // self.size
        return -(-len(self.samples) // self.size) if self.apart else max(whole, 1)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples with class numbers, in batches.

    Attributes:
        size: samples in a batch, where the model leaves that open.
    """

    samples: Samples
    size: int

    def batches(self, order: np.random.Generator) -> Iterator[tuple[Sample, Array]]:
        """Inputs and class numbers in a random order, again and again without end."""
        size = self.samples.batch if self.samples.exact else self.size
        while True:
            for rows in _rows(self.samples, size, order, self.samples.exact):
                part = self.samples.take(rows)
                labels = part.labels
                assert labels is not None
                yield next(part.batches(size)), labels.astype(np.int64).reshape(-1)

    def check(self, classes: int) -> None:
        """Raise unless every label is a class number.

        Raises:
            DataError: it is not.
        """
        labels = self.samples.labels
        if labels is None:
            raise DataError("the samples to train on have no labels")
        whole = labels.dtype.kind in "iu" and labels.size == len(labels)
        if not whole or labels.min() < 0 or labels.max() >= classes:
            raise DataError(f"the labels to train on are no class numbers from 0 to {classes - 1}")


def floating(outputs: Sequence[Any]) -> list[Array]:
    """The outputs that are compared."""
    return [y for y in outputs if isinstance(y, np.ndarray) and y.dtype.kind == "f"]


Loss = Callable[[Sequence[Any], Sequence[Any]], Any]  # (outputs, the teacher's) -> one number


def loss_for(reference: Sequence[Sequence[Array]]) -> Loss:
    """The loss that fits the teacher's outputs, given batch by batch.

    Class scores: T^2 times the Kullback-Leibler divergence of the class probabilities at the
    temperature T (Hinton, Vinyals, Dean 2015, section 2).  Others: squared error relative to the
    variance.  The mean over the outputs.
    """
    kinds = []
    for outputs in zip(*reference, strict=True):
        values = [torch.from_numpy(y.astype(np.float32)) for y in outputs]
        scores = all(map(has_class_scores, outputs))
        probable = scores and all(_are_probabilities(y.flatten(1)) for y in values)
        variance = float(torch.cat([y.flatten() for y in values]).var(correction=0))
        kinds.append((scores, probable, max(variance, 1e-12)))

    def loss(outputs: Sequence[Any], expected: Sequence[Any]) -> Any:
        parts = []
        for (scores, probable, variance), a, b in zip(kinds, outputs, expected, strict=True):
            if not scores:
                parts.append((a - b).square().mean() / variance)
                continue
            a, b = (_logits(y.flatten(1), probable) / TEMPERATURE for y in (a, b))
            ours, theirs = torch.log_softmax(a, 1), torch.log_softmax(b, 1)
            divergence = (theirs.exp() * (theirs - ours)).sum(1).mean()
            parts.append(TEMPERATURE**2 * divergence)
        return torch.stack(parts).mean()

    return loss


def label_loss(reference: Sequence[Sequence[Array]]) -> tuple[Loss, int]:
    """Cross-entropy of the first output that holds class scores, and how many classes there are.

    Args:
        reference: the teacher's outputs, batch by batch.

    Raises:
        DataError: there are no class scores.
    """
    outputs = enumerate(zip(*reference, strict=True))
    place, scores = next(((i, y) for i, y in outputs if all(map(has_class_scores, y))), (0, ()))
    if not scores:
        raise DataError("labels to train on need a model with class scores")
    rows = [torch.from_numpy(y.astype(np.float32)).flatten(1) for y in scores]
    probable = all(map(_are_probabilities, rows))

    def loss(found: Sequence[Any], labels: Any) -> Any:
        return cross_entropy(_logits(found[place].flatten(1), probable), labels)

    return loss, rows[0].shape[1]


def _are_probabilities(rows: Any) -> bool:
    """Whether the rows of ``(N, K)`` are probabilities."""
    ones = torch.ones(len(rows))
    return bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-3)


def relative_loss(reference: Sequence[Array]) -> Loss:
    """Squared error relative to the variance, the mean over outputs and hints alike."""
    variances = [max(float(np.var(y.astype(np.float64))), 1e-12) for y in reference]

    def loss(outputs: Sequence[Any], expected: Sequence[Any]) -> Any:
        pairs = zip(outputs, expected, variances, strict=True)
        parts = [(a - b).square().mean() / variance for a, b, variance in pairs]
        return torch.stack(parts).mean()

    return loss


def hints(model: Model, teacher: Model, samples: Samples, count: int, nbytes: float) -> list[str]:
    """Activations that both models have, evenly spread over the network.

    Args:
        nbytes: of all samples' hints together, at most.
    """
    ours = {name for operation in operations(model) for name in operation.outputs}
    outputs = {output.name for output in teacher.graph.output}
    names = [name for operation in operations(teacher) for name in operation.outputs[:1]]
    names = [name for name in names if name in ours - outputs and name not in teacher.constants]
    if not names or not count:
        return []
    session = Session(expose(teacher, names), optimize=False)
    sample = next(samples.batches(1))
    values = dict(zip(names, session.run(sample), strict=True))
    size = len(next(iter(sample.values())))
    usable = [
        name
        for name, y in values.items()
        if floating([y]) and y.ndim > 1 and len(y) == size and y.var() > 0
    ]
    rows = len(samples) // (samples.batch if samples.exact else 1)
    chosen = [usable[i] for i in spread(len(usable), count)]
    while sum(values[name].nbytes for name in chosen) * rows > nbytes:
        chosen.remove(max(chosen, key=lambda name: values[name].nbytes))
    return chosen


def _logits(scores: Any, probable: bool) -> Any:
    """Centred logits ``(N, K)`` of class scores, or of probabilities."""
    scores = torch.log(scores.clamp_min(1e-12)) if probable else scores
    return scores - scores.mean(1, keepdim=True)


AUGMENTATIONS = ("flip", "crop", "mix")


def augmentation(wanted: Collection[str]) -> Callable[[Sample, np.random.Generator], Sample]:
    """A function that mirrors, shifts and mixes the images of a batch, as far as is wanted."""

    def augmented(sample: Sample, rng: np.random.Generator) -> Sample:
        return {
            name: _moved(images, wanted, rng) if wanted and _is_images(images) else images
            for name, images in sample.items()
        }

    return augmented


def _is_images(array: Array) -> bool:
    return array.ndim == 4 and array.dtype.kind == "f" and min(array.shape[2:]) > 2 * SHIFT


def _moved(images: Array, wanted: Collection[str], rng: np.random.Generator) -> Array:
    """Images ``(N, C, H, W)``, each mirrored or not, shifted with zeros moving in, and mixed.

    A mixture is of two images (Zhang et al. 2018); the teacher says what it is.
    """
    result = images.copy()
    if "flip" in wanted:
        mirrored = rng.random(len(images)) < 0.5
        result[mirrored] = result[mirrored, :, :, ::-1]
    if "crop" in wanted:
        height, width = images.shape[2:]
        wide = np.pad(result, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        for image, source, (i, j) in zip(
            result, wide, rng.integers(0, 2 * SHIFT + 1, (len(images), 2)), strict=True
        ):
            image[:] = source[:, i : i + height, j : j + width]
    if "mix" in wanted:
        share = rng.beta(MIXED, MIXED, (len(images), 1, 1, 1)).astype(images.dtype)
        result = share * result + (1 - share) * result[rng.permutation(len(images))]
    return result
