"""The words of the command line: options in sections, and a group that knows its main command."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from onnxcompress.cli import arguments
from onnxcompress.core.messages import shorten

SECTIONS = {  # An option that is in none of these sections of the help page comes last.
    "Method": ("specs", "energy", "compute", "no_correct", "only", "skip", "rules"),
    "Target": ("ratio", "ratios", "macs", "latency", "min_agreement", "min_snr", "max_drop"),
    "Data": (
        "calib",
        "samples",
        "select",
        "preprocess",
        "evaluation",
        "metric",
        "classes",
        "states",
    ),
    "Refinement": ("refine", "device", "augment", "train"),
    "Without loss": ("strip", "simplify"),
    "Run": ("shapes", "extensions", "providers", "jobs", "engine", "seed"),
}


# At most so many samples can be asked for: numpy counts them, and some of their bytes, in 64 bits.
MOST = 2**31 - 1
MOST_JOBS = 1024  # More threads are of no use, and a system may have no more.


class Percent(click.ParamType):
    """A share, as ``98%`` or ``0.98``.

    Args:
        least: 0 where that is a share like others; else it has to be more.
    """

    name = "share"

    def __init__(self, least: float = math.ulp(0)) -> None:
        self.least = least

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        text = str(value).replace(" ", "")
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = math.nan
        if not self.least <= share <= 1:
            says = "a share from 0 to 1 or a percentage, such as 0.5 or 50%"
            self.fail(f"{shorten(str(value))!r} is not {says}", param, ctx)
        return share


class Shape(click.ParamType):
    """The shape of an input, as ``x:1,3,224,224``."""

    name = "name:n,n,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        name, _, dims = str(value).rpartition(":")
        sizes = dims.split(",")
        if not name or not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,9}\s*", size) for size in sizes):
            self.fail(f"{value!r} is no shape; write x:1,3,224,224", param, ctx)
        return name, tuple(map(int, sizes))


# The shell completes it; whether it can be read is found out when it is read.
FILE = click.Path(readable=False, path_type=Path)
PLACE = click.Path(readable=False)  # It may also be the name of something else.


class Command(click.Command):
    """A command whose help page has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        every = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        named = {name for names in SECTIONS.values() for name in names}
        rest = [option.name or "" for option in every if option.name not in named]
        for title, names in {**SECTIONS, "Output": rest}.items():
            options = [option for option in every if option.name in names]
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
            if ctx.resilient_parsing:  # The shell completes a line that is not yet whole.
                return super().parse_args(ctx, ["compress", *args])
            near = get_close_matches(args[0], self.commands, 1)
            if near and not Path(args[0]).suffix and not Path(args[0]).exists():
                raise click.UsageError(f"no command or file {args[0]!r}; did you mean {near[0]}?")
            args = ["compress", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """The commands; else a file, as the word compress may be left out."""
        commands = super().shell_complete(ctx, incomplete)
        return commands or [CompletionItem(incomplete, type="file")]


def options(*chosen: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator, in this order on the help page."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(chosen):
            function = option(function)
        return function

    return decorate


def _note_json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Remember it for errors: a configuration file may ask for it as well."""
    if isinstance(ctx.obj, dict):
        ctx.obj["json"] = value
    return value


METHOD = options(
    click.option("--method", "specs", metavar="SPEC", multiple=True,
                 help="What to use: basis, or with settings basis:unfolding=filter,rank=16; "
                 "basis+integer:bits=8 for both; repeat.  [default: auto, what suits the target]"),
    click.option("--energy", type=Percent(), help="The rule of the basis paper instead of a "
                 "target: filter unfolding, the smallest rank that keeps this share of the "
                 "squared singular values."),
    click.option("--compute", type=click.Choice(["float", "int8", "auto"]), default="float",
                 show_default=True, help="What layers compute in: int8 where that is measured to "
                 "be faster; auto, int8 where --latency is given."),
    click.option("--only", metavar="GLOB", multiple=True, help="Change only these layers; repeat."),
    click.option("--skip", metavar="GLOB", multiple=True, help="Leave these layers alone; repeat."),
    click.option("--no-correct", is_flag=True, help="Fit every layer by itself, without matching "
                 "the original's responses in network order."),
)  # fmt: skip

RULES = click.option("--config", "rules", metavar="FILE.yaml", type=FILE, is_eager=True,
                     callback=lambda ctx, param, path: path and arguments.read_config(ctx, path),
                     help="Any of these options, and methods for some of the layers; "
                     "options on the command line win.")  # fmt: skip

FIDELITY = options(
    click.option("--min-agreement", type=Percent(least=0),
                 help="The same class, or whole number, on this share of samples; 0 for any.  "
                 "[without any of these three: 90%, or 10 dB where nothing is decided]"),
    click.option("--min-snr", type=float, metavar="DB", help="Least SNR of each output, in dB."),
    click.option("--max-drop", type=float, metavar="N",
                 help="What the metric may lose at most, in its own unit; by labels (--eval)."),
)  # fmt: skip

TARGET = options(
    click.option("--ratio", type=float, metavar="N", help="A file at least N times smaller."),
    click.option("--macs", type=Percent(), help="At most this share of the multiplications."),
    click.option("--latency", type=Percent(), help="At most this share of the time, measured "
                 "here on one thread."),
    FIDELITY,
)  # fmt: skip

DATA = options(
    click.option("--calib", metavar="PATH", type=PLACE, help="Unlabelled samples: .npz, "
                 ".npy, a folder of images, test_data_set folders, or module:function."),
    click.option("--samples", metavar="N", type=click.IntRange(1, MOST), default=512,
                 show_default=True, help="How many of them."),
    click.option("--select", metavar="GLOB", help="Which files of a folder."),
    click.option("--preprocess", metavar="NAME|FILE.yaml", type=PLACE, help="How images become "
                 "inputs: imagenet, imagenet-caffe, inception, unit, none, or a file of your own."),
    click.option("--eval", "evaluation", metavar="PATH", type=PLACE, help="Labelled samples: .npz "
                 "with x and y, a folder of images with labels.csv, or module:function."),
    click.option("--metric", metavar="NAME", default="top1",
                 show_default=True, help="top1, top5, psnr, or module:function."),
    click.option("--classes", metavar="OUTPUT[:AXIS]", multiple=True,
                 help="The outputs that hold class scores, and along which axis; repeat.  none "
                 "where no output does, such as an embedding.  [default: as outputs look]"),
    click.option("--state", "states", metavar="OUT:IN", multiple=True,
                 help="An output that is fed back into an input: the samples are one sequence; "
                 "repeat.  none for no such.  [default: stateN:state and their like]"),
)  # fmt: skip

REFINE = options(
    click.option("--refine", metavar="EPOCHS", type=click.IntRange(min=1), help="Train what the "
                 "result stores on the original's outputs; needs --calib and torch.  "
                 "It may end early where nothing gets better."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]),
                 help="Where torch computes.  [default: auto, a GPU where there is one]"),
    click.option(
        "--augment", metavar="flip,crop,mix", help="Train on changed images as well: mirrored, "
        "shifted, and mixtures of two."
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
    click.option("--jobs", metavar="N", type=click.IntRange(1, MOST_JOBS),
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

BALLAST = options(
    click.option("--strip", is_flag=True, help="Drop what no runtime reads: notes of the exporter, "
                 "types that can be inferred."),
    click.option("--simplify/--no-simplify", default=None, help="First fold what costs time and "
                 "does nothing: scales and paddings beside layers, identities, dead nodes.  "
                 "[default: with --latency, --compute int8]"),
)  # fmt: skip

DRY_RUN = click.option("--dry-run", is_flag=True, help="Do everything but write OUTPUT.")

EXTERNAL = click.option("--save-as-external-data", "external", is_flag=True,
                        help="Weights beside the model.")  # fmt: skip

JSON = click.option("--json", "as_json", is_flag=True, callback=_note_json,
                    help="Print one JSON object and nothing else, errors too.")  # fmt: skip

QUIET = click.option("--quiet", is_flag=True, help="Print the verdict alone.")

REPORT = click.option("--report", "page", metavar="FILE.html", type=FILE,
                      help="Write a page about it, for a browser or for paper.")  # fmt: skip

VERBOSE = click.option("--verbose", is_flag=True, help="Show where an internal error came from.")
