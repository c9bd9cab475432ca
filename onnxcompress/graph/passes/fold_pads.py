"""Pad folded into the convolution after it."""

from __future__ import annotations

import onnx.inliner
from onnx import NodeProto

from onnxcompress.graph.edit import drop_constants, keep_only
from onnxcompress.graph.model import Model, is_overridable
from onnxcompress.graph.nodes import attributes_of


def fold_pads(model: Model) -> Model:
    """Let every Conv that alone reads the result of a Pad add these zeros itself."""
    result = model.copy()
    readers = {node.input[0]: node for node in result.graph.node if node.op_type == "Conv"}
    for pad in [node for node in result.graph.node if node.op_type == "Pad"]:
        conv, around = readers.get(pad.output[0]), _zeros_around(result, pad)
        if conv is None or around is None or result.consumers[pad.output[0]] != 1:
            continue
        attributes, axes = attributes_of(conv), len(around) // 2 - 2
        if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        if any(around[i] for i in (0, 1, axes + 2, axes + 3)) or min(around) < 0:
            continue
        own = attributes.get("pads", [0] * 2 * axes)
        both = [a + b for a, b in zip(own, around[2 : 2 + axes] + around[-axes:], strict=True)]
        keep_only(conv.attribute, lambda a: a.name not in ("pads", "auto_pad"))
        conv.attribute.append(onnx.helper.make_attribute("pads", both))
        conv.input[0] = pad.input[0]
        result.graph.node.remove(pad)
        result.changed()
        drop_constants(result, {*pad.input[1:], pad.output[0]})
    return result


def _zeros_around(model: Model, pad: NodeProto) -> list[int] | None:
    """The zeros that a Pad puts before, and then after, every axis; None where that is not all."""
    attributes, parts = attributes_of(pad), [name for name in pad.input[1:] if name]
    if attributes.get("mode", "constant") != "constant" or attributes.get("value", 0) != 0:
        return None
    if any(name not in model.constants or is_overridable(model, name) for name in parts):
        return None
    around, *rest = [*pad.input[1:], "", "", ""][:3]
    if any(rest[1:]) or (rest[0] and model.read(rest[0]).any()):
        return None
    return model.read(around).tolist() if around else attributes.get("pads")
