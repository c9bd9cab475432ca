"""The command line.  The only file that imports click; what it prints is in `tables`.

Exit codes: 0 done, 1 target missed or result worse and nothing written, 2 bad arguments or input,
3 internal error, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxcompress.core import Method
    from onnxcompress.data import Samples
    from onnxcompress.graph import Model
    from onnxcompress.report import Report

DONE, MISSED, BAD, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130
EVALUATION_LIMIT = 100_000


class Percent(click.ParamType):
    """A share, as ``98%`` or ``0.98``."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value).replace(" ", "")
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{value!r} is no share; write 98% or 0.98", param, ctx)


class Shape(click.ParamType):
    """The shape of an input, as ``x:1,3,224,224``."""

    name = "name:n,n,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        name, _, dims = str(value).rpartition(":")
        try:
            return name, tuple(int(n) for n in dims.split(","))
        except ValueError:
            self.fail(f"{value!r} is no shape; write x:1,3,224,224", param, ctx)


class DefaultGroup(click.Group):
    """A group in which a first word that is no command means ``compress``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h", "--version"):
            near = get_close_matches(args[0], self.commands, 1)
            if near and not Path(args[0]).exists():
                raise click.UsageError(f"no command or file {args[0]!r}; did you mean {near[0]}?")
            args = ["compress", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxcompress")
def cli() -> None:
    """Make a trained ONNX model smaller or faster, with standard operators only.

    \b
      onnxcompress in.onnx out.onnx --method basis --macs 0.5 --calib images.npz
      onnxcompress inspect in.onnx
      onnxcompress compare in.onnx out.onnx --calib images.npz

    A result that is worse than was asked for is not written, and the exit code says so.
    """


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which samples are given."""
    for option in reversed(
        (
            click.option("--calib", metavar="PATH", help="Unlabelled samples: .npz, .npy, a folder "
                         "of images, test_data_set folders, or module:function."),
            click.option("--samples", metavar="N", type=click.IntRange(min=1), default=512,
                         show_default=True, help="How many of them."),
            click.option("--select", metavar="GLOB", help="Which files of a folder."),
            click.option("--preprocess", metavar="NAME|FILE.yaml", help="imagenet, imagenet-caffe, "
                         "inception, unit, none, or a file of your own."),
            click.option("--eval", "evaluation", metavar="PATH", help="Labelled samples."),
            click.option("--metric", default="top1", show_default=True,
                         help="top1, top5, psnr, or module:function."),
            click.option("--input-shapes", "shapes", type=Shape(), multiple=True,
                         help="Shapes for inputs that leave theirs open; repeat."),
            click.option("--providers", default="CPUExecutionProvider", show_default=True,
                         help="Execution providers of onnxruntime, separated by commas."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--jobs", type=click.IntRange(min=1), help="Threads.  [default: all]"),
            click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
            click.option("--verbose", is_flag=True, help="Show tracebacks of internal errors."),
        )
    ):  # fmt: skip
        function = option(function)
    return function


@cli.command()
@click.argument("source", metavar="INPUT", type=Path)
@click.argument("output", metavar="OUTPUT", type=Path)
@click.option(
    "--method",
    "specs",
    metavar="SPEC",
    multiple=True,
    help="What to use, such as basis "
    "or basis:unfolding=filter,rank=16; repeat.  [default: auto, all methods]",
)
@click.option("--ratio", type=float, help="File bytes before over after.")
@click.option("--macs", type=Percent(), help="Share kept of the multiplications.")
@click.option(
    "--energy",
    type=Percent(),
    help="The paper's rule for basis: filter unfolding, the "
    "smallest rank that keeps this share of the squared singular values.",
)
@click.option("--max-drop", type=float, help="Loss by labels, in the metric's unit.")
@click.option("--min-agreement", type=Percent(), help="Share of samples with the same top class.")
@click.option("--min-snr", type=float, help="Of every output, in dB.")
@data_options
@click.option("--only", metavar="GLOB", multiple=True, help="Change only these layers; repeat.")
@click.option("--skip", metavar="GLOB", multiple=True, help="Leave these layers alone; repeat.")
@click.option("--no-correct", is_flag=True, help="Fit every layer by itself.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@click.option(
    "--force",
    is_flag=True,
    help="Write a result that misses its target, marked as such; allow OUTPUT = INPUT.",
)
@click.option("--save-as-external-data", "external", is_flag=True, help="Weights beside the model.")
@click.option("--quiet", is_flag=True, help="Print the verdict alone.")
def compress(source: Path, output: Path, **options: Any) -> int:
    """Write a smaller or faster version of INPUT to OUTPUT.  (The word compress may be left out.)

    With no target the result is as small as holds 98 % agreement with the original where the
    model has class scores, 25 dB where it has not.
    """  # fmt: skip
    from onnxcompress import graph, pipeline, tables

    _check_output(source, output, options["force"])
    model = graph.load(source)
    methods = _methods(options["specs"], options["energy"])
    chosen = _chosen(model, options["only"], options["skip"])
    if any(entry.key == "onnxcompress.version" for entry in model.proto.metadata_props):
        _say("note: this model has been compressed before")
    samples = _samples(model, options)
    evaluation = _evaluation(model, options)
    metadata = _provenance(source, methods, options, samples)
    with tables.progress(not options["quiet"]) as track:
        result, report = pipeline.compress(
            model,
            methods=methods,
            target=_target(options),
            samples=samples,
            evaluation=evaluation,
            metric=options["metric"],
            only=chosen,
            correct=not options["no_correct"],
            shapes=dict(options["shapes"]),
            metadata=metadata,
            seed=options["seed"],
            jobs=options["jobs"],
            providers=options["providers"].split(","),
            track=track,
        )
    report = replace(
        report, provenance=_versions() | {"metadata": metadata, "seed": options["seed"]}
    )
    written = not options["dry_run"] and (not report.worse or options["force"])
    if written:
        if report.worse:
            result = graph.annotate(result, {"onnxcompress.forced": "; ".join(report.failures)})
        graph.save(result, output, external=options["external"])
    code = MISSED if report.worse and not (written and options["force"]) else DONE
    _show(report, options, str(output) if written else None, code)
    return code


@cli.command()
@click.argument("source", metavar="MODEL", type=Path)
@click.option(
    "--input-shapes", "shapes", type=Shape(), multiple=True, help="Shapes of open inputs."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--verbose", is_flag=True, help="Show tracebacks of internal errors.")
def inspect(source: Path, shapes: Sequence[Any], as_json: bool, verbose: bool) -> int:
    """List the layers of MODEL, what can be compressed, and why the rest cannot."""
    from onnxcompress import data, graph, measuring, tables
    from onnxcompress.methods import METHODS
    from onnxcompress.validation import runnable

    model = graph.load(source)
    layers, skipped = graph.find_layers(model)
    try:
        sample = next(iter(data.random_samples(data.input_specs(model), 1, 0, dict(shapes))))
        _, macs = measuring.input_shapes(runnable(model), sample)
    except ValueError as error:
        _say(f"note: multiplications are unknown: {error}")
        macs = {}
    rows = []
    for name, layer in layers.items():
        fitting = {key: method().declined(layer) for key, method in METHODS.items()}
        able = [key for key, reason in fitting.items() if reason is None]
        why = "" if able else "; ".join(filter(None, fitting.values()))
        rows.append({
            "layer": name, "type": layer.op_type, "shape": list(layer.weight.shape),
            "bytes": layer.weight.nbytes if layer.shared == name else 0, "macs": macs.get(name),
            "methods": able, "skipped": why,
        })  # fmt: skip
    rows += [
        {"layer": name, "type": "", "shape": [], "bytes": None, "macs": macs.get(name),
         "methods": [], "skipped": reason}
        for name, reason in skipped.items()
    ]  # fmt: skip
    facts = {
        "file": model.nbytes, "weights": model.weight_bytes, "opset": model.opset,
        "ir_version": model.proto.ir_version, "macs": sum(macs.values()) or None,
        "inputs": [f"{spec.name} {spec.dtype} {list(spec.shape or ['?'])}"
                   for spec in data.input_specs(model)],
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(facts | {"layers": rows}, indent=2))
    else:
        tables.show_inspection(facts, rows)
    return DONE


@cli.command()
@click.argument("first", metavar="A", type=Path)
@click.argument("second", metavar="B", type=Path)
@data_options
def compare(first: Path, second: Path, **options: Any) -> int:
    """How far the outputs of B are from those of A on the same data; sizes and latency."""
    from onnxcompress import data, graph, measuring, tables
    from onnxcompress.validation import Validation, runnable

    models = graph.load(first), graph.load(second)
    specs = [data.input_specs(model) for model in models]
    if {s.name for s in specs[0]} != {s.name for s in specs[1]}:
        names = [", ".join(s.name for s in spec) for spec in specs]
        raise ValueError(f"the models have different inputs: {names[0]}; {names[1]}")
    given = _samples(models[0], options)
    samples = given or data.random_samples(specs[0], 4, options["seed"], dict(options["shapes"]))
    validation = Validation(
        models[0],
        samples,
        real=given is not None,
        evaluation=_evaluation(models[0], options),
        metric=options["metric"],
        providers=options["providers"].split(","),
        jobs=options["jobs"] or 1,
    )
    one = next(iter(samples.batches(1)))
    before, after = (sum(measuring.input_shapes(runnable(m), one)[1].values()) for m in models)
    comparison = validation.compare(models[1], (before, after))
    if options["as_json"]:
        from dataclasses import asdict

        click.echo(json.dumps(asdict(comparison) | {"ratio": comparison.ratio}, indent=2))
    else:
        tables.show_comparison(comparison)
    return DONE


@cli.command()
@click.argument("name", required=False)
@click.option("--verbose", is_flag=True, hidden=True)
def methods(name: str | None, verbose: bool) -> int:
    """List the methods, or explain one and its settings."""
    from onnxcompress.methods import METHODS
    from onnxcompress.preprocess import nearest

    if name is not None and name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, list(METHODS))}")
    import inspect as python

    for key, method in METHODS.items():
        text = python.cleandoc(method.__doc__ or "")
        if name is None:
            click.echo(f"{key:10} {text.splitlines()[0]}")
        elif key == name:
            click.echo(f"{key}: {text}")
    return DONE


