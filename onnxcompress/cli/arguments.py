"""What the options ask for, as the values that the rest works with; wrong ones are refused here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcompress.cli.endings import command_line
from onnxcompress.cli.places import CONFIG, check_page, files_of_data
from onnxcompress.core.errors import DataError
from onnxcompress.core.scratch import check_cache, check_place

if TYPE_CHECKING:  # Imports where they are used let --help and wrong options answer at once.
    from onnxcompress.cli.config_file import Rules
    from onnxcompress.compression.target import Target
    from onnxcompress.core.layer import Layer
    from onnxcompress.core.method import Method
    from onnxcompress.data.samples import Samples
    from onnxcompress.graph import Model


SWEPT = (2, 3, 4, 6, 8, 12, 16, 24)  # `sweep` shows these ratios (times smaller) by default.
EVALUATION_LIMIT = 100_000  # Each labelled sample costs runs of models, so no more are read.
LARGEST_BITS = 64  # A whole number in a configuration has no more bits: str() fails on huge ones.


@contextmanager
def as_usage_errors() -> Iterator[None]:
    """A value that settings or a target refuse is a wrong argument."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def check_gate(target: Target | None, options: Mapping[str, Any]) -> None:
    """Refuse a quality target for which there is no data to judge it by."""
    if target is None:
        return
    if target.max_drop is not None and options["evaluation"] is None:
        names, more = "--max-drop needs labelled samples", ["--eval", "LABELLED.npz"]
    elif (target.min_snr, target.min_agreement) != (None, None) and options["calib"] is None:
        names, more = "--min-agreement and --min-snr need samples", ["--calib", "SAMPLES.npz"]
    else:
        return
    command = shlex.join(["onnxcompress", *command_line(), *more])
    raise click.UsageError(f"{names}: {command}")


def read_methods(
    specs: Sequence[str], energy: float | None, target: Target | None, compute: str = "float"
) -> list[Method]:
    """The methods for all layers.

    Args:
        compute: float or int8: what layers are to compute in.
    """
    from onnxcompress.compression.auto import auto
    from onnxcompress.compression.method_spec import parse
    from onnxcompress.methods.basis import Basis

    if compute == "int8" and not specs and energy is None:
        return auto(target, compute)
    default = ("auto",) if energy is None else ("basis",)
    with as_usage_errors():
        chosen = [method for spec in specs or default for method in parse(spec, target)]
        for method in chosen if compute == "int8" else ():
            if method.name in ("half", "hashed"):
                raise click.UsageError(f"{method.name} gives no whole numbers for --compute int8")
        if energy is None:
            return chosen
        ruled = [replace(m, energy=energy) for m in chosen if isinstance(m, Basis)]
    if not ruled:
        raise click.UsageError("--energy is a rule of the method basis")
    return list(ruled)


def read_config(ctx: click.Context, path: Path) -> Rules:
    """The rules of a file, whose options become defaults."""
    from onnxcompress.cli import config_file

    known = {
        opt.removeprefix("--"): param
        for param in ctx.command.params
        for opt in param.opts
        if isinstance(param, click.Option) and opt not in ("--config", "--help", "-h")
    }
    values, rules = config_file.read(path, known)
    ctx.meta[CONFIG] = path
    ctx.default_map = {}
    for key, value in values.items():
        several = getattr(known[key], "multiple", False)
        if value is None:
            continue
        if isinstance(value, list) and several:
            ctx.default_map[known[key].name or key] = [_as_word(path, key, v) for v in value]
        else:
            word = _as_word(path, key, value)
            ctx.default_map[known[key].name or key] = [word] if several else word
    return rules


