"""ONNX graphs computed by torch: a loop over nodes.  `torch_ops` has the operators."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from onnxcompress.core.errors import TorchError
from onnxcompress.graph import Model, Operation, operations
from onnxcompress.refinement.torch_ops import OPERATORS
from onnxcompress.refinement.torch_ops.operator import Node, tensor


class TorchGraph:
    """A model that torch runs, on one device.

    What depends on constants alone is computed once.

    Args:
        trained: constants that every call takes anew; or values that nodes compute, which every
            call takes in their place.

    Raises:
        TorchError: an operator is missing; the message names it.
    """

    def __init__(
        self, model: Model, trained: Collection[str] = (), device: str | torch.device = "cpu"
    ) -> None:
        if missing := unsupported(model):
            raise TorchError(f"torch cannot run the model: {', '.join(missing)} is not supported")
        self.outputs = [output.name for output in model.graph.output]
        known = {
            name: tensor(model.read(name), device)
            for name in model.constants
            if name not in trained
        }
        steps = []
        with torch.no_grad():
            for operation in operations(model):
                node = Node(operation, model.opset)
                result = operation.outputs[0]
                if result in trained or (operation.op_type == "Constant" and result in known):
                    continue
                if all(name in known for name in operation.inputs if name):
                    _compute(node, known)
                    known[result] = known[result].to(device)
                else:
                    steps.append(node)
        read = {name for node in steps for name in node.operation.inputs} | {*self.outputs}
        self._known = {name: value for name, value in known.items() if name in read}
        self._steps = list(zip(steps, _last_reads(steps, self.outputs), strict=True))

    def __call__(
        self, inputs: Mapping[str, Tensor], trained: Mapping[str, Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs for one batch, in the model's order.

        Raises:
            TorchError: torch cannot compute a node; the message names it.
        """
        values = {**self._known, **inputs, **(trained or {})}
        for node, done in self._steps:
            _compute(node, values)
            for name in done:
                del values[name]
        return [values[name] for name in self.outputs]


def _last_reads(steps: list[Node], outputs: Collection[str]) -> list[list[str]]:
    """For every step, the values that no later one reads."""
    last = {name: i for i, node in enumerate(steps) for name in node.operation.inputs}
    done: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name and name not in outputs:
            done[index].append(name)
    return done


def _compute(node: Node, values: dict[str, Any]) -> None:
    """Run one node, in place."""
    operation = node.operation
    inputs = [values[name] if name else None for name in operation.inputs]
    try:
        results = OPERATORS[operation.op_type].run(node, *inputs)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = f"{operation.op_type} that computes {operation.outputs[0]!r}"
        raise TorchError(f"torch cannot run the {name}: {reason}") from error
    results = results if isinstance(results, tuple) else (results,)
    values.update(zip(operation.outputs, results, strict=False))  # A mask or the like is left out.


def unsupported(model: Model) -> list[str]:
    """What the executor lacks to run a model: operators, or outputs of them."""
    missing = set()
    for operation in operations(model):
        if operation.op_type not in OPERATORS:
            missing.add(operation.op_type)
        elif not OPERATORS[operation.op_type].all_outputs and _reads_second(model, operation):
            missing.add(f"a second output of {operation.op_type}")
    if model.graph.sparse_initializer:
        missing.add("a sparse initializer")
    return sorted(missing)


def _reads_second(model: Model, operation: Operation) -> bool:
    """Whether anything reads more than the first output."""
    return any(name and model.consumers[name] > 0 for name in operation.outputs[1:])
