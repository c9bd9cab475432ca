"""Entries of a model's metadata_props."""

from __future__ import annotations

from collections.abc import Mapping

from onnxcompress.graph.edit import keep_only
from onnxcompress.graph.model import Model


def annotate(model: Model, properties: Mapping[str, str]) -> Model:
    """Set entries of the model's metadata_props."""
    result = model.copy()
    keep_only(result.proto.metadata_props, lambda entry: entry.key not in properties)
    for key, value in properties.items():
        result.proto.metadata_props.add(key=key, value=value)
    return result
