"""What the README and the documentation show is true: their Python runs, commands exist."""

import re
from pathlib import Path

import pytest

from onnxcompress.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
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
    [example] = [block for block in BLOCKS if "class Narrow" in block]
    space = {"__name__": "example"}
    exec(compile(example, "README.md", "exec"), space)
    assert space["report"].comparison.ratio > 1.9
    assert not space["report"].worse


def test_the_layout_names_exactly_the_files_of_the_package():
    [block] = re.findall(r"```\n(onnxcompress/\n.*?)```", README, re.DOTALL)
    shown = set(re.findall(r"^ +(\w+\.py|\w+/)", block, re.MULTILINE))
    package = ROOT / "onnxcompress"
    files = {path.name for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert shown == files | {"graph/", "methods/", "templates/"}


def test_its_two_set_up_commands_are_where_continuous_integration_looks_for_them():
    commands = re.findall(r"^ *(python3 -m venv .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    assert "onnxcompress models/cifar10_resnet.onnx" in commands[0]
    assert commands[1].endswith("pytest -q")


def test_every_option_that_the_documentation_names_exists():
    known = {word for command in cli.commands.values() for p in command.params for word in p.opts}
    for page in PAGES:
        for line in re.findall(
            r"^ *(?:- run: )?(onnxcompress .*)$", page.read_text(), re.MULTILINE
        ):
            assert set(re.findall(r"--[a-z-]+", line)) <= known, line
