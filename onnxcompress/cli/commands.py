"""The command line.  What it prints is in `tables`.

Exit codes: 0 done, 1 target missed or result worse and nothing written, 2 bad arguments or input,
3 internal error, 130 interrupted.
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from onnxcompress.cli import arguments, provenance
from onnxcompress.cli.options import (
    CACHE,
    DATA,
    DRY_RUN,
    ENGINE,
    EXTENSIONS,
    EXTERNAL,
    FILE,
    JSON,
    METHOD,
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

if TYPE_CHECKING:  # imported where they are used: --help and wrong options answer at once
    from onnxcompress.compression.target import Target
    from onnxcompress.report.report import Report

DONE, MISSED, BAD, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130

COMPARED_AT_RANDOM = 4  # random inputs for `expand`, and for `compare` without data


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
    A result that is worse than was arguments for is not written, and the exit code says so:
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
    from onnxcompress.cli import terminal
    from onnxcompress.compression import pipeline
    from onnxcompress.graph import annotate, load, save

    if str(source) in cli.commands and not source.exists():
        raise click.UsageError(f"a command comes first: onnxcompress {source} ...")
    with redirect_stdout(sys.stderr):  # whatever a module:function prints
        target = arguments.target(given)
        methods = arguments.methods(given["specs"], given["energy"], target)
        model = load(source, given["extensions"])
        arguments.check_output(output, {source, *model.data_files}, given["force"])
        arguments.check_page(given["page"], {source, output, *model.data_files})
        arguments.check_cache(given["cache"])
        if any(entry.key == provenance.VERSION for entry in model.proto.metadata_props):
            terminal.say("note: this model has been compressed before")
        refinement = arguments.refinement(model, given)
        chosen, measured = (
            arguments.changeable(model, given["only"], given["skip"]),
            arguments.measured(model, given),
        )
        offered = arguments.offered(model, methods, given["rules"], target)
        samples = arguments.samples(model, given, "the fits use the weights alone")
        metadata = provenance.recorded(
            source, methods, target, given, samples, measured["evaluation"], refinement
        )
        with terminal.progress(not given["quiet"]) as track:
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
            result = annotate(result, {provenance.FORCED: "; ".join(report.failures)})
        save(result, output.resolve(), external=given["external"])
    code = MISSED if report.worse and not written else DONE
    files = [source, output] if written else [source]
    place = f"written to {output}" if written else "nothing was written"
    if given["dry_run"]:
        place += " (--dry-run)"
    try:
        report = replace(report, provenance=provenance.made(metadata, files, _command()))
        report = _paged(report, given, files, f"{source.name} → {output.name}", place)
        if given["as_json"]:
            facts = {"output": str(output) if written else None, "exit_code": code}
            _print_json(report.to_dict() | facts)
        else:
            terminal.show_report(report, place, quiet=given["quiet"])
        if report.worse:
            terminal.say(f"{'Warning' if written else 'Error'}: {'; '.join(report.failures)}")
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
    from onnxcompress.cli import terminal
    from onnxcompress.compression import pipeline
    from onnxcompress.core.errors import BudgetError
    from onnxcompress.graph import load
    from onnxcompress.report import plots
    from onnxcompress.report.report import Report

    with redirect_stdout(sys.stderr):
        targets = arguments.targets(given["ratios"], given["macs"])
        methods = arguments.methods(given["specs"], None, targets[0])
        model = load(source, given["extensions"])
        if given["plot"]:
            arguments.check_output(given["plot"], {source, *model.data_files}, force=False)
        arguments.check_page(given["page"], {source, *model.data_files})
        arguments.check_cache(given["cache"])
        chosen, measured = (
            arguments.changeable(model, given["only"], given["skip"]),
            arguments.measured(model, given),
        )
        samples = arguments.samples(model, given, "the fits use the weights alone")
        whole = given | {"no_correct": False, "rules": None}

        def metadata(target: Target) -> dict[str, str]:
            return provenance.recorded(
                source, methods, target, whole, samples, measured["evaluation"]
            )

        with terminal.progress(not given["as_json"]) as track:
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
    if all(point.ratio is None for point in points):
        raise BudgetError("; ".join(points[0].failures))
    if given["plot"]:
        given["plot"].parent.mkdir(parents=True, exist_ok=True)  # as compress does for OUTPUT
        given["plot"].write_text(plots.sweep(points, given["metric"]).svg(alone=True), "utf-8")
    made = provenance.made(
        provenance.recorded(source, methods, None, whole, samples, measured["evaluation"]),
        [source],
        _command(),
    )
    report = Report(rows=(), skipped={}, points=tuple(points), provenance=made)
    report = _paged(report, given, [source], f"{source.name}, {len(points)} sizes")
    if given["as_json"]:
        _print_json({"points": report.to_dict()["points"], "provenance": made})
    else:
        terminal.show_points(points, given["metric"])
    if all(point.failures for point in points):
        terminal.say(f"Error: no target is met: {'; '.join(points[0].failures)}")
        return MISSED
    return DONE


@cli.command()
@click.argument("source", metavar="MODEL", type=FILE)
@SHAPES
@EXTENSIONS
@JSON
@VERBOSE
def inspect(source: Path, as_json: bool, **given: Any) -> int:
    """List the layers of a model, what can be compressed, and what each method would give."""
    from onnxcompress.cli import terminal
    from onnxcompress.compression.inspect import examine
    from onnxcompress.core.parallel import one_thread_each
    from onnxcompress.graph import load

    with one_thread_each():  # small products on many threads wait for each other
        found = examine(load(source, given["extensions"]), dict(given["shapes"]))
    if found["note"]:
        terminal.say(f"note: {found['note']}")
    if as_json:
        _print_json(found)
    else:
        terminal.show_inspection(found)
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
    from onnxcompress.cli import terminal
    from onnxcompress.compression.measure.shapes import input_shapes
    from onnxcompress.compression.validate.validation import Validation
    from onnxcompress.core.parallel import cores
    from onnxcompress.data.inputs import input_specs
    from onnxcompress.data.random import random_samples
    from onnxcompress.execution.runnable import runnable
    from onnxcompress.graph import load
    from onnxcompress.report.report import Report

    with redirect_stdout(sys.stderr):
        extensions = given["extensions"]
        models = load(first, extensions), load(second, extensions)
        arguments.check_page(
            given["page"], {first, second, *models[0].data_files, *models[1].data_files}
        )
        specs = input_specs(models[0])
        samples = arguments.samples(models[0], given, "the outputs are compared on random inputs")
        real = samples is not None
        samples = samples or random_samples(
            specs, COMPARED_AT_RANDOM, given["seed"], dict(given["shapes"])
        )
        one = next(iter(samples.batches(1)))
        arguments.check_alike(*models, {name: array.shape for name, array in one.items()})
        macs = [sum(input_shapes(runnable(m), one)[1].values()) for m in models]
        with terminal.progress(not given["as_json"]) as track:
            validation = Validation(
                models[0],
                samples,
                real=real,
                jobs=given["jobs"] or cores(),
                track=track,
                **arguments.measured(models[0], given),
            )
            comparison = validation.compare(models[1], (macs[0], macs[1]))
    config = {"seed": given["seed"], "samples": provenance.known(samples if real else None)}
    made = provenance.made(
        {provenance.CONFIG: provenance.told(config)}, [first, second], _command()
    )
    report = Report(comparison=comparison, provenance=made)
    report = _paged(report, given, [first, second], f"{second.name} against {first.name}")
    assert report.comparison is not None
    if given["as_json"]:
        _print_json(report.comparison.to_dict() | {"provenance": made})
    else:
        terminal.show_comparison(report.comparison)
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
    from onnxcompress.cli import terminal
    from onnxcompress.compression.expand import expand as expanded
    from onnxcompress.compression.validate.deviation import deviation, rounding
    from onnxcompress.data.inputs import input_specs
    from onnxcompress.data.random import random_samples
    from onnxcompress.execution.runnable import verify
    from onnxcompress.graph import load, save

    model = load(source, given["extensions"])
    arguments.check_output(output, {source, *model.data_files}, given["force"])
    samples = random_samples(input_specs(model), COMPARED_AT_RANDOM, 0, dict(given["shapes"]))
    result = expanded(model)
    verify(result)
    found = deviation(model, result, samples)
    same = found <= rounding(result)
    if written := same and not given["dry_run"]:
        save(result, output.resolve(), external=given["external"])
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
        terminal.say(
            f"Error: the outputs differ by {found:.2g} of the largest; nothing was written"
        )
    return code


@cli.command()
@click.argument("name", required=False)
@VERBOSE
def methods(name: str | None, verbose: bool) -> int:
    """List the methods, or explain one and its settings."""
    from onnxcompress.cli import terminal
    from onnxcompress.compression import method_spec
    from onnxcompress.methods import METHODS

    if name is None:
        terminal.show_methods(
            {key: method_spec.described(method)[0] for key, method in METHODS.items()}
        )
    else:
        with arguments.asking():
            method = method_spec.method_named(name)
        terminal.show_method(name, *method_spec.described(method), method_spec.explained(method))
    return DONE


def _paged(
    report: Report, given: Mapping[str, Any], models: Sequence[Path], title: str, place: str = ""
) -> Report:
    """The report, written as a page where one is asked for, with the memory that loading takes."""
    if given["page"] is None:
        return report
    from onnxcompress.execution.latency import load_memory
    from onnxcompress.report import page

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
    from onnxcompress.cli import terminal

    count, place = len(facts["expanded"]), facts["output"]
    terminal.write(
        f"{count} {'weight' if count == 1 else 'weights'} written out, "
        f"file {facts['before']:,} → {facts['after']:,} bytes; "
        + (f"written to {place}" if place else "nothing was written (--dry-run)")
    )


def _print_json(value: Any) -> None:
    from onnxcompress.cli import terminal

    terminal.write(json.dumps(_finite(value), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _command() -> list[str]:
    """The words that were given."""
    return click.get_current_context().obj


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
    from onnxcompress.cli import terminal

    terminal.say(f"Error: {' '.join(message.split())}")
    sys.exit(code)
