"""The model and graph surgery.  The only files that know onnx and onnx-graphsurgeon."""

from onnxcompress.core.errors import ModelError
from onnxcompress.graph.changes import changed_outputs
from onnxcompress.graph.check import check
from onnxcompress.graph.declared import declared_inputs, declared_outputs, sequences
from onnxcompress.graph.detach import DETACHED_BYTES, detached, sha256
from onnxcompress.graph.edit import add_constant, bypass, drop_constants
from onnxcompress.graph.find_layers import (
    LARGE,
    emptied_inputs,
    find_constants,
    find_layers,
    layer_input,
    layer_inputs,
)
from onnxcompress.graph.input_hints import convolved_inputs, first_scaling, index_ranges
from onnxcompress.graph.load import as_model, load, read_tensor
from onnxcompress.graph.model import Model
from onnxcompress.graph.multiplied import constant_inputs
from onnxcompress.graph.nodes import DECODED, OPERATORS, reads
from onnxcompress.graph.operations import (
    Operation,
    constants_of,
    inner_nodes,
    inner_shapes,
    linear_inputs,
    linear_nodes,
    operations,
    weight_parts,
)
from onnxcompress.graph.passes.annotate import annotate
from onnxcompress.graph.passes.as_float32 import (
    as_float32,
    has_bfloat16,
    has_float16,
    needs_float32,
)
from onnxcompress.graph.passes.compute_int8 import compute_int8
from onnxcompress.graph.passes.drop_dead import drop_dead, drop_unread
from onnxcompress.graph.passes.drop_identities import drop_identities
from onnxcompress.graph.passes.fold_affine import fold_affine, fold_batchnorm
from onnxcompress.graph.passes.fold_constants import fold_constants, fold_smaller
from onnxcompress.graph.passes.fold_pads import fold_pads
from onnxcompress.graph.passes.inline_functions import inline_functions
from onnxcompress.graph.passes.name_nodes import name_nodes
from onnxcompress.graph.passes.strip import strip
from onnxcompress.graph.passes.with_values import with_values
from onnxcompress.graph.reading import Shown, show_inputs
from onnxcompress.graph.rewrite import overhead, rewrite
from onnxcompress.graph.save import digest, save, serialized
from onnxcompress.graph.spill import rest
from onnxcompress.graph.subgraphs import (
    Step,
    custom_operators,
    expose,
    expose_shapes,
    in_steps,
    part,
    segment,
)
from onnxcompress.graph.tensors import tensor_bytes

__all__ = [
    "DECODED",
    "DETACHED_BYTES",
    "LARGE",
    "OPERATORS",
    "Model",
    "ModelError",
    "Operation",
    "Shown",
    "Step",
    "add_constant",
    "annotate",
    "as_float32",
    "as_model",
    "bypass",
    "changed_outputs",
    "check",
    "compute_int8",
    "constant_inputs",
    "constants_of",
    "convolved_inputs",
    "custom_operators",
    "declared_inputs",
    "declared_outputs",
    "detached",
    "digest",
    "drop_constants",
    "drop_dead",
    "drop_identities",
    "drop_unread",
    "emptied_inputs",
    "expose",
    "expose_shapes",
    "find_constants",
    "find_layers",
    "first_scaling",
    "fold_affine",
    "fold_batchnorm",
    "fold_constants",
    "fold_pads",
    "fold_smaller",
    "has_bfloat16",
    "has_float16",
    "in_steps",
    "index_ranges",
    "inline_functions",
    "inner_nodes",
    "inner_shapes",
    "layer_input",
    "layer_inputs",
    "linear_inputs",
    "linear_nodes",
    "load",
    "name_nodes",
    "needs_float32",
    "operations",
    "overhead",
    "part",
    "read_tensor",
    "reads",
    "rest",
    "rewrite",
    "save",
    "segment",
    "sequences",
    "serialized",
    "sha256",
    "show_inputs",
    "strip",
    "tensor_bytes",
    "weight_parts",
    "with_values",
]
