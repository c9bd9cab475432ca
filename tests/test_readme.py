"""What the README and the documentation show is true: commands and Python run, figures exist."""

import re
from pathlib import Path

import pytest

import onnxcompress
from onnxcompress.cli.commands import cli, main
from onnxcompress.data.preprocess import Preprocessing
from onnxcompress.execution.latency import Latency

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = re.findall(  # and what they are shown to print
    r"^    (?:.*\.venv/bin/)?onnxcompress (.*)\n(?:\n```\n([^`]*)```)?", README, re.MULTILINE
)
FIGURE = r"[-+]?\d[\d.,]*"
EXAMPLES = dict.fromkeys(
    block
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
)


@pytest.mark.parametrize("block", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_python_example_runs(block, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "example"}
    exec(compile(block, "example", "exec"), space)
    assert "smaller" in space or "model" in space


def test_a_users_method_makes_the_file_smaller(tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    [example] = [block for block in EXAMPLES if "class Narrow" in block]
    space = {"__name__": "example"}
    exec(compile(example, "own-methods.md", "exec"), space)
    assert space["report"].comparison.ratio > 1.9
    assert not space["report"].worse


def test_every_command_of_the_readme_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 6
    for command, shown in COMMANDS:
        _clock(shown, monkeypatch)
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), *_quick(command)])
        printed = capsys.readouterr().out.splitlines()
        assert stop.value.code in (0, None), command
        found = {_words(line): _figures(line) for line in printed}
        for line in filter(lambda line: line.strip("."), shown.splitlines()):
            assert _words(line) in found, line
            if line.startswith(("file", "weights", "multiplications", "top1")):
                assert found[_words(line)] == pytest.approx(_figures(line), rel=0.05)


def _quick(command):
    """Few samples, and two settings where all would be tried: sizes stay, scores hardly move."""
    few = ["--samples", "64"] if "--calib" in command else []
    two = ["--method", "integer:bits=4", "--method", "integer:bits=2"]
    return [*few, *two] if "--ratio" in command else few


def _clock(shown, monkeypatch):
    """A machine on which the models take as long as shown, or equally long."""
    times = [_figures(line) for line in shown.splitlines() if line.startswith("latency")]
    before, after, ratio, low, high = times[0] if times else (1, 1, 1, 0.9, 1.1)
    level = Latency(before=before, after=after, ratio=ratio, low=low, high=high)
    monkeypatch.setattr("onnxcompress.compression.validate.validation.latency", lambda *_: level)


def _words(line):
    return " ".join(re.sub(FIGURE, "#", line).split())


def _figures(line):
    """The numbers of a line, but for a difference: it is as uncertain as it is large."""
    line = line.partition("; same class")[0]  # which depends on how many samples there are
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![-+.\w])\d[\d,]*(?:\.\d+)?", line)]


def test_every_figure_of_the_readme_is_in_the_results():
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    figures = set(re.findall(r"\d+\.\d+(?= ?(?:%|x |dB|→|\|))", prose))
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert len(figures) > 10
    assert figures <= set(re.findall(r"\d+\.\d+", results))


def test_every_link_of_the_readme_leads_to_a_file():
    links = re.findall(r"\]\((.*?)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_layout_names_exactly_the_folders_of_the_package():
    [block] = re.findall(r"```\n(onnxcompress/\n.*?)```", README, re.DOTALL)
    shown = re.findall(r"^ +(\w+)/", block, re.MULTILINE)
    package = ROOT / "onnxcompress"
    folders = (path for path in package.rglob("*") if path.is_dir())
    assert sorted(shown) == sorted(p.name for p in folders if p.name != "__pycache__")


def test_every_public_name_is_explained_in_the_documentation():
    text = "".join(page.read_text() for page in PAGES)
    explained = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", text, re.M)}
    explained |= set(re.findall(r"\w+", " ".join(re.findall(r"members: \[(.*?)\]", text))))
    missing = set(onnxcompress.__all__) - explained - {"METHODS"}
    assert {name for name in missing if not name.endswith("Error")} == set()


def test_the_keys_of_a_preprocessing_file_are_those_that_the_page_lists():
    page = (ROOT / "docs/data.md").read_text()
    [rows] = re.findall(r"\| key \| default \| value \|\n\|---.*\n((?:\|.*\n)+)", page)
    shown = [[cell.strip("` ") for cell in row.split("|")[1:-1]] for row in rows.splitlines()]
    assert shown == [
        [key, "" if f.default is None else str(f.default), f.description]
        for key, f in Preprocessing.model_fields.items()
    ]


def test_its_two_set_up_commands_are_where_continuous_integration_looks_for_them():
    commands = re.findall(r"^ *(python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert "onnxcompress models/cifar10_resnet.onnx" in commands[0]
    assert commands[1].endswith("pytest -q -n auto")


def test_every_option_that_the_documentation_names_exists():
    known = {word for command in cli.commands.values() for p in command.params for word in p.opts}
    for page in PAGES:
        for line in re.findall(
            r"^ *(?:- run: )?(onnxcompress .*)$", page.read_text(), re.MULTILINE
        ):
            assert set(re.findall(r"--[a-z-]+", line)) <= known, line
