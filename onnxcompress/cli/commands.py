"""The commands: what they read is in `arguments`, and how they end in `endings`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from onnxcompress.cli import arguments, endings, outcome, places, provenance, streams, supervisor
from onnxcompress.cli.options import (
    BALLAST,
    CACHE,
    DATA,
    DRY_RUN,
    ENGINE,
    EXTENSIONS,
    EXTERNAL,
    FIDELITY,
    FILE,
    JSON,
    METHOD,
    QUIET,
    REFINE,
    REPORT,
    RULES,
    RUN,
    SHAPES,
    TARGET,
    VERBOSE,
    Group,
    Percent,
)
from onnxcompress.cli.outcome import DONE, Outcome
from onnxcompress.cli.streams import say, write
from onnxcompress.core.scratch import check_place

if TYPE_CHECKING:  # Imports where they are used let --help and wrong options answer at once.
    from onnxcompress.compression.target import Target
    from onnxcompress.report.report import Comparison

COMPARED_AT_RANDOM = 4  # `expand`, and `compare` without data, run so many random inputs.


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
@BALLAST
@DRY_RUN
@click.option("--force", is_flag=True, help="Write a result that misses its target, marked as "
              "such in its metadata; allow OUTPUT to be INPUT.")  # fmt: skip
@EXTERNAL
@REPORT
@JSON
@QUIET
@VERBOSE
def compress(source: Path, output: Path, **options: Any) -> int:
    """Write a smaller or faster version of INPUT to OUTPUT.  (The word compress may be left out.)

    Without a target, the result is the smallest that decides as the original does on 98 % of the
    samples (the same class, or whole number); where a model decides nothing, the smallest whose
    outputs have an SNR of 25 dB.
    """
    from onnxcompress.compression import pipeline
    from onnxcompress.compression.auto import arithmetic
    from onnxcompress.compression.provenance import VERSION

    if str(source) in cli.commands and not source.exists():
        raise click.UsageError(f"a command comes first: onnxcompress {source} ...")
    with redirect_stdout(sys.stderr):  # What a module:function prints is no result.
        target = arguments.read_target(options)
        arguments.check_gate(target, options)
        compute = arithmetic(options["compute"], target)
        methods = arguments.read_methods(options["specs"], options["energy"], target, compute)
        model = arguments.load_model(source, options, output, options["force"])
        if any(entry.key == VERSION for entry in model.proto.metadata_props):
            say("note: this model has been compressed before")
        refinement = arguments.plan_refinement(model, options)
        offered = arguments.offer_methods(model, methods, options["rules"], target)
        task = arguments.prepare(model, options)
        metadata = provenance.record(
            source, methods, target, options, task.samples, task.evaluation, refinement
        )
        result, report = pipeline.compress(
            model,
            methods=offered,
            target=target,
            correct=not options["no_correct"],
            metadata=metadata,
            progress=not options["quiet"],
            refinement=refinement,
            strip=options["strip"],
            simplify=options["simplify"],
            compute=compute,
            **task.keywords,
        )
    return endings.deliver_result(result, report, metadata, source, output, options)


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
@click.option("--quiet", is_flag=True, help="Print the table alone, not how far it is.")
@VERBOSE
def sweep(source: Path, **options: Any) -> int:
    """Show what each size costs in accuracy: the trade-off curve of a model.

    Every point is what compress gives for that target, all from one fit of the candidates.
    """
    from onnxcompress.compression import pipeline
    from onnxcompress.core.errors import BudgetError

    begun = time.perf_counter()
    with redirect_stdout(sys.stderr):
        targets = arguments.read_targets(options["ratios"], options["macs"])
        methods = arguments.read_methods(options["specs"], None, targets[0])
        model = arguments.load_model(source, options, options["plot"])
        task = arguments.prepare(model, options)
        whole = options | {"no_correct": False, "rules": None}

        def metadata(target: Target | None) -> dict[str, str]:
            return provenance.record(source, methods, target, whole, task.samples, task.evaluation)

        points = [
            *pipeline.trade_off(
                model,
                targets,
                methods=methods,
                metadata=metadata,
                progress=not options["quiet"],
                **task.keywords,
            )
        ]
    if all(point.ratio is None for point in points):
        raise BudgetError("; ".join(points[0].failures))
    made = provenance.describe_run(metadata(None), {str(source): source}, endings.command_line())
    seconds = time.perf_counter() - begun
    with ExitStack() as stack:
        return endings.end_sweep(stack, points, made, source, options, seconds).publish()


@cli.command()
@click.argument("source", metavar="MODEL", type=FILE)
@SHAPES
@EXTENSIONS
@JSON
@VERBOSE
def inspect(source: Path, as_json: bool, **options: Any) -> int:
    """List the layers of a model, what can be compressed, and what each method would give."""
    from onnxcompress.compression.inspect import examine
    from onnxcompress.core.parallel import one_thread_each
    from onnxcompress.graph import load
    from onnxcompress.report import tables

    with one_thread_each():  # Small products on many threads wait for each other.
        facts = examine(load(source, options["extensions"]), dict(options["shapes"]))
    if facts["note"]:
        say(f"note: {facts['note']}")
    write(outcome.json_text(DONE, facts) if as_json else tables.render_inspection(facts))
    return DONE


@cli.command()
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@FIDELITY
@DATA
@RUN
@REPORT
@JSON
@QUIET
@VERBOSE
def compare(first: Path, second: Path, **options: Any) -> int:
    """Compare two models on the same data: outputs, size, latency.

    With --min-agreement, --min-snr or --max-drop the exit code is 1 where B is further from A.
    """
    from onnxcompress.compression.provenance import CONFIG, config_text, identify
    from onnxcompress.compression.validate.verdict import failures
    from onnxcompress.report.report import Report

    with redirect_stdout(sys.stderr):
        target = arguments.read_target(options)
        arguments.check_gate(target, options)
        comparison, samples = _compare(first, second, options)
    even = replace(comparison.before, nbytes=comparison.after.nbytes)  # B may be larger than A.
    missed = [*failures(replace(comparison, before=even), target)] if target else []
    config = {"seed": options["seed"], "samples": identify(samples)}
    made = provenance.describe_run(
        {CONFIG: config_text(config)},
        {str(path): path for path in (first, second)},
        endings.command_line(),
    )
    report = Report(
        target=str(target) if target else "",
        comparison=comparison,
        failures=tuple(missed),
        provenance=made,
    )
    with ExitStack() as stack:
        return endings.end_comparison(stack, report, first, second, options).publish()


def _compare(
    first: Path, second: Path, options: Mapping[str, Any]
) -> tuple[Comparison, arguments.Samples | None]:
    """How far the models are apart, and on which samples of the user's."""
    from onnxcompress.compression.measure.at_once import largest_input
    from onnxcompress.compression.measure.open_axes import inputs_that_run
    from onnxcompress.compression.measure.shapes import input_shapes
    from onnxcompress.compression.measure.unfit import blaming
    from onnxcompress.compression.validate.validation import Validation
    from onnxcompress.core.parallel import cores
    from onnxcompress.core.progress import MEASURED
    from onnxcompress.execution.runnable import runnable
    from onnxcompress.graph import load
    from onnxcompress.report.progress import progress

    models = [load(path, options["extensions"]) for path in (first, second)]
    files = {path for model in models for path in model.data_files}
    targets = [options["page"]] if options["page"] else []
    read = {first, second, *files, *places.files_of_data(options, targets)}
    places.check_page(options["page"], read)
    samples = arguments.open_samples(
        models[0], options, "the outputs are compared on random inputs"
    )
    for note in samples.notes if samples else ():
        say(f"note: {note}")
    used = samples or inputs_that_run(
        models[0], COMPARED_AT_RANDOM, dict(options["shapes"]), options["seed"]
    )
    one = next(used.batches(1))
    shapes = {name: x.shape for name, x in one.items() if hasattr(x, "shape")}  # No sequence has.
    arguments.check_alike(models[0], models[1], shapes)
    with blaming(models[0], used, real=samples is not None):
        seen = [input_shapes(runnable(models[0]), one)]
    seen.append(input_shapes(runnable(models[1]), one))
    before, after = (sum(macs.values()) for _, macs in seen)
    with progress(not options["quiet"], MEASURED) as track:
        validation = Validation(
            models[0],
            used,
            real=samples is not None,
            largest=largest_input(seen[0][0].values()),
            jobs=options["jobs"] or cores(),
            track=track,
            **arguments.read_measures(models[0], options),
        )
        return validation.compare(models[1], (before, after)), samples


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
def expand(source: Path, output: Path, **options: Any) -> int:
    """Write a model's decoded weights out in full.

    For runtimes that do not fold constants: the file is as large as before, the outputs are those
    of INPUT, which is tried on random inputs.  What makes fewer multiplications stays.
    """
    from onnxcompress.compression.expand import expand as expanded
    from onnxcompress.compression.measure.open_axes import inputs_that_run
    from onnxcompress.compression.validate.deviation import deviation, rounding
    from onnxcompress.execution.runnable import verify
    from onnxcompress.graph import load, save

    model = load(source, options["extensions"])
    check_place(output, {source, *model.data_files}, options["force"])
    samples = inputs_that_run(model, COMPARED_AT_RANDOM, dict(options["shapes"]))
    result = expanded(model)
    verify(result)
    distance = deviation(model, result, samples, real=False)
    same = distance <= rounding(result)
    facts = {
        "expanded": sorted(result.initializers.keys() - model.initializers.keys()),
        "before": model.nbytes,
        "after": result.nbytes,
        "deviation": distance,
    }
    outcomes: list[Outcome] = []

    def render(files: Sequence[Path] = ()) -> None:
        outcomes.append(
            endings.end_expansion(
                facts, same, [*endings.place_files(output, files)], options["as_json"]
            )
        )
        supervisor.hold()

    if same and not options["dry_run"]:
        save(result, output.resolve(), external=options["external"], ready=render)
    else:
        render()
    return outcomes[0].publish()


