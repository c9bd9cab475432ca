"""Distillation: train what a compressed model stores as floats on the original's outputs.

No labels are needed.  The compressed graph itself runs in torch; its floating-point constants
(filters, scales, shared values, biases) are the parameters, its integers (codes, signs, tables,
shapes) stay as they are, and so does the file's size.  What is stored in 16 bits is rounded on
the way forward, and its gradient passes as if it were not: what is trained is what is stored.

Both models have the activations between layers in common; some of them are *hints* (Romero et al.
2015), compared as the outputs are: a few samples say far more that way.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np

from onnxcompress.core import Array
from onnxcompress.data import Samples, spread
from onnxcompress.graph import Model, expose, operations, with_values
from onnxcompress.measuring import Track, untracked
from onnxcompress.metrics import has_class_scores
from onnxcompress.parallel import cores, each
from onnxcompress.runtime import Sample, Session

try:
    import torch

    from onnxcompress.torch_graph import TorchGraph, tensor, unsupported
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    absent: Any = None
    torch = TorchGraph = tensor = unsupported = absent

BATCH = 64  # samples a step, at most
STEPS = 8  # an epoch where there are enough samples for so many
RATES = (1e-4, 5e-4, 2e-3, 1e-2)  # tried; a step is so large a share of a tensor's own size
TRIAL_STEPS = (24, 96)  # with each of them, at least and at most,
TRIAL_SHARE = 8  # and one of so many that follow: short trials favour short steps
WARM_UP = 0.05  # of all steps
CLIP = 1.0  # largest norm of the gradient
SHIFT = 4  # pixels that an image is moved by, at most
LARGEST = 1e4  # magnitude of a constant that is trained; greater ones are masks
AGREES = 0.02  # largest difference of torch from onnxruntime, relative to the outputs
HINT_BYTES = 1 << 30  # of the teacher's activations that are kept in memory
KEPT_BYTES = 2 << 30  # inputs up to which they are kept in memory
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


@dataclass(frozen=True)
class Epoch:
    """One pass over the samples.

    Attributes:
        epoch: 0 for the model as it was given, whose loss is not known.
        loss: on the samples trained with, the mean over the epoch.
        held_out: loss of the model as it would be stored, run by onnxruntime.
    """

    epoch: int
    loss: float
    held_out: float
    seconds: float


def refine(
    model: Model,
    teacher: Model,
    samples: Samples,
    *,
    epochs: int,
    seed: int = 0,
    device: str = "auto",
    rate: float | None = None,
    augment: str = "",
    hints: int = 8,
    jobs: int | None = None,
    track: Track[Any] = untracked,
) -> tuple[Model, list[Epoch]]:
    """Train a compressed model to answer as the original does.

    On the CPU the result depends on the seed and on ``jobs`` alone.

    Args:
        model: onnxruntime must have kernels for it and for the teacher.
        samples: unlabelled; those that ``split`` holds out judge every epoch.
        device: as torch names it; ``auto`` is a GPU where there is one.
        rate: length of a step relative to the size of what is trained; None to try some.
        augment: ``flip``, ``crop`` or both with a comma: mirrored and shifted images.
        hints: activations inside the models that are compared too, at most.

    Returns:
        The model of the epoch with the least held-out loss, the given one if none is better; and
        all epochs, that of the given model first.

    Raises:
        ValueError: torch is missing, lacks an operator, or does not compute what onnxruntime
            does; or there is nothing to train; in one line.
    """
    if torch is None:
        raise ValueError("refinement needs torch: pip install 'onnxcompress[refine]'")
    if missing := unsupported(model):
        raise ValueError(f"refinement does not know {', '.join(missing)}")
    augmentation = _augmentation(augment)
    with _threads(jobs or cores()):
        place = _device(device)
        training, held_out = (_in_memory(part) for part in samples.split())
        run = _Run(
            model, teacher, training, held_out, place, augmentation, hints, seed, jobs or cores()
        )
        return run.result(epochs, rate, track)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"torch has no device {name!r}: {str(error).splitlines()[0]}") from None
    return name


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------- what is trained


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


class _Parameters:
    """Masters in float32 of a model's constants.

    Adam's steps have the same length for all entries: each tensor is divided by its root mean
    square, so that a step is a share of it.

    Attributes:
        free: name -> the tensor in units of its size.
    """

    def __init__(self, model: Model, names: Sequence[str], device: str) -> None:
        self._values = {name: model.read(name) for name in names}
        self._sizes = {name: _size(value) for name, value in self._values.items()}
        self._start = {name: tensor(v, device) for name, v in self._values.items()}
        self.free: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        """Back to the values that the model came with."""
        self.free = {
            name: (value / self._sizes[name]).requires_grad_()
            for name, value in self._start.items()
        }

    def drop(self, names: Sequence[str]) -> None:
        for name in names:
            del self._values[name], self._sizes[name], self._start[name], self.free[name]

    def rounded(self) -> dict[str, Any]:
        """The tensors to compute with, as their types will store them."""
        return {name: _stored(self._master(name), self._kind(name)) for name in self.free}

    def arrays(self) -> dict[str, Array]:
        """The tensors to store."""
        with torch.no_grad():
            masters = {name: self._master(name).cpu().numpy() for name in self.free}
        return {name: value.astype(self._values[name].dtype) for name, value in masters.items()}

    def _kind(self, name: str) -> str:
        return self._values[name].dtype.name

    def _master(self, name: str) -> Any:
        return self.free[name] * self._sizes[name]


def _size(value: Array) -> float:
    size = float(np.sqrt(np.mean(np.square(value.astype(np.float64)))))
    return size if size > 1e-6 else 1e-2  # what is all zero must be able to move


def _stored(master: Any, kind: str) -> Any:
    """Rounded to 16 bits; the gradient passes straight through."""
    if kind not in ("float16", "bfloat16"):
        return master
    rounded = master.detach().to(getattr(torch, kind)).to(torch.float32)
    return master + (rounded - master.detach())


# --------------------------------------------------------------------------------------- samples


def _in_memory(samples: Samples) -> Samples:
    """The same, read once and kept where they are small enough."""
    first = next(samples.batches(1))
    count = len(samples) // samples.batch if samples.exact else len(samples)
    if sum(array.nbytes for array in first.values()) * count > KEPT_BYTES:
        return samples
    if samples.exact:
        batches = list(samples)
        return Samples(lambda rows: batches[int(rows[0])], np.arange(len(batches)))
    parts = list(samples)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in first}

    def read(rows: Array) -> Sample:
        return {name: array[rows] for name, array in whole.items()}

    return Samples(read, np.arange(len(samples)), samples.batch, exact=False)


@dataclass(frozen=True, eq=False)
class _Taught:
    """Samples with the teacher's outputs, in batches.

    Attributes:
        size: samples in a batch.
        outputs: of the teacher, those that are floating-point: for all samples, or for each batch
            where outputs do not go by samples.
    """

    samples: Samples
    size: int
    outputs: list[Array] | list[list[Array]]
    apart: bool

    @classmethod
    def by(cls, teacher: Session, samples: Samples, size: int, jobs: int) -> _Taught:
        batches = [len(next(iter(b.values()))) for b in samples.batches(size)]
        found = [_floating(y) for y in each(teacher.run, samples.batches(size), jobs)]
        apart = samples.exact or any(
            y.ndim == 0 or len(y) != count or y.shape[1:] != first.shape[1:]
            for count, outputs in zip(batches, found, strict=True)
            for y, first in zip(outputs, found[0], strict=True)
        )
        if apart:
            size = samples.batch if samples.exact else size
            return cls(samples, size, found, True)
        return cls(samples, size, [np.concatenate(y) for y in zip(*found, strict=True)], False)

    def batches(self, order: np.random.Generator | None = None) -> Iterator[tuple[Sample, Any]]:
        """Inputs and the teacher's outputs, in the samples' order or in a random one."""
        count, size = len(self.samples), self.size
        if self.apart:
            starts = np.arange(0, count, size)
            for start in starts if order is None else order.permutation(starts):
                part = self.samples[start : start + size]
                yield next(part.batches(size)), self.outputs[start // size]
            return
        rows = np.arange(count) if order is None else order.permutation(count)
        last = count if order is None or count < size else count - count % size
        for start in range(0, last, size):
            some = rows[start : start + size]
            yield next(self.samples.take(some).batches(size)), [y[some] for y in self.outputs]

    @property
    def steps(self) -> int:
        """Batches of an epoch in random order."""
        whole = len(self.samples) // self.size
        return -(-len(self.samples) // self.size) if self.apart else max(whole, 1)


def _floating(outputs: Sequence[Any]) -> list[Array]:
    """The outputs that are compared."""
    return [y for y in outputs if isinstance(y, np.ndarray) and y.dtype.kind == "f"]


# ------------------------------------------------------------------------------------------ loss


Loss = Callable[[Sequence[Any], Sequence[Any]], Any]  # (outputs, the teacher's) -> one number


def _loss_for(reference: Sequence[Sequence[Array]]) -> Loss:
    """The loss that fits the teacher's outputs, given batch by batch.

    Class scores: Kullback-Leibler divergence of the class probabilities, plus the squared error
    of the centred logits relative to their variance.  Others: squared error relative to the
    variance.  The mean over the outputs.
    """
    kinds = []
    for outputs in zip(*reference, strict=True):
        values = [torch.from_numpy(y.astype(np.float32)) for y in outputs]
        scores = all(map(has_class_scores, outputs))
        rows = [y.flatten(1) for y in values] if scores else []
        probable = scores and all(
            bool((y >= 0).all()) and torch.allclose(y.sum(1), torch.ones(len(y)), atol=1e-3)
            for y in rows
        )
        seen = [_logits(y, probable) for y in rows] if scores else values
        variance = float(torch.cat([y.flatten() for y in seen]).var(correction=0))
        kinds.append((scores, probable, max(variance, 1e-12)))

    def loss(outputs: Sequence[Any], expected: Sequence[Any]) -> Any:
        parts = []
        for (scores, probable, variance), a, b in zip(kinds, outputs, expected, strict=True):
            if not scores:
                parts.append((a - b).square().mean() / variance)
                continue
            a, b = _logits(a.flatten(1), probable), _logits(b.flatten(1), probable)
            ours, theirs = torch.log_softmax(a, 1), torch.log_softmax(b, 1)
            divergence = (theirs.exp() * (theirs - ours)).sum(1).mean()
            parts.append(divergence + (a - b).square().mean() / variance)
        return torch.stack(parts).mean()

    return loss


def _hint_loss(reference: Sequence[Array]) -> Loss:
    """Squared error relative to the variance, the mean over the hints; nothing without any."""
    variances = [max(float(np.var(y.astype(np.float64))), 1e-12) for y in reference]

    def loss(outputs: Sequence[Any], expected: Sequence[Any]) -> Any:
        pairs = zip(outputs, expected, variances, strict=True)
        parts = [(a - b).square().mean() / variance for a, b, variance in pairs]
        return torch.stack(parts).mean() if parts else 0.0

    return loss


def _hints(model: Model, teacher: Model, samples: Samples, count: int, nbytes: int) -> list[str]:
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
        if _floating([y]) and y.ndim > 1 and len(y) == size and y.var() > 0
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


# ---------------------------------------------------------------------------------- augmentation


def _augmentation(spec: str) -> Callable[[Sample, np.random.Generator], Sample] | None:
    wanted = {word.strip() for word in spec.split(",") if word.strip()}
    if unknown := wanted - {"flip", "crop"}:
        raise ValueError(f"unknown augmentation {min(unknown)!r}; there are flip, crop")
    if not wanted:
        return None

    def augmented(sample: Sample, rng: np.random.Generator) -> Sample:
        return {
            name: _moved(images, wanted, rng) if _is_images(images) else images
            for name, images in sample.items()
        }

    return augmented


def _is_images(array: Array) -> bool:
    return array.ndim == 4 and array.dtype.kind == "f" and min(array.shape[2:]) > 2 * SHIFT


def _moved(images: Array, wanted: set[str], rng: np.random.Generator) -> Array:
    """Images ``(N, C, H, W)``, each mirrored or not, and shifted; zeros move in."""
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
    return result


# -------------------------------------------------------------------------------------- training


class _Run:
    """One refinement: what is trained, on what, and how good it is."""

    def __init__(
        self,
        model: Model,
        teacher: Model,
        training: Samples,
        held_out: Samples,
        device: str,
        augmentation: Callable[[Sample, np.random.Generator], Sample] | None,
        hints: int,
        seed: int,
        jobs: int,
    ) -> None:
        self.model, self.device, self.jobs = model, device, jobs
        self.augmentation, self.seed = augmentation, seed
        session = Session(teacher)
        self.held_out = _Taught.by(session, held_out, min(BATCH, held_out.even), jobs)
        first = session.run(next(iter(held_out)))
        self.places = [i for i, y in enumerate(first) if _floating([y])]
        if not self.places:
            raise ValueError("the model has no floating-point outputs to train on")
        self.count = len(self.places)
        self.loss = _loss_for([outputs for _, outputs in self.held_out.batches()])
        names = _hints(model, teacher, training, hints, HINT_BYTES)
        self.places += range(len(first), len(first) + len(names))
        shown = [output.name for output in model.graph.output] + names
        self.shown = expose(model, shown)
        teacher = expose(teacher, [*session.outputs, *names])
        size = int(np.clip(len(training) // STEPS, 1, min(BATCH, training.batch)))
        self.training = _Taught.by(Session(teacher), training, size, jobs)
        self.answers = self._answers(teacher)
        self.hinted = _hint_loss(next(self.training.batches())[1][-len(names) :] if names else [])
        self.parameters = _Parameters(model, trainable(model), device)
        self.graph = TorchGraph(self.shown, list(self.parameters.free), device)
        self._checked()

    def _training_loss(self, outputs: Sequence[Any], expected: Sequence[Any]) -> Any:
        count = self.count
        loss = self.loss(outputs[:count], expected[:count])
        return loss + self.hinted(outputs[count:], expected[count:])

    def _answers(self, teacher: Model) -> Callable[[Sample], Sequence[Any]]:
        """What the teacher says to an augmented batch; on a GPU torch is faster."""
        if self.device == "cpu" or unsupported(teacher):
            session = Session(teacher, threads=self.jobs)
            return lambda sample: self._moved(_floating(session.run(sample)))
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
            ValueError: it does not, or nothing is left to train.
        """
        sample, expected = next(self.held_out.batches())
        reached = _floating(Session(self.model).run(sample))
        outputs = self._compared(self.graph(self._inputs(sample), self.parameters.rounded()))
        outputs = outputs[: len(reached)]
        for ours, theirs in zip(outputs, reached, strict=True):
            found, wanted = ours.detach().cpu().numpy(), theirs.astype(np.float32)
            off = np.linalg.norm(found - wanted) if found.shape == wanted.shape else np.inf
            if not off <= AGREES * np.linalg.norm(wanted) + 1e-6:
                raise ValueError("torch computes something else than onnxruntime for this model")
        loss = self.loss(outputs, self._moved(expected))
        free = self.parameters.free
        if loss.requires_grad:
            loss.backward()
        self.parameters.drop([name for name, value in free.items() if value.grad is None])
        if not self.parameters.free:
            raise ValueError("the model has no floating-point weights to train")
        self.graph = TorchGraph(self.shown, list(self.parameters.free), self.device)

    def result(
        self, epochs: int, rate: float | None, track: Track[Any]
    ) -> tuple[Model, list[Epoch]]:
        began = time.perf_counter()
        start = self._judged(self.model)
        if epochs and rate is None:
            rate = self._best_rate(epochs * self.training.steps)
        rows = [Epoch(0, float("nan"), start, time.perf_counter() - began)]
        best, least = self.model, start
        steps = self._trained(epochs * self.training.steps, rate or 0.0)
        for epoch in track(range(1, epochs + 1), "refining", epochs):
            began = time.perf_counter()
            losses = [next(steps) for _ in range(self.training.steps)]
            if not np.isfinite(losses).all():
                break  # it diverged; later epochs would too
            found = with_values(self.model, self.parameters.arrays())
            held_out = self._judged(found)
            rows.append(Epoch(epoch, float(np.mean(losses)), held_out, time.perf_counter() - began))
            if held_out < least:
                best, least = found, held_out
        return best, rows

    def _best_rate(self, steps: int) -> float:
        """The rate with which a few steps, on the same batches, lead to the least loss.

        Not the held-out one: it says less in few steps, and every epoch is judged by it anyway.
        """
        found, count = {}, int(np.clip(steps // TRIAL_SHARE, *TRIAL_STEPS))
        for rate in RATES:
            losses = list(self._trained(count, rate))
            loss = float(np.mean(losses[-count // 3 :]))
            found[rate] = loss if np.isfinite(loss) else np.inf
        return min(RATES, key=lambda rate: found[rate])

    def _trained(self, steps: int, rate: float) -> Iterator[float]:
        """Train from the start; the loss of every step."""
        self.parameters.reset()
        rng = np.random.default_rng(self.seed)
        free = list(self.parameters.free.values())
        optimizer = torch.optim.Adam(free, lr=rate)
        warm = max(1, round(WARM_UP * steps))
        for step, (sample, expected) in enumerate(self._endless(rng)):
            if step == steps:
                return
            share = (step - warm) / max(steps - warm, 1)
            size = (step + 1) / (warm + 1) if step < warm else (1 + cos(pi * share)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate * size
            optimizer.zero_grad()
            outputs = self.graph(self._inputs(sample), self.parameters.rounded())
            loss = self._training_loss(self._compared(outputs), expected)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(free, CLIP)
            optimizer.step()
            yield float(loss.detach())

    def _endless(self, rng: np.random.Generator) -> Iterator[tuple[Sample, Sequence[Any]]]:
        while True:
            for sample, expected in self.training.batches(rng):
                if self.augmentation is None:
                    yield sample, self._moved(expected)
                else:
                    sample = self.augmentation(sample, rng)
                    yield sample, self.answers(sample)

    def _judged(self, model: Model) -> float:
        """Held-out loss of a model, by onnxruntime; infinite where it has none."""
        session = Session(model)
        samples = (sample for sample, _ in self.held_out.batches())
        loss = self._mean(self._moved(_floating(y)) for y in each(session.run, samples, self.jobs))
        return loss if np.isfinite(loss) else np.inf

    def _mean(self, found: Any) -> float:
        total, count = 0.0, 0
        for outputs, (sample, expected) in zip(found, self.held_out.batches(), strict=True):
            size = len(next(iter(sample.values())))
            total += size * float(self.loss(outputs, self._moved(expected)))
            count += size
        return total / count
