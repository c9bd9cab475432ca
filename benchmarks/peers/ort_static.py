"""onnxruntime: int8 weights per channel and uint8 activations as QDQ, after its pre-processing."""

import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

source, target, calibration = sys.argv[1:4]
prepared = str(Path(target).with_suffix(".prepared.onnx"))
quant_pre_process(source, prepared, skip_symbolic_shape=True)
name = InferenceSession(source, providers=["CPUExecutionProvider"]).get_inputs()[0].name


class Reader(CalibrationDataReader):
    """The samples, one by one."""

    def __init__(self):
        self.samples = iter(np.load(calibration)[:128])

    def get_next(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        sample = next(self.samples, None)
        return None if sample is None else {name: sample[None]}


quantize_static(
    prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
    weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
)  # fmt: skip
