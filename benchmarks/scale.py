"""Models of several gigabytes: peak memory and time of a compression, beside a plain copy.

    python benchmarks/scale.py [GIGABYTES ...] [-- OPTIONS OF compress]

A model is a chain of square layers of 64 MB each with external data, made where there is room
(TMPDIR).  Peak memory is that of the largest process, mapped files included.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

WIDTH = 4096
LAYER = 4 * WIDTH**2  # bytes
OPTIONS = ("--method", "integer:bits=4", "--no-correct")


def generate(folder: Path, nbytes: float) -> Path:
    """A chain of MatMul and Relu with about so many bytes of weights."""
    count = max(1, round(nbytes / LAYER))
    rng = np.random.default_rng(0)
    nodes, x = [], "x"
    with (folder / "weights.bin").open("wb") as stream:
        for _ in range(count):
            weight = rng.standard_normal((WIDTH, WIDTH), np.float32)
            stream.write((weight / np.float32(np.sqrt(WIDTH / 2))).tobytes())
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


def measured(command: list[str]) -> tuple[int, float, float]:
    """Exit code, seconds and peak gigabytes of a command, its children included."""
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    return os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024 / 1e9


def main(sizes: Sequence[float], options: Sequence[str]) -> None:
    table = Table(title=f"compress {' '.join(options)}")
    for name in ("model, GB", "exit code", "peak, GB", "seconds", "copy, s", "result, GB"):
        table.add_column(name, justify="right")
    for size in sizes:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model = generate(folder, size * 1e9)
            start = time.perf_counter()
            shutil.copy(folder / "weights.bin", folder / "copy.bin")
            subprocess.run(["sync", folder / "copy.bin"], check=True)
            copied = time.perf_counter() - start
            (folder / "copy.bin").unlink()
            out = folder / "out"
            out.mkdir()
            program = [sys.executable, "-m", "onnxcompress", str(model), str(out / "out.onnx")]
            code, seconds, peak = measured([*program, *options, "--quiet"])
            result = sum(file.stat().st_size for file in out.iterdir()) / 1e9
            table.add_row(
                f"{size:g}", str(code), f"{peak:.2f}", f"{seconds:.0f}", f"{copied:.0f}",
                f"{result:.2f}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    main([float(word) for word in words[:split]] or [2.6], words[split + 1 :] or OPTIONS)
