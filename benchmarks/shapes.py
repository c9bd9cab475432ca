"""Networks of well-known shapes with random weights, for measuring time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def resnet50(path: Path, seed: int = 0) -> None:
    """He et al. 2015, BatchNorm folded: 25.5 million weights, 102 MB, input 3 x 224 x 224."""
    net = _Net(np.random.default_rng(seed))
    x = net.conv("image", 3, 64, 7, 2)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(x, channels, width, 1, 1)
            y = net.conv(y, width, width, 3, stride)
            y = net.conv(y, width, 4 * width, 1, 1, relu=False, gain=0.5)
            if not block:
                x = net.conv(x, channels, 4 * width, 1, stride, relu=False)
            channels = 4 * width
            x = net.node("Relu", [net.node("Add", [x, y])])
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    net.gemm(x, channels, 1000, "scores")
    net.save(path, [None, 3, 224, 224], [None, 1000])


def resnet18(path: Path, seed: int = 0) -> None:
    """He et al. 2015, BatchNorm folded: 11.7 million weights, 46.8 MB, input 3 x 224 x 224."""
    net = _Net(np.random.default_rng(seed))
    x = net.conv("image", 3, 64, 7, 2)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, width in enumerate([64, 128, 256, 512]):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = net.conv(x, channels, width, 3, stride)
            y = net.conv(y, width, width, 3, 1, relu=False, gain=0.5)
            if stride == 2:
                x = net.conv(x, channels, width, 1, stride, relu=False)
            channels = width
            x = net.node("Relu", [net.node("Add", [x, y])])
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    net.gemm(x, channels, 1000, "scores")
    net.save(path, [None, 3, 224, 224], [None, 1000])


def one_conv(path: Path, channels: int, side: int, seed: int = 0) -> None:
    """A single 3 x 3 convolution with as many outputs as inputs."""
    net = _Net(np.random.default_rng(seed))
    net.conv("image", channels, channels, 3, 1, relu=False, output="scores")
    net.save(path, [None, channels, side, side], [None, channels, side, side])


def one_gemm(path: Path, inputs: int, outputs: int, seed: int = 0) -> None:
    """A single fully connected layer."""
    net = _Net(np.random.default_rng(seed))
    net.gemm("image", inputs, outputs, "scores")
    net.save(path, [None, inputs], [None, outputs])


def products(path: Path, seed: int = 0) -> None:
    """Sixteen MatMuls, 768 to 3072 and back, a Relu between: 37.7 million weights, 151 MB."""
    net = _Net(np.random.default_rng(seed))
    x = "image"
    for index in range(16):
        inputs, out = (768, 3072) if index % 2 == 0 else (3072, 768)
        weight = net.matrix(inputs, out)
        last = index == 15
        x = net.node("MatMul", [x, weight], "scores" if last else "")
        x = x if last else net.node("Relu", [x])
    net.save(path, [None, 768], [None, 768])


class _Net:
    """Nodes and weights of a network under construction."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []

    def node(self, op_type: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = f"{op_type.lower()}_{len(self._nodes)}"
        output = output or f"{name}_out"
        self._nodes.append(helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def conv(
        self,
        x: str,
        inputs: int,
        out: int,
        size: int,
        stride: int,
        relu: bool = True,
        gain: float = 1,
        output: str = "",
    ) -> str:
        scale = gain * np.sqrt(2 / (inputs * size * size))
        weight = self._weight(scale * self._rng.normal(size=(out, inputs, size, size)))
        bias = self._weight(0.01 * self._rng.normal(size=out))
        y = self.node("Conv", [x, weight, bias], output, strides=[stride] * 2, pads=[size // 2] * 4)
        return self.node("Relu", [y]) if relu else y

    def gemm(self, x: str, inputs: int, out: int, output: str) -> None:
        weight = self._weight(self._rng.normal(size=(out, inputs)) / np.sqrt(inputs))
        self.node("Gemm", [x, weight, self._weight(np.zeros(out))], output, transB=1)

    def matrix(self, inputs: int, out: int) -> str:
        return self._weight(self._rng.normal(size=(inputs, out)) / np.sqrt(inputs))

    def _weight(self, value: np.ndarray) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def save(
        self, path: Path, input_shape: list[int | None], output_shape: list[int | None]
    ) -> None:
        graph = helper.make_graph(
            self._nodes,
            path.stem,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, output_shape)],
            self._weights,
        )
        opset = helper.make_opsetid("", 17)
        onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
