"""The report page: what is on it, whatever the report holds, and what a browser makes of it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from html import unescape
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest

from onnxcompress.core.errors import OnnxCompressError
from onnxcompress.execution.latency import Latency
from onnxcompress.report import page, tables, words
from onnxcompress.report.report import (
    Comparison,
    Epoch,
    Point,
    Refinement,
    Report,
    Row,
    Share,
    Size,
    TradeOff,
)

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}\u202e\0&amp;"
EMPTY = {"meta", "link", "br", "wbr", "img"}


class Parsed(HTMLParser):
    """A page: that its elements close in order, the text of each kind, and their attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes = [], {}, {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes.setdefault(tag, []).append(dict(attrs))
        self.text.setdefault(tag, []).append("")
        if tag not in EMPTY:
            self.open.append((tag, len(self.text[tag]) - 1))

    def handle_startendtag(self, tag, attrs):
        self.attributes.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, index in self.open:
            self.text[tag][index] += data


def row(name="conv", **given):
    fields = {"method": "integer:bits=4", "nbytes": (4000, 500), "macs": (9000, 9000)}
    return Row(name, "Conv", (8, 8, 3, 3), **(fields | {"error": 0.01, "snr": 20.0} | given))


COMPARISON = Comparison(
    before=Size(10_000, 9000, 9000, 91.5, 12_000_000, 11_000_000),
    after=Size(2000, 1500, 9000, 91.0, 13_000_000, 11_500_000),
    samples=64, real=True, snr={"y": 25.0}, agreement=63 / 64, metric="top1",
    latency=Latency(1.0, 1.0, 1.0, 0.9, 1.1), shares={"y": Share("classes", 63, 64, 64)},
)  # fmt: skip
CURVE = TradeOff(
    "bytes", 10_000, tuple((1000 * n, 6 * n) for n in range(1, 9)), (2000, 12), (3000, 10)
)
REFINED = Refinement(
    (Epoch(0, float("nan"), 2.0, 0), Epoch(1, 1.5, 1.6, 30.0), Epoch(2, 1.2, 1.3, 30.0)),
    {"y": 20.0}, 0.97, 90.0,
)  # fmt: skip
MADE = {
    "command": ["in.onnx", "out file.onnx"],
    "metadata": {"onnxcompress.config": '{"methods":["3 bits"],"seed":0}'},
    "sha256": {"in.onnx": "ab" * 32},
    "versions": {"onnx": "1.2.3"},
}
WHOLE = Report(
    target="5 times smaller file",
    rows=(
        row("a"),
        row("b", method="", nbytes=(400, 400), note="not compressed: it is small"),
        row("c"),
    ),
    skipped={"d": "its weight is computed"},
    comparison=COMPARISON,
    refined=REFINED,
    trade_off=CURVE,
    hurting={"it's": 0.4},
    skips={"it's": "--skip 'it'\"'\"'s' --skip too"},
    provenance=MADE,
)


def render(report, **given):
    text = page.render(report, "in.onnx → out.onnx", "written to out.onnx", **given)
    return text, Parsed(text)


def test_the_sections_come_in_order():
    _, found = render(WHOLE)
    assert found.text["h2"] == [
        "Before and after", "Trade-off", "Layers", "Left as they are, and why", "Layers that hurt",
        "Refinement", "How it was made",
    ]  # fmt: skip
    [verdict] = found.text["h1"]
    assert verdict.startswith("Asked: 5 times smaller file. Reached: file 5.00 times smaller, ")
    assert "top1 91.50 → 91.00" in verdict and "memory as the original" in verdict
    said = "Same class on 63 of 64 held-out samples (98.4 %, 95 % interval 92 to 100)."
    assert found.text["p"][1] == said and found.attributes["p"][1] == {"class": "quality"}
    assert any("--skip 'it'\"'\"'s' --skip too" in text for text in found.text["pre"])
    assert found.text["pre"][-1] == "onnxcompress in.onnx 'out file.onnx'"
    everything = found.text["body"][0]
    for fact in (
        "12.0",
        "13.0",
        "0.9",
        "its weight is computed",
        "ab" * 32,
        "1.2.3",
        "seed",
        "3 bits",
    ):
        assert fact in everything
    names = [title for title in found.text["title"] if "4 bits everywhere" in title]
    assert len(names) == 1 and "3.33, 10.0 dB" in names[0]


def test_the_page_tells_what_the_table_and_the_json_tell():
    _, found = render(WHOLE)
    cells = found.text["td"]
    for fact in words.facts(COMPARISON, "held-out", REFINED):
        assert {fact.before, fact.between, fact.after, fact.note} <= set(cells)
    assert WHOLE.to_dict()["trade_off"]["chosen"] == (2000, 12)
    assert WHOLE.to_dict()["comparison"]["shares"]["y"]["agreed"] == 63
    assert "63 of 64" in cells
    json.dumps(WHOLE.to_dict())


def test_decisions_that_changed_are_coloured_and_a_layer_is_named_as_it_is():
    shares = {"y": Share("classes", 91, 100, 100)}
    both = replace(COMPARISON, shares=shares)
    _, found = render(replace(WHOLE, comparison=both, warnings=("conv10 alone causes 90%",)))
    assert {"class": "bad"} in found.attributes["tr"]
    assert {"class": "quality worse"} in found.attributes["p"]
    assert any("Warning: conv10 alone" in text for text in found.text["p"])
    few = replace(COMPARISON, shares={"y": Share("classes", 15, 16, 16)})  # one of few says little
    _, found = render(replace(WHOLE, comparison=few))
    assert {"class": "bad"} not in found.attributes["tr"]
    assert [title for title in found.text["th"] if title.startswith(("KB", "MMACs"))] == [
        "KB before", "KB after", "MMACs before", "MMACs after",
    ]  # fmt: skip
    assert {"1", "2", "3"} <= set(found.text["text"])


def test_what_layers_compute_in_is_on_the_page_and_in_the_table_where_it_is_not_float():
    rows = (row("a", arithmetic="int8 (static ranges)"), row("b"))
    for text in (render(replace(WHOLE, rows=rows))[0], str(replace(WHOLE, rows=rows))):
        assert "1 of 2 layers compute in int8" in text and "computes in" in text
        assert "int8 (static ranges)" in text
    assert "computes in" not in render(WHOLE)[0]


def test_how_long_it_took_is_on_the_page():
    _, found = render(replace(WHOLE, seconds=75.2))
    assert "1 min 15 s" in found.text["dd"] and "duration" in found.text["dt"]


def test_a_missed_target_is_the_first_thing_said():
    _, found = render(replace(WHOLE, failures=("the SNR is 3.00 dB instead of 30",)))
    [verdict] = found.text["h1"]
    assert verdict.endswith("Missed: the SNR is 3.00 dB instead of 30.")
    assert found.attributes["h1"] == [{"class": "worse"}]


def test_nothing_that_a_model_brings_along_is_markup():
    snr = {HOSTILE: 25.0}
    report = replace(
        WHOLE,
        rows=(row(HOSTILE, note=HOSTILE), row("b", method="", note=HOSTILE)),
        skipped={HOSTILE + "2": HOSTILE},
        comparison=replace(COMPARISON, snr=snr, metric=HOSTILE),
        hurting={HOSTILE: 0.5},
        skips={HOSTILE: HOSTILE},
        warnings=(HOSTILE,),
        failures=(HOSTILE,),
        provenance=MADE | {"command": [HOSTILE], "metadata": {HOSTILE: HOSTILE}},
    )
    for some in (report, replace(report, points=(Point(HOSTILE, 2, 9, 20, None, 1.0),) * 3)):
        text = page.render(some, HOSTILE, HOSTILE, HOSTILE)
        found = Parsed(text)
        assert len(found.text["script"]) == 1 and "alert" not in found.text["script"][0]
        assert "img" not in found.attributes and "49" not in found.text["h1"][0]
        assert not {"\0", "\u202e"} & set(text)
        assert not any(
            key.startswith("on") for a in found.attributes.values() for e in a for key in e
        )
        assert "<script>alert(1)" in found.text["body"][0]


def test_the_page_needs_nothing_from_elsewhere_and_runs_its_own_script_alone():
    text, found = render(WHOLE)
    policy = found.attributes["meta"][2]["content"]
    assert policy.startswith("default-src 'none'") and "script-src 'sha256-" in policy
    sources = [e.get("src") or e.get("href") for found in found.attributes.values() for e in found]
    assert {source for source in sources if source} == {"data:,"}
    assert "url(" not in text and "@import" not in text


@pytest.mark.parametrize("name", ["layer", "深い層" * 60, "<&'\">" * 100])
def test_a_page_of_thousands_of_layers_is_below_a_megabyte_and_says_what_it_leaves_out(name):
    rows = tuple(row(f"{i}{name}", nbytes=(9000 - i, 10)) for i in range(6000))
    skipped = {f"{name}{i}": "it is small" for i in range(5000)}
    text, found = render(replace(WHOLE, rows=rows, skipped=skipped))
    assert 100_000 < len(text.encode()) < 1_000_000
    shown = len([a for a in found.attributes["g"] if a["class"] == "layer"])
    assert f"{6000 - shown:,} smaller ones of 6,000" in " ".join(
        found.text["figcaption"][1].split()
    )
    assert "4,960 more" in found.text["dd"][0]


def test_a_report_of_which_nothing_is_known_is_a_page_all_the_same():
    _, found = render(Report())
    assert found.text["h1"] == ["No result."] and "svg" not in found.text
    _, found = render(replace(WHOLE, rows=(), trade_off=None, refined=None, hurting={}))
    assert "Layers" not in found.text["h2"] and "Before and after" in found.text["h2"]


def test_random_samples_are_no_measurement():
    both = replace(COMPARISON, real=False, agreement=None, shares={})
    _, found = render(replace(WHOLE, comparison=both))
    assert any("random inputs, which say little" in text for text in found.text["p"])
    assert not any("this result" in title for title in found.text["title"])
    said = "SNR 25.0 dB on 64 RANDOM samples, QUALITY NOT CHECKED ON YOUR DATA"
    assert said in found.text["p"][1]


def test_pictures_that_stand_in_are_no_measurement_on_the_users_data():
    both = replace(COMPARISON, real=False, pictures=True)
    _, found = render(replace(WHOLE, comparison=both))
    assert any("pictures that stand in" in text for text in found.text["p"])
    assert "on 63 of 64 STAND-IN samples" in found.text["p"][1]
    assert "QUALITY NOT CHECKED ON YOUR DATA (no samples=...)" in found.text["p"][1]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((100, 80), (105, 84), "memory as the original"),
        ((100, 80), (210, 82), "2.1 times the memory to load"),
        ((100, 80), (210, 160), "2.1 times the memory to load, 2.0 times the memory once loaded"),
        ((100, 80), (60, 20), "25% of the memory"),
        ((None, None), (105, 84), ""),
    ],
)
def test_memory_is_told_where_it_was_measured(before, after, said):
    sizes = [Size(10, 9, 5, None, *memory) for memory in (before, after)]
    both = replace(COMPARISON, before=sizes[0], after=sizes[1])
    parts = words.reached(replace(WHOLE, comparison=both)).partition(";")[0].split(", ")
    assert ", ".join(part for part in parts if "memory" in part) == said