# -------------------------------------------------------------------------------- its helpers


def _check_output(source: Path, output: Path, force: bool) -> None:
    """Find out before the work whether the result could be written."""
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give a file name")
    if source.exists() and output.exists() and output.samefile(source) and not force:
        raise ValueError("OUTPUT is INPUT; --force allows that")
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{output} cannot be written: {parent} is not a writable folder")


def _methods(specs: Sequence[str], energy: float | None) -> list[Method]:
    from onnxcompress.methods.basis import Basis
    from onnxcompress.specs import parse

    found = [method for spec in specs or ("auto",) for method in parse(spec)]
    if energy is None:
        return found
    given = [m for m in found if isinstance(m, Basis)]
    if not given:
        raise ValueError("--energy is a rule of the method basis")
    return [replace(method, energy=energy) for method in given]


def _target(options: dict[str, Any]) -> Any:
    from onnxcompress.targets import Target

    names = ("ratio", "macs", "max_drop", "min_agreement", "min_snr")
    given = {name: options[name] for name in names if options[name] is not None}
    return Target(**given) if given else None


def _chosen(model: Model, only: Sequence[str], skip: Sequence[str]) -> Callable[[str], bool] | None:
    """Which layers the patterns leave; a pattern that matches nothing is an error."""
    from onnxcompress.graph import linear_nodes

    if not only and not skip:
        return None
    names = list(linear_nodes(model))
    for pattern in (*only, *skip):
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, 5, 0.3) or names[:5]
            raise ValueError(f"no layer matches {pattern!r}; there are {', '.join(near)}, ...")

    def chosen(name: str) -> bool:
        wanted = not only or any(fnmatchcase(name, pattern) for pattern in only)
        return wanted and not any(fnmatchcase(name, pattern) for pattern in skip)

    return chosen


