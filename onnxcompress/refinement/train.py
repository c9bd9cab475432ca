"""Distillation: train what a compressed model stores on the original's outputs.

No labels are needed.  The compressed graph itself runs in torch; its floating-point constants
(filters, scales, shared values, biases) are the parameters, and the file's size stays.  What is
stored in 16 bits is rounded on the way forward, and its gradient passes as if it were not: what is
trained is what is stored.

So it is with codes, constants that pick rows of a table (see `straight_through`): their latents z
round to the nearest row on the way forward, and dL/dz = dL/drow (Bengio et al. 2013).  A code that
changes is a jolt, which the floats must answer: these are trained alone in the first half of the
epochs, then only those codes change whose gradient keeps its sign.  Other integers stay as they
are.

Both models have the activations between layers in common; some of them are *hints* (Romero et al.
2015), compared as the outputs are: a few samples say far more that way.

Weights that a linear node reads as they are stored take Muon's steps (Jordan et al. 2024): the
momentum's nearest orthogonal matrix, which moves weak directions of a factor as far as strong ones.
Adam needs about twice the epochs.  All others, scales and shared values, take Adam's.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnxcompress.core.errors import RefineError
from onnxcompress.core.parallel import cores
from onnxcompress.core.progress import Track, untracked
from onnxcompress.data.samples import Samples
from onnxcompress.execution.cache import Cache
from onnxcompress.graph import Model, digest
from onnxcompress.refinement.augment import parse_augmentations
from onnxcompress.report.report import Epoch

# A step of training takes about as long as so many runs of onnxruntime on its samples: about 6 of
# large layers, or on one thread, and 12 of small ones, for which torch makes little of threads.
STEP = 9.0


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

    Args:
        model: onnxruntime must have kernels for it and for the teacher.
        samples: unlabelled; those that ``split`` holds out judge every epoch.
        epochs: at most; where no codes are trained, half of them and five in vain end it.
        labelled: samples with class numbers, whose cross-entropy is added to the training loss.
        device: as torch names it; ``auto`` prefers a GPU.  On CPUs seed and jobs fix the result.
        rate: length of a step relative to the size of what is trained; None to try some.
        augment: any of ``flip``, ``crop`` and ``mix`` (two images in one), with commas.
        hints: activations inside the models that are compared too, at most.
        cache: a folder that keeps every epoch, from which an interrupted run goes on.

    Returns:
        The model of the epoch with the least held-out loss; all epochs, the given model's first.

    Raises:
        RefineError: torch is missing or differs from onnxruntime, or there is nothing to train.
        TorchError, DataError: torch cannot compute a node; the labels are no class numbers.
    """
    check(model, device, augment)
    from onnxcompress.refinement.checkpoints import Checkpoints
    from onnxcompress.refinement.device import pick_device, threads
    from onnxcompress.refinement.teacher import prepare_lessons
    from onnxcompress.refinement.trainer import prepare_trainer, train

    jobs, device, augmentations = jobs or cores(), pick_device(device), parse_augmentations(augment)
    settings = epochs, seed, device, rate, augmentations, hints, jobs
    key = "" if cache is None else _key((model, teacher), (samples, labelled), settings)
    with threads(jobs):
        lessons = prepare_lessons(model, teacher, samples, augmentations, hints, device, jobs)
        trainer = prepare_trainer(model, lessons, labelled, seed, jobs)
        return train(trainer, epochs, rate, Checkpoints(Cache(cache), key, device), track)


def _work(
    samples: Samples,
    *,
    epochs: int,
    labelled: Samples | None = None,
    device: str = "auto",
    rate: float | None = None,
    **_: Any,
) -> float | None:
    """How many runs of the original, a sample each, a refinement takes as long as.

    None on a GPU, where runs on a CPU tell nothing.
    """
    from onnxcompress.refinement.device import pick_device
    from onnxcompress.refinement.schedule import RATES, plan_trial
    from onnxcompress.refinement.teacher import batch_size

    if pick_device(device) != "cpu":
        return None
    training = samples.split()[0]
    size = batch_size(training)
    steps = epochs * max(len(training) // size, 1)
    tried = 0 if rate is not None else len(RATES) * plan_trial(1.0, steps).steps
    return STEP * (1 if labelled is None else 2) * size * (tried + steps)


refine.work = _work  # pyright: ignore[reportFunctionMemberAccess]


def check(model: Model, device: str = "auto", augment: str = "") -> None:
    """Raise unless models of this kind can be refined; nothing is computed.

    This is the one place that knows that torch may be missing: what imports it comes after.

    Raises:
        RefineError: torch is missing or has no such device, an operator is missing, or the
            augmentation is unknown.
    """
    if find_spec("torch") is None:
        raise RefineError("refinement needs torch: pip install 'onnxcompress[refine]'")
    from onnxcompress.refinement.device import pick_device
    from onnxcompress.refinement.torch_graph import unsupported

    if missing := unsupported(model):
        raise RefineError(f"refinement does not know {', '.join(missing)}")
    parse_augmentations(augment)
    pick_device(device)


def _key(models: Sequence[Model], data: Sequence[Samples | None], settings: Any) -> str:
    """What a training is kept under: whatever its result depends on."""
    from onnxcompress.refinement.checkpoints import key_of

    versions, digests = (version("onnxcompress"), version("torch")), tuple(map(digest, models))
    return key_of(*versions, digests, [_content(part) for part in data], settings)


def _content(samples: Samples | None) -> list[str]:
    """What tells samples, and their labels, from others."""
    if samples is None:
        return []
    labels = b"" if samples.labels is None else samples.labels.tobytes()
    return [samples.content, sha256(labels).hexdigest()]
