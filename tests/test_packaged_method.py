"""A method that another package offers works as ours do: listed, applied, inspected, chosen."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own-methods.md").read_text()
MODEL = ROOT / "models/cifar10_resnet.onnx"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the distribution of the documentation's example, as pip lays it out."""
    folder = tmp_path_factory.mktemp("packages")
    [example] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    [entry] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    code, _, _ = example.partition("\nmodel = ")  # what follows uses the method
    (folder / "my_package.py").write_text(code)
    metadata = folder / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entry = entry.replace("[project.entry-points.", "[").replace('"', "")
    (metadata / "entry_points.txt").write_text(entry)
    return folder


def run(installed, *words):
    """What the command line prints where the package is installed."""
    path = os.pathsep.join([str(installed), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "onnxcompress", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=installed,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def methods(report):
    return {row["method"] for row in report["rows"]}


def test_it_is_listed_and_explained(installed):
    assert "narrow" in run(installed, "methods")
    assert "Store the weight in 16 bits" in run(installed, "methods", "narrow")


def test_it_compresses_every_layer_when_it_is_named(installed, tmp_path):
    words = (MODEL, tmp_path / "small.onnx", "--method", "narrow", "--json")
    report = json.loads(run(installed, *words))
    assert methods(report) == {"narrow"}
    assert report["comparison"]["ratio"] > 1.9


def test_inspect_says_where_it_applies(installed):
    layers = json.loads(run(installed, "inspect", MODEL, "--json"))["layers"]
    assert all("narrow" in row["methods"] for row in layers if "half" in row["methods"])


def test_auto_leaves_it_alone_unless_it_asks_for_a_part(installed, tmp_path):
    words = (MODEL, tmp_path / "small.onnx", "--method", "integer:bits=8", "--json", "--dry-run")
    assert methods(json.loads(run(installed, *words))) == {"integer:bits=8"}
    code = "from onnxcompress.compression.method_spec import parse; print(*parse('auto'))"
    path = os.pathsep.join([str(installed), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "narrow" not in done.stdout.split()
