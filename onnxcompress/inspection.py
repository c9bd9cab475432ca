"""What a model is made of, and what of it can be compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxcompress.data import DataError, input_specs, output_specs, random_samples
from onnxcompress.graph import Model, ModelError, find_layers, linear_nodes
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
        "file": model.nbytes,
        "weights": model.weight_bytes,
        "macs": sum(macs.values()) or None,
        "nodes": len(model.graph.node),
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
    """The layers in network order; those inside the bodies of nodes come last."""
    layers, skipped = find_layers(model)
    nodes, rows = linear_nodes(model), []
    for name in dict.fromkeys((*nodes, *skipped)):
        row = {
            "layer": name,
            "type": nodes[name].op_type if name in nodes else "",
            "shape": [],
            "bytes": None,
            "macs": macs.get(name),
            "methods": [],
            "reason": skipped.get(name, ""),
        }
        if layer := layers.get(name):
            declined = {
                key: method().declined(layer)
                if method.opset <= model.opset
                else f"{key} needs opset {method.opset}"
                for key, method in METHODS.items()
            }
            row["shape"] = list(layer.weight.shape)
            row["bytes"] = layer.weight.nbytes if layer.shared == name else 0
            row["methods"] = [key for key, reason in declined.items() if reason is None]
            if not row["methods"]:
                row["reason"] = "; ".join(dict.fromkeys(filter(None, declined.values())))
            elif layer.shared != name:
                row["reason"] = f"shares the weight of {layer.shared}"
        rows.append(row)
    return rows