def _as_word(path: Path, key: str, value: Any) -> str | bool:
    """A value of a configuration, as the command line would have it."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str | int | float):
        raise click.UsageError(f"{path}: {key} takes one value, such as {key}: 8")
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise click.UsageError(f"{path}: {key} is too large a number")
    word = str(value)
    if "\0" in word:
        raise click.UsageError(f"{path}: {key} holds a character that no option can hold")
    return word


def offer_methods(
    model: Model, default: list[Method], rules: Rules | None, target: Target | None
) -> list[Method] | Callable[[Layer], Sequence[Method]]:
    """The methods for all layers, or for each one by the rules of a configuration."""
    from onnxcompress.compression.choose_layers import check_patterns, every_layer, some

    if rules is None or not (rules.layers or rules.op_types):
        return default
    check_patterns(model, [*rules.layers])
    kinds = {layer.op_type for layer in every_layer(model)[0].values()}
    for op_type in rules.op_types.keys() - kinds:
        raise click.UsageError(f"no layer is a {op_type}; there are {some(sorted(kinds))}")
    every = (*rules.layers.values(), *rules.op_types.values())
    known = {rule.specs: read_methods(rule.specs, None, target) for rule in every}

    def ruled(layer: Layer) -> Sequence[Method]:
        rule = rules.of(layer.name, layer.op_type)
        if rule is None or not (rule.specs or rule.skip):
            return default
        return [] if rule.skip else known[rule.specs]

    return ruled


def read_target(options: Mapping[str, Any]) -> Target | None:
    from onnxcompress.compression.target import Target

    names = ("ratio", "macs", "latency", "max_drop", "min_agreement", "min_snr")
    values = {name: options[name] for name in names if options.get(name) is not None}
    with as_usage_errors():
        return Target(**values) if values else None


def read_targets(ratios: Sequence[float], macs: Sequence[float]) -> list[Target]:
    """Size targets from the mildest on, of one kind: each needs methods and an axis of its own."""
    from onnxcompress.compression.target import Target

    if ratios and macs:
        raise click.UsageError("--ratio and --macs are two curves: sweep one of them at a time")
    if not ratios and not macs:
        ratios = SWEPT
    with as_usage_errors():
        sizes = [Target(ratio=ratio) for ratio in sorted(ratios)]
        return sizes or [Target(macs=share) for share in sorted(macs, reverse=True)]


@dataclass(frozen=True)
class Task:
    """What the commands that compress have in common.

    Attributes:
        samples: unlabelled ones, None without --calib; `evaluation` are labelled.
        keywords: of `pipeline.compress` and `pipeline.trade_off` alike.
    """

    model: Model
    samples: Samples | None
    evaluation: Samples | None
    keywords: Mapping[str, Any]


def load_model(
    source: Path, options: Mapping[str, Any], output: Path | None, force: bool = False
) -> Model:
    """The model; it is found out before the work whether what comes of it could be written."""
    from onnxcompress.graph import load

    model = load(source, options["extensions"])
    targets = [path for path in (output, options["page"]) if path is not None]
    inputs = {source, *model.data_files, *files_of_data(options, targets)}
    if output is not None:
        check_place(output, inputs, force)
        inputs.add(output)
    check_page(options["page"], inputs)
    check_cache(options["cache"])
    return model


def prepare(model: Model, options: Mapping[str, Any]) -> Task:
    """Choose layers and open samples."""
    from onnxcompress.compression.choose_layers import choose_layers

    only = choose_layers(model, options["only"] or None, options["skip"])
    measures = read_measures(model, options)
    samples = open_samples(model, options, "photographs or random inputs stand in")
    common = {name: options[name] for name in ("seed", "jobs", "engine", "cache")}
    shapes = dict(options["shapes"])
    keywords = {"only": only, "samples": samples, "shapes": shapes, **common, **measures}
    return Task(model, samples, measures["evaluation"], keywords)


def open_samples(model: Model, options: Mapping[str, Any], otherwise: str) -> Samples | None:
    """The samples of --calib, each looked at once; None, and a loud word, without them."""
    from onnxcompress.cli.streams import say
    from onnxcompress.compression.validate.states import states_of
    from onnxcompress.data.quality import check_samples

    if options["calib"] is None:
        say(f"NO CALIBRATION DATA (--calib): {otherwise}")
        return None
    path, how = options["calib"], {"limit": options["samples"], "select": options["select"]}
    ordered = bool(states_of(model, _read_states(options["states"])))
    samples = _load(model, path, options, ordered=ordered, **how)
    try:
        return check_samples(samples)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _load(model: Model, path: str, options: Mapping[str, Any], **how: Any) -> Samples:
    """Samples in the shapes that --input-shapes states, and in batches that the model takes."""
    from onnxcompress.compression.measure.batch_axis import fit_batches
    from onnxcompress.data.inputs import input_specs, with_shapes
    from onnxcompress.data.load import load_samples

    inputs = with_shapes(input_specs(model), dict(options["shapes"]))
    return fit_batches(model, load_samples(path, inputs, preprocess=options["preprocess"], **how))


def read_measures(model: Model, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the models are measured with: labelled samples, a metric, execution providers."""
    from onnxcompress.compression.validate.metrics import find_metric
    from onnxcompress.core.messages import nearest
    from onnxcompress.execution.session import available_providers

    providers = options["providers"].split(",")
    for provider in providers:
        if provider not in available_providers():
            near = nearest(provider, available_providers())
            raise click.UsageError(f"onnxruntime has no provider {provider!r} here{near}")
    evaluation = None
    if options["evaluation"] is not None:
        find_metric(options["metric"])
        evaluation = _labelled(model, options["evaluation"], options)
    return {
        "evaluation": evaluation,
        "metric": options["metric"],
        "providers": providers,
        "classes": _read_classes(model, options["classes"]),
        "states": _read_states(options["states"]),
    }


