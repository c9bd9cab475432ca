"""What a model is made of, and what of it can be compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcompress.core import Layer
from onnxcompress.data import DataError, input_specs, output_specs, random_samples
from onnxcompress.graph import (
    Model,
    ModelError,
    find_constants,
    find_layers,
    inline_functions,
    linear_nodes,
)
from onnxcompress.measuring import input_shapes
from onnxcompress.methods import METHODS
from onnxcompress.preprocess import InputSpec
from onnxcompress.validation import runnable


def examine(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """A model's layers and facts, as JSON types.

    Args:
        shapes: input name -> shape, where the model leaves it open; multiplications are counted
            for one random sample.  Where that cannot run, ``note`` says why.

    Raises:
        DataError: these shapes do not fit.
    """
    given, model = model, inline_functions(model)
    macs, note = {}, None
    try:
        sample = next(iter(random_samples(input_specs(model), 1, 0, shapes)))
        _, macs = input_shapes(runnable(model), sample)
    except (DataError, ModelError) as error:
        if shapes:
            raise
        note = f"the multiplications are unknown: {error}"
    properties = {entry.key for entry in model.proto.metadata_props}
    return {
        "file": given.nbytes,
        "weights": given.weight_bytes,
        "macs": sum(macs.values()) or None,
        "nodes": len(given.graph.node),
        "opset": model.opset,
        "ir_version": model.proto.ir_version,
        "inputs": [_tensor(spec) for spec in input_specs(model)],
        "outputs": [_tensor(spec) for spec in output_specs(model)],
        "compressed_before": "onnxcompress.version" in properties,
        "layers": list(_rows(model, macs)),
        "note": note,
    }


def _tensor(spec: InputSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "type": str(spec.dtype), "shape": shape}


def _rows(model: Model, macs: Mapping[str, int]) -> list[dict[str, Any]]:
    """The layers in network order, those inside the bodies of nodes, and other constants."""
    layers, skipped = find_layers(model)
    nodes = linear_nodes(model)
    types = {name: node.op_type for name, (_, node) in model.nodes.items()}
    found = layers | find_constants(model, layers)
    return [
        {
            "layer": name,
            "type": found[name].op_type if name in found else types.get(name, ""),
            "shape": [],
            "bytes": None,
            "macs": macs.get(name),
            "methods": [],
            "reason": skipped.get(name, ""),
            **(_able(model, found[name]) if name in found else {}),
        }
        for name in dict.fromkeys((*nodes, *skipped, *found))
    ]


def _able(model: Model, layer: Layer) -> dict[str, Any]:
    """What can be done with a layer's weight, and what speaks against the rest."""
    declined = {
        key: method().declined(layer)
        if method.opset <= model.opset
        else f"{key} needs opset {method.opset}"
        for key, method in METHODS.items()
    }
    methods, alone = [key for key, no in declined.items() if no is None], layer.shared == layer.name
    shares = "" if alone else f"shares the weight of {layer.shared}"
    return {
        "shape": list(layer.attributes.get("shape", layer.weight.shape)),
        "bytes": layer.nbytes if alone else 0,
        "methods": methods,
        "reason": shares if methods else "; ".join(dict.fromkeys(filter(None, declined.values()))),
    }
