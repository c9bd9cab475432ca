"""The layers of a model that onnxruntime cannot run, compared one by one."""

from __future__ import annotations

import numpy as np

from onnxcompress.compression.target import Target
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.core.layer import Array, Layer
from onnxcompress.execution.runnable import runnable
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_constants, find_layers, layer_input, linear_inputs, part
from onnxcompress.report.report import Comparison, Size


class Layerwise:
    """Compares the layers of a model that onnxruntime cannot run, each by itself.

    What computes a layer in the one model runs against what does in the other, on random inputs.
    """

    decides, baseline = False, None

    def __init__(self, original: Model, seed: int = 0) -> None:
        self.original, self._seed = original, seed
        layers, _ = find_layers(original)
        self._layers = layers | find_constants(original, layers)

    def fidelity(self, model: Model, limit: int | None = None) -> Fidelity:
        """How far the outputs of the layers are apart; those that are the same are left out.

        Raises:
            ModelError: onnxruntime cannot run a layer either.
        """
        rng, result = np.random.default_rng(self._seed), Fidelity()
        for name, layer in self._layers.items():
            if layer.op_type == "Constant":
                made = part(model, name, {}, name)
                if made.graph.node:
                    result.add([name], [self.original.read(name)], Session(made).run({}))
                continue
            node = self.original.nodes[name][1]
            read = {t: _random_input(rng, layer, t == layer_input(node, layer))
                    for t in linear_inputs(self.original, name)}  # fmt: skip
            both = [part(m, name, read, node.output[0]) for m in (self.original, model)]
            if list(both[0].graph.node) != list(both[1].graph.node):
                result.add([name], *(Session(runnable(m)).run(read) for m in both))
        return result

    def metric_of(self, model: Model) -> None:
        """Nothing can be measured by labels."""

    def holds(self, model: Model, target: Target) -> bool:
        """Nothing can be promised of the outputs."""
        return False

    def compare(self, model: Model, macs: tuple[int | None, int | None]) -> Comparison:
        """Sizes, and how far the layers are apart, under their names."""
        fidelity = self.fidelity(model)
        return Comparison(
            before=Size(self.original.nbytes, self.original.weight_bytes),
            after=Size(model.nbytes, model.weight_bytes),
            samples=0,
            real=False,
            snr=fidelity.snr,
            agreement=None,
            metric=None,
            latency=None,
            finite=fidelity.finite,
        )


def _random_input(rng: np.random.Generator, layer: Layer, read: bool) -> Array:
    """What a layer multiplies with its weight, or else a bias that it is given."""
    out = len(layer.weight)
    inputs = layer.weight.shape[1] * (layer.groups if layer.kernel else 1)
    shape: tuple[int, ...] = (out,)
    if read and layer.kernel:
        dilations = layer.attributes.get("dilations", [1] * len(layer.kernel))
        extents = [d * (k - 1) + 1 for d, k in zip(dilations, layer.kernel, strict=True)]
        shape = (1, inputs, *(2 * extent + 2 for extent in extents))
    elif read and (known := layer.attributes.get("contraction")):
        shape = known.input_shape(4)
    elif read:
        turned = layer.attributes.get("transA") or layer.attributes.get("left")
        shape = (inputs, 4) if turned else (4, inputs)
    return rng.standard_normal(shape).astype(layer.weight.dtype)
