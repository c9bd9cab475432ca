"""Which runtimes run compressed files, and fold what decodes them when they load a model.

    pip install openvino tract && python benchmarks/runtimes.py

The network of models/, compressed by every method without data, runs in turns with the same network
with its weights written out (`onnxcompress expand`), on one thread, in every runtime that is
installed.  A cell is the ratio of the shortest times: 1.0 where decoding happened at loading; or
"NO" and what failed.  Outputs are compared with onnxruntime's of the written-out network.  Writes
benchmarks/results/runtimes.md, with what other runtimes' documentation says below.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from downstream import SAME, SPECS, compressed, images, snr
from onnx.reference import ReferenceEvaluator
from results import FOLDER, write

import onnxcompress as oc
from onnxcompress.core.messages import one_line

Run = Callable[[np.ndarray], Any]
PAIRS, SECONDS = 200, 20.0  # of runs in turns, whichever ends first


def onnxruntime(file: Path, level: str = "ORT_ENABLE_ALL") -> Run:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    return lambda x: session.run(None, {given.name: x})[0]


def openvino(file: Path) -> Run:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = import_module("openvino").Core().compile_model(str(file), "CPU", options)
    return lambda x: next(iter(model(x).values()))


def tract(file: Path) -> Run:
    """With the shape of the samples: tract's Python has no other way to a dynamic batch."""
    model = import_module("tract").onnx().load(str(file))
    model.set_input_fact(0, "1,3,32,32,f32")
    runnable = model.into_model().into_runnable()
    return lambda x: runnable.run([x])[0].to_numpy()


def reference(file: Path) -> Run:
    model: Any = ReferenceEvaluator(onnx.load(file))
    return lambda x: model.run(None, {model.input_names[0]: x})[0]


MEASURED: Mapping[str, tuple[str, Callable[[Path], Run]]] = {  # package, runtime
    "onnxruntime": ("onnxruntime", onnxruntime),
    "onnxruntime, folding off": ("onnxruntime", partial(onnxruntime, level="ORT_DISABLE_ALL")),
    "OpenVINO": ("openvino", openvino),
    "tract": ("tract", tract),
    "ONNX reference evaluator": ("onnx", reference),
}
TITLE = """## Runtimes

Measured by `pip install openvino tract && python benchmarks/runtimes.py`: the network of `models/`,
compressed by every method, beside itself with its weights written out (`onnxcompress expand`).
1.0: as fast, so what decodes the weights was folded when the model was loaded; 2.0: twice the time,
since they are decoded in every run, which is what `expand` is for.  Ratios of the shortest of up to
200 runs in turns; differences of 0.3 are noise on a busy machine.  All outputs agree with those of
onnxruntime, but where it says "NO".
"""
DOCUMENTED = """
From documentation, **not run by us**:

| runtime | decoded forms | `basis` | source |
|---|---|---|---|
| TensorRT (its ONNX parser) | `expand` first: weights of convolutions must be initializers, uint8 and Mod are not in the list; NVIDIA advises to fold constants before parsing where a node needs one | runs: Conv, Gemm and MatMul are in the list | [operators](https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md), read for TensorRT 8.4; [FAQ](https://github.com/onnx/onnx-tensorrt/blob/main/docs/faq.md) |
| Core ML (through onnxruntime) | weights must be constant; they are, since onnxruntime folds constants before it divides the graph among providers | runs | [provider](https://onnxruntime.ai/docs/execution-providers/CoreML-ExecutionProvider.html), [optimizations](https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html) |
| Core ML (coremltools) | no ONNX converter any more | the same | [onnx-coreml](https://github.com/onnx/onnx-coreml) |
| WebGPU (onnxruntime-web) | folded: the same optimizations, all on by default, before the graph is divided | runs | [optimizations](https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html), [operators](https://github.com/microsoft/onnxruntime/blob/main/js/web/docs/webgpu-operators.md) |
| Android (onnxruntime, NNAPI) | weights must be constant; folded as above. A file in ORT format is written after folding: large again, so ship the .onnx | runs: 2-D convolutions | [provider](https://onnxruntime.ai/docs/execution-providers/NNAPI-ExecutionProvider.html), [ORT format](https://onnxruntime.ai/docs/performance/mobile-performance-tuning.html) |
"""  # noqa: E501


def cell(load: Callable[[Path], Run], file: Path, dense: Path, x: np.ndarray) -> str:
    """The time of a compressed file over that of the same weights written out."""
    expected = onnxruntime(dense)(x)
    try:
        runs = [load(path) for path in (file, dense)]
        outputs = [run(x) for run in runs]
        if snr(expected, outputs[0]) < min(snr(expected, outputs[1]), SAME) - 3:
            return f"NO: {snr(expected, outputs[0]):.0f} dB"
        pairs, end = [], time.perf_counter() + SECONDS
        while len(pairs) < PAIRS and (len(pairs) < 3 or time.perf_counter() < end):
            pairs.append([seconds(run, x) for run in runs])
    except Exception as error:
        return f"NO: {one_line(error)[:40]}"
    return f"{min(pair[0] for pair in pairs) / min(pair[1] for pair in pairs):.1f}"


def seconds(run: Run, x: np.ndarray) -> float:
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def main() -> None:
    x = images(1)
    lines = [TITLE, "| runtime | " + " | ".join(f"`{name}`" for name in SPECS) + " |"]
    lines.append("|---" * (len(SPECS) + 1) + "|")
    with TemporaryDirectory() as folder:
        files = [(Path(folder, f"{n}.onnx"), Path(folder, f"{n}.dense.onnx")) for n in SPECS]
        for spec, (file, dense) in zip(SPECS.values(), files, strict=True):
            model = compressed(spec)
            oc.save(model, file)
            oc.save(oc.expand(model), dense)
        for name, (package, load) in MEASURED.items():
            cells = [cell(load, file, dense, x) for file, dense in files]
            title = f"{name}, {version(package)}" if cells[0][:2] != "NO" else name
            lines.append("| " + " | ".join([title, *cells]) + " |")
            print(lines[-1], file=sys.stderr)
    (FOLDER / "runtimes.md").write_text("\n".join(lines) + "\n" + DOCUMENTED)
    write()


if __name__ == "__main__":
    main()
