"""Who may import what.  These two tables are the architecture."""

import ast
import re
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "onnxcompress"

BELOW = {  # folder -> the other folders that it may import, bottom up
    "core": set(),
    "graph": {"core"},
    "data": {"core", "graph"},
    "methods": {"core"},
    "execution": {"core", "graph"},
    "report": {"core", "execution"},
    "compression": {"core", "graph", "data", "methods", "execution", "report"},
    "refinement": {"core", "graph", "data", "execution", "report", "compression"},
    "cli": {
        *{"core", "graph", "data", "methods", "execution", "report", "compression", "refinement"},
    },
}
OWNERS = {  # library -> the folders or files that know it; numpy is everywhere
    "onnx": {"graph"},
    "onnx_graphsurgeon": {"graph"},
    "google": {"graph"},
    "onnxruntime": {"execution/session.py"},
    "click": {"cli"},
    "rich": {"report/progress.py", "report/tables.py"},
    "jinja2": {"report/page.py"},
    "IPython": {"report/progress.py"},
    "pandas": {"report/report.py"},
    "PIL": {"data"},
    "yaml": {"data/preprocess.py"},
    "pydantic": {"cli/config_file.py", "cli/json_schema.py", "data/preprocess.py"},
    "threadpoolctl": {"core/parallel.py"},
    "loky": {"core/parallel.py"},
    "cloudpickle": {"execution/dask.py", "core/parallel.py"},
    "dask": {"execution/dask.py"},
    "distributed": {"execution/dask.py"},
    "einops": {"methods"},
    "scipy": {"methods"},
    "torch": {"refinement"},
    "lazy_loader": {"__init__.py"},
}
ROOT = {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}
FILES = sorted(PACKAGE.rglob("*.py"))


def place(path):
    """The file as the tables name it."""
    return path.relative_to(PACKAGE).as_posix()


def folder_of(path):
    return place(path).partition("/")[0]


def imports(path):
    """Dotted names of everything that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "onnxcompress":
            yield from (f"onnxcompress.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def ours(path):
    """The folders of ours that a file imports, without its own."""
    names = {name.split(".")[1] for name in imports(path) if name.startswith("onnxcompress.")}
    return names - {folder_of(path)}


def owner_of(library, path):
    """The entry of the table that lets this file import the library, or None."""
    return next((o for o in OWNERS.get(library, ()) if o in (place(path), folder_of(path))), None)


def test_the_root_holds_folders_and_nothing_else_but_the_package_itself():
    seen = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert seen == ROOT | BELOW.keys()


@pytest.mark.parametrize("path", FILES, ids=place)
def test_imports_point_downwards(path):
    if path.parent != PACKAGE:
        assert ours(path) <= BELOW[folder_of(path)]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_a_library_is_known_to_its_owners_alone(path):
    libraries = {name.split(".")[0] for name in imports(path)}
    for library in libraries - set(sys.stdlib_module_names) - {"onnxcompress", "numpy"}:
        assert owner_of(library, path), f"{place(path)} must not import {library}"


def test_the_tables_allow_nothing_that_is_not_used():
    used = {folder: set() for folder in BELOW}
    owners = {library: set() for library in OWNERS}
    for path in FILES:
        if path.parent != PACKAGE:
            used[folder_of(path)] |= ours(path)
        for name in imports(path):
            library = name.split(".")[0]
            if library in owners:
                owners[library].add(owner_of(library, path))
    assert used == BELOW
    assert owners == OWNERS


def test_the_core_imports_numpy_and_what_runs_in_parallel():
    libraries = {name.split(".")[0] for p in (PACKAGE / "core").glob("*.py") for name in imports(p)}
    known = {"numpy", "threadpoolctl", "loky", "cloudpickle", "onnxcompress"}
    assert libraries - set(sys.stdlib_module_names) == known


# These show what `inspect` and `methods` print, which are commands and nothing else, or name the
# options of other people's commands.
SPEAK_OF_OPTIONS = {
    "report/tables.py": {"ADVICE", "_int8", "_facts", "_next_step", "render_method"},
    "compression/judge.py": {"UNDONE"},
}


def messages(path):
    """All text in a file but docstrings, each with the name of what it stands in at the top."""
    for outer in ast.parse(path.read_text("utf-8")).body:
        name = getattr(outer, "name", None) or ast.unparse(getattr(outer, "targets", [outer])[0])
        notes = {id(node.value) for node in ast.walk(outer) if isinstance(node, ast.Expr)}
        for node in ast.walk(outer):
            if isinstance(node, ast.Constant) and id(node) not in notes:
                yield name, str(node.value)


@pytest.mark.parametrize("path", FILES, ids=place)
def test_below_the_command_line_no_message_speaks_of_an_option(path):
    if folder_of(path) == "cli":
        return
    known = SPEAK_OF_OPTIONS.get(place(path), set())
    for name, text in messages(path):
        assert name in known or not re.search(r"(^|[\s(])(?<!var\()--[a-z]", text), text


@pytest.mark.parametrize("path", [*PACKAGE.glob("report/templates/*.html")], ids=place)
def test_no_page_speaks_of_an_option_by_itself(path):
    assert not re.search(r"(^|[\s(>])--[a-z]", path.read_text("utf-8"))


def test_modules_and_functions_fit_on_few_screens_and_one():
    for path in FILES:
        text = path.read_text("utf-8")
        assert text.count("\n") < 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if node.name == "compress":  # its docstring says what two dozen keywords mean
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                assert lines < 50, (path, node.name)
