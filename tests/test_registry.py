"""Methods of other packages join by an entry point, and a broken one disturbs nobody."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnxcompress import methods
from onnxcompress.compression.method_spec import method_named
from onnxcompress.core.errors import OnnxCompressError
from onnxcompress.methods import METHODS

OURS = set(METHODS)  # looked up before any package of these tests is there
DOCS = Path(__file__).parents[1] / "docs" / "own-methods.md"


def packaged(folder, name, entry, source):
    """A package of one module, as pip leaves it."""
    (folder / f"{name}.py").write_text(source, "utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[onnxcompress.methods]\n{entry} = {name}:Narrow\n")


@pytest.fixture
def example():
    """The method of the documentation, as a package would hold it."""
    [code] = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    code = code[: code.index("\nmodel = oc.load")]
    return code.replace(
        "import onnxcompress as oc", "import onnxcompress as oc\nfrom onnxcompress import Method"
    )


@pytest.fixture
def registry(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return methods._Registry()


def test_a_packaged_method_is_one_of_the_methods_but_not_of_auto(tmp_path, registry, example):
    packaged(tmp_path, "their_narrow", "narrow", example)
    assert set(registry) == OURS | {"narrow"}
    assert registry["narrow"].__name__ == "Narrow" and not registry["narrow"].auto


@pytest.mark.parametrize(
    ("source", "reason"),
    [("import nowhere_to_be_found", "ModuleNotFoundError"), ("Narrow = 3", "no Method")],
)
def test_a_broken_package_is_named_in_one_line_and_the_others_stay(
    source, reason, tmp_path, registry, monkeypatch
):
    packaged(tmp_path, f"broken_{len(reason)}", "broken", source)
    with pytest.warns(RuntimeWarning, match=reason):
        assert set(registry) == OURS
    monkeypatch.setattr("onnxcompress.compression.method_spec.METHODS", registry)
    with pytest.raises(OnnxCompressError, match=f"'broken' of broken_.*{reason}"):
        method_named("broken")


def test_the_command_line_offers_a_packaged_method(tmp_path, example):
    packaged(tmp_path, "their_narrow", "narrow", example)
    path = os.pathsep.join([str(tmp_path), str(DOCS.parents[1])])
    command = [sys.executable, "-m", "onnxcompress", "methods"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert ran.returncode == 0 and b"narrow" in ran.stdout and not ran.stderr
