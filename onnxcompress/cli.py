"""The command line.  The only file that imports click; what it prints is in `tables`.

Exit codes: 0 done, 1 target missed or result worse and nothing written, 2 bad arguments or input,
3 internal error, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:  # imported where they are used: --help and wrong options answer at once
    from onnxcompress.config import Rules
    from onnxcompress.core import Layer, Method
    from onnxcompress.data import Samples
    from onnxcompress.graph import Model
    from onnxcompress.report import Report
    from onnxcompress.targets import Target

DONE, MISSED, BAD, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130
SWEPT = (2, 3, 4, 6, 8, 12, 16, 24)  # ratios that `sweep` shows
EVALUATION_LIMIT = 100_000
COMPARED_AT_RANDOM = 4  # random inputs for `expand`, and for `compare` without data
VERSION, CONFIG, SOURCE, FORCED = (
    f"onnxcompress.{key}" for key in ("version", "config", "source_sha256", "forced")
)
SECTIONS = {  # of the help page; what is in none of them comes last
    "Method": ("specs", "energy", "no_correct", "only", "skip", "rules"),
    "Target": ("ratio", "macs", "latency", "min_agreement", "min_snr", "max_drop"),
    "Data": ("calib", "samples", "select", "preprocess", "evaluation", "metric"),
    "Refinement": ("refine", "device", "augment", "train"),
    "Run": ("shapes", "extensions", "providers", "jobs", "engine", "seed"),
}


# ----------------------------------------------------------------------- words of the command line


class Percent(click.ParamType):
    """A share, as ``98%`` or ``0.98``."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value).replace(" ", "")
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            self.fail(f"{value!r} is no share of 1; write 98% or 0.98", param, ctx)
        return share


class Shape(click.ParamType):
    """The shape of an input, as ``x:1,3,224,224``."""

    name = "name:n,n,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        name, _, dims = str(value).rpartition(":")
        sizes = dims.split(",")
        if not name or not all(size.strip().isdecimal() and int(size) for size in sizes):
            self.fail(f"{value!r} is no shape; write x:1,3,224,224", param, ctx)
        return name, tuple(map(int, sizes))


FILE = click.Path(readable=False, path_type=Path)  # completed by the shell, tried when it is read
PLACE = click.Path(readable=False)  # that, or the name of something else