def _samples(model: Model, options: dict[str, Any]) -> Samples | None:
    from onnxcompress.data import input_specs, load_samples

    if options["calib"] is None:
        _say("NO CALIBRATION DATA: fits use the weights alone, and checks use random inputs")
        return None
    return load_samples(
        options["calib"],
        input_specs(model),
        limit=options["samples"],
        select=options["select"],
        preprocess=options["preprocess"],
    )


def _evaluation(model: Model, options: dict[str, Any]) -> Samples | None:
    from onnxcompress.data import input_specs, load_samples
    from onnxcompress.metrics import find_metric

    if options["evaluation"] is None:
        return None
    find_metric(options["metric"])
    return load_samples(
        options["evaluation"],
        input_specs(model),
        limit=EVALUATION_LIMIT,
        preprocess=options["preprocess"],
        labelled=True,
    )


def _provenance(
    source: Path, methods: Sequence[Method], options: dict[str, Any], samples: Samples | None
) -> dict[str, str]:
    """What the result records of its making: nothing in it varies with threads, folders or time."""
    from onnxcompress.graph import sha256

    config: dict[str, Any] = {
        "methods": [str(method) for method in methods],
        "target": str(_target(options) or "default"),
        "seed": options["seed"],
        "samples": 0 if samples is None else len(samples),
    }
    for key in ("only", "skip"):
        if options[key]:
            config[key] = list(options[key])
    if options["no_correct"]:
        config["correct"] = False
    return {
        "onnxcompress.version": version("onnxcompress"),
        "onnxcompress.config": json.dumps(config, sort_keys=True, separators=(",", ":")),
        "onnxcompress.source_sha256": sha256(source),
    }