def test_a_sweep_is_its_points_and_their_curve():
    points = tuple(
        Point(f"{n} times smaller file", n, 9, 40 - n, None, 90 - n, 90.5) for n in (2, 4)
    )
    _, found = render(Report(points=points, provenance=MADE), metric="top5")
    assert found.text["h2"] == ["Trade-off", "Points", "How it was made"]
    assert len(found.attributes["circle"]) == 2 and "original" in "".join(found.text["text"])
    assert "top5" in found.text["th"]
    _, found = render(Report(points=tuple(replace(p, metric=None) for p in points)))
    assert "top1" not in found.text["th"]


def test_a_sweep_of_which_nothing_could_be_measured_is_a_page_without_a_curve():
    _, found = render(Report(points=(Point("9 times smaller file", failures=("too far",)),)))
    assert found.text["h1"] == ["No target is met."] and found.text["h2"] == ["Points"]
    assert "refused: too far" in found.text["td"]


def test_a_report_prints_as_the_command_line_prints_it_but_for_colours(monkeypatch):
    printed = tables.render_report(WHOLE, "", quiet=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in str(WHOLE) and "\x1b" in tables.render_report(WHOLE, "", quiet=False)
    monkeypatch.delenv("FORCE_COLOR")
    assert str(WHOLE) == printed and "5 times smaller" not in printed
    assert repr(WHOLE) == f"<Report: {words.reached(WHOLE)}>"
    assert "held-out" not in str(Report(comparison=COMPARISON))
    assert str(Report(points=(Point("a", 2, 9, 20),))).startswith("target  ")


def test_a_notebook_shows_the_page_without_its_script(monkeypatch):
    text = replace(WHOLE, warnings=(HOSTILE,))._repr_html_()
    found = Parsed(text)
    assert found.text["h2"][0] == "Before and after" and "Refinement" in found.text["h2"]
    assert "script" not in found.text and "How it was made" not in text and ":root" not in text
    monkeypatch.setattr(page, "jinja2", None)
    assert replace(WHOLE, target="", rows=(row("<b>"),))._repr_html_().startswith("<pre>layer")
    assert "<b>" not in replace(WHOLE, rows=(row("<b>"),))._repr_html_()


def test_a_report_is_a_data_frame_where_pandas_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    first, *_ = WHOLE.to_dataframe()
    assert (first["layer"], first["nbytes_before"], first["nbytes_after"]) == ("a", 4000, 500)
    [point] = Report(points=(Point("half", 2, 9, 20),)).to_dataframe()
    assert (point["ratio"], point["macs"]) == (2, 9)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(OnnxCompressError, match="pip install pandas"):
        WHOLE.to_dataframe()


def test_without_jinja2_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(page, "jinja2", None)
    with pytest.raises(page.PageError, match=r"pip install 'onnxcompress\[report\]'"):
        page.check()


# ------------------------------------------------------------------------------ in a real browser


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe id="frame" src="page.html" style="width:WIDTHpx;height:900px"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("frame").addEventListener("load", (event) => {
  const view = event.target.contentWindow, page = view.document;
  const all = (what) => [...page.querySelectorAll(what)];
  const texts = (what) => all(what).map((element) => element.textContent);
  const found = document.getElementById("found");
  try { found.textContent = JSON.stringify((() => { SCRIPT })()); }
  catch (error) { found.textContent = JSON.stringify(String(error)); }
});
</script>"""


@pytest.fixture
def browse(tmp_path):
    """Opens a report in chromium, runs a script on it, and gives what this returns.

    Whatever the browser asks for but the page, and whatever it writes to its console, is an error.
    """
    if not BROWSER:
        pytest.skip("needs chromium")
    (tmp_path / "site").mkdir()
    asked = []

    class Site(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=tmp_path / "site"))
    Thread(target=server.serve_forever, daemon=True).start()

    def browse(report, script, width=1000):
        driver = DRIVER.replace("SCRIPT", script).replace("WIDTH", str(width))
        (tmp_path / "site" / "driver.html").write_text(driver, "utf-8")
        (tmp_path / "site" / "page.html").write_text(page.render(report, "in → out"), "utf-8")
        done = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr", "--dump-dom",
             f"http://127.0.0.1:{server.server_address[1]}/driver.html"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr, done.stderr
        assert {*asked} == {"/driver.html", "/page.html"}
        return json.loads(unescape(done.stdout.split('<pre id="found">')[1].split("</pre>")[0]))

    yield browse
    server.shutdown()
    server.server_close()


SOME = replace(WHOLE, rows=(row("a", error=0.2), row("b", error=0.03), row("c", error=0.1)))


def test_a_browser_sorts_the_table_by_the_head_that_is_pressed(browse):
    order = """
      const names = () => texts("#table tbody th").join("");
      const head = (name) => all("#table thead button").find((b) => b.textContent === name);
      const seen = [names()];
      for (const name of ["error", "error", "layer", "layer", "#"]) {
        head(name).click();
        seen.push(names() + " " + head(name).parentElement.getAttribute("aria-sort"));
      }
      return seen;"""
    assert browse(SOME, order) == [
        "abc", "acb descending", "bca ascending", "abc ascending", "cba descending",
        "abc ascending",
    ]  # fmt: skip


def test_a_browser_orders_the_bars_and_tells_of_each_by_mouse_and_by_keyboard(browse):
    script = """
      const svg = page.querySelector("#layers svg");
      const order = () => all(".layer")
        .map((layer) => [layer.getBoundingClientRect().x, layer.textContent[0]])
        .sort((a, b) => a[0] - b[0]).map((pair) => pair[1]).join("");
      const told = () => texts(".told")[0].slice(0, 1) + texts("tr.on th").join("");
      page.head.append(Object.assign(page.createElement("style"),
                                     {textContent: ".layer { transition: none !important }"}));
      const press = (key) => svg.dispatchEvent(new view.KeyboardEvent("keydown", {key}));
      const seen = [svg.tabIndex, order()];
      all(".layer")[1].dispatchEvent(new view.MouseEvent("mouseenter"));
      seen.push(told());
      all(".order button")[1].click();
      seen.push(order());
      for (const key of ["Home", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"]) {
        press(key);
        seen.push(told());
      }
      return seen;"""
    assert browse(SOME, script) == [0, "abc", "bb", "acb", "aa", "cc", "bb", "bb", "cc"]


@pytest.mark.parametrize("width", [1000, 360])
def test_a_browser_shows_the_curves_and_nothing_is_wider_than_the_window(browse, width):
    script = """
      const boxes = all("polyline, #layers svg").map((e) => e.getBoundingClientRect());
      return [boxes.length, boxes.every((box) => box.width > 100 && box.height > 20),
              page.documentElement.scrollWidth <= view.innerWidth];"""
    assert browse(SOME, script, width) == [4, True, True]


def test_a_browser_runs_nothing_that_a_model_brings_along(browse):
    rows = (row(HOSTILE), row("b"), row("c"))
    report = replace(SOME, rows=rows, warnings=(HOSTILE,), provenance=MADE | {"machine": HOSTILE})
    script = """
      const sort = all("#table thead button").find((b) => b.textContent === "layer");
      sort.click();
      all(".layer")[0].dispatchEvent(new view.MouseEvent("mouseenter"));
      return [all("img").length, all("script").length, texts(".told")[0].slice(0, 25)];"""
    assert browse(report, script) == [0, 1, HOSTILE[:25]]
