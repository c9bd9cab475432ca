"""A report as one page of HTML that needs nothing else.  The only file that imports jinja2.

Names and metadata come from strangers' models: the template escapes whatever is put into it, the
script reads nothing but the page, and the page's own policy forbids any other script and all of
the network.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import Any

from onnxcompress.core.errors import PageError
from onnxcompress.report import plots, words
from onnxcompress.report.report import Report

try:
    import jinja2
except ImportError:  # The extra is not installed; `check` says so.
    jinja2: Any = None

TEMPLATES = Path(__file__).parent / "templates"
LARGEST = 1_000_000  # A page has fewer bytes than this, if it can.
# So many layers are shown, the first of these numbers with which the page keeps to that.
SHOWN = (1000, 300, 100, 30)
NAMED = 40  # So many layers are listed where more were skipped for one reason.
LONGEST = 120  # A name of more letters is shown without its middle.
LEAST = 3  # Fewer points make no curve.


def check() -> None:
    """Find out before the work whether a page can be made.

    Raises:
        PageError: jinja2 is not installed.
    """
    if jinja2 is None:
        raise PageError("a report page needs jinja2: pip install 'onnxcompress[report]'")


def render(report: Report, title: str, place: str = "", metric: str = "top1") -> str:
    """The page, below 1 MB: of a very large model it shows the largest layers alone.

    Args:
        place: where the result is, or that it was not written.
        metric: name of the metric of a sweep.
    """
    check()
    page = ""
    for count in SHOWN:
        page = _render(report, title, place, metric, count)
        if len(page.encode()) < LARGEST:
            break
    return page


def _render(report: Report, title: str, place: str, metric: str, count: int) -> str:
    """With at most so many layers."""
    script = (TEMPLATES / "page.js").read_text("utf-8")
    return _filled(
        "page.html",
        _shown(report, title, place, metric, count),
        style=plots.COLOURS + plots.STYLE + (TEMPLATES / "page.css").read_text("utf-8"),
        script=script,
        digest=b64encode(sha256(script.encode()).digest()).decode(),
    )


def core(report: Report) -> str:
    """What the page shows of the result, for a notebook: styles of its own, and no script."""
    check()
    style = plots.COLOURS + plots.STYLE + (TEMPLATES / "page.css").read_text("utf-8")
    nested = re.sub(r":root|\bbody\b(?= *\{)", "&", style)
    return _filled("cell.html", _shown(report, "", "", "metric", SHOWN[-1]), style=nested)


def _filled(template: str, *values: Mapping[str, Any], **more: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: plain(value) if type(value) is str else value,  # Else it is safe.
    )
    environment.filters["short"] = short
    return environment.get_template(template).render(*values, **more)


def _shown(report: Report, title: str, place: str, metric: str, count: int) -> dict[str, Any]:
    """What the templates read, of at most so many layers."""
    largest = sorted(range(len(report.rows)), key=lambda i: -report.rows[i].nbytes[0])[:count]
    rows = [
        replace(row, layer=short(row.layer))
        for row in map(report.rows.__getitem__, sorted(largest))
    ]
    both, refined, metric = report.comparison, report.refined, short(metric)
    return {
        "report": report,
        "title": title,
        "place": place,
        "gains": words.gains(report),
        "quality": words.quality_of(report),
        "computes": words.computes(report),
        "facts": [*words.facts(both, "held-out" if report.rows else "", refined)] if both else [],
        "curve": _curve(report, metric),
        "points": words.points(report.points, metric),
        "rows": rows,
        "left_out": len(report.rows) - len(rows),
        "bars": plots.layers(rows),
        "reasons": words.reasons(report),
        "named": NAMED,
        "skips": words.skips(report),
        "training": words.training(both, refined) if both and refined else "",
        "losses": plots.training(refined).svg() if refined else "",
        "command": [quote(w) for w in ("onnxcompress", *report.provenance.get("command", ()))],
        "made": dict(_made(report)),
        "words": words,
    }


def _curve(report: Report, metric: str) -> str:
    """What was measured of a sweep, else what the candidates allowed; "" where neither is known."""
    if any(point.ratio is not None for point in report.points):
        return plots.sweep(report.points, metric).svg()
    if report.trade_off is None or len(report.trade_off.points) < LEAST:
        return ""
    return plots.trade_off(report.trade_off, report.comparison).svg()


def _made(report: Report) -> Iterator[tuple[str, str]]:
    """What else is to be known to repeat the run."""
    provenance = report.provenance
    if report.seconds is not None:
        yield "duration", words.duration(report.seconds)
    yield from _configuration(provenance.get("metadata", {}).get("onnxcompress.config", "{}"))
    for path, digest in provenance.get("sha256", {}).items():
        yield f"SHA-256 of {short(path)}", digest
    if "versions" in provenance:
        yield "versions", ", ".join(" ".join(pair) for pair in provenance["versions"].items())
    if "machine" in provenance:
        yield "machine", provenance["machine"]


def _configuration(text: str) -> Iterator[tuple[str, str]]:
    """The settings that the result records, one by one."""
    for key, value in json.loads(text).items():
        if isinstance(value, dict):
            value = [f"{name} {some}" for name, some in value.items()]
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def plain(text: str) -> str:
    """A stranger's text on one line, in the direction of the page."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def short(text: str) -> str:
    """The same, and no longer than a name should be."""
    text = plain(text)
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"
