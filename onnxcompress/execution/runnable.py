"""Whether and how onnxruntime runs a model."""

from __future__ import annotations

from onnxcompress.execution.session import session_of
from onnxcompress.graph import Model, ModelError, as_float32, check, custom_operators, needs_float32


def unknown_operators(model: Model) -> list[str]:
    """The operators for which onnxruntime has no kernel and no library, if it cannot load it."""
    unknown = custom_operators(model)
    try:
        if unknown:
            session_of(model)
    except ModelError:
        return unknown
    return []


def runnable(model: Model) -> Model:
    """The model, or its float32 twin where onnxruntime lacks kernels for its types."""
    return as_float32(model) if needs_float32(model) else model


def verify(model: Model) -> None:
    """Raise unless onnx.checker and onnxruntime accept the model as it would be written.

    Raises:
        ModelError: one of them does not.
    """
    check(model, "the result")
    session_of(model)
