"""Who may import what.  These two tables are the architecture."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "onnxcompress"

OWNERS = {  # library -> the modules that know it; numpy is everywhere
    "onnx": {"graph"},
    "onnx_graphsurgeon": {"graph"},
    "google": {"graph"},
    "onnxruntime": {"runtime"},
    "click": {"asked", "cli", "options"},
    "rich": {"tables"},
    "jinja2": {"page"},
    "PIL": {"preprocess", "data"},
    "yaml": {"preprocess"},
    "pydantic": {"config", "preprocess"},
    "threadpoolctl": {"parallel"},
    "loky": {"parallel"},
    "cloudpickle": {"cluster", "parallel"},
    "dask": {"cluster"},
    "distributed": {"cluster"},
    "einops": {"methods"},
    "torch": {"distillation", "latents", "refine", "torch_graph"},
}
BELOW = {  # module -> the modules of ours that it may import
    "core": set(),
    "cache": set(),
    "config": {"preprocess"},
    "cluster": {"parallel"},
    "coded": {"parallel", "core", "rounding"},
    "curves": {"budget", "core", "graph", "measuring", "metrics", "report"},
    "wording": {"report"},
    "page": {"plots", "report", "wording"},
    "plots": {"report", "wording"},
    "packed": {"core", "methods"},
    "parallel": set(),
    "preprocess": set(),
    "targets": set(),
    "budget": {"core"},
    "calibration": {"core"},
    "graph": {"core"},
    "factors": {"core"},
    "methods": {"coded", "core", "factors", "packing", "rounding"},
    "metrics": {"core"},
    "packing": {"core"},
    "rounding": {"core", "factors"},
    "data": {"graph", "preprocess"},
    "runtime": {"graph"},
    "expansion": {"graph", "runtime"},
    "specs": {"core", "methods", "packed", "preprocess", "targets"},
    "report": {"runtime"},
    "tables": {"report", "wording"},
    "inspection": {
        *{"core", "data", "graph", "measuring", "methods", "metrics", "preprocess", "validation"},
    },
    "measuring": {"calibration", "core", "data", "graph", "metrics", "parallel", "runtime"},
    "refine": {
        *{"cache", "core", "data", "distillation", "graph", "measuring", "parallel", "report"},
        *{"latents", "runtime", "torch_graph"},
    },
    "distillation": {"core", "data", "graph", "metrics", "parallel", "preprocess", "runtime"},
    "latents": {"core", "graph"},
    "torch_graph": {"core", "graph"},
    "refit": {"calibration", "core", "graph", "metrics", "parallel", "runtime"},
    "validation": {
        *{"core", "data", "graph", "measuring", "metrics", "parallel"},
        *{"report", "runtime", "targets"},
    },
    "candidates": {"core", "graph", "measuring", "parallel"},
    "limits": {
        *{"budget", "core", "curves", "graph", "measuring", "parallel", "runtime", "targets"},
    },
    "building": {"candidates", "core", "graph", "measuring", "refit", "validation"},
    "pipeline": {
        *{"budget", "building", "cache", "candidates", "cluster", "core", "curves", "data"},
        *{"graph", "limits", "measuring", "parallel", "refit", "report", "runtime", "specs"},
        *{"targets", "validation"},
    },
    "asked": {
        *{"config", "core", "data", "graph", "methods", "metrics", "page", "preprocess", "refine"},
        *{"runtime", "specs", "tables", "targets"},
    },
    "options": {"asked"},
    "provenance": {"core", "data", "graph", "targets"},
}
TOP = {
    "asked",
    "cli",
    "options",
    "provenance",
    "__init__",
    "__main__",
    "supervisor",
}  # may import all of ours; none imports them
STARTERS = {"__main__": {"supervisor"}, "supervisor": {"cli"}}  # of the command line
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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
    return {name.split(".")[1] for name in imports(path) if name.startswith("onnxcompress.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_downwards(path):
    module = module_of(path)
    if module in TOP:
        allowed = STARTERS.get(module, set(BELOW))
    else:
        assert module in BELOW, f"{module} is missing in the table"
        allowed = BELOW[module] | {module}
    assert ours(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_library_is_known_to_its_owners_alone(path):
    libraries = {name.split(".")[0] for name in imports(path)}
    for library in libraries - set(sys.stdlib_module_names) - {"onnxcompress", "numpy"}:
        assert library in OWNERS, f"{library} has no owner"
        assert module_of(path) in OWNERS[library]


def test_the_tables_allow_nothing_that_is_not_used():
    used = {module: set() for module in BELOW}
    owners = {library: set() for library in OWNERS}
    for path in FILES:
        module = module_of(path)
        if module in used:
            used[module] |= ours(path) - {module}
        for name in imports(path):
            if name.split(".")[0] in owners:
                owners[name.split(".")[0]].add(module)
    assert used == BELOW
    assert owners == OWNERS


def test_the_core_imports_numpy_and_nothing_else():
    libraries = {name.split(".")[0] for name in imports(PACKAGE / "core.py")}
    assert libraries - set(sys.stdlib_module_names) == {"numpy"}