def _read_classes(model: Model, words: Sequence[str]) -> dict[str, int | None] | None:
    """The outputs that hold class scores, and along which axis; None where nothing is said."""
    from onnxcompress.data.inputs import output_specs

    if not words or "none" in words:
        return {} if words else None
    names = {spec.name for spec in output_specs(model)}
    axes: dict[str, int | None] = {}
    for word in words:
        name, _, axis = word.rpartition(":")
        if word in names or not name:
            axes[word] = None
        elif axis.lstrip("-").isdecimal():
            axes[name] = int(axis)
        else:
            raise click.UsageError(f"--classes {word}: write the name of an output, or NAME:AXIS")
    return axes


def _read_states(words: Sequence[str]) -> dict[str, str] | None:
    """The outputs that are fed back, and into which inputs; None where nothing is said."""
    if not words or "none" in words:
        return {} if words else None
    pairs = {output: name for output, _, name in (word.rpartition(":") for word in words)}
    if not all(pairs) or not all(pairs.values()):
        raise click.UsageError(f"--state {words[0]}: write OUTPUT:INPUT, or none")
    return pairs


def _labelled(model: Model, path: str, options: Mapping[str, Any]) -> Samples:
    return _load(model, path, options, limit=EVALUATION_LIMIT, labelled=True)


def plan_refinement(model: Model, options: Mapping[str, Any]) -> partial[Any] | None:
    """What trains the result, None where nobody asked; whether it can is found out before work."""
    if options["refine"] is None:
        for name in ("device", "augment", "train"):
            if options[name] is not None:
                raise click.UsageError(f"--{name} says how to refine: give --refine too")
        return None
    from onnxcompress.refinement import train

    device, augment = options["device"] or "auto", options["augment"] or ""
    train.check(model, device, augment)
    return partial(
        train.refine,
        epochs=options["refine"],
        device=device,
        augment=augment,
        labelled=options["train"] and _labelled(model, options["train"], options),
        seed=options["seed"],
        jobs=options["jobs"],
        cache=options["cache"],
    )


def check_alike(a: Model, b: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse two models that do not take the same inputs or give the same outputs."""
    from onnxcompress.data.inputs import input_specs, output_specs

    for what, specs in (("inputs", input_specs), ("outputs", output_specs)):
        names = [[spec.name for spec in specs(model)] for model in (a, b)]
        if sorted(names[0]) != sorted(names[1]):
            both = " and ".join(", ".join(sorted(each)) for each in names)
            raise click.UsageError(f"the models have different {what}: {both}")
    ours = {spec.name: spec for spec in input_specs(a)}
    for spec in input_specs(b):
        fits = spec.name not in shapes or spec.fits(shapes[spec.name])
        if spec.dtype != ours[spec.name].dtype or not fits:
            raise click.UsageError(
                f"the models have different inputs: {ours[spec.name]} and {spec}"
            )
