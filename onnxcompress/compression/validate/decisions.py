"""What a model's outputs decide: classes, classes at positions, whole numbers.

Everything else, such as embeddings, images, boxes and bare logits at positions, is judged by the
signal-to-noise ratio alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxcompress.core.errors import TargetError
from onnxcompress.core.layer import Array
from onnxcompress.core.messages import nearest
from onnxcompress.graph import Model, Operation, operations

Kind = Literal["classes", "positions", "ids"]

SUMS_TO_ONE = 1e-3  # Thousands of probabilities rounded to float16 still sum to 1 this closely.
SEEN_THROUGH = {  # These leave classes where they are, or do not change their order.
    *("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Transpose"),
    *("Softmax", "LogSoftmax", "Sigmoid", "QuantizeLinear", "DequantizeLinear"),
}

# These may pool the scores that a convolution gives at every position.
POOLS = {"GlobalAveragePool", "GlobalMaxPool", "ReduceMean"}
WIDEST_WALK = 64  # At most so many nodes lie between an output and the layer that computes it.


@dataclass(frozen=True)
class Decision:
    """How an output is decided.

    Attributes:
        kind: "classes": one a sample; "positions": one at every place of the other axes;
            "ids": every entry is one.
        axis: of the classes, from the front.
    """

    kind: Kind
    axis: int = 1


def find_decisions(
    model: Model, outputs: Mapping[str, Any], classes: Mapping[str, int | None] | None = None
) -> dict[str, Decision | None]:
    """What the outputs of a model decide; None for those that are judged by their SNR.

    Classes are a float output ``[N, K]`` or ``[N, K, 1, 1]`` that sums to 1 along K, or that a
    layer with K outputs computes; positions an output with more axes that sums to 1 along one.

    Args:
        outputs: name -> the output for some samples.
        classes: the outputs that hold classes, and along which axis, by default the second of
            ``[N, K]`` and ``[N, K, 1, 1]``, else the last; no other output decides anything
            then.  None to find out.

    Raises:
        TargetError: there is no such output, or it has no such axis.
    """
    if classes is not None:
        stated = {name: _stated(name, axis, outputs) for name, axis in classes.items()}
        return dict.fromkeys(outputs) | stated
    made = {name: op for op in operations(model) for name in op.outputs}
    result: dict[str, Decision | None] = {}
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray):
            continue  # A sequence or maps are compared one by one.
        result[name] = decided_by_values(value)
        if result[name] is None and has_class_scores(value) and _is_classifier(model, made, name):
            result[name] = Decision("classes")
    return result


def decided_by_values(value: Any) -> Decision | None:
    """What an output decides as far as its values tell; None of what is no array."""
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.kind not in "fV":
        return Decision("ids")
    if has_class_scores(value):
        return Decision("classes") if probabilities(value, 1) else None
    axes = [axis for axis in range(value.ndim - 1, 0, -1) if value.shape[axis] > 1]
    axis = next((axis for axis in axes if probabilities(value, axis)), None)
    return None if axis is None or value.ndim < 3 else Decision("positions", axis)


def has_class_scores(output: Any) -> bool:
    """Whether an output may hold class scores: float ``[N, K]`` or ``[N, K, 1, 1]``, K > 1."""
    return (
        isinstance(output, np.ndarray)
        and output.ndim in (2, 4)
        and output.dtype.kind in "fV"
        and output.shape[1] >= 2
        and output.shape[2:] in ((), (1, 1))
    )


def probabilities(value: Array, axis: int) -> str:
    """Whether values are probabilities along an axis: "plain", "log" of their logarithms, or ""."""
    if not value.size or not np.isfinite(value).any():
        return ""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = value.astype(np.float64)
        if np.nanmin(wide) >= 0:
            return "plain" if np.allclose(wide.sum(axis), 1, atol=SUMS_TO_ONE) else ""
        sums = np.exp(wide).sum(axis) if np.nanmax(wide) <= 0 else np.zeros(1)
    return "log" if np.allclose(sums, 1, atol=SUMS_TO_ONE) else ""


def _stated(name: str, axis: int | None, outputs: Mapping[str, Any]) -> Decision:
    """The decision of an output of which the user says that it holds classes."""
    if name not in outputs:
        raise TargetError(f"the model has no output {name!r}{nearest(name, list(outputs))}")
    value = outputs[name]
    rank = value.ndim if isinstance(value, np.ndarray) else 0
    if axis is None:
        axis = 1 if has_class_scores(value) else rank - 1
    if not -rank <= axis < rank:
        raise TargetError(f"the output {name!r} has {rank} axes, so there is no axis {axis}")
    axis %= rank
    return Decision("classes" if has_class_scores(value) and axis == 1 else "positions", axis)


def _is_classifier(model: Model, made: Mapping[str, Operation], name: str) -> bool:
    """Whether a layer, with its bias, computes this output into a number of classes."""
    pooled = False
    for _ in range(WIDEST_WALK):
        op = made.get(name)
        if op is None:
            return False
        running = [read for read in op.inputs if read and not _is_constant(model, read)]
        if op.op_type in ("Gemm", "MatMul", "Conv"):
            weighted = sum(read in running for read in op.inputs[:2]) == 1
            return weighted and (not pooled or op.op_type == "Conv")
        bias = op.op_type == "Add" and len(running) == 1
        if not bias and op.op_type not in SEEN_THROUGH | POOLS:
            return False
        pooled |= op.op_type in POOLS
        name = running[0] if bias else op.inputs[0]
    return False


def _is_constant(model: Model, name: str) -> bool:
    return model.fixed(name) or name in model.makers