class Command(click.Command):
    """A command whose help page has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        named = {name for names in SECTIONS.values() for name in names}
        rest = [option.name or "" for option in found if option.name not in named]
        for title, names in {**SECTIONS, "Output": rest}.items():
            options = [option for option in found if option.name in names]
            rows = [row for option in options if (row := option.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Group(click.Group):
    """A group in which a first word that is no command means ``compress``."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            args = ["--help"]
        if args[0] not in (*self.commands, "--help", "-h", "--version"):
            if ctx.resilient_parsing:  # the shell completes a line that is not yet whole
                return super().parse_args(ctx, ["compress", *args])
            near = get_close_matches(args[0], self.commands, 1)
            if near and not Path(args[0]).suffix and not Path(args[0]).exists():
                raise click.UsageError(f"no command or file {args[0]!r}; did you mean {near[0]}?")
            args = ["compress", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """The commands; else a file, as the word compress may be left out."""
        found = super().shell_complete(ctx, incomplete)
        return found or [CompletionItem(incomplete, type="file")]


def options(*chosen: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator, in this order on the help page."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


METHOD = options(
    click.option("--method", "specs", metavar="SPEC", multiple=True,
                 help="What to use: basis, or with settings basis:unfolding=filter,rank=16; "
                 "basis+integer:bits=8 for both; repeat.  [default: auto, what suits the target]"),
    click.option("--energy", type=Percent(), help="The rule of the basis paper instead of a "
                 "target: filter unfolding, the smallest rank that keeps this share of the "
                 "squared singular values."),
    click.option("--only", metavar="GLOB", multiple=True, help="Change only these layers; repeat."),
    click.option("--skip", metavar="GLOB", multiple=True, help="Leave these layers alone; repeat."),
    click.option("--no-correct", is_flag=True, help="Fit every layer by itself, without matching "
                 "the original's responses in network order."),
)  # fmt: skip
RULES = click.option("--config", "rules", metavar="FILE.yaml", type=FILE, is_eager=True,
                     callback=lambda ctx, param, path: path and _configured(ctx, path),
                     help="Any of these options, and methods for some of the layers; what is "
                     "said here goes before it.")  # fmt: skip
TARGET = options(
    click.option("--ratio", type=float, metavar="N", help="A file at least N times smaller."),
    click.option("--macs", type=Percent(), help="At most this share of the multiplications."),
    click.option("--latency", type=Percent(), help="At most this share of the time, measured "
                 "here on one thread."),
    click.option("--min-agreement", type=Percent(),
                 help="The same top class on this share of samples."),
    click.option("--min-snr", type=float, metavar="DB", help="Of every output, in dB."),
    click.option("--max-drop", type=float, metavar="N",
                 help="Loss of the metric by labels (--eval), in its own unit."),
)  # fmt: skip
DATA = options(
    click.option("--calib", metavar="PATH", type=PLACE, help="Unlabelled samples: .npz, "
                 ".npy, a folder of images, test_data_set folders, or module:function."),
    click.option("--samples", metavar="N", type=click.IntRange(min=1), default=512,
                 show_default=True, help="How many of them."),
    click.option("--select", metavar="GLOB", help="Which files of a folder."),
    click.option("--preprocess", metavar="NAME|FILE.yaml", type=PLACE, help="How images become "
                 "inputs: imagenet, imagenet-caffe, inception, unit, none, or a file of your own."),
    click.option("--eval", "evaluation", metavar="PATH", type=PLACE, help="Labelled samples: .npz "
                 "with x and y, a folder of images with labels.csv, or module:function."),
    click.option("--metric", metavar="NAME", default="top1",
                 show_default=True, help="top1, top5, psnr, or module:function."),
)  # fmt: skip
REFINE = options(
    click.option("--refine", metavar="EPOCHS", type=click.IntRange(min=1), help="Train what the "
                 "result stores on the original's outputs; needs --calib and torch.  "
                 "It may end early where nothing gets better."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]),
                 help="Where torch computes.  [default: auto, a GPU where there is one]"),
    click.option(
        "--augment", metavar="flip,crop,mix", help="Images mirrored, shifted, and two in one too."
    ),
    click.option("--train", metavar="PATH", type=PLACE, help="Labelled samples to learn from as "
                 "well, in the forms of --eval."),
)  # fmt: skip
SHAPES = click.option("--input-shapes", "shapes", type=Shape(), multiple=True,
                      help="The shape of an input that leaves its own open; repeat.")  # fmt: skip
EXTENSIONS = click.option("--ort-extension", "extensions", metavar="LIB", multiple=True,
                          type=click.Path(exists=True, dir_okay=False, resolve_path=True),
                          help="A library of operators that onnxruntime is to know; "
                          "repeat.")  # fmt: skip
RUN = options(
    SHAPES,
    EXTENSIONS,
    click.option("--providers", metavar="NAME,...", default="CPUExecutionProvider",
                 show_default=True, help="Execution providers of onnxruntime."),
    click.option("--jobs", metavar="N", type=click.IntRange(min=1),
                 help="Threads, and processes that fit layers; the result is the same, but for the "
                 "last digits of --refine.  [default: all]"),
    click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0,
                 show_default=True, help="Of random inputs, which stand in for missing data, and "
                 "of the order in a refinement."),
)  # fmt: skip
ENGINE = click.option("--engine", metavar="NAME", default="local", show_default=True,
                      help="What calibrates and fits layers: local, or dask://HOST:PORT, a "
                      "cluster; the result is the same.")  # fmt: skip
CACHE = click.option("--cache", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
                     help="Keep what the candidates gave, "
                     "for another target or sweep of the same model and data, and how far a "
                     "refinement came.")  # fmt: skip
DRY_RUN = click.option("--dry-run", is_flag=True, help="Do everything but write OUTPUT.")
EXTERNAL = click.option("--save-as-external-data", "external", is_flag=True,
                        help="Weights beside the model.")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
REPORT = click.option("--report", "page", metavar="FILE.html", type=FILE,
                      help="Write a page about it, for a browser or for paper.")  # fmt: skip
