"""Training: steps that bring the student's outputs and hints closer to the teacher's.

Nothing is carried from step to step but the parameters and the state of their optimizers.

Matrices take Muon's steps (Jordan et al. 2024): the momentum's nearest orthogonal matrix, which
moves weak directions of a factor as far as strong ones.  Adam needs about twice the epochs.  All
others, scales and shared values, take Adam's, and so do the latents of codes.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch

from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import each
from onnxcompress.core.progress import Track, doing
from onnxcompress.data.samples import Samples
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model
from onnxcompress.refinement.augment import augment
from onnxcompress.refinement.checkpoints import Checkpoint, Checkpoints
from onnxcompress.refinement.losses import (
    LabelLoss,
    Loss,
    label_loss,
    output_loss,
    relative_loss,
    training_loss,
)
from onnxcompress.refinement.parameters import Free, Parameters
from onnxcompress.refinement.schedule import ENOUGH, RATES, Schedule, is_settled, plan, plan_trial
from onnxcompress.refinement.student import Student, prepare_student
from onnxcompress.refinement.teacher import Labelled, Lessons, floating, in_memory, tensors
from onnxcompress.refinement.torch_ops.operator import tensor
from onnxcompress.report.report import Epoch

# Class scores have at least and at most this weight beside hints: little, since more teaches what
# holds for these samples only, but more where the model cannot follow the hints.
SCORES = 1e-3, 1e-2

# That weight is this multiple of the square of the loss of outputs and hints before training.
ASTRAY = 0.2
MUON = 0.2  # Muon's steps at rate 1 have this root mean square.
# Gradients are cut to this norm, which few are below, so that all steps count alike.
CLIP = 1e-3
NEVER_ZERO = 1e-12  # Adam adds this to a divisor: gradients are far smaller than its default.

Optimizers = tuple[torch.optim.Muon, torch.optim.Adam]


@dataclass(frozen=True, eq=False)
class Trainer:
    """Who learns what from whom.

    Attributes:
        scores: loss of the outputs, which judges held-out samples.
        loss: of outputs and hints, which is trained on.
        weight: of class scores in that loss, and of labels beside it.
        labelled: samples with class numbers, and their loss.
        seed: of the order of samples, and of augmentations.
    """

    student: Student
    lessons: Lessons
    scores: Loss
    loss: Loss
    weight: float
    labelled: tuple[Labelled, LabelLoss] | None
    seed: int
    jobs: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.lessons.training.steps


def prepare_trainer(
    model: Model, lessons: Lessons, labelled: Samples | None, seed: int, jobs: int
) -> Trainer:
    """Choose the losses that fit the teacher's outputs, and find out what can be trained.

    Raises:
        RefineError: the model cannot be trained.
        DataError: the labels are no class numbers.
    """
    reference = [outputs for _, outputs in lessons.held_out.batches()]
    scores, relative = output_loss(reference), relative_loss(lessons.example)
    size = lessons.training.size
    marked = None if labelled is None else _prepare_labels(labelled, reference, size)
    student = prepare_student(model, lessons, scores, seed)
    weight = _weight_of_scores(student, lessons, relative, seed)
    loss = training_loss(scores, relative, weight, lessons.outputs)
    return Trainer(student, lessons, scores, loss, weight, marked, seed, jobs)


def _prepare_labels(
    samples: Samples, reference: Sequence[Sequence[Array]], size: int
) -> tuple[Labelled, LabelLoss]:
    """The samples in batches of this size, and their cross-entropy."""
    loss, classes = label_loss(reference)
    labelled = Labelled(in_memory(samples), size)
    labelled.check(classes)
    return labelled, loss


def _weight_of_scores(student: Student, lessons: Lessons, relative: Loss, seed: int) -> float:
    """By how far off outputs and hints of one batch are before anything is trained."""
    sample, expected = next(lessons.batches(np.random.default_rng(seed)))
    with torch.no_grad():
        outputs = student.outputs(sample, student.parameters.begin())
        astray = float(relative(outputs, expected))
    return float(np.clip(ASTRAY * astray**2, *SCORES))


def train(
    trainer: Trainer,
    epochs: int,
    rate: float | None,
    checkpoints: Checkpoints,
    track: Track[Any],
) -> tuple[Model, list[Epoch]]:
    """Train, from the last checkpoint on where there is one.

    Returns:
        The model of the epoch with the least held-out loss, and all epochs.
    """
    trial = plan_trial(1.0, epochs * trainer.steps).steps
    rates = RATES if rate is None and epochs else ()
    tried = trial * len(rates)
    costs = [*[1] * (tried + trainer.steps * epochs), 0]
    with doing(track, "training", costs) as piece:
        state = checkpoints.load()
        if state is None:
            state = _first_checkpoint(trainer, epochs, rate, track, piece)
            checkpoints.keep(state)
        else:
            for _ in range(tried + trainer.steps * (len(state.epochs) - 1)):
                piece()
        return _train_on(trainer, epochs, state, checkpoints, track, piece)


def _train_on(
    trainer: Trainer,
    epochs: int,
    state: Checkpoint,
    checkpoints: Checkpoints,
    track: Track[Any],
    piece: Callable[[], object],
) -> tuple[Model, list[Epoch]]:
    """Train from a checkpoint on; ``piece`` is called after every step."""
    student = trainer.student
    free = {name: value.clone().requires_grad_() for name, value in state.free.items()}
    optimizers = make_optimizers(student.parameters, free)
    for optimizer, saved in zip(optimizers, state.optimizers, strict=True):
        optimizer.load_state_dict(saved)
    rows, best = list(state.epochs), state.best
    schedule = plan(state.rate, epochs, trainer.steps)
    for epoch in track(range(len(rows), epochs + 1), "refining", epochs + 1 - len(rows)):
        if not student.parameters.latents and is_settled(rows, epochs):
            break
        began = time.perf_counter()
        losses = list[float]()
        for loss in train_epoch(trainer, free, optimizers, schedule, epoch):
            losses.append(loss)
            piece()
        if not np.isfinite(losses).all():
            break  # It diverged, and later epochs would too.
        held_out = judge(trainer, student.stored(free))
        if held_out < min(row.held_out for row in rows):
            best = _copy(free)
        rows.append(Epoch(epoch, float(np.mean(losses)), held_out, time.perf_counter() - began))
        checkpoints.keep(_checkpoint(state.rate, rows, best, free, optimizers))
    return student.stored(best) if best else student.model, rows


def _first_checkpoint(
    trainer: Trainer,
    epochs: int,
    rate: float | None,
    track: Track[Any],
    piece: Callable[[], object],
) -> Checkpoint:
    """How good the model is as it came, and the rate to train it with; a piece for every step."""
    began = time.perf_counter()
    held_out = judge(trainer, trainer.student.model)
    if rate is None:
        rate = choose_rate(trainer, epochs * trainer.steps, track, piece) if epochs else 0.0
    free = trainer.student.parameters.begin()
    optimizers = make_optimizers(trainer.student.parameters, free)
    rows = [Epoch(0, nan, held_out, time.perf_counter() - began)]
    return _checkpoint(rate, rows, {}, free, optimizers)


def _checkpoint(
    rate: float, rows: list[Epoch], best: Free, free: Free, optimizers: Optimizers
) -> Checkpoint:
    states = [optimizer.state_dict() for optimizer in optimizers]
    return Checkpoint(rate, rows, best, _copy(free), states)


def _copy(free: Free) -> Free:
    return {name: value.detach().clone() for name, value in free.items()}


def make_optimizers(parameters: Parameters, free: Free) -> Optimizers:
    """Muon for matrices, Adam for other floats and for latents, with no steps taken yet."""
    matrices, others, latents = ({"params": group} for group in parameters.groups(free))
    muon = torch.optim.Muon([matrices], weight_decay=0, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.Adam([others, latents], eps=NEVER_ZERO)


def choose_rate(
    trainer: Trainer, steps: int, track: Track[Any], piece: Callable[[], object]
) -> float:
    """The rate with which a few steps, on the same batches, lead to the least loss.

    By the training loss: the held-out one says less in few steps, and judges every epoch.

    Args:
        steps: of the whole training.
        piece: called for each step of a trial, also of those that are not needed.
    """
    losses: dict[float, float] = {}
    for rate in track(RATES, "trying rates", len(RATES)):
        losses[rate] = _trial_loss(trainer, plan_trial(rate, steps), piece)
        if losses[rate] > ENOUGH * min(losses.values()):
            break
    for _ in range(len(RATES[len(losses) :]) * plan_trial(1.0, steps).steps):
        piece()
    return min(losses, key=lambda rate: losses[rate])


def _trial_loss(trainer: Trainer, schedule: Schedule, piece: Callable[[], object]) -> float:
    """The mean loss of the last third of a trial; infinite where it diverged."""
    parameters = trainer.student.parameters
    free = parameters.begin()
    optimizers = make_optimizers(parameters, free)
    epochs = (train_epoch(trainer, free, optimizers, schedule, epoch) for epoch in count(1))
    losses = list[float]()
    for loss in islice(chain.from_iterable(epochs), schedule.steps):
        losses.append(loss)
        piece()
    loss = float(np.mean(losses[-schedule.steps // 3 :]))
    return loss if isfinite(loss) else inf


def train_epoch(
    trainer: Trainer, free: Free, optimizers: Optimizers, schedule: Schedule, epoch: int
) -> Iterator[float]:
    """Train what is free, in place; the loss of every step.

    Batches depend on the seed and the epoch alone: a resumed run sees the same.

    Args:
        epoch: counted from 1.
    """
    order = np.random.default_rng([trainer.seed, epoch])
    student, lessons = trainer.student, trainer.lessons
    marked = trainer.labelled and trainer.labelled[0].batches(order.spawn(1)[0])
    first = (epoch - 1) * trainer.steps
    for step, (sample, expected) in enumerate(lessons.batches(order), first):
        _set_steps(optimizers, schedule.float_step(step), schedule.code_step(step))
        loss = trainer.loss(student.outputs(sample, free), expected)
        loss.backward()
        total = float(loss.detach())
        if trainer.labelled and marked:
            sample, labels = next(marked)
            outputs = student.outputs(augment(sample, lessons.augmentations, order), free)
            loss = trainer.weight * trainer.labelled[1](outputs, tensor(labels, lessons.device))
            loss.backward()
            total += float(loss.detach())
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], CLIP)
            optimizer.step()
        student.parameters.bound(free)
        yield total


def _set_steps(optimizers: Optimizers, floats: float, codes: float) -> None:
    """How long the next step is, and no gradients yet."""
    muon, adam = optimizers
    muon.param_groups[0]["lr"] = floats / MUON
    adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = floats, codes
    muon.zero_grad()
    adam.zero_grad()


def judge(trainer: Trainer, model: Model) -> float:
    """Held-out loss of a model, by onnxruntime; infinite where it has none."""
    session, device = Session(model), trainer.lessons.device
    batches = trainer.lessons.held_out.batches
    runs = each(session.run, (sample for sample, _ in batches()), trainer.jobs)
    total, number = 0.0, 0
    for outputs, (sample, expected) in zip(runs, batches(), strict=True):
        size = len(next(iter(sample.values())))
        loss = trainer.scores(tensors(floating(outputs), device), tensors(expected, device))
        total, number = total + size * float(loss), number + size
    return total / number if isfinite(total) else inf
