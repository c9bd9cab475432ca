"""Models of several gigabytes: peak memory and time of a compression, beside a plain copy.

    python benchmarks/scale.py [GIGABYTES ...] [-- OPTIONS OF compress]

A model is a chain of square layers of 64 MB each with external data, made where there is room
(TMPDIR).  Peak memory is that of the largest process, and of all together, mapped files included.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from launch import launch
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

WIDTH = 4096
LAYER = 4 * WIDTH**2  # bytes
SAMPLES = 32  # of a calibrated run
RUNS = (
    ("--method", "half"),
    ("--method", "integer:bits=4", "--no-correct"),
    ("--method", "integer:bits=4", "--calib", "samples.npz"),
)


def generate(folder: Path, nbytes: float) -> Path:
    """A chain of MatMul and Relu with about so many bytes of weights."""
    count = max(1, round(nbytes / LAYER))
    rng = np.random.default_rng(0)
    nodes, x = [], "x"
    with (folder / "weights.bin").open("wb") as stream:
        weight = rng.standard_normal(WIDTH**2, np.float32) / np.float32(np.sqrt(WIDTH / 2))
        for index in range(count):  # all different: equal ones would be compressed once
            stream.write(np.roll(weight, 97 * index).data)
    graph = onnx.GraphProto(name="chain")
    for index in range(count):
        tensor = graph.initializer.add(name=f"w{index}", data_type=TensorProto.FLOAT)
        tensor.dims.extend((WIDTH, WIDTH))
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": "weights.bin", "offset": index * LAYER, "length": LAYER}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        nodes.append(helper.make_node("MatMul", [x, tensor.name], [f"y{index}"], f"layer{index}"))
        nodes.append(helper.make_node("Relu", [f"y{index}"], [f"r{index}"]))
        x = f"r{index}"
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH]))
    graph.output.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", WIDTH]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def main(sizes: Sequence[float], runs: Sequence[Sequence[str]]) -> None:
    table = Table()
    for name in ("model, GB", "options", "exit code", "peak, GB", "together", "seconds", "copy, s",
                 "result, GB"):  # fmt: skip
        table.add_column(name, justify="left" if name == "options" else "right")
    for size in sizes:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = generate(folder, size * 1e9)
            x = np.random.default_rng(1).standard_normal((SAMPLES, WIDTH), np.float32)
            np.savez(folder / "samples.npz", x=x)
            start = time.perf_counter()
            shutil.copy(folder / "weights.bin", folder / "copy.bin")
            subprocess.run(["sync", folder / "copy.bin"], check=True)
            copied = time.perf_counter() - start
            (folder / "copy.bin").unlink()
            for options in runs:
                out = folder / "out"
                out.mkdir()
                program = [sys.executable, "-m", "onnxcompress", str(model), str(out / "out.onnx")]
                cost, _, said = launch([*program, *options, "--quiet"], folder)
                print(said, end="", file=sys.stderr)
                result = sum(file.stat().st_size for file in out.iterdir()) / 1e9
                shutil.rmtree(out)
                table.add_row(
                    f"{size:g}", " ".join(options), str(cost.code), f"{cost.peak / 1e9:.2f}",
                    f"{cost.together / 1e9:.2f}", f"{cost.seconds:.0f}", f"{copied:.0f}",
                    f"{result:.2f}",
                )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    own = [tuple(words[split + 1 :])] if words[split + 1 :] else RUNS
    main([float(word) for word in words[:split]] or [2.6, 10], own)