VERBOSE = click.option("--verbose", is_flag=True, help="Show where an internal error came from.")


# ------------------------------------------------------------------------------------ the commands


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxcompress")
def cli() -> None:
    """Make a trained ONNX model smaller or faster, with standard operators only.

    \b
      onnxcompress in.onnx out.onnx --macs 0.5 --calib images.npz
      onnxcompress sweep in.onnx --calib images.npz
      onnxcompress inspect in.onnx
      onnxcompress compare in.onnx out.onnx --calib images.npz
      onnxcompress expand out.onnx dense.onnx

    A first word that is no command means compress; its options: onnxcompress compress --help.
    A result that is worse than was asked for is not written, and the exit code says so:
    0 done, 1 target missed or result worse, 2 bad arguments or input, 3 internal error,
    130 interrupted.
    """


@cli.command()
@click.argument("source", metavar="INPUT", type=FILE)
@click.argument("output", metavar="OUTPUT", type=FILE)
@METHOD
@RULES
@TARGET
@DATA
@REFINE
@RUN
@ENGINE
@CACHE
@DRY_RUN
@click.option("--force", is_flag=True, help="Write a result that misses its target, marked as "
              "such in its metadata; allow OUTPUT to be INPUT.")  # fmt: skip
@EXTERNAL
@REPORT
@JSON
@click.option("--quiet", is_flag=True, help="Print the verdict alone.")
@VERBOSE
def compress(source: Path, output: Path, **given: Any) -> int:
    """Write a smaller or faster version of INPUT to OUTPUT.  (The word compress may be left out.)

    With no target the result is as small as holds 98 % agreement with the original where the
    model has class scores, 25 dB where it has not.
    """
    from onnxcompress import graph, pipeline, tables

    if str(source) in cli.commands and not source.exists():
        raise click.UsageError(f"a command comes first: onnxcompress {source} ...")
    with redirect_stdout(sys.stderr):  # whatever a module:function prints
        target = _target(given)
        methods = _methods(given["specs"], given["energy"], target)
        model = graph.load(source, given["extensions"])
        _check_output(output, {source, *model.data_files}, given["force"])
        _check_page(given["page"], {source, output, *model.data_files})
        _check_cache(given["cache"])
        if any(entry.key == VERSION for entry in model.proto.metadata_props):
            _say("note: this model has been compressed before")
        refinement = _refinement(model, given)
        chosen, measured = _chosen(model, given["only"], given["skip"]), _measured(model, given)
        offered = _offered(model, methods, given["rules"], target)
        samples = _samples(model, given, "the fits use the weights alone")
        metadata = _provenance(
            source, methods, target, given, samples, measured["evaluation"], refinement
        )
        with tables.progress(not given["quiet"]) as track:
            result, report = pipeline.compress(
                model,
                methods=offered,
                target=target,
                only=chosen,
                samples=samples,
                correct=not given["no_correct"],
                metadata=metadata,
                seed=given["seed"],
                jobs=given["jobs"],
                engine=given["engine"],
                track=track,
                shapes=dict(given["shapes"]),
                cache=given["cache"],
                refinement=refinement and partial(refinement, track=track),
                **measured,
            )
    written = not given["dry_run"] and (given["force"] or not report.worse)
    if written:
        if report.worse:
            result = graph.annotate(result, {FORCED: "; ".join(report.failures)})
        graph.save(result, output.resolve(), external=given["external"])
    code = MISSED if report.worse and not written else DONE
    files = [source, output] if written else [source]
    report = replace(report, provenance=_made(metadata, files))
    place = f"written to {output}" if written else "nothing was written"
    if given["dry_run"]:
        place += " (--dry-run)"
    report = _paged(report, given, files, f"{source.name} → {output.name}", place)
    try:
        if given["as_json"]:
            facts = {"output": str(output) if written else None, "exit_code": code}
            _print_json(report.to_dict() | facts)
        else:
            tables.show_report(report, place, quiet=given["quiet"])
        if report.worse:
            _say(f"{'Warning' if written else 'Error'}: {'; '.join(report.failures)}")
    except KeyboardInterrupt:
        return INTERRUPTED  # without saying that nothing was written
    return code


