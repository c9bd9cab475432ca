"""The model with the chosen settings: fitted in place, corrected where that helps.

With data the layers are fitted in network order (`refit`); each keeps the correction of its
deviations only where that lowers the error of the outputs on held-out samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxcompress.compression.build.fitted import Fitted
from onnxcompress.compression.build.refit import refit
from onnxcompress.compression.build.streams import Streams
from onnxcompress.compression.job import Job
from onnxcompress.compression.measure.at_once import kept, largest_input, threads
from onnxcompress.compression.measure.calibrate import batching, quota
from onnxcompress.compression.measure.observed import Observed
from onnxcompress.core.arithmetic import in_integers
from onnxcompress.core.method import Candidate, CompressedWeight, Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.graph import Model, annotate

REFIT_BATCH = 8  # A batch has at most so many samples: patches of few batches would be large.
# At most so many groups of layers are judged, whose corrections, or fits to data, stay or go.
CORRECTION_TRIALS = 8
CORRECTION_SAMPLES = 64  # Each is judged by runs on at most so many held-out samples.
# All these runs together take about so many multiplications, which bounds the time.
CORRECTION_WORK = 6 * 10**11


@dataclass(frozen=True, eq=False)
class Built:
    """A compressed model.

    Attributes:
        chosen: what every weight got.
        fitted: the layers as they were fitted.
        failed: layer -> why it could not be replaced.
        loss: error of the outputs, see `Builder.loss`, where it is known.
    """

    chosen: Mapping[str, Candidate]
    model: Model
    fitted: Mapping[str, Fitted]
    failed: Mapping[str, str]
    loss: float | None = None


@dataclass(frozen=True, eq=False)
class Builder:
    """Builds the model of one compression with any choice of settings."""

    job: Job
    observed: Observed

    def build(self, chosen: Mapping[str, Candidate], progress: str | None = None) -> Built:
        """The model with these settings.

        Args:
            progress: what is said of the last build, whose corrections are checked; None for a
                trial.
        """
        job = self.job
        settings = self._settings(chosen)
        outer = set(job.model.keys)
        fixed = self._one_by_one({n: s for n, s in settings.items() if n not in outer})
        settings = {name: s for name, s in settings.items() if name not in fixed}
        loss = None
        if job.fit is None or not settings:
            fitted = self._from_weights(settings, self.observed.kept) | fixed
        elif job.settings.correct:
            fitted, loss = self._in_order(settings, fixed, progress)
        else:
            fitted = self._one_by_one(settings) | fixed
        return self.with_weights(Built(chosen, job.model, {}, {}), fitted, loss)

    def without_data(self, built: Built) -> dict[str, Fitted]:
        """The same settings fitted to the weights alone, as if nothing were known of the inputs."""
        layers = self.job.layers
        settings = self._settings(built.chosen)
        leaders = {layers[name].shared for name in settings}
        blind = self._from_weights(settings, {n: Statistics.white(layers[n]) for n in leaders})
        return {name: fitted for name, fitted in blind.items() if name in built.fitted}

    def with_weights(
        self, built: Built, fitted: Mapping[str, Fitted], loss: float | None = None
    ) -> Built:
        """The same with other weights in its settings; ``loss`` where it is known."""
        failed = dict(built.failed)
        made = self._changed(self.job.model, fitted, failed)
        result = annotate(made, self.job.entries(changed=bool(fitted)))
        kept = {name: f for name, f in fitted.items() if name not in failed}
        return replace(built, model=result, fitted=kept, failed=failed, loss=loss)

    def improved(
        self, fitted: Mapping[str, Fitted], least: float, others: Iterable[Mapping[str, Fitted]]
    ) -> tuple[dict[str, Fitted], float]:
        """The weights with those others, one group after another, that lower the held-out error.

        Args:
            least: the error with the weights as they are.

        Returns:
            The weights, and the error with them.
        """
        best = dict(fitted)
        for group in others:
            error = self.loss({**best, **group})
            if error < least:
                best, least = {**best, **group}, error
        return best, least

    def loss_of(self, built: Built) -> float:
        """The `loss` with the weights of a model."""
        return self.loss(built.fitted) if built.loss is None else built.loss

    def loss(self, fitted: Mapping[str, Fitted]) -> float:
        """Error of the outputs on some held-out samples with these weights in place."""
        model = self._changed(self.job.runnable, fitted, {})
        work = CORRECTION_WORK // (CORRECTION_TRIALS * max(sum(self.job.macs.values()), 1))
        return self.job.validation.fidelity(model, int(np.clip(work, 1, CORRECTION_SAMPLES))).loss

    def _changed(self, model: Model, fitted: Mapping[str, Fitted], failed: dict[str, str]) -> Model:
        """The model with these weights in place, its layers in the arithmetic of the plan."""
        return self.job.rewritten(model, *_parts(fitted), failed)

    def _fit(self, name: str, setting: Method, statistics: Statistics) -> CompressedWeight:
        """A layer's weight in this setting."""
        weight = setting.fit(self.job.layers[name].read(), statistics)
        if self.job.in_int8(name):
            weight = in_integers(weight)
        return weight.mapped(self.job.model.keep)

    def _settings(self, chosen: Mapping[str, Candidate]) -> dict[str, Method]:
        """Layer -> its setting, for all readers of what is replaced."""
        return {
            reader: candidate.setting
            for name, candidate in chosen.items()
            if candidate.setting is not None
            for reader in self.job.readers(name)
        }

    def _from_weights(
        self, settings: Mapping[str, Method], known: Mapping[str, Statistics]
    ) -> dict[str, Fitted]:
        """Every weight fitted once, with what is known of its inputs."""
        layers = self.job.layers
        alone = {
            name: self._fit(name, setting, known[name])
            for name, setting in settings.items()
            if layers[name].shared == name
        }
        return {name: Fitted(alone[layers[name].shared]) for name in settings}

    def _one_by_one(self, settings: Mapping[str, Method]) -> dict[str, Fitted]:
        """Every layer fitted for itself, with nothing but its mean output kept."""
        fitted: dict[str, Fitted] = {}
        for name, statistics in self.observed.each(settings):
            layer = self.job.layers[name].read()
            first = fitted.get(layer.shared)
            weight = first.weight if first else self._fit(name, settings[name], statistics)
            bias = None
            if layer.correctable and statistics.count:
                shift = statistics.shift(layer.weight, weight.astype(np.float32).decode())
                bias = shift if layer.bias is None else layer.bias + shift
            fitted[name] = Fitted(weight, bias)
        return fitted

    def _in_order(
        self, settings: Mapping[str, Method], fixed: Mapping[str, Fitted], progress: str | None
    ) -> tuple[dict[str, Fitted], float | None]:
        """Every layer fitted on what the layers before it have become, and the `loss` if known."""
        job = self.job
        assert job.fit is not None
        size, _ = batching(job.fit, job.shapes, REFIT_BATCH)
        largest = largest_input(job.shapes[name] for name in job.calibrated)
        fitting = kept(largest)
        samples = job.fit if fitting >= len(job.fit) else job.fit.spread(fitting)
        batches = list(samples.batches(size))

        def track(keys: Iterable[str]) -> Iterable[str]:
            return keys if progress is None else job.settings.track(keys, progress, len(settings))

        streams = Streams(
            job.runnable,
            batches,
            {name: f.weight for name, f in fixed.items()},
            threads(largest, size, job.settings.jobs),
            job.int8.tensors if job.int8 else None,
        )
        limit = partial(quota, batches=len(batches))
        guessed = job.stand_ins is not None
        fitted = refit(streams, job.layers, settings, job.int8, limit, track, job.doubt, guessed)
        fitted |= fixed
        if progress is None:
            return fitted, None
        if guessed and job.samples is not None:  # One sample does not tell what helps.
            return fitted | {n: f.plain for n, f in fitted.items() if f.plain}, None
        return self._helpful(fitted)

    def _helpful(self, fitted: dict[str, Fitted]) -> tuple[dict[str, Fitted], float | None]:
        """Keep the correction of the deviations only where it lowers the held-out error.

        Neighbouring layers are judged together where there are more than ``CORRECTION_TRIALS``, all
        layers of a large model.
        """
        undone = {name: f.plain for name, f in fitted.items() if f.plain is not None}
        if not undone:
            return fitted, None
        groups = [undone]
        if not self.job.model.large:  # A run of a large one takes minutes.
            groups += in_groups(undone)
        track = self.job.settings.track
        others = track(groups, "checking corrections", len(groups))
        return self.improved(fitted, self.loss(fitted), others)


def in_groups(fitted: Mapping[str, Fitted]) -> list[dict[str, Fitted]]:
    """Weights of neighbouring layers that are judged together, in a few groups."""
    groups = np.array_split([*fitted], min(len(fitted), CORRECTION_TRIALS))
    return [{name: fitted[name] for name in group.tolist()} for group in groups]


def _parts(
    fitted: Mapping[str, Fitted],
) -> tuple[dict[str, CompressedWeight], dict[str, np.ndarray]]:
    """The weights, and the biases that change."""
    weights = {name: f.weight for name, f in fitted.items()}
    return weights, {name: f.bias for name, f in fitted.items() if f.bias is not None}
