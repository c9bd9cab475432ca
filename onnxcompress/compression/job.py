"""What all steps of one compression share: what was asked for, and the model that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

from onnxcompress.compression.choose_layers import Chosen
from onnxcompress.compression.search.plan_int8 import Int8Plan
from onnxcompress.compression.target import Target
from onnxcompress.compression.validate.layerwise import Layerwise
from onnxcompress.compression.validate.validation import Validation
from onnxcompress.core.arithmetic import Rounded, in_integers
from onnxcompress.core.errors import ArgumentError, ModelError
from onnxcompress.core.layer import Array, Layer
from onnxcompress.core.messages import nearest
from onnxcompress.core.method import CompressedWeight, Method
from onnxcompress.core.parallel import helped, one_thread_each
from onnxcompress.core.progress import (
    EVERY_SETTING,
    FURTHER,
    INT8,
    NUMBERS,
    QUICK,
    Track,
    untracked,
)
from onnxcompress.core.scratch import check_cache
from onnxcompress.core.statistics import DOUBT
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.random import random_samples
from onnxcompress.data.samples import Samples
from onnxcompress.data.stand_ins import StandIns
from onnxcompress.execution.dask import engine as connect
from onnxcompress.execution.session import available_providers
from onnxcompress.graph import Model, compute_int8, index_ranges, layer_inputs, rewrite
from onnxcompress.methods.integer import Integer
from onnxcompress.report.progress import progress
from onnxcompress.report.report import Change, Epoch

OURS = "onnxcompress."  # So the keys begin that say how a result was made.

Methods = Sequence[Method] | Callable[[Layer], Sequence[Method]]
Refine = Callable[..., tuple[Model, Sequence[Epoch]]]  # It takes two models, Samples, and a Track.


@dataclass(frozen=True, eq=False)
class Settings:
    """What was asked for: the arguments of `compress`, without the model and its data."""

    methods: Methods
    target: Target | None = None
    metric: str = "top1"
    only: Chosen | None = None
    correct: bool = True
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    jobs: int = 1
    engine: str = "local"
    providers: Sequence[str] = ("CPUExecutionProvider",)
    track: Track[Any] = untracked
    cache: Path | None = None
    refinement: Refine | None = None
    classes: Mapping[str, int | None] | None = None
    states: Mapping[str, str] | None = None
    strip: bool = False
    simplify: bool | None = None
    compute: str = "float"

    def checked(self) -> Settings:
        """The same with arguments in one form.

        Raises:
            ArgumentError: one cannot be what it is.
        """
        providers, known = self.providers, available_providers()
        providers = [providers] if isinstance(providers, str) else list(providers)
        for provider in providers:
            if provider not in known:
                near = nearest(str(provider), known)
                raise ArgumentError(f"onnxruntime has no provider {provider!r} here{near}")
        if not isinstance(self.jobs, int) or self.jobs < 1:
            raise ArgumentError(f"jobs must be a whole number, at least 1, not {self.jobs!r}")
        check_cache(self.cache)
        return replace(self, providers=providers)

    @property
    def simplifies(self) -> bool:
        """Whether lossless passes come first: where time counts, unless it was said."""
        timed = self.target is not None and self.target.latency is not None
        timed = timed or self.compute == "int8"
        return timed if self.simplify is None else self.simplify

    @contextmanager
    def workers(self) -> Iterator[None]:
        """The threads, processes or cluster that do the work."""
        with one_thread_each(), helped(self.jobs), connect(self.engine):
            yield

    @contextmanager
    def progress(self, shown: bool | Track[Any], results: int = 1) -> Iterator[Settings]:
        """The same with steps that show how far they are."""
        target, absent = self.target or Target(min_agreement=1), {"evaluating"}
        if not target.faithful or target.sized:
            absent.add("searching")
        if target.latency is None:
            absent.add("timing layers")
        if self.refinement is None:
            absent.add("training")
        if self.compute != "int8":
            absent.add(INT8)
        if self._only(Integer):
            absent.add(FURTHER)
        with progress(shown, absent, self._fitting, results) as track:
            yield replace(self, track=track)

    @property
    def _fitting(self) -> float:
        """What fitting usually takes, as `Course` has it."""
        if self._only():
            return QUICK
        sizes = self.target is not None and self.target == Target(ratio=self.target.ratio)
        numbers = self._only(Integer) or (sizes and self.cache is None)
        return NUMBERS if numbers else EVERY_SETTING

    def _only(self, *kinds: type[Method]) -> bool:
        """Whether all methods are quick, or of these kinds."""
        known = () if callable(self.methods) else self.methods
        return bool(known) and all(m.quick or isinstance(m, kinds) for m in known)


def any_sampled(offer: Callable[[Layer], Sequence[Method]], layers: Iterable[Layer]) -> bool:
    """Whether one of the methods of these layers fits nothing without samples."""
    return any(method.sampled for layer in layers for method in offer(layer))


def random_inputs(model: Model, settings: Settings) -> Samples:
    """Two random samples, for what can be learned without data."""
    ranges = index_ranges(model)
    return random_samples(input_specs(model), 2, settings.seed, settings.shapes, ranges)


@dataclass(frozen=True, eq=False)
class Job:
    """One compression: what every step reads, and none changes.

    Attributes:
        original: the model that was given.
        model: the same after `changes`, its local functions written out where layers are found in
            them; `runnable` is that where onnxruntime has all kernels, else its float32 twin.
        layers: those to compress, in network order.
        skipped: layer -> reason that completes "layer X was skipped: ...".
        shapes: layer -> shape of its input for the first sample, where it is known.
        macs: multiplications of every linear node for the first sample.
        pinned: weights whose settings fix their size.
        samples: all calibration samples; ``fit`` and ``held_out`` are parts of these to fit with
            and to validate with, or pictures that stand in for them.  None without any.
        stand_ins: what took the place of samples.
        validation: compares models with the original.
        target: what to reach, in the end.
        warnings: what the user should know already.
        changes: what was done to the model that leaves its outputs as they are.
        int8: the layers that compute in int8; None where all compute as they did.
    """

    settings: Settings
    original: Model
    model: Model
    runnable: Model
    layers: Mapping[str, Layer]
    skipped: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    macs: Mapping[str, int]
    pinned: frozenset[str]
    samples: Samples | None
    fit: Samples | None
    held_out: Samples | None
    validation: Validation | Layerwise
    target: Target
    stand_ins: StandIns | None = None
    warnings: Sequence[str] = ()
    changes: Sequence[Change] = ()
    int8: Int8Plan | None = None

    @property
    def doubt(self) -> float:
        """How unlike those of the fit the user's samples may be, as `Statistics` takes it.

        A mean over n samples is off by 1/n of the variance.
        """
        if self.stand_ins or self.samples is None:
            return self.stand_ins.doubt if self.stand_ins else DOUBT
        return max(DOUBT, 1 / self.samples.distinct)

    @property
    def telling(self) -> bool:
        """Whether samples or pictures are fitted to: others tell neither ranges nor decisions."""
        return self.fit is not None and (self.stand_ins is None or self.stand_ins.pictures)

    @cached_property
    def random(self) -> Samples:
        """Random inputs, for what no samples are there."""
        return random_inputs(self.original, self.settings)

    @cached_property
    def calibrated(self) -> dict[str, Layer]:
        """The layers whose inputs can be read out."""
        return {name: self.layers[name] for name in layer_inputs(self.runnable, self.layers)}

    @cached_property
    def leaders(self) -> dict[str, Layer]:
        """One layer for every weight: the first to read it."""
        return {name: layer for name, layer in self.layers.items() if layer.shared == name}

    @property
    def all_pinned(self) -> bool:
        """Whether no size is left to be chosen."""
        return self.pinned == self.leaders.keys()

    @property
    def has_choice(self) -> bool:
        """Whether sensitivities are worth measuring: settings that are fixed leave no choice."""
        return self.fit is not None and not self.all_pinned and not self.model.large

    def readers(self, leader: str) -> list[str]:
        """The layers that read the weight of this one."""
        return self._readers.get(leader, [])

    @cached_property
    def _readers(self) -> dict[str, list[str]]:
        readers: dict[str, list[str]] = {}
        for name, layer in self.layers.items():
            readers.setdefault(layer.shared, []).append(name)
        return readers

    def macs_of(self, leader: str, factors: Sequence[tuple[int, ...]]) -> int:
        """Multiplications of a setting, over all layers that share the weight."""
        readers = [name for name in self.readers(leader) if name in self.shapes]
        return sum(self.layers[name].macs(self.shapes[name], *factors) for name in readers)

    def in_int8(self, leader: str) -> bool:
        """Whether a layer that reads this weight computes in int8."""
        plan = self.int8
        return plan is not None and any(plan.kind(n) != "float" for n in self.readers(leader))

    def rewritten(
        self,
        model: Model,
        weights: Mapping[str, CompressedWeight],
        biases: Mapping[str, Array],
        failed: dict[str, str],
    ) -> Model:
        """The model with these weights in place, its layers in the arithmetic of the plan."""
        plan = self.int8
        if plan is None:
            return rewrite(model, weights, biases, failed)
        whole = {
            name: in_integers(weights[name])
            if name in weights
            else Rounded.of(self.layers[name].read().weight)
            for name in plan.layers
        }
        return compute_int8(
            model, {**weights, **whole}, plan.arithmetic, plan.ranges, biases, failed, plan.region
        )

    def skip_hint(self, leader: str) -> str:
        """The argument that leaves a weight as it is: with one layer left out, others change it."""
        return f"skip={self.readers(leader)}"

    def entries(self, changed: bool) -> Mapping[str, str]:
        """Metadata of a result; without those of ours it is as it was, to the last byte.

        Args:
            changed: whether weights were.
        """
        every = self.settings.metadata
        if changed or self.changes or self.int8 is not None:
            return every
        return {key: value for key, value in every.items() if not key.startswith(OURS)}

    @property
    def largest_file(self) -> float:
        """Bytes that the target allows the file."""
        ratio = self.target.ratio
        return inf if ratio is None else self.original.nbytes / ratio

    def holds(self, model: Model) -> bool:
        """Whether a model reaches the fidelity target; one that does not run does not."""
        try:
            return self.validation.holds(model, self.target)
        except ModelError:
            return False

    def fits(self, model: Model) -> bool:
        """Whether the file is as small, and the answers as good, as was asked."""
        small = model.nbytes <= self.largest_file
        return small and (not self.target.faithful or self.holds(model))

    def towards(self, settings: Settings) -> Job:
        """The same job with the target, and what is recorded of it, of other settings."""
        assert settings.target is not None
        own = replace(self.settings, target=settings.target, metadata=settings.metadata)
        return replace(self, target=settings.target, settings=own)