@cli.command()
@click.argument("source", metavar="INPUT", type=FILE)
@click.option("--method", "specs", metavar="SPEC", multiple=True,
              help="What to use; repeat.  [default: auto]")  # fmt: skip
@click.option("--only", metavar="GLOB", multiple=True, help="Change only these layers; repeat.")
@click.option("--skip", metavar="GLOB", multiple=True, help="Leave these layers alone; repeat.")
@click.option("--ratio", "ratios", type=float, metavar="N", multiple=True,
              help="A file N times smaller; repeat.  [default: 2 to 24]")  # fmt: skip
@click.option("--macs", type=Percent(), multiple=True,
              help="This share of the multiplications; repeat.")  # fmt: skip
@DATA
@RUN
@ENGINE
@CACHE
@click.option("--plot", metavar="FILE.svg", type=FILE, help="Draw the curve.")
@REPORT
@JSON
@VERBOSE
def sweep(source: Path, **given: Any) -> int:
    """Show what each size costs in accuracy: the trade-off curve of a model.

    Every point is what compress gives for that target, all from one fit of the candidates.
    """
    from onnxcompress import graph, pipeline, plots, tables
    from onnxcompress.report import Report

    with redirect_stdout(sys.stderr):
        targets = _targets(given["ratios"], given["macs"])
        methods = _methods(given["specs"], None, targets[0])
        model = graph.load(source, given["extensions"])
        if given["plot"]:
            _check_output(given["plot"], {source, *model.data_files}, force=False)
        _check_page(given["page"], {source, *model.data_files})
        _check_cache(given["cache"])
        chosen, measured = _chosen(model, given["only"], given["skip"]), _measured(model, given)
        samples = _samples(model, given, "the fits use the weights alone")
        asked = given | {"no_correct": False, "rules": None}

        def metadata(target: Target) -> dict[str, str]:
            return _provenance(source, methods, target, asked, samples, measured["evaluation"])

        with tables.progress(not given["as_json"]) as track:
            points = list(
                pipeline.trade_off(
                    model,
                    targets,
                    methods=methods,
                    samples=samples,
                    only=chosen,
                    shapes=dict(given["shapes"]),
                    seed=given["seed"],
                    jobs=given["jobs"],
                    engine=given["engine"],
                    track=track,
                    cache=given["cache"],
                    metadata=metadata,
                    **measured,
                )
            )
    if not points:
        raise click.UsageError("none of the targets can be reached: ask for less, or --method auto")
    if given["plot"]:
        given["plot"].parent.mkdir(parents=True, exist_ok=True)  # as compress does for OUTPUT
        given["plot"].write_text(plots.sweep(points, given["metric"]).svg(alone=True), "utf-8")
    made = _made(
        _provenance(source, methods, None, asked, samples, measured["evaluation"]), [source]
    )
    report = Report(rows=(), skipped={}, points=tuple(points), provenance=made)
    report = _paged(report, given, [source], f"{source.name}, {len(points)} sizes")
    if given["as_json"]:
        _print_json({"points": report.to_dict()["points"], "provenance": made})
    else:
        tables.show_points(points, given["metric"])
    return DONE


def _targets(ratios: Sequence[float], macs: Sequence[float]) -> list[Target]:
    """Size targets from the mildest on; multiplications instead of bytes if only they are given."""
    from onnxcompress.targets import Target

    if not ratios and not macs:
        ratios = SWEPT
    with _asking():
        found = [Target(ratio=ratio) for ratio in sorted(ratios)]
        return found or [Target(macs=share) for share in sorted(macs, reverse=True)]


@cli.command()
@click.argument("source", metavar="MODEL", type=FILE)
@SHAPES
@EXTENSIONS
@JSON
@VERBOSE
def inspect(source: Path, as_json: bool, **given: Any) -> int:
    """List the layers of a model, what can be compressed, and what each method would give."""
    from onnxcompress import graph, tables
    from onnxcompress.inspection import examine
    from onnxcompress.parallel import one_thread_each

    with one_thread_each():  # small products on many threads wait for each other
        found = examine(graph.load(source, given["extensions"]), dict(given["shapes"]))
    if found["note"]:
        _say(f"note: {found['note']}")
    if as_json:
        _print_json(found)
    else:
        tables.show_inspection(found)
    return DONE


