"""The public names.  This is their only list: each is imported when somebody asks for it."""

from .compression.expand import expand
from .compression.measure.calibrate import calibrate
from .compression.pipeline import compress, trade_off
from .compression.search.candidates import sweep
from .compression.simplify import simplify
from .compression.target import Target
from .core.errors import (
    BudgetError,
    CompressionError,
    DataError,
    ModelError,
    OnnxCompressError,
    TargetError,
)
from .core.layer import Layer
from .core.method import Candidate, CompressedWeight, DecodedWeight, Method
from .core.statistics import Statistics
from .data.inputs import input_specs
from .data.load import load_samples
from .data.random import random_samples
from .data.samples import Samples
from .graph import (
    Model,
    add_constant,
    bypass,
    drop_constants,
    drop_dead,
    drop_identities,
    drop_unread,
    find_layers,
    fold_affine,
    fold_batchnorm,
    fold_pads,
    load,
    name_nodes,
    rewrite,
    save,
    strip,
)
from .methods import METHODS
from .methods.basis import Basis
from .methods.binary import Binary
from .methods.codebook import Codebook
from .methods.composed import Packed
from .methods.half import Half
from .methods.hashed import Hashed
from .methods.integer import Integer
from .report.report import Comparison, Point, Report

__all__ = [
    "METHODS",
    "Basis",
    "Binary",
    "BudgetError",
    "Candidate",
    "Codebook",
    "Comparison",
    "CompressedWeight",
    "CompressionError",
    "DataError",
    "DecodedWeight",
    "Half",
    "Hashed",
    "Integer",
    "Layer",
    "Method",
    "Model",
    "ModelError",
    "OnnxCompressError",
    "Packed",
    "Point",
    "Report",
    "Samples",
    "Statistics",
    "Target",
    "TargetError",
    "add_constant",
    "bypass",
    "calibrate",
    "compress",
    "drop_constants",
    "drop_dead",
    "drop_identities",
    "drop_unread",
    "expand",
    "find_layers",
    "fold_affine",
    "fold_batchnorm",
    "fold_pads",
    "input_specs",
    "load",
    "load_samples",
    "name_nodes",
    "random_samples",
    "rewrite",
    "save",
    "simplify",
    "strip",
    "sweep",
    "trade_off",
]

__version__: str
