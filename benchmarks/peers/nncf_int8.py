"""NNCF: int8 after training, its defaults, 128 samples."""

# pyright: reportMissingImports=false

import sys

import nncf
import numpy as np
import onnx

source, target, calibration = sys.argv[1:4]
model = onnx.load(source)
known = {tensor.name for tensor in model.graph.initializer}
name = next(value.name for value in model.graph.input if value.name not in known)
samples = nncf.Dataset(np.load(calibration)[:128], lambda sample: {name: sample[None]})
onnx.save(nncf.quantize(model, samples, subset_size=128), target)