@cli.command()
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@DATA
@RUN
@REPORT
@JSON
@VERBOSE
def compare(first: Path, second: Path, **given: Any) -> int:
    """Compare two models on the same data: outputs, size, latency."""
    from onnxcompress import data, graph, measuring, parallel, tables
    from onnxcompress.report import Report
    from onnxcompress.validation import Validation, runnable

    with redirect_stdout(sys.stderr):
        extensions = given["extensions"]
        models = graph.load(first, extensions), graph.load(second, extensions)
        _check_page(given["page"], {first, second, *models[0].data_files, *models[1].data_files})
        specs = data.input_specs(models[0])
        samples = _samples(models[0], given, "the outputs are compared on random inputs")
        real = samples is not None
        samples = samples or data.random_samples(
            specs, COMPARED_AT_RANDOM, given["seed"], dict(given["shapes"])
        )
        one = next(iter(samples.batches(1)))
        _check_alike(*models, {name: array.shape for name, array in one.items()})
        macs = [sum(measuring.input_shapes(runnable(m), one)[1].values()) for m in models]
        with tables.progress(not given["as_json"]) as track:
            validation = Validation(
                models[0],
                samples,
                real=real,
                jobs=given["jobs"] or parallel.cores(),
                track=track,
                **_measured(models[0], given),
            )
            comparison = validation.compare(models[1], (macs[0], macs[1]))
    config = {"seed": given["seed"], "samples": _known(samples if real else None)}
    made = _made({CONFIG: _told(config)}, [first, second])
    report = Report(comparison=comparison, provenance=made)
    report = _paged(report, given, [first, second], f"{second.name} against {first.name}")
    assert report.comparison is not None
    if given["as_json"]:
        _print_json(report.comparison.to_dict() | {"provenance": made})
    else:
        tables.show_comparison(report.comparison)
    return DONE


@cli.command()
@click.argument("source", metavar="INPUT", type=FILE)
@click.argument("output", metavar="OUTPUT", type=FILE)
@SHAPES
@EXTENSIONS
@DRY_RUN
@click.option("--force", is_flag=True, help="Allow OUTPUT to be INPUT.")
@EXTERNAL
@JSON
@VERBOSE
def expand(source: Path, output: Path, **given: Any) -> int:
    """Write a model's decoded weights out in full.

    For runtimes that do not fold constants: the file is as large as before, the outputs are those
    of INPUT, which is tried on random inputs.  What makes fewer multiplications stays.
    """
    from onnxcompress import data, expansion, graph, validation

    model = graph.load(source, given["extensions"])
    _check_output(output, {source, *model.data_files}, given["force"])
    samples = data.random_samples(
        data.input_specs(model), COMPARED_AT_RANDOM, 0, dict(given["shapes"])
    )
    result = expansion.expand(model)
    validation.verify(result)
    found = validation.deviation(model, result, samples)
    same = found <= validation.rounding(result)
    if written := same and not given["dry_run"]:
        graph.save(result, output.resolve(), external=given["external"])
    code = DONE if same else MISSED
    facts = {
        "expanded": sorted(result.initializers.keys() - model.initializers.keys()),
        "before": model.nbytes,
        "after": result.nbytes,
        "deviation": found,
        "output": str(output) if written else None,
        "exit_code": code,
    }
    if given["as_json"]:
        _print_json(facts)
    elif same:
        _print_expansion(facts)
    if not same:
        _say(f"Error: the outputs differ by {found:.2g} of the largest; nothing was written")
    return code


@cli.command()
@click.argument("name", required=False)
@VERBOSE
def methods(name: str | None, verbose: bool) -> int:
    """List the methods, or explain one and its settings."""
    from onnxcompress import specs, tables
    from onnxcompress.methods import METHODS

    if name is None:
        tables.show_methods({key: specs.described(method)[0] for key, method in METHODS.items()})
    else:
        with _asking():
            method = specs.method_named(name)
        tables.show_method(name, *specs.described(method), specs.explained(method))
    return DONE


