"""Compress language models: an LSTM and a transformer that predict the next character.

    python benchmarks/sequences.py [FOLDER]

Both are trained here, for one or two minutes each on one core, on Python's own help texts; torch
must be installed.  Each is written as ONNX by hand: plain float32 weights, token numbers
``[N, T]`` in, scores of the characters ``[N, K]`` out.  Every row runs ``onnxcompress`` as a user
would, in a process of its own, with 512 unlabelled windows.  Figures: file sizes and their ratio,
the share of 2,000 windows of unseen text on which the result predicts the same character as the
original (bar: 98 % at ratio 4), the share that is predicted correctly before and after, and the
time of the compression.  A second table lists arrays of 1,024 entries and more that were kept.
Models are kept in FOLDER if one is given, and are not trained again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch  # pyright: ignore[reportMissingImports]
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table
from torch import nn  # pyright: ignore[reportMissingImports]

WINDOW = 48
CALIBRATION, EVALUATION = 512, 2000
BLOCK = 2000  # characters; of every ten blocks one is for calibration and one for evaluation
BATCH = 64
RATIOS = (4, 6, 8)
BAR = 98.0
LARGE = 1024


# --------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Text:
    """Characters as numbers, in blocks that no two parts share."""

    classes: int
    train: list[np.ndarray]
    calibration: list[np.ndarray]
    evaluation: list[np.ndarray]


def read_text() -> Text:
    """Python's help texts; paragraphs that occur in several topics are taken once."""
    paragraphs = dict.fromkeys(p for topic in topics.values() for p in topic.split("\n\n"))
    text = "\n\n".join(paragraphs)
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = np.array([known[character] for character in text], np.int64)
    blocks = np.split(tokens, range(BLOCK, len(tokens), BLOCK))
    train = [block for index, block in enumerate(blocks) if index % 10 < 8]
    return Text(len(known), train, blocks[8::10], blocks[9::10])


