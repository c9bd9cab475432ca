"""The notebooks of the documentation run, and show what they say.

    NOTEBOOKS=1 pytest tests/test_notebooks.py

writes what they show into them, but for the pages of reports.
"""

import os
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_a_report_and_a_plot(path, tmp_path, monkeypatch):
    (tmp_path / "models").symlink_to(ROOT / "models")
    place = tmp_path / "docs" / "notebooks"
    place.mkdir(parents=True)
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the machinery of notebooks
        for library in ("ipykernel", "nbformat", "nbclient", "jinja2"):
            pytest.importorskip(library, reason="needs pip install '.[notebook,report]'")
        if "import torch" in path.read_text("utf-8"):
            pytest.importorskip("torch", reason="this notebook needs torch")
        import nbclient
        import nbformat

        notebook = nbformat.read(path, as_version=4)
        client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": place}})
        client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}) for output in outputs]
    assert any("Before and after" in data.get("text/html", "") for data in shown)
    assert any("image/svg+xml" in data for data in shown)
    assert all(len(output.get("text", "")) < 10_000 for output in outputs)
    assert (place / "small.onnx").stat().st_size > 0
    if "NOTEBOOKS" in os.environ:
        for data in shown:
            data.pop("text/html", None)
        nbformat.write(notebook, path)
