"""onnxruntime: int8 weights per channel and uint8 activations as QDQ, after its pre-processing.

Before opset 13 there is no DequantizeLinear of several scales: then per tensor.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

source, target, calibration = sys.argv[1:4]
prepared = str(Path(target).with_suffix(".prepared.onnx"))
quant_pre_process(source, prepared, skip_symbolic_shape=True)
name = InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()[0].name
data = np.load(calibration)
arrays = {name: data} if isinstance(data, np.ndarray) else dict(data)
opset = max(o.version for o in onnx.load(prepared).opset_import if o.domain in ("", "ai.onnx"))


def samples():
    """One by one; those of several shapes are stored as 0/NAME, 1/NAME, ..."""
    if any(key.startswith("0/") for key in arrays):
        numbers = sorted({int(key.split("/")[0]) for key in arrays})
        names = [key.removeprefix("0/") for key in arrays if key.startswith("0/")]
        return [{n: arrays[f"{i}/{n}"] for n in names} for i in numbers]
    count = len(next(iter(arrays.values())))
    return [{n: x[i : i + 1] for n, x in arrays.items()} for i in range(count)]


class Reader(CalibrationDataReader):
    """The samples, one by one."""

    def __init__(self):
        self.samples = iter(samples()[:128])

    def get_next(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return next(self.samples, None)


quantize_static(
    prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=opset >= 13,
    weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
)  # fmt: skip
