"""Train the 18-layer CIFAR-10 ResNet of this folder and write it as a plain ONNX file.

    python models/train.py train.npz test.npz

Both arguments are CIFAR-10 as an .npz with x, y: x uint8 [images, 32, 32, 3], y the classes 0..9.
Written beside this script, or into --output:

    cifar10_resnet.onnx   the network, BatchNorm folded into the convolutions
    calibration.npz       512 training images without labels
    evaluation.npz        2,000 test images, 200 of each class, with labels

The network of the last epoch is the one that is kept: the test set is watched, never selected on.
Needs torch, onnx and onnxruntime. The same seed, threads and kind of CPU give the same bytes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from accuracy import MEAN, STD, accuracy, preprocess, scores
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

WIDTHS, BLOCKS = (16, 32, 64), (1, 3, 4)
BATCH = 128
OPSET, IR_VERSION = 17, 8


class ConvNorm(nn.Module):
    """A convolution and its BatchNorm; `folded` is the one convolution that they amount to."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        norm, mean, variance = self.norm, self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        gain = norm.weight.double() / (variance.double() + norm.eps).sqrt()
        return self.conv.weight * gain[:, None, None, None], norm.bias - mean * gain


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 3, stride)
        self.conv2 = ConvNorm(outputs, outputs, 3)
        self.shortcut = None if inputs == outputs else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        return relu(self.conv2(relu(self.conv1(x))) + residual)


class ResNet(nn.Module):
    """A stem, three stages of blocks, each at half the resolution of the last, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, WIDTHS[0], 3)
        self.blocks = nn.ModuleDict()
        width = WIDTHS[0]
        for stage, (outputs, count) in enumerate(zip(WIDTHS, BLOCKS, strict=True), 1):
            for block in range(1, count + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                self.blocks[f"stage{stage}/block{block}"] = Block(width, outputs, stride)
                width = outputs
        self.classifier = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.stem(x))
        for block in self.blocks.values():
            x = block(x)
        return self.classifier(x.mean((2, 3)))


def augmented(padded: Tensor, index: Tensor) -> Tensor:
    """The images at `index`, each cropped at random from its 40x40 frame, half of them mirrored."""
    count, pixels = len(index), torch.arange(32)
    mirrored = torch.rand(count, 1) < 0.5
    rows = torch.randint(9, (count, 1)) + pixels
    columns = torch.randint(9, (count, 1)) + torch.where(mirrored, 31 - pixels, pixels)
    images = padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    return ((images / 255 - torch.from_numpy(MEAN)) / torch.from_numpy(STD)).permute(0, 3, 1, 2)


@torch.no_grad()
def watched(net: ResNet, x: np.ndarray, y: np.ndarray) -> float:
    """The percentage that the network in training has right."""
    net.eval()
    batches = [torch.from_numpy(preprocess(x[i : i + 500])) for i in range(0, len(x), 500)]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.cat([net(b.to(memory_format=torch.channels_last)) for b in batches])
    return float((found.argmax(1).numpy() == y).mean() * 100)


def train(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, epochs: int
) -> ResNet:
    """SGD with Nesterov momentum, one cycle of the learning rate, bfloat16 where it is safe."""
    net = ResNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    padded = torch.from_numpy(np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect"))
    labels = torch.from_numpy(y.astype(np.int64))
    steps = len(x) // BATCH
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, epochs=epochs, steps_per_epoch=steps, pct_start=0.2, cycle_momentum=False
    )
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        net.train()
        total = 0.0
        for index in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                found = net(augmented(padded, index))
            loss = cross_entropy(found.float(), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        percent, minutes = watched(net, test_x, test_y), (time.monotonic() - start) / 60
        print(f"{epoch:3} loss {total / steps:.3f} test {percent:.2f} % {minutes:.1f} min")
    return net.eval()


class Graph:
    """Nodes and weights in the order they are added; a node's output carries the node's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or name
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def weight(self, name: str, value: Tensor) -> str:
        self.weights.append(numpy_helper.from_array(value.detach().float().numpy(), name))
        return name

    def conv(self, name: str, x: str, layer: ConvNorm) -> str:
        weight, bias = layer.folded()
        stored = self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias)
        kernel, stride = layer.conv.kernel_size, layer.conv.stride
        pads = [kernel[0] // 2] * 4
        return self.add("Conv", name, x, *stored, kernel_shape=kernel, strides=stride, pads=pads)


@torch.no_grad()
def to_onnx(net: ResNet) -> onnx.ModelProto:
    """The trained network as Conv, Relu, Add, GlobalAveragePool, Flatten and Gemm."""
    graph = Graph()
    x = graph.add("Relu", "stem/relu", graph.conv("stem/conv", "image", net.stem))
    for name, block in net.blocks.items():
        assert isinstance(block, Block)
        inner = graph.conv(f"{name}/conv1", x, block.conv1)
        inner = graph.add("Relu", f"{name}/relu1", inner)
        inner = graph.conv(f"{name}/conv2", inner, block.conv2)
        if block.shortcut is not None:
            x = graph.conv(f"{name}/shortcut", x, block.shortcut)
        x = graph.add("Relu", f"{name}/relu2", graph.add("Add", f"{name}/add", inner, x))
    x = graph.add("Flatten", "flatten", graph.add("GlobalAveragePool", "pool", x))
    stored = [graph.weight(f"classifier.{k}", v) for k, v in net.classifier.named_parameters()]
    graph.add("Gemm", "classifier", x, *stored, output="scores", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])
    answer = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])
    body = helper.make_graph(graph.nodes, "cifar10_resnet", [image], [answer], graph.weights)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_samples(folder: Path, x: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> None:
    """calibration.npz and evaluation.npz, the same whatever the seed of the training."""
    random = np.random.default_rng(0)
    np.savez_compressed(folder / "calibration.npz", x=x[random.permutation(len(x))[:512]])
    classes = [random.permutation(np.flatnonzero(test_y == k))[:200] for k in range(10)]
    kept = np.sort(np.concatenate(classes))
    np.savez_compressed(folder / "evaluation.npz", x=test_x[kept], y=test_y[kept].astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a CIFAR-10 ResNet and write it as ONNX.")
    parser.add_argument("train", type=Path, help="training set: .npz with x, y")
    parser.add_argument("test", type=Path, help="test set: .npz with x, y")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    with np.load(args.train) as data, np.load(args.test) as held_out:
        x, y, test_x, test_y = data["x"], data["y"], held_out["x"], held_out["y"]

    args.output.mkdir(parents=True, exist_ok=True)
    write_samples(args.output, x, test_x, test_y)
    net = train(x, y, test_x, test_y, args.epochs)
    with torch.no_grad():
        expected = net(torch.from_numpy(preprocess(test_x[:500]))).numpy()
    path = args.output / "cifar10_resnet.onnx"
    onnx.save(to_onnx(net), path)
    difference = np.abs(scores(path, test_x[:500]) - expected).max()
    print(f"largest difference between torch and onnxruntime: {difference:.1e}")
    print(f"{path}: {accuracy(path, test_x, test_y):.2f} % of {len(test_x)} test images")


if __name__ == "__main__":
    main()
