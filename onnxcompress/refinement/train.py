"""Distillation: train what a compressed model stores on the original's outputs.

No labels are needed.  The compressed graph itself runs in torch; its floating-point constants
(filters, scales, shared values, biases) are the parameters, and the file's size stays.  What is
stored in 16 bits is rounded on the way forward, and its gradient passes as if it were not: what is
trained is what is stored.

So it is with codes, constants that pick rows of a table (see `latents`): their latents z round to
the nearest row on the way forward, and dL/dz = dL/drow (Bengio et al. 2013).  A code that changes
is a jolt, which the floats must answer: these are trained alone in the first half of the epochs,
then only those codes change whose gradient keeps its sign.  Other integers stay as they are.

Both models have the activations between layers in common; some of them are *hints* (Romero et al.
2015), compared as the outputs are: a few samples say far more that way.

Weights that a linear node reads as they are stored take Muon's steps (Jordan et al. 2024): the
momentum's nearest orthogonal matrix, which moves weak directions of a factor as far as strong ones.
Adam needs about twice the epochs.  All others, scales and shared values, take Adam's.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from itertools import chain, count, islice
from math import ceil, cos, inf, pi
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from onnxcompress.core.errors import RefineError
from onnxcompress.core.layer import Array
from onnxcompress.core.parallel import cores, each
from onnxcompress.core.progress import Track, untracked
from onnxcompress.data.samples import Samples
from onnxcompress.execution.cache import Cache
from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import OPERATORS, Model, digest, expose, operations, with_values
from onnxcompress.report.report import Epoch

try:
    import torch

    from onnxcompress.refinement import distillation
    from onnxcompress.refinement.distillation import Labelled, Taught, floating
    from onnxcompress.refinement.straight_through import Latents, lookups
    from onnxcompress.refinement.torch_graph import TorchGraph, tensor, unsupported
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    absent: Any = None
    torch = distillation = Labelled = Taught = floating = absent
    Latents = lookups = absent
    TorchGraph = tensor = unsupported = absent

BATCH = 32  # samples a step, at most

STEPS = 8  # an epoch where there are enough samples for so many

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # steps, as shares of a tensor's own size

TRIAL_STEPS = (24, 64)  # tried with each of them, at least and at most,

TRIAL_SHARE = 8  # and one of so many that follow, or of many steps one of so many,

LONG_SHARE = 64  # as what is best in few steps is too short for many,

ENOUGH = 1.1  # until the loss is so many times the least

WARM_UP = 0.05  # of all steps

ALONE = 0.5  # of the epochs, in which codes stay as they are

TRAVEL = 0.5  # half-distances between rows that a latent goes, at most, in those that follow,

LEAP = 0.1  # and in one step

SCORES = 1e-3, 1e-2  # weight of class scores beside hints: little, as more teaches what holds for

# these samples only, but more where the model cannot follow the hints:
ASTRAY = 0.2  # times the square of the loss that it starts from

MUON = 0.2  # root mean square of its steps at rate 1

CLIP = 1e-3  # largest norm of the gradient, which few are below: all steps count alike

PATIENCE = 5  # epochs no better than one before after which it is over, or half of all:

# most is gained in the last ones, when steps are short
LARGEST = 1e4  # magnitude of a constant that is trained; greater ones are masks

AGREES = 0.02  # largest difference of torch from onnxruntime, relative to the outputs

HINT_BYTES = 1 << 30  # of the teacher's activations that are kept in memory

FIXED = {  # operator -> inputs that are settings or statistics, not weights
    "BatchNormalization": (3, 4),
    "Clip": (1, 2),
    "Pad": (2,),
    "Pow": (1,),
    "Range": (0, 1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
}

SINGLE = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}  # where even a single number is a weight


def refine(
    model: Model,
    teacher: Model,
    samples: Samples,
    *,
    epochs: int,
    labelled: Samples | None = None,
    seed: int = 0,
    device: str = "auto",
    rate: float | None = None,
    augment: str = "",
    hints: int = 8,
    jobs: int | None = None,
    cache: Path | None = None,
    track: Track[Any] = untracked,
) -> tuple[Model, list[Epoch]]:
    """Train a compressed model to answer as the original does.

    On the CPU the result depends on the seed and on ``jobs`` alone.

    Args:
        model: onnxruntime must have kernels for it and for the teacher.
        samples: unlabelled; those that ``split`` holds out judge every epoch.
        epochs: at most; where no codes are trained, it is over when half of them, and five,
            brought nothing better.
        labelled: samples with class numbers, whose cross-entropy is added to the loss that is
            trained on.  The held-out loss stays the distance from the teacher: where the model
            is close to it already, labels lead away and change little.
        device: as torch names it; ``auto`` is a GPU where there is one.
        rate: length of a step relative to the size of what is trained; None to try some.
        augment: any of ``flip``, ``crop`` and ``mix`` with commas: images mirrored, shifted, and
            two in one.
        hints: activations inside the models that are compared too, at most.
        cache: a folder that keeps every epoch: a run that was interrupted goes on from there.

    Returns:
        The model of the epoch with the least held-out loss, the given one if none is better; and
        all epochs, that of the given model first.

    Raises:
        RefineError: torch is missing, lacks an operator, or does not compute what onnxruntime
            does; or there is nothing to train.
        TorchError: torch cannot compute a node.
        DataError: the labels are no class numbers.
    """
    check(model, device, augment)
    jobs = jobs or cores()
    with _threads(jobs):
        place = _device(device)
        key: list[Any] = []
        if cache is not None:
            key = [version("onnxcompress"), torch.__version__, digest(model), digest(teacher)]
            key += [samples.content, _labelled_content(labelled), epochs, seed, place, rate]
            key += [augment, hints, jobs]
        training, held_out = (distillation.in_memory(part) for part in samples.split())
        labelled = None if labelled is None else distillation.in_memory(labelled)
        run = _Run(
            model, teacher, training, held_out, labelled, place, _wanted(augment), hints, seed, jobs
        )
        return run.result(epochs, rate, _Checkpoints(Cache(cache), key, place), track)


def check(model: Model, device: str = "auto", augment: str = "") -> None:
    """Raise unless models of this kind can be refined; nothing is computed.

    Raises:
        RefineError: torch is missing or has no such device, an operator is missing, or the
            augmentation is unknown.
    """
    if torch is None:
        raise RefineError("refinement needs torch: pip install 'onnxcompress[refine]'")
    if missing := unsupported(model):
        raise RefineError(f"refinement does not know {', '.join(missing)}")
    if unknown := set(_wanted(augment)) - set(distillation.AUGMENTATIONS):
        known = ", ".join(distillation.AUGMENTATIONS)
        raise RefineError(f"unknown augmentation {min(unknown)!r}; there are {known}")
    _device(device)


def _wanted(augment: str) -> list[str]:
    return [word.strip() for word in augment.split(",") if word.strip()]


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise RefineError(f"torch has no device {name!r}: {str(error).splitlines()[0]}") from None
    return name


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trainable(model: Model) -> list[str]:
    """The floating-point constants that are weights, as far as the nodes tell."""
    fixed, single = set(), set()
    for operation in operations(model):
        for place, name in enumerate(operation.inputs):
            if place in FIXED.get(operation.op_type, ()):
                fixed.add(name)
            if place == SINGLE.get(operation.op_type):
                single.add(name)
    found = []
    for name in model.constants:
        value = model.read(name)
        floating = value.dtype.name.startswith(("float", "bfloat"))
        if name in fixed or not floating or value.size < (1 if name in single else 2):
            continue
        if value.itemsize > 1 and np.abs(value.astype(np.float32)).max() < LARGEST:
            found.append(name)
    return found


def weights(model: Model) -> set[str]:
    """The constants that linear nodes multiply by as they are stored: ``(out, ...)`` and alike."""
    return {
        name
        for operation in operations(model)
        for place, name in enumerate(operation.inputs[:2])
        if operation.op_type in OPERATORS and name in model.constants
        if place or operation.op_type == "MatMul"
        if len(model.constants[name].dims) > 1
    }


class _Parameters:
    """Masters in float32 of a model's constants, and latents of its codes.

    The optimizers' steps are equally long for all tensors: each one is divided by its root mean
    square, so that a step is a share of it, and latents by half the distance between rows.

    Args:
        names: of the constants.
        found: lookups whose codes are trained too.
        seed: of where latents start.

    Attributes:
        free: name -> the tensor in units of its size.
    """

    def __init__(
        self,
        model: Model,
        names: Sequence[str],
        found: Sequence[Any],
        seed: int,
        device: str,
    ) -> None:
        rng = np.random.default_rng(seed)
        self._values = {name: model.read(name) for name in names}
        self._latents = {lookup.rows: Latents(lookup, model, rng, device) for lookup in found}
        self._sizes = {name: _size(value) for name, value in self._values.items()}
        self._sizes |= {name: latents.reach for name, latents in self._latents.items()}
        self._start = {name: tensor(v, device) for name, v in self._values.items()}
        self._start |= {name: latents.start for name, latents in self._latents.items()}
        self._matrices = weights(model) & self._values.keys()
        self.free: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Back to the values that the model came with."""
        self.free = {
            name: (self._flat(name, value) / self._sizes[name]).requires_grad_()
            for name, value in self._start.items()
        }

    def parts(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Matrices, other floats, and latents: each kind has steps of its own."""
        floats = {name: self.free[name] for name in self._values}
        matrices = [value for name, value in floats.items() if name in self._matrices]
        others = [value for name, value in floats.items() if name not in self._matrices]
        return matrices, others, [self.free[name] for name in self._latents]

    def state(self) -> dict[str, Any]:
        """A copy of what is trained."""
        return {name: value.detach().clone() for name, value in self.free.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.free = {name: value.clone().requires_grad_() for name, value in state.items()}

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            for known in (self._values, self._latents, self._sizes, self._start, self.free):
                known.pop(name, None)

    @property
    def coded(self) -> bool:
        """Whether there are codes among them, which get worse before they get better."""
        return bool(self._latents)

    def bound(self) -> None:
        """Keep latents where they can still change."""
        with torch.no_grad():
            for name, latents in self._latents.items():
                self.free[name].copy_(latents.inside(self._master(name)) / self._sizes[name])

    def rounded(self) -> dict[str, Any]:
        """The tensors to compute with, as their types will store them."""
        found = {
            name: _stored(self._master(name), v.dtype.name) for name, v in self._values.items()
        }
        return found | {name: v.rounded(self._master(name)) for name, v in self._latents.items()}

    def arrays(self) -> dict[str, Array]:
        """The tensors to store, in their types."""
        with torch.no_grad():
            found = {
                name: self._master(name).cpu().numpy().astype(value.dtype)
                for name, value in self._values.items()
            }
            for name, latents in self._latents.items():
                codes = latents.nearest(self._master(name))
                found[latents.lookup.codes] = codes.cpu().numpy().astype(np.uint8)
        return found

    def _master(self, name: str) -> Any:
        return (self.free[name] * self._sizes[name]).reshape(self._start[name].shape)

    def _flat(self, name: str, value: Any) -> Any:
        return value.flatten(1) if name in self._matrices else value


def _size(value: Array) -> float:
    size = float(np.sqrt(np.mean(np.square(value.astype(np.float64)))))
    return size if size > 1e-6 else 1e-2  # what is all zero must be able to move


def _stored(master: Any, kind: str) -> Any:
    """Rounded to 16 bits; the gradient passes straight through."""
    if kind not in ("float16", "bfloat16"):
        return master
    rounded = master.detach().to(getattr(torch, kind)).to(torch.float32)
    return master + (rounded - master.detach())


class _Checkpoints:
    """Where a run stands, kept after every epoch.

    Args:
        key: whatever the result depends on.
        device: where tensors are put.
    """

    def __init__(self, cache: Cache, key: Sequence[Any], device: str) -> None:
        self._cache, self._device = cache, device
        self._key = sha256(repr(key).encode()).hexdigest()

    def load(self) -> dict[str, Any] | None:
        """What was kept last; None where there is nothing, or nothing whole."""
        data = self._cache.load(self._key, "checkpoint")
        if data is None:
            return None
        try:
            state = torch.load(BytesIO(data), map_location=self._device, weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError):
            return None
        return state if isinstance(state, dict) and state.get("key") == self._key else None

    def keep(self, **state: Any) -> None:
        """Keep tensors, numbers and lists and dictionaries of these, in place of what was there."""
        if self._cache.folder is not None:
            stream = BytesIO()
            torch.save(state | {"key": self._key}, stream)
            self._cache.keep(self._key, stream.getvalue(), "checkpoint")


def _labelled_content(samples: Samples | None) -> list[str]:
    """What tells labelled samples from others."""
    if samples is None or samples.labels is None:
        return []
    return [samples.content, sha256(samples.labels.tobytes()).hexdigest()]


# The rate, a row for every epoch, and the best parameters; none where the given ones are.
_State = tuple[float, list[Epoch], dict[str, Any]]


class _Run:
    """One refinement: what is trained, on what, and how good it is."""

    def __init__(
        self,
        model: Model,
        teacher: Model,
        training: Samples,
        held_out: Samples,
        labelled: Samples | None,
        device: str,
        augment: Sequence[str],
        hints: int,
        seed: int,
        jobs: int,
    ) -> None:
        self.model, self.device, self.jobs, self.seed = model, device, jobs, seed
        self.augment, self.augmented = augment, distillation.augmentation(augment)
        session = Session(teacher)
        self.held_out = Taught.by(session, held_out, min(BATCH, held_out.even), jobs)
        first = session.run(next(iter(held_out)))
        self.places = [i for i, y in enumerate(first) if floating([y])]
        if not self.places:
            raise RefineError("the model has no floating-point outputs to train on")
        self.count = len(self.places)
        reference = [outputs for _, outputs in self.held_out.batches()]
        self.loss = distillation.loss_for(reference)
        kept = inf if augment else HINT_BYTES  # what is augmented is answered every time
        names = distillation.hints(model, teacher, training, hints, kept)
        self.places += range(len(first), len(first) + len(names))
        shown = [output.name for output in model.graph.output] + names
        self.shown = expose(model, shown)
        teacher = expose(teacher, [*session.outputs, *names])
        size = int(np.clip(len(training) // STEPS, 1, min(BATCH, training.batch)))
        session = Session(teacher)
        self.training = Taught.by(session, training, size, jobs, kept=not augment)
        self.labelled = None if labelled is None else Labelled(labelled, size)
        if self.labelled is not None:
            self.label_loss, classes = distillation.label_loss(reference)
            self.labelled.check(classes)
        self.answers = self._answers(teacher)
        seen = floating(session.run(next(self.training.batches())[0]))
        self.relative = distillation.relative_loss(seen)
        self.parameters = _Parameters(model, trainable(model), lookups(model), seed, device)
        self.graph = TorchGraph(self.shown, list(self.parameters.free), device)
        self._checked()
        self.scores = self._weight_of_scores()

    def _weight_of_scores(self) -> float:
        """By how far off the hints of one batch are before anything is trained."""
        sample, expected = next(self._batches(np.random.default_rng(self.seed)))
        with torch.no_grad():
            astray = float(self.relative(self._outputs(sample), expected))
        return float(np.clip(ASTRAY * astray**2, *SCORES))

    def _training_loss(self, outputs: Sequence[Any], expected: Sequence[Any]) -> Any:
        count = self.count
        loss = self.loss(outputs[:count], expected[:count])
        return self.scores * loss + self.relative(outputs, expected)

    def _answers(self, teacher: Model) -> Callable[[Sample], Sequence[Any]]:
        """What the teacher says to an augmented batch; on a GPU torch is faster."""
        if self.device == "cpu" or unsupported(teacher):
            session = Session(teacher, threads=self.jobs)
            return lambda sample: self._moved(floating(session.run(sample)))
        graph = TorchGraph(teacher, (), self.device)

        def answers(sample: Sample) -> Sequence[Any]:
            with torch.no_grad():
                return self._compared(graph(self._inputs(sample)))

        return answers

    def _inputs(self, sample: Sample) -> Mapping[str, Any]:
        return {name: tensor(array, self.device) for name, array in sample.items()}

    def _moved(self, arrays: Sequence[Array]) -> list[Any]:
        return [tensor(array, self.device) for array in arrays]

    def _compared(self, outputs: Sequence[Any]) -> list[Any]:
        return [outputs[i] for i in self.places]

    def _checked(self) -> None:
        """Torch must compute what onnxruntime does; constants that do not matter are dropped.

        Raises:
            RefineError: it does not, or nothing is left to train.
        """
        sample, expected = next(self.held_out.batches())
        reached = floating(Session(self.model).run(sample))
        outputs = self._compared(self.graph(self._inputs(sample), self.parameters.rounded()))
        outputs = outputs[: len(reached)]
        for ours, theirs in zip(outputs, reached, strict=True):
            found, wanted = ours.detach().cpu().numpy(), theirs.astype(np.float32)
            off = np.linalg.norm(found - wanted) if found.shape == wanted.shape else np.inf
            if not off <= AGREES * np.linalg.norm(wanted) + 1e-6:
                raise RefineError("torch computes something else than onnxruntime for this model")
        loss = self.loss(outputs, self._moved(expected))
        free = self.parameters.free
        if loss.requires_grad:
            loss.backward()
        self.parameters.drop([name for name, value in free.items() if value.grad is None])
        if not self.parameters.free:
            raise RefineError("the model has no floating-point weights to train")
        self.graph = TorchGraph(self.shown, list(self.parameters.free), self.device)

    def result(
        self, epochs: int, rate: float | None, checkpoints: _Checkpoints, track: Track[Any]
    ) -> tuple[Model, list[Epoch]]:
        """Train; from the last checkpoint on, where there is one."""
        state = self._resumed(checkpoints)
        if state is None:
            state = self._started(epochs, rate, track)
            self._keep(checkpoints, *state)
        rate, rows, best = state
        for epoch in track(range(len(rows), epochs + 1), "refining", epochs + 1 - len(rows)):
            if not self.parameters.coded and _settled(rows, epochs):
                break
            began = time.perf_counter()
            steps = self.training.steps
            losses = list(self._epoch(epoch, rate, epochs * steps, ceil(ALONE * epochs) * steps))
            if not np.isfinite(losses).all():
                break  # it diverged; later epochs would too
            held_out = self._judged(with_values(self.model, self.parameters.arrays()))
            if held_out < min(row.held_out for row in rows):
                best = self.parameters.state()
            rows.append(Epoch(epoch, float(np.mean(losses)), held_out, time.perf_counter() - began))
            self._keep(checkpoints, rate, rows, best)
        if not best:
            return self.model, rows
        self.parameters.restore(best)
        return with_values(self.model, self.parameters.arrays()), rows

    def _started(self, epochs: int, rate: float | None, track: Track[Any]) -> _State:
        began = time.perf_counter()
        held_out = self._judged(self.model)
        if rate is None:
            rate = self._best_rate(epochs * self.training.steps, track) if epochs else 0.0
        self._restart()
        return rate, [Epoch(0, float("nan"), held_out, time.perf_counter() - began)], {}

    def _resumed(self, checkpoints: _Checkpoints) -> _State | None:
        state = checkpoints.load()
        if state is None:
            return None
        self._restart(state["free"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["rate"], [Epoch(*row) for row in state["rows"]], state["best"]

    def _keep(
        self, checkpoints: _Checkpoints, rate: float, rows: list[Epoch], best: dict[str, Any]
    ) -> None:
        checkpoints.keep(
            rate=rate,
            rows=[astuple(row) for row in rows],
            best=best,
            free=self.parameters.state(),
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
        )

    def _restart(self, state: Mapping[str, Any] | None = None) -> None:
        """Parameters as they were in the model, or at another time, and a new optimizer."""
        if state is None:
            self.parameters.reset()
        else:
            self.parameters.restore(state)
        matrices, others, latents = ({"params": part} for part in self.parameters.parts())
        self.optimizers = (
            torch.optim.Muon([matrices], weight_decay=0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam([others, latents], eps=1e-12),
        )

    def _best_rate(self, steps: int, track: Track[Any]) -> float:
        """The rate with which a few steps, on the same batches, lead to the least loss.

        By the training loss: the held-out one says less in few steps, and judges every epoch.
        """
        least, most = TRIAL_STEPS
        few = int(np.clip(steps // TRIAL_SHARE, least, max(most, steps // LONG_SHARE)))
        found: dict[float, float] = {}
        for rate in track(RATES, "trying rates", len(RATES)):
            self._restart()
            epochs = (self._epoch(epoch, rate, few, few) for epoch in count(1))
            losses = list(islice(chain.from_iterable(epochs), few))
            loss = float(np.mean(losses[-few // 3 :]))
            found[rate] = loss if np.isfinite(loss) else np.inf
            if found[rate] > ENOUGH * min(found.values()):
                break
        return min(found, key=lambda rate: found[rate])

    def _epoch(self, epoch: int, rate: float, steps: int, alone: int) -> Iterator[float]:
        """Train; the loss of every step.

        Batches depend on the seed and the epoch alone: a resumed run sees the same.

        Args:
            epoch: counted from 1.
            steps: of all epochs.
            alone: as many of them first in which codes stay as they are.
        """
        order = np.random.default_rng([self.seed, epoch])
        labelled = None if self.labelled is None else self.labelled.batches(order.spawn(1)[0])
        first = (epoch - 1) * self.training.steps
        for step, (sample, expected) in enumerate(self._batches(order), first):
            self._pace(rate * _share(step, steps), _leap(step - alone, steps - alone))
            loss = self._training_loss(self._outputs(sample), expected)
            loss.backward()
            total = float(loss.detach())
            if labelled is not None:
                sample, labels = next(labelled)
                outputs = self._outputs(self.augmented(sample, order))
                loss = self.scores * self.label_loss(outputs, tensor(labels, self.device))
                loss.backward()
                total += float(loss.detach())
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    torch.nn.utils.clip_grad_norm_(group["params"], CLIP)
                optimizer.step()
            self.parameters.bound()
            yield total

    def _pace(self, floats: float, latents: float) -> None:
        """How long the next step is, and no gradients yet."""
        muon, adam = self.optimizers
        muon.param_groups[0]["lr"] = floats / MUON
        adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = floats, latents
        muon.zero_grad()
        adam.zero_grad()

    def _batches(self, order: np.random.Generator) -> Iterator[tuple[Sample, Sequence[Any]]]:
        """Those of one epoch, with what the teacher says to them."""
        for sample, expected in self.training.batches(order):
            if not self.augment:
                yield sample, self._moved(expected)
            else:
                sample = self.augmented(sample, order)
                yield sample, self.answers(sample)

    def _outputs(self, sample: Sample) -> list[Any]:
        """The compressed model's, in float32; a GPU multiplies in bfloat16."""
        kind, given = torch.device(self.device).type, self.parameters.rounded()
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            outputs = self.graph(self._inputs(sample), given)
        return [y.float() for y in self._compared(outputs)]

    def _judged(self, model: Model) -> float:
        """Held-out loss of a model, by onnxruntime; infinite where it has none."""
        session = Session(model)
        samples = (sample for sample, _ in self.held_out.batches())
        loss = self._mean(self._moved(floating(y)) for y in each(session.run, samples, self.jobs))
        return loss if np.isfinite(loss) else np.inf

    def _mean(self, found: Any) -> float:
        total, count = 0.0, 0
        for outputs, (sample, expected) in zip(found, self.held_out.batches(), strict=True):
            size = len(next(iter(sample.values())))
            total += size * float(self.loss(outputs, self._moved(expected)))
            count += size
        return total / count


def _settled(rows: Sequence[Epoch], epochs: int) -> bool:
    """Whether the last epochs brought nothing better than others before them.

    The given model does not count: it is overtaken only when steps have become short.
    """
    best = min(rows[1:], key=lambda row: row.held_out, default=rows[0])
    return len(rows) - 1 - best.epoch >= max(PATIENCE, -(-epochs // 2))


def _leap(step: int, steps: int) -> float:
    """How far a latent goes in a step: all steps the same way add up to its travel."""
    return min(2 * TRAVEL / steps, LEAP) * _share(step, steps) if step >= 0 and steps else 0.0


def _share(step: int, steps: int) -> float:
    """Of the largest step: up from nothing, then down to nothing along a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / (warm + 1)
    return (1 + cos(pi * (step - warm) / max(steps - warm, 1))) / 2
