"""Compress trained ONNX models after training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcompress.budget import BudgetError
    from onnxcompress.candidates import sweep
    from onnxcompress.core import Candidate, CompressedWeight, Layer, Method, Statistics
    from onnxcompress.data import Samples, input_specs, load_samples, random_samples
    from onnxcompress.expansion import expand
    from onnxcompress.graph import (
        Model,
        ModelError,
        drop_dead,
        find_layers,
        fold_batchnorm,
        fold_pads,
        load,
        name_nodes,
        rewrite,
        save,
    )
    from onnxcompress.measuring import calibrate
    from onnxcompress.methods import METHODS
    from onnxcompress.methods.basis import Basis
    from onnxcompress.methods.binary import Binary
    from onnxcompress.methods.codebook import Codebook
    from onnxcompress.methods.half import Half
    from onnxcompress.methods.hashed import Hashed
    from onnxcompress.methods.integer import Integer
    from onnxcompress.packed import Packed
    from onnxcompress.pipeline import compress, trade_off
    from onnxcompress.report import Comparison, Point, Report
    from onnxcompress.targets import Target, TargetError

__all__ = [
    "METHODS",
    "Basis",
    "Binary",
    "BudgetError",
    "Candidate",
    "Codebook",
    "Comparison",
    "CompressedWeight",
    "Half",
    "Hashed",
    "Integer",
    "Layer",
    "Method",
    "Model",
    "ModelError",
    "Packed",
    "Point",
    "Report",
    "Samples",
    "Statistics",
    "Target",
    "TargetError",
    "calibrate",
    "compress",
    "drop_dead",
    "expand",
    "find_layers",
    "fold_batchnorm",
    "fold_pads",
    "input_specs",
    "load",
    "load_samples",
    "name_nodes",
    "random_samples",
    "rewrite",
    "save",
    "sweep",
    "trade_off",
]

_MODULES = (  # have all of these
    *("pipeline", "candidates", "data", "graph", "targets"),
    *("methods", "methods.basis", "methods.binary", "methods.codebook"),
    *("methods.half", "methods.hashed", "methods.integer", "packed", "expansion"),
)


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the command line starts, and stops, without it all."""
    for module in _MODULES if name in __all__ else ():
        found = vars(import_module(f"onnxcompress.{module}"))
        if name in found:
            globals()[name] = found[name]
            return found[name]
    raise AttributeError(f"module 'onnxcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