def windows(blocks: list[np.ndarray], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that are all different, and the character after each."""
    length = WINDOW + 1
    every = [np.lib.stride_tricks.sliding_window_view(b, length) for b in blocks if len(b) > length]
    joined = np.concatenate(every)
    drawn = joined[np.random.default_rng(seed).permutation(len(joined))[:count]]
    return np.ascontiguousarray(drawn[:, :-1]), drawn[:, -1]


# ------------------------------------------------------------------------------------- models


class Recurrent(nn.Module):
    """Embedding, LSTM, linear head; scores at every position."""

    def __init__(self, classes: int, embedded: int = 64, hidden: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, embedded)
        self.lstm = nn.LSTM(embedded, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens: Any) -> Any:
        return self.head(self.lstm(self.embedding(tokens))[0])


class Block(nn.Module):
    """Attention to what came before, then two dense layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        read = self.norm1(x)
        split = [
            layer(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*split, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Token and position embedding, blocks, linear head; scores at every position."""

    def __init__(self, classes: int, width: int = 128, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.position = nn.Parameter(0.1 * torch.randn(WINDOW, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(network: Any, blocks: list[np.ndarray], steps: int, rate: float) -> None:
    """Learn to predict the next character at every position of drawn windows."""
    inputs, last = map(torch.from_numpy, windows(blocks, steps * BATCH, seed=0))
    targets = torch.cat([inputs[:, 1:], last[:, None]], 1)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        drawn = slice(step * BATCH, (step + 1) * BATCH)
        scores = network(inputs[drawn])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets[drawn].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"{type(network).__name__}: step {step + 1}, loss {loss:.3f}", file=sys.stderr)


# --------------------------------------------------------------------------------------- ONNX


class Graph:
    """Nodes and initializers of a model that is being written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def constant(self, array: Any, name: str = "") -> str:
        name = name or f"constant{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node; the name of its last output is returned, any before that are not used."""
        name = f"{kind}{len(self.nodes)}"
        made = [""] * (outputs - 1) + [f"{name}_out"]
        self.nodes.append(helper.make_node(kind, inputs, made, name, **attributes))
        return made[-1]

    def linear(self, x: str, layer: Any, name: str) -> str:
        product = self.add("MatMul", x, self.constant(values(layer.weight).T, f"{name}.weight"))
        return self.add("Add", product, self.constant(values(layer.bias), f"{name}.bias"))

    def norm(self, x: str, layer: Any, name: str) -> str:
        scale = self.constant(values(layer.weight), f"{name}.scale")
        shift = self.constant(values(layer.bias), f"{name}.bias")
        return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=layer.eps)

    def gelu(self, x: str) -> str:
        scaled = self.add("Div", x, self.constant(np.float32(math.sqrt(2))))
        curve = self.add("Add", self.add("Erf", scaled), self.constant(np.float32(1)))
        return self.add("Mul", self.add("Mul", x, curve), self.constant(np.float32(0.5)))

    def model(self, classes: int) -> onnx.ModelProto:
        """The last node's output becomes the scores."""
        self.nodes[-1].output[0] = "scores"
        tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", WINDOW])
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, "sequences", [tokens], [scores], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def values(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


def recurrent_onnx(network: Any) -> onnx.ModelProto:
    graph, lstm, classes = Graph(), network.lstm, network.head.out_features
    embedding = graph.constant(values(network.embedding.weight), "embedding")
    x = graph.add("Transpose", graph.add("Gather", embedding, "tokens"), perm=[1, 0, 2])
    weights = [graph.constant(_gates(lstm.weight_ih_l0)[None], "lstm.weight")]
    weights += [graph.constant(_gates(lstm.weight_hh_l0)[None], "lstm.recurrence")]
    biases = [_gates(lstm.bias_ih_l0), _gates(lstm.bias_hh_l0)]
    weights += [graph.constant(np.concatenate(biases)[None], "lstm.bias")]
    x = graph.add("LSTM", x, *weights, outputs=2, hidden_size=lstm.hidden_size)
    x = graph.add("Squeeze", x, graph.constant([0]))
    graph.linear(x, network.head, "head")
    return graph.model(classes)


def _gates(tensor: Any) -> np.ndarray:
    """From torch's order (input, forget, cell, output) to that of ONNX."""
    enter, forget, cell, out = np.split(values(tensor), 4)
    return np.concatenate([enter, out, forget, cell])


def transformer_onnx(network: Any) -> onnx.ModelProto:
    graph, classes = Graph(), network.head.out_features
    embedding = graph.constant(values(network.embedding.weight), "embedding")
    position = graph.constant(values(network.position), "position")
    mask = np.triu(np.full((WINDOW, WINDOW), -np.inf, np.float32), 1)
    mask = graph.constant(mask, "mask")
    x = graph.add("Add", graph.add("Gather", embedding, "tokens"), position)
    for index, block in enumerate(network.blocks):
        x = _block(graph, x, block, mask, f"block{index}")
    x = graph.add("Gather", x, graph.constant(WINDOW - 1), axis=1)
    graph.linear(graph.norm(x, network.norm, "norm"), network.head, "head")
    return graph.model(classes)


def _block(graph: Graph, x: str, block: Any, mask: str, name: str) -> str:
    read = graph.norm(x, block.norm1, f"{name}.norm1")
    width = block.out.in_features // block.heads
    heads = graph.constant([0, 0, block.heads, width])
    order = {"query": [0, 2, 1, 3], "key": [0, 2, 3, 1], "value": [0, 2, 1, 3]}
    query, key, value = (
        graph.add(
            "Transpose",
            graph.add("Reshape", graph.linear(read, getattr(block, k), f"{name}.{k}"), heads),
            perm=perm,
        )
        for k, perm in order.items()
    )
    scale = graph.constant(np.float32(1 / math.sqrt(width)))
    logits = graph.add("Mul", graph.add("MatMul", query, key), scale)
    shares = graph.add("Softmax", graph.add("Add", logits, mask), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", shares, value), perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", mixed, graph.constant([0, 0, block.heads * width]))
    x = graph.add("Add", x, graph.linear(joined, block.out, f"{name}.out"))
    hidden = graph.linear(graph.norm(x, block.norm2, f"{name}.norm2"), block.up, f"{name}.up")
    return graph.add("Add", x, graph.linear(graph.gelu(hidden), block.down, f"{name}.down"))


# --------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Row:
    """A network, how it is trained, and how it is written."""

    name: str
    make: Callable[[int], Any]
    steps: int
    rate: float
    export: Callable[[Any], onnx.ModelProto]


ROWS = (
    Row("lstm", Recurrent, 600, 5e-3, recurrent_onnx),
    Row("transformer", Transformer, 500, 2e-3, transformer_onnx),
)


def main() -> None:
    with TemporaryDirectory() as scratch:
        folder = Path(*sys.argv[1:2] or [scratch])
        folder.mkdir(parents=True, exist_ok=True)
        text = read_text()
        calibration, _ = windows(text.calibration, CALIBRATION, seed=1)
        np.savez(folder / "calibration.npz", tokens=calibration)
        unseen = windows(text.evaluation, EVALUATION, seed=2)
        columns = ("params", "ratio asked", "bytes", "ratio", "agree, %", "correct, %", "time", "")
        table = Table("model", *columns)
        kept = Table("model", "ratio asked", "array", "shape", "entries", "why it was kept")
        for row in ROWS:
            path = folder / f"{row.name}.onnx"
            if not path.exists():
                write(row, text, path)
            for ratio in RATIOS:
                report, seconds = compress(path, ratio)
                cells = figures(path, ratio, unseen, report)
                table.add_row(row.name, *cells[:-1], f"{seconds:.0f} s", cells[-1])
                for name, shape, note in kept_arrays(path, report):
                    size = str(math.prod(shape))
                    kept.add_row(row.name, str(ratio), name, str(shape), size, note)
    console = Console(width=140)
    console.print(chance(unseen[1]))
    console.print(table)
    console.print(kept)


def write(row: Row, text: Text, path: Path) -> None:
    """Train a network, write it, and check that both say the same."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = row.make(text.classes)
    start = time.perf_counter()
    train(network, text.train, row.steps, row.rate)
    print(f"{row.name}: trained in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    model = row.export(network.eval())
    onnx.checker.check_model(model, full_check=True)
    tokens, _ = windows(text.calibration, 64, seed=3)
    with torch.no_grad():
        expected = values(network(torch.from_numpy(tokens))[:, -1])
    session = ort.InferenceSession(model.SerializeToString())
    apart = float(np.abs(session.run(None, {"tokens": tokens})[0] - expected).max())
    print(f"{row.name}: at most {apart:.1e} from torch", file=sys.stderr)
    assert apart < 1e-4
    onnx.save(model, path)


def result(path: Path, ratio: int) -> Path:
    return path.with_name(f"{path.stem}-{ratio}.onnx")


def compress(path: Path, ratio: int) -> tuple[dict[str, Any], float]:
    """Run the command line; its report, and seconds."""
    out = result(path, ratio)
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "onnxcompress", str(path), str(out), "--ratio", str(ratio)]
    command += ["--calib", str(path.with_name("calibration.npz")), "--json"]
    print("$", *command, file=sys.stderr)
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stderr, end="", file=sys.stderr)
    report = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return report, time.perf_counter() - start


def figures(
    path: Path, ratio: int, unseen: tuple[np.ndarray, np.ndarray], report: Mapping[str, Any]
) -> list[str]:
    """Parameters, ratio asked, bytes, ratio, agreement, share of correct predictions, verdict."""
    tensors = onnx.load(path).graph.initializer
    count = sum(math.prod(t.dims) for t in tensors if t.data_type == TensorProto.FLOAT)
    cells = [f"{count:,}", str(ratio)]
    out = result(path, ratio)
    before = predicted(path, unseen[0])
    correct = 100 * float(np.mean(before == unseen[1]))
    sizes = path.stat().st_size, out.stat().st_size if out.exists() else 0
    if not out.exists():
        reason = "; ".join(report.get("failures", ())) or "failed"
        return [*cells, f"{sizes[0]:,}", "", "", f"{correct:.2f}", f"none written: {reason}"]
    after = predicted(out, unseen[0])
    agree = 100 * float(np.mean(before == after))
    both = f"{correct:.2f} -> {100 * float(np.mean(after == unseen[1])):.2f}"
    verdict = "" if ratio != RATIOS[0] else "held" if agree >= BAR else f"below {BAR:.0f} %"
    written = [f"{sizes[0]:,} -> {sizes[1]:,}", f"{sizes[0] / sizes[1]:.2f}", f"{agree:.2f}"]
    return [*cells, *written, both, verdict]


def predicted(path: Path, tokens: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path)
    batches = np.split(tokens, range(100, len(tokens), 100))
    scores = [np.asarray(session.run(None, {"tokens": batch})[0]) for batch in batches]
    return np.concatenate(scores).argmax(1)


def kept_arrays(path: Path, report: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """Large float arrays of the original that are not compressed: name, shape, reason."""
    if not report.get("rows"):
        return []
    model = onnx.load(path)
    readers = {name: node.name for node in model.graph.node for name in node.input}
    rows = {row["layer"]: row for row in report["rows"]}
    found = []
    for tensor in model.graph.initializer:
        row = rows.get(tensor.name) or rows.get(readers[tensor.name])
        large = tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) >= LARGE
        if large and not (row and row["method"]):
            note = row["note"] if row else "no weight: a vector, or a mask"
            found.append((tensor.name, tuple(tensor.dims), note))
    return found


def chance(labels: np.ndarray) -> str:
    share = 100 * np.bincount(labels).max() / len(labels)
    return f"always the most frequent character: {share:.2f} % correct"


if __name__ == "__main__":
    main()