@cli.command()
@click.argument("name", required=False)
@VERBOSE
def methods(name: str | None, verbose: bool) -> int:
    """List the methods, or explain one and its settings."""
    from onnxcompress.compression import method_spec
    from onnxcompress.methods import METHODS
    from onnxcompress.report import tables

    if name is None:
        summaries = {key: method_spec.described(method)[0] for key, method in METHODS.items()}
        write(tables.render_methods(summaries))
        return DONE
    with arguments.as_usage_errors():
        method = method_spec.method_named(name)
    summary, settings = method_spec.described(method)
    write(tables.render_method(name, summary, settings, method_spec.explained(method)))
    return DONE


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code; whatever goes wrong is one line on stderr."""
    words = list(sys.argv[1:] if args is None else args)
    streams.show_log()
    call = {"words": words, "json": "--json" in words}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # An arrow must not fail where it cannot be shown.
            stream.reconfigure(errors="replace")
    try:
        code = _run(words, call)
        supervisor.hold()
    except BaseException as error:
        code = outcome.fail(error, words, call["json"])
    supervisor.decide(code)
    sys.exit(code)


def _run(words: list[str], call: dict[str, Any]) -> int:
    """The exit code of a command; click's own `main` takes some errors for an interruption."""
    if "_ONNXCOMPRESS_COMPLETE" in os.environ:
        cli.main(words, "onnxcompress")
    try:
        with cli.make_context("onnxcompress", words, obj=call) as context:
            supervisor.start_native()
            return cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
