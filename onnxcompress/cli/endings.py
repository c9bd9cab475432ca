"""What each command ends with: files, text and an exit code, rendered before OUTPUT is replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcompress.cli import outcome, provenance, supervisor
from onnxcompress.cli.outcome import DONE, MISSED, Outcome
from onnxcompress.cli.wording import all_in_options

if TYPE_CHECKING:  # Imports where they are used let --help and wrong options answer at once.
    from onnxcompress.graph import Model
    from onnxcompress.report.report import Point, Report


def deliver_result(
    result: Model,
    report: Report,
    metadata: Mapping[str, str],
    source: Path,
    output: Path,
    options: Mapping[str, Any],
) -> int:
    """Write the result where it is to be written, and show the report; the exit code."""
    from onnxcompress.compression.deliver import deliver

    written = not options["dry_run"] and (options["force"] or not report.worse)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:

        def render(files: Sequence[Path] = ()) -> None:
            """All that is shown, of a model that is complete but not in its place."""
            models = {str(source): source, **place_files(output, files)}
            shown = replace(
                all_in_options(report),
                provenance=provenance.describe_run(metadata, models, command_line()),
            )
            outcomes.append(_end_compression(stack, shown, source, output, models, options))
            supervisor.hold()

        if written:
            deliver(result, report, output, options["force"], options["external"], render)
        else:
            render()
        return outcomes[0].publish()


def place_files(output: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The names under which complete files will be known, the model's first."""
    others = {str(output.with_name(file.name)): file for file in files[:-1]}
    return {str(output): files[-1], **others} if files else {}


def _end_compression(
    stack: ExitStack,
    report: Report,
    source: Path,
    output: Path,
    models: Mapping[str, Path],
    options: Mapping[str, Any],
) -> Outcome:
    """What `compress` ends with; ``models`` has INPUT first, then the files of OUTPUT."""
    from onnxcompress.report import tables

    _, *names = models
    place = f"written to {' and '.join(names)}" if names else "nothing was written"
    if options["dry_run"]:
        place += " (--dry-run)"
    code = MISSED if report.worse and not names else DONE
    title = f"{source.name} → {output.name}"
    files = _paged(stack, report, options, title, place)
    if options["as_json"]:
        facts = {"output": str(output) if names else None, "exit_code": code}
        text = outcome.json_text(code, report.to_dict() | facts)
    else:
        text = tables.render_report(report, place, quiet=options["quiet"])
    kind = "Warning" if names else "Error"
    error = f"{kind}: {'; '.join(report.failures)}" if report.worse else ""
    return Outcome(code, text, error, files)


def _paged(
    stack: ExitStack,
    report: Report,
    options: Mapping[str, Any],
    title: str,
    place: str = "",
) -> dict[Path, Path]:
    """The page, where one is asked for."""
    if options["page"] is None:
        return {}
    from onnxcompress.report import page

    text = page.render(report, title, place, options["metric"])
    return outcome.stage(stack, options["page"], text)


def end_sweep(
    stack: ExitStack,
    points: Sequence[Point],
    made: Mapping[str, Any],
    source: Path,
    options: Mapping[str, Any],
    seconds: float,
) -> Outcome:
    """What `sweep` ends with, after so many seconds."""
    from onnxcompress.report import plots, tables
    from onnxcompress.report.report import Report

    report = Report(points=tuple(points), seconds=seconds, provenance=made)
    title = f"{source.name}, {len(points)} sizes"
    files = _paged(stack, report, options, title)
    if options["plot"]:
        drawn = plots.sweep(points, options["metric"]).svg(alone=True)
        files |= outcome.stage(stack, options["plot"], drawn)
    missed = all(point.failures for point in points)
    error = f"Error: no target is met: {'; '.join(points[0].failures)}" if missed else ""
    code = MISSED if missed else DONE
    if options["as_json"]:
        facts = {"points": report.to_dict()["points"], "provenance": made}
        return Outcome(code, outcome.json_text(code, facts), error, files)
    return Outcome(code, tables.render_points(points, options["metric"]), error, files)


def end_comparison(
    stack: ExitStack, report: Report, first: Path, second: Path, options: Mapping[str, Any]
) -> Outcome:
    """What `compare` ends with."""
    from onnxcompress.report import tables

    title = f"{second.name} against {first.name}"
    files = _paged(stack, report, options, title)
    assert report.comparison is not None
    code = MISSED if report.worse else DONE
    if options["as_json"]:
        facts = {"failures": report.failures, "provenance": report.provenance}
        text = outcome.json_text(code, report.comparison.to_dict() | facts)
    else:
        text = tables.render_comparison(report, quiet=options["quiet"])
    error = f"Error: {'; '.join(report.failures)}" if report.worse else ""
    return Outcome(code, text, error, files)


def end_expansion(
    facts: Mapping[str, Any], same: bool, names: Sequence[str], as_json: bool
) -> Outcome:
    """What `expand` ends with; ``names`` are the files of OUTPUT."""
    code = DONE if same else MISSED
    error = (
        f"Error: the outputs differ by {facts['deviation']:.2g} of the largest; nothing was written"
    )
    if as_json:
        more = {"output": names[0] if names else None, "exit_code": code}
        return Outcome(code, outcome.json_text(code, {**facts, **more}), "" if same else error)
    if not same:
        return Outcome(code, "", error)
    count = len(facts["expanded"])
    return Outcome(
        code,
        f"{count} {'weight' if count == 1 else 'weights'} written out, "
        f"file {facts['before']:,} → {facts['after']:,} bytes; "
        + (f"written to {' and '.join(names)}" if names else "nothing was written (--dry-run)"),
    )


def command_line() -> list[str]:
    """The words of the command line."""
    return click.get_current_context().obj["words"]