# ------------------------------------------------------------------------ what the options ask for


@contextmanager
def _asking() -> Iterator[None]:
    """A value that settings or a target refuse is a wrong argument."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _check_output(output: Path, inputs: Collection[Path], force: bool) -> None:
    """Find out before the work whether the result could be written."""
    if output.is_dir():
        raise click.UsageError(f"{output} is a folder; give a file name")
    if output.exists() and not output.is_file():
        raise click.UsageError(f"{output} is not a regular file; use --dry-run to write nothing")
    if output.exists() and any(map(output.samefile, inputs)) and not force:
        raise click.UsageError("OUTPUT is INPUT; --force allows that")
    parent = output.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise click.UsageError(f"{output} cannot be written: {parent} is not a writable folder")


def _check_cache(folder: Path | None) -> None:
    if folder is not None:
        _check_output(folder / "entry", (), force=False)


def _methods(given: Sequence[str], energy: float | None, target: Target | None) -> list[Method]:
    from onnxcompress.methods.basis import Basis
    from onnxcompress.specs import parse

    default = ("auto",) if energy is None else ("basis",)
    with _asking():
        found = [method for spec in given or default for method in parse(spec, target)]
        if energy is None:
            return found
        ruled = [replace(m, energy=energy) for m in found if isinstance(m, Basis)]
    if not ruled:
        raise click.UsageError("--energy is a rule of the method basis")
    return list(ruled)


def _configured(ctx: click.Context, path: Path) -> Rules:
    """The rules of a file, whose options become defaults."""
    from onnxcompress import config

    known = {
        opt.removeprefix("--"): param
        for param in ctx.command.params
        for opt in param.opts
        if isinstance(param, click.Option) and opt not in ("--config", "--help", "-h")
    }
    found, rules = config.read(path, known)
    ctx.default_map = {}
    for key, value in found.items():
        several = getattr(known[key], "multiple", False)
        if isinstance(value, dict) or (isinstance(value, list) and not several):
            raise click.UsageError(f"{path}: {key} takes one value, such as {key}: 8")
        one = several and not isinstance(value, list)
        ctx.default_map[known[key].name or key] = [value] if one else value
    return rules


def _offered(
    model: Model, default: list[Method], rules: Rules | None, target: Target | None
) -> list[Method] | Callable[[Layer], Sequence[Method]]:
    """The methods for all layers, or for each one by the rules of a configuration."""
    if rules is None or not (rules.layers or rules.op_types):
        return default
    _check_patterns(model, [*rules.layers])
    kinds = {layer.op_type for layer in _every_layer(model)[0].values()}
    for op_type in rules.op_types.keys() - kinds:
        raise click.UsageError(f"no layer is a {op_type}; there are {_some(sorted(kinds))}")
    every = (*rules.layers.values(), *rules.op_types.values())
    known = {rule.specs: _methods(rule.specs, None, target) for rule in every}

    def offered(layer: Layer) -> Sequence[Method]:
        rule = rules.of(layer.name, layer.op_type)
        if rule is None or not (rule.specs or rule.skip):
            return default
        return [] if rule.skip else known[rule.specs]

    return offered


def _target(given: Mapping[str, Any]) -> Target | None:
    from onnxcompress.targets import Target

    names = ("ratio", "macs", "latency", "max_drop", "min_agreement", "min_snr")
    wanted = {name: given[name] for name in names if given[name] is not None}
    with _asking():
        return Target(**wanted) if wanted else None


def _chosen(model: Model, only: Sequence[str], skip: Sequence[str]) -> Callable[[str], bool] | None:
    """Which layers the patterns leave; a pattern that matches nothing is an error."""
    from onnxcompress.config import matches

    if not only and not skip:
        return None
    _check_patterns(model, [*only, *skip])

    def matching(name: str, patterns: Sequence[str]) -> bool:
        return any(matches(name, pattern) for pattern in patterns)

    return lambda name: (not only or matching(name, only)) and not matching(name, skip)


def _check_patterns(model: Model, patterns: Sequence[str]) -> None:
    """A pattern that matches no layer is an error."""
    from onnxcompress.config import matches

    names = [name for found in _every_layer(model) for name in found]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = get_close_matches(pattern, names, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {_some(names)}"
            raise click.UsageError(f"no layer matches {pattern!r}; {hint}")


def _every_layer(model: Model) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers and constants, those in local functions too, and why others are skipped."""
    from onnxcompress.graph import find_constants, find_layers, inline_functions

    model = inline_functions(model)
    layers, skipped = find_layers(model)
    return layers | find_constants(model, layers), skipped


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5) if names else "none"


