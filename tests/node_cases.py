"""ONNX's own models of single operators, as they are and with their weights stored in them."""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxcompress.graph import Model


@cache
def cases() -> tuple[Any, ...]:
    """Every test case of the ONNX standard: its model, inputs and expected outputs."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return tuple(case for case in collect_testcases(None) if case.model is not None)


def forms(case: Any) -> Iterator[tuple[str, Model, dict[str, Any], list[Any]]]:
    """A case as it is, and with all inputs but the first as initializers: name, model, inputs
    that are left, expected outputs."""
    inputs, outputs = (list(map(_value, part)) for part in case.data_sets[0])
    names = [value.name for value in case.model.graph.input]
    feeds = dict(zip(names, inputs, strict=False))
    yield case.name, Model(case.model), feeds, outputs
    stored = {n: x for n, x in list(feeds.items())[1:] if isinstance(x, np.ndarray | np.generic)}
    if stored:
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        kept = [value for value in proto.graph.input if value.name not in stored]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        tensors = [numpy_helper.from_array(np.asarray(x), name) for name, x in stored.items()]
        proto.graph.initializer.extend(tensors)
        left = {name: x for name, x in feeds.items() if name not in stored}
        yield f"{case.name}, weights stored", Model(proto), left, outputs


def _value(value: Any) -> Any:
    """What onnxruntime takes; some cases have a TensorProto there."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