def _versions() -> dict[str, Any]:
    names = ("onnxcompress", "onnx", "onnxruntime", "numpy", "scipy")
    return {"versions": {name: version(name) for name in names}, "command": sys.argv[1:]}


def _show(report: Report, options: dict[str, Any], written: str | None, code: int) -> None:
    from onnxcompress import tables

    if options["as_json"]:
        extra = {"output": written, "exit_code": code}
        click.echo(json.dumps(report.to_dict() | extra, indent=2, default=str))
    else:
        tables.show_report(report, written, quiet=options["quiet"])
    for reason in report.failures:
        _say(f"not as asked: {reason}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; whatever goes wrong is one line on stderr."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        sys.exit(cli.main(args, prog_name="onnxcompress", standalone_mode=False))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), BAD)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; nothing was written", INTERRUPTED)
    except OSError as error:
        _fail(str(error), BAD)
    except ValueError as error:
        if not any(module in type(error).__module__ for module in ("onnxcompress", "builtins")):
            _internal(error, args)
        _fail(str(error), BAD)
    except Exception as error:
        _internal(error, args)


def _internal(error: Exception, args: Iterable[str]) -> None:
    if "--verbose" in args:
        traceback.print_exception(error)
    _fail(f"internal error, {type(error).__name__}: {error} (--verbose shows where)", INTERNAL)


def _fail(message: str, code: int) -> None:
    line = " ".join(_lines(message))
    click.echo(f"Error: {line}", err=True)
    sys.exit(code)


def _lines(text: str) -> Iterator[str]:
    return (part.strip() for part in text.splitlines() if part.strip())
