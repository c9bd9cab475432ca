"""onnxruntime: int8 weights, activations quantized while the model runs."""

import sys
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

source, target = sys.argv[1:3]
prepared = str(Path(target).with_suffix(".prepared.onnx"))
quant_pre_process(source, prepared, skip_symbolic_shape=True)
quantize_dynamic(prepared, target, weight_type=QuantType.QUInt8, per_channel=True)
