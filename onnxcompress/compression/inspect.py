"""What a model is made of, and what of it can be compressed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from math import isqrt, log2, prod
from typing import Any

import numpy as np

from onnxcompress.compression.measure.open_axes import inputs_that_run
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.compression.search.plan_int8 import stays_float
from onnxcompress.compression.simplify import PROVED_ON, simplify
from onnxcompress.compression.validate.fidelity import decibel
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Method
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.inputs import InputSpec, input_specs, output_specs
from onnxcompress.data.samples import DataError, Samples
from onnxcompress.execution.runnable import runnable
from onnxcompress.graph import (
    LARGE,
    Model,
    ModelError,
    constants_of,
    find_constants,
    find_layers,
    inline_functions,
    linear_nodes,
    strip,
    tensor_bytes,
    weight_parts,
)
from onnxcompress.methods import METHODS

RATIOS = (2, 4, 8, 16)  # Methods are estimated for these ratios (times fewer bytes).
TRIED = 4  # So many settings of each method are fitted; errors between them are interpolated.
LOOKED_AT = 3  # Parts of so many typical layers are fitted, since whole layers would take long.
# A part has about so many weights: 96 x 96, or 32 x 32 kernels of 3 x 3.
PART = 9216
# Other nodes are likely to need a constant of so few entries too, so it is not a layer's own.
FEW = 64

Row = dict[str, Any]


def examine(model: Model, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """A model's layers and facts, as JSON types.

    Of every layer ``float`` says why it cannot compute in int8, "" where it could.

    Args:
        shapes: input name -> shape, where the model leaves it open; multiplications are counted
            for one random sample.  Where that cannot run, ``note`` says why.

    Raises:
        DataError: these shapes do not fit.
    """
    original, model = model, inline_functions(model)
    macs, note, samples = {}, None, None
    try:
        samples = inputs_that_run(model, PROVED_ON, shapes or {})
        sample = next(iter(samples))
        _, macs = input_shapes(runnable(model), sample)
    except (DataError, ModelError) as error:
        if shapes:
            raise
        note = f"the multiplications are unknown: {error}"
    properties = {entry.key: entry.value for entry in model.proto.metadata_props}
    rows, rest = inventory(model, macs)
    return {
        "file": original.nbytes,
        "weights": original.weight_bytes,
        "macs": sum(macs.values()) or None,
        "nodes": len(original.graph.node),
        "opset": model.opset,
        "ir_version": model.proto.ir_version,
        "inputs": [_tensor(spec) for spec in input_specs(model)],
        "outputs": [_tensor(spec) for spec in output_specs(model)],
        "compressed_before": "onnxcompress.version" in properties,
        "made": properties.get("onnxcompress.config"),
        "layers": rows,
        "rest": rest,
        "estimates": _estimates(model),
        "strip": original.nbytes - strip(original).nbytes,
        "simplify": None if samples is None or original.large else _simplified(original, samples),
        "note": note,
    }


def _simplified(model: Model, samples: Samples) -> dict[str, int]:
    """The nodes and bytes that lossless passes would save."""
    _, changes = simplify(model, samples)
    return {
        "nodes": sum(change.nodes for change in changes),
        "bytes": sum(change.nbytes for change in changes),
    }


def _tensor(spec: InputSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"name": spec.name, "type": str(spec.dtype), "shape": shape}


def inventory(model: Model, macs: Mapping[str, int]) -> tuple[list[Row], list[Row]]:
    """The layers in network order, those inside the bodies of nodes, and other constants.

    Returns:
        These, and what else takes bytes.
    """
    layers, skipped = find_layers(model)
    nodes = linear_nodes(model)
    types = {name: node.op_type for name, (_, node) in model.nodes.items()}
    able = layers | find_constants(model, layers)
    counted = set[str]().union(*(weight_parts(model, name) for name in able))
    rows = []
    for name in dict.fromkeys((*nodes, *skipped, *able)):
        row: Row = {
            "layer": name,
            "type": able[name].op_type if name in able else types.get(name, ""),
            "shape": [],
            "bytes": None,
            "macs": macs.get(name),
            "methods": [],
            "reason": skipped.get(name, ""),
            "float": skipped.get(name, ""),
        }
        if name in able:
            row |= _able(model, able[name]) | {"float": stays_float(model, name, able[name])}
        elif name in model.nodes:
            own = {
                part for part in constants_of(model, name) - counted if _entries(model, part) > FEW
            }
            row["bytes"] = _nbytes(model, own) or None
            counted |= own
        rows.append(row)
    return rows, [*_rest(model, counted)]


def _rest(model: Model, counted: AbstractSet[str]) -> Iterator[Row]:
    """What takes bytes and is no part of a layer."""
    left = model.constants.keys() - counted
    large = {key for key in left if _entries(model, key) >= LARGE}
    for key in sorted(large, key=lambda key: -tensor_bytes(model.constants[key])):
        yield {"name": key, "bytes": tensor_bytes(model.constants[key])}
    small, everything = left - large, sum(map(tensor_bytes, model.constants.values()))
    if small:
        yield {"name": f"{len(small):,} small constants", "bytes": _nbytes(model, small)}
    yield {"name": "nodes, names and metadata", "bytes": max(model.nbytes - everything, 0)}


def _entries(model: Model, key: str) -> int:
    return prod(model.constants[key].dims)


def _nbytes(model: Model, keys: Iterable[str]) -> int:
    return sum(tensor_bytes(model.constants[key]) for key in keys)


def _able(model: Model, layer: Layer) -> dict[str, Any]:
    """What can be done with a layer's weight, and what speaks against the rest."""
    read = layer.read()
    declined = {
        key: method().declined(read)
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


def _estimates(model: Model) -> list[dict[str, Any]]:
    """For each method the SNR in dB of weights that are stored in so many times fewer bytes.

    Without data, from parts of some typical layers: at even distances in the bytes of all layers,
    lined up by size.
    """
    layers = sorted(find_layers(model)[0].values(), key=lambda layer: layer.weight.size)
    ends = np.cumsum([layer.weight.size for layer in layers])
    places = (np.arange(LOOKED_AT) + 0.5) / LOOKED_AT * ends[-1] if layers else []
    typical = [_part(layers[i]) for i in sorted({*map(int, np.searchsorted(ends, places))})]
    estimates = []
    for name, method in METHODS.items():
        errors = [_errors(method(), layer) for layer in typical if method.opset <= model.opset]
        columns = zip(*filter(None, errors), strict=True)
        means = [None if None in e else decibel(1.0, float(np.mean(e))) for e in columns]
        if any(mean is not None for mean in means):
            snr = {str(ratio): mean for ratio, mean in zip(RATIOS, means, strict=True)}
            estimates.append({"method": name, "faster": method.faster, "snr": snr})
    return estimates


def _part(layer: Layer) -> Layer:
    """Some outputs and inputs of a layer, without groups."""
    side = isqrt(PART // prod(layer.kernel)) or 1
    weight = np.ascontiguousarray(layer.read().weight[:side, :side], np.float32)
    stored = layer.nbytes * weight.size // layer.weight.size
    own = {"group": 1}
    return replace(layer, weight=weight, bias=None, attributes=own, shared="", stored=stored)


def _errors(method: Method, layer: Layer) -> list[float | None]:
    """At each ratio the error of the weights, None where no setting is that small."""
    settings = method.settings(layer)
    if not settings:
        return []
    chosen = {int(i) for i in np.linspace(0, len(settings) - 1, TRIED).round()}
    alone, points = Statistics.white(layer), []
    for fitted in (settings[i].fit(layer, alone) for i in sorted(chosen)):
        error = alone.error(layer.weight, fitted.decode())
        points.append((log2(layer.nbytes / fitted.nbytes), np.log(max(error, 1e-12))))
    ratios, logs = np.array(sorted(points)).T
    logs = np.minimum.accumulate(logs[::-1])[::-1]  # What is smaller and better serves as well.
    reached = [ratio for ratio in RATIOS if log2(ratio) < ratios[-1] + 0.1]
    errors = [float(np.exp(np.interp(log2(ratio), ratios, logs))) for ratio in reached]
    return [*errors, *[None] * (len(RATIOS) - len(errors))]