def _samples(model: Model, given: Mapping[str, Any], otherwise: str) -> Samples | None:
    from onnxcompress.data import input_specs, load_samples

    if given["calib"] is None:
        _say(f"NO CALIBRATION DATA (--calib): {otherwise}")
        return None
    return load_samples(
        given["calib"],
        input_specs(model),
        limit=given["samples"],
        select=given["select"],
        preprocess=given["preprocess"],
    )


def _measured(model: Model, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the models are measured with: labelled samples, a metric, execution providers."""
    from onnxcompress.metrics import find_metric
    from onnxcompress.preprocess import nearest
    from onnxcompress.runtime import available_providers

    providers = given["providers"].split(",")
    for provider in providers:
        if provider not in available_providers():
            near = nearest(provider, available_providers())
            raise click.UsageError(f"onnxruntime has no provider {provider!r} here{near}")
    evaluation = None
    if given["evaluation"] is not None:
        find_metric(given["metric"])
        evaluation = _labelled(model, given["evaluation"], given)
    return {"evaluation": evaluation, "metric": given["metric"], "providers": providers}


def _labelled(model: Model, path: str, given: Mapping[str, Any]) -> Samples:
    from onnxcompress.data import input_specs, load_samples

    return load_samples(
        path,
        input_specs(model),
        limit=EVALUATION_LIMIT,
        preprocess=given["preprocess"],
        labelled=True,
    )


def _refinement(model: Model, given: Mapping[str, Any]) -> partial[Any] | None:
    """What trains the result, None where nobody asked; whether it can is found out before work."""
    if given["refine"] is None:
        for name in ("device", "augment", "train"):
            if given[name] is not None:
                raise click.UsageError(f"--{name} says how to refine: give --refine too")
        return None
    from onnxcompress import refine

    device, augment = given["device"] or "auto", given["augment"] or ""
    refine.check(model, device, augment)
    return partial(
        refine.refine,
        epochs=given["refine"],
        device=device,
        augment=augment,
        labelled=given["train"] and _labelled(model, given["train"], given),
        seed=given["seed"],
        jobs=given["jobs"],
        cache=given["cache"],
    )


def _provenance(
    source: Path,
    methods: Sequence[Method],
    target: Target | None,
    given: Mapping[str, Any],
    samples: Samples | None,
    evaluation: Samples | None,
    refinement: partial[Any] | None = None,
) -> dict[str, str]:
    """What the result records of its making: nothing in it varies with threads, folders or time."""
    from onnxcompress.graph import sha256

    wanted = vars(target) if target else {}
    config = {
        "methods": [str(method) for method in methods],
        "target": {name: value for name, value in wanted.items() if value is not None},
        "seed": given["seed"],
        "samples": _known(samples),
        "evaluation": _known(evaluation),
        "metric": evaluation and given["metric"],
        "only": given["only"],
        "skip": given["skip"],
        "rules": given["rules"] and given["rules"].model_dump(exclude_defaults=True),
        "shapes": dict(given["shapes"]),
        "correct": not given["no_correct"],
    }
    if refinement is not None:
        how = refinement.keywords
        train = how["labelled"]
        config["refine"] = {key: how[key] for key in ("epochs", "device", "augment") if how[key]}
        config["train"] = _known(train)
    if not wanted.get("max_drop"):
        del config["evaluation"], config["metric"]  # printed, but no part of the search
    return {
        VERSION: version("onnxcompress"),
        CONFIG: _told(config),
        SOURCE: sha256(source),
    }


def _known(samples: Samples | None) -> list[Any] | None:
    """What samples are recognised by."""
    return None if samples is None else [len(samples), samples.digest]


def _told(config: Mapping[str, Any]) -> str:
    """A configuration as it is recorded, without what is not set."""
    told = {key: value for key, value in config.items() if value not in (None, (), {})}
    return json.dumps(told, sort_keys=True, separators=(",", ":"))


def _made(metadata: Mapping[str, str], models: Sequence[Path]) -> dict[str, Any]:
    """All that it takes to repeat a run, and to know its files again."""
    from onnxcompress.graph import sha256

    names = ("onnxcompress", "onnx", "onnxruntime", "numpy", "scipy")
    return {
        "command": click.get_current_context().obj,
        "metadata": metadata,
        "sha256": {str(path): sha256(path) for path in models},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in names},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _check_alike(a: Model, b: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse two models that do not take the same inputs or give the same outputs."""
    from onnxcompress.data import input_specs, output_specs

    for what, specs in (("inputs", input_specs), ("outputs", output_specs)):
        names = [[spec.name for spec in specs(model)] for model in (a, b)]
        if sorted(names[0]) != sorted(names[1]):
            both = " and ".join(", ".join(found) for found in names)
            raise click.UsageError(f"the models have different {what}: {both}")
    ours = {spec.name: spec for spec in input_specs(a)}
    for spec in input_specs(b):
        if spec.dtype != ours[spec.name].dtype or not spec.fits(shapes[spec.name]):
            raise click.UsageError(
                f"the models have different inputs: {ours[spec.name]} and {spec}"
            )


# ---------------------------------------------------------------------------------------- messages


def _check_page(page: Path | None, models: Collection[Path]) -> None:
    """Find out before the work whether a report page could be made and written."""
    if page is not None:
        from onnxcompress.page import check

        check()
        _check_output(page, {path for path in models if path.exists()}, force=False)
        if page.resolve() in {path.resolve() for path in models}:
            raise click.UsageError(f"--report {page} would replace a model; give another name")


def _paged(
    report: Report, given: Mapping[str, Any], models: Sequence[Path], title: str, place: str = ""
) -> Report:
    """The report, written as a page where one is asked for, with the memory that loading takes."""
    if given["page"] is None:
        return report
    from onnxcompress import page
    from onnxcompress.runtime import load_memory

    if report.comparison and not report.comparison.parted and len(models) == 2:
        before, after = map(load_memory, models)
        both = report.comparison
        both = replace(
            both,
            before=replace(both.before, memory=before),
            after=replace(both.after, memory=after),
        )
        report = replace(report, comparison=both)
    given["page"].parent.mkdir(parents=True, exist_ok=True)
    given["page"].write_text(page.render(report, title, place, given["metric"]), "utf-8")
    return report


def _print_expansion(facts: Mapping[str, Any]) -> None:
    from onnxcompress import tables

    count, place = len(facts["expanded"]), facts["output"]
    tables.write(
        f"{count} {'weight' if count == 1 else 'weights'} written out, "
        f"file {facts['before']:,} → {facts['after']:,} bytes; "
        + (f"written to {place}" if place else "nothing was written (--dry-run)")
    )


def _print_json(value: Any) -> None:
    from onnxcompress import tables

    tables.write(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say(text: str) -> None:
    from onnxcompress.tables import printable

    click.echo(printable(text), err=True)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; whatever goes wrong is one line on stderr."""
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # an arrow must not fail where it cannot be shown
    try:
        sys.exit(cli.main(args, "onnxcompress", standalone_mode=False, obj=args))
    except click.ClickException as error:
        _fail(error.format_message(), BAD)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; nothing was written", INTERRUPTED)
    except OSError as error:
        _fail(str(error), BAD)
    except MemoryError as error:
        _fail(f"not enough memory: {error}", BAD)
    except Exception as error:
        if isinstance(error, ValueError) and type(error).__module__.startswith("onnxcompress."):
            _fail(str(error), MISSED if type(error).__name__ == "BudgetError" else BAD)
        if "--verbose" in args:
            traceback.print_exception(error)
        _fail(f"internal error: {type(error).__name__}: {error} (--verbose shows where)", INTERNAL)


def _fail(message: str, code: int) -> NoReturn:
    _say(f"Error: {' '.join(message.split())}")
    sys.exit(code)
