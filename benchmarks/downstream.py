"""What other tools make of a compressed model: the same outputs, and still a small file?

    python benchmarks/downstream.py [TOOL ...]

The network of models/, compressed by every method without data, is given to each tool that is
installed, and so is the same network with its weights written out (`onnxcompress expand`).  A cell
says how large the tool's file is beside the compressed one (1.00: as small as it was), or "ok" for
what only runs a model; and "NO" where it fails, or the output SNR in dB is lower than the other
network's by more than 3 dB, up to 90 dB.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import onnxcompress as oc
from onnxcompress.compression.method_spec import parse
from onnxcompress.compression.validate.fidelity import decibel
from onnxcompress.core.messages import one_line
from onnxcompress.core.statistics import Statistics

NETWORK = Path(__file__).parents[1] / "models" / "cifar10_resnet.onnx"
SPECS = {
    "half": "half",
    "integer": "integer:bits=4",
    "codebook": "codebook:vector=4,table=own",
    "hashed": "hashed:share=4",
    "binary": "binary:stacks=2",
    "basis": "basis:unfolding=filter,rank=8",
    "basis+integer": "basis:unfolding=filter,rank=8+integer:bits=8",
}
SAME = 90.0  # dB from which outputs count as the same
Tool = Callable[[Path, Path, np.ndarray], Any]  # (file, file to write, samples) -> outputs


# --------------------------------------------------------------------------------- what runs it


def run(file: Path, x: np.ndarray, level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_ALL) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 4
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def onnxruntime(level: str, file: Path, _: Path, x: np.ndarray) -> Any:
    return run(file, x, getattr(ort.GraphOptimizationLevel, level))


def optimized_file(level: str, file: Path, target: Path, x: np.ndarray) -> Any:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return run(target, x)


def openvino(file: Path, _: Path, x: np.ndarray) -> Any:
    model = (
        import_module("openvino")
        .Core()
        .compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    )
    return next(iter(model(x).values()))


# ------------------------------------------------------------------------------ what rewrites it


def onnxslim(file: Path, target: Path, x: np.ndarray, **options: Any) -> Any:
    onnx.save(import_module("onnxslim").slim(str(file), **options), target)
    return run(target, x)


def onnxsim(file: Path, target: Path, x: np.ndarray, **options: Any) -> Any:
    onnx.save(import_module("onnxsim").simplify(str(file), **options)[0], target)
    return run(target, x)


def quantize(
    file: Path, target: Path, x: np.ndarray, skip: bool | None = None, **options: Any
) -> Any:
    """quantize_static, after quant_pre_process if told whether it skips the optimization."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            name = ort.InferenceSession(file).get_inputs()[0].name
            self.batches: Iterator[dict[str, np.ndarray]] = iter([{name: x}])

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore
            return next(self.batches, None)

    if skip is not None:
        prepared = target.with_suffix(".prepared.onnx")
        quant_pre_process(file, prepared, skip_optimization=skip)
        file = prepared
    quantize_static(file, target, Reader(), **options)
    return run(target, x)


def float16(module: str, file: Path, target: Path, x: np.ndarray, **options: Any) -> Any:
    convert = import_module(module).convert_float_to_float16
    onnx.save(convert(onnx.load(file), keep_io_types=True, **options), target)
    return run(target, x)


LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL")
LINEAR = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
COMMON, OURS = "onnxconverter_common.float16", "onnxruntime.transformers.float16"
TOOLS: Mapping[str, Tool] = {
    **{f"onnxruntime {name}": partial(onnxruntime, f"ORT_{name}") for name in LEVELS},
    "openvino": openvino,
    "onnxruntime, optimized file": partial(optimized_file, "ORT_ENABLE_BASIC"),
    "onnxslim": onnxslim,
    "onnxslim, no constant_folding": partial(onnxslim, skip_optimizations=["constant_folding"]),
    "onnxsim": onnxsim,
    "onnxsim, skip_constant_folding": partial(onnxsim, skip_constant_folding=True),
    "quant_pre_process, quantize_static": partial(quantize, skip=False),
    "quantize_static, linear operators": partial(quantize, op_types_to_quantize=LINEAR),
    "quantize_static": quantize,
    "float16 of onnxruntime": partial(float16, OURS),
    "float16 of onnxconverter-common": partial(float16, COMMON),
    "the same, check_fp16_ready=False": partial(float16, COMMON, check_fp16_ready=False),
}


def compressed(spec: str) -> oc.Model:
    """The network with every layer that can be in this form."""
    model, [method] = oc.load(NETWORK), parse(spec)
    weights = {}
    for name, layer in oc.find_layers(model)[0].items():
        statistics = Statistics.white(layer)
        for candidate in [*method.candidates(layer, statistics)][:1]:
            weights[name] = candidate.fitted(layer, statistics)
    return oc.rewrite(model, weights)


def snr(reference: np.ndarray, found: np.ndarray) -> float:
    """In dB, at most ``SAME``."""
    noise = float(np.square(np.asarray(found, np.float64) - reference).sum())
    return min(decibel(float(np.square(reference, dtype=np.float64).sum()), noise), SAME)


def cell(tool: Tool, file: Path, dense: Path, x: np.ndarray) -> str:
    """What the table says of a tool and a compressed file."""
    target, reference = file.with_suffix(".tool.onnx"), run(file, x)
    target.unlink(missing_ok=True)
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    try:
        with silent[0], silent[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = snr(reference, tool(dense, dense.with_suffix(".tool.onnx"), x))
            found = snr(reference, tool(file, target, x))
    except ImportError as error:
        return f"not installed: {error.name}"
    except Exception as error:
        return f"NO: {one_line(error)[:24]}"
    size = f"{target.stat().st_size / file.stat().st_size:.2f}" if target.exists() else "ok"
    return size if found >= expected - 3 else f"NO: {size}, {found:.0f} < {expected:.0f}"


def images(count: int) -> np.ndarray:
    """So many calibration images of the network, in one batch."""
    given = oc.load_samples(
        NETWORK.parent / "calibration.npz",
        oc.input_specs(oc.load(NETWORK)),
        limit=count,
        preprocess=NETWORK.parent / "preprocess.yaml",
    )
    [x] = next(given.batches(count)).values()
    return x


def main() -> None:
    logging.disable()
    wanted = sys.argv[1:] or [*TOOLS]
    x = images(8)
    table = Table("tool", *SPECS)
    with TemporaryDirectory() as folder:
        files = []
        for name, spec in SPECS.items():
            model = compressed(spec)
            files.append((Path(folder) / f"{name}.onnx", Path(folder) / f"{name}.dense.onnx"))
            oc.save(model, files[-1][0])
            oc.save(oc.expand(model), files[-1][1])
        for name, tool in TOOLS.items():
            if any(word in name for word in wanted):
                table.add_row(name, *(cell(tool, file, dense, x) for file, dense in files))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
