"""What a compressed model learns from: samples in batches, and what the original says to them.

The original's outputs are computed once and kept, its hints too; where samples are augmented they
are new every time, and it answers every batch.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxcompress.core.errors import DataError, RefineError
from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import each
from onnxcompress.core.sample import Sample
from onnxcompress.data.samples import Samples, spread
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, expose, operations
from onnxcompress.refinement.augment import augment
from onnxcompress.refinement.torch_graph import TorchGraph, unsupported
from onnxcompress.refinement.torch_ops.operator import tensor

BATCH = 32  # A step has at most so many samples.
STEPS = 8  # An epoch has at least so many steps, where there are enough samples.
HINT_BYTES = 1 << 30  # Hints of the teacher that are kept in memory take no more bytes.
KEPT_BYTES = 2 << 30  # Inputs of no more bytes are kept in memory.


@dataclass(frozen=True, eq=False)
class Taught:
    """Samples with the teacher's outputs, in batches.

    Attributes:
        size: samples in a batch.
        outputs: of the teacher, those that are floating-point: for all samples, or for each batch
            where outputs do not go by samples; none where they are not kept.
        whole: whether batches stay as they are; else any samples come together.
    """

    samples: Samples
    size: int
    outputs: list[Array] | list[list[Array]]
    whole: bool

    def batches(self, order: np.random.Generator | None = None) -> Iterator[tuple[Sample, Any]]:
        """Inputs and the teacher's outputs, in the samples' order or in a random one."""
        for rows in _rows(self.samples, self.size, order, self.whole):
            part = self.samples.take(rows)
            outputs = self.outputs
            if outputs and self.whole:
                yield next(part.batches(self.size)), outputs[rows[0] // self.size]
            else:
                yield next(part.batches(self.size)), [y[rows] for y in outputs]

    @property
    def steps(self) -> int:
        """Batches of an epoch in random order."""
        if self.whole:
            return -(-len(self.samples) // self.size)
        return max(len(self.samples) // self.size, 1)


def teach(teacher: Session, samples: Samples, size: int, jobs: int, kept: bool = True) -> Taught:
    """Samples, and what the teacher says to them unless that is not to be kept."""
    counts = [len(next(iter(batch.values()))) for batch in samples.batches(size)]
    batches = islice(samples.batches(size), None if kept else 1)
    answers = [floating(y) for y in each(teacher.run, batches, jobs)]
    whole = samples.exact or any(
        y.ndim == 0 or len(y) != count or y.shape[1:] != first.shape[1:]
        for count, outputs in zip(counts, answers, strict=False)
        for y, first in zip(outputs, answers[0], strict=True)
    )
    size = samples.batch if samples.exact else size
    if whole or not kept:
        return Taught(samples, size, answers if kept else [], whole)
    return Taught(samples, size, [np.concatenate(y) for y in zip(*answers, strict=True)], False)


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


@dataclass(frozen=True, eq=False)
class Lessons:
    """Everything that one training learns from.

    Attributes:
        training, held_out: samples to train on, with outputs and hints, and to judge with.
        compared: places of the floating-point outputs among all outputs, then those of the hints.
        outputs: how many of these are outputs.
        hints: names of activations, shown after all outputs.
        augmentations: what is done to every batch.
        example: outputs and hints for the first batch.
        answer: the same for an augmented batch.
        device: where tensors are put.
    """

    training: Taught
    held_out: Taught
    compared: Sequence[int]
    outputs: int
    hints: Sequence[str]
    augmentations: Sequence[str]
    example: Sequence[Array]
    answer: Callable[[Sample], Sequence[Tensor]]
    device: str

    def batches(self, order: np.random.Generator) -> Iterator[tuple[Sample, Sequence[Tensor]]]:
        """Those of one epoch, with what the teacher says to them."""
        for sample, expected in self.training.batches(order):
            if not self.augmentations:
                yield sample, tensors(expected, self.device)
            else:
                changed = augment(sample, self.augmentations, order)
                yield changed, self.answer(changed)

    @property
    def size(self) -> int:
        """Samples in a batch."""
        return self.training.size


def prepare_lessons(
    model: Model,
    teacher: Model,
    samples: Samples,
    augmentations: Sequence[str],
    hints: int,
    device: str,
    jobs: int,
) -> Lessons:
    """Let the teacher answer all samples.

    Args:
        samples: those that ``split`` holds out judge every epoch.
        hints: activations that are compared too, at most.

    Raises:
        RefineError: no output is floating-point.
    """
    training, held_out = map(in_memory, samples.split())
    session = Session(teacher)
    judged = teach(session, held_out, min(BATCH, held_out.even), jobs)
    first = session.run(next(iter(held_out)))
    compared = [i for i, y in enumerate(first) if floating([y])]
    if not compared:
        raise RefineError("the model has no floating-point outputs to train on")
    names = choose_hints(model, teacher, training, hints, inf if augmentations else HINT_BYTES)
    shown = expose(teacher, [*session.outputs, *names])
    size = batch_size(training)
    session = Session(shown)
    taught = teach(session, training, size, jobs, kept=not augmentations)
    places = [*compared, *range(len(first), len(first) + len(names))]
    return Lessons(
        training=taught,
        held_out=judged,
        compared=places,
        outputs=len(compared),
        hints=names,
        augmentations=augmentations,
        example=floating(session.run(next(taught.batches())[0])),
        answer=_answering(shown, places, device, jobs),
        device=device,
    )


def batch_size(training: Samples) -> int:
    """How many samples a step of training has."""
    return int(np.clip(len(training) // STEPS, 1, min(BATCH, training.batch)))


def _answering(
    teacher: Model, places: Sequence[int], device: str, jobs: int
) -> Callable[[Sample], Sequence[Tensor]]:
    """What the teacher says to an augmented batch; on a GPU torch is faster."""
    if device == "cpu" or unsupported(teacher):
        session = Session(teacher, threads=jobs)
        return lambda sample: tensors(floating(session.run(sample)), device)
    graph = TorchGraph(teacher, (), device)

    def answer(sample: Sample) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs = graph({name: tensor(array, device) for name, array in sample.items()})
        return [outputs[place] for place in places]

    return answer


def choose_hints(
    model: Model, teacher: Model, samples: Samples, count: int, nbytes: float
) -> list[str]:
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


def floating(outputs: Sequence[Any]) -> list[Array]:
    """The outputs that are compared."""
    return [y for y in outputs if isinstance(y, np.ndarray) and y.dtype.kind == "f"]


def tensors(arrays: Sequence[Array], device: str) -> list[Tensor]:
    """The arrays as torch computes with them."""
    return [tensor(array, device) for array in arrays]


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
    samples: Samples, size: int, order: np.random.Generator | None, whole: bool
) -> Iterator[Array]:
    """Rows of batches, in the samples' order or in a random one.

    Args:
        whole: batches stay as they are; else any samples come together, and in a random order
            what fills no batch is left out.
    """
    count = len(samples)
    if whole:
        starts = np.arange(0, count, size)
        for start in starts if order is None else order.permutation(starts):
            yield np.arange(start, min(start + size, count))
        return
    rows = np.arange(count) if order is None else order.permutation(count)
    last = count if order is None or count < size else count - count % size
    for start in range(0, last, size):
        yield rows[start : start + size]
