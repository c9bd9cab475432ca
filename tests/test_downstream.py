"""What runs or rewrites a compressed model gives its outputs."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxcompress as oc
from models import network
from onnxcompress.compression.expand import expand
from onnxcompress.compression.method_spec import parse
from onnxcompress.compression.validate.fidelity import decibel
from onnxcompress.core.statistics import Statistics

SPECS = ("half", "integer:bits=4", "codebook:vector=4,table=own", "hashed:share=4",
         "binary:stacks=2", "basis:unfolding=filter,rank=8",
         "basis:unfolding=filter,rank=8+integer:bits=8")  # fmt: skip
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


@pytest.fixture(scope="module", params=SPECS)
def pair(request, tmp_path_factory):
    """A compressed network and the same with its weights written out, as files."""
    model, [method] = network(np.random.default_rng(3)), parse(request.param)
    weights = {}
    for name, layer in oc.find_layers(model)[0].items():
        statistics = Statistics.white(layer)
        for candidate in [*method.candidates(layer, statistics)][:1]:
            weights[name] = candidate.fitted(layer, statistics)
    folder = tmp_path_factory.mktemp("models")
    small = oc.rewrite(model, weights)
    oc.save(small, folder / "small.onnx")
    oc.save(expand(small), folder / "dense.onnx")
    return folder / "small.onnx", folder / "dense.onnx"


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(4).standard_normal((4, 3, 12, 12), np.float32)


def run(file, x, level="ORT_ENABLE_ALL"):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return ort.InferenceSession(file, options).run(None, {"x": x})[0]


def snr(reference, found):
    return decibel(float(np.sum(np.square(reference))), float(np.sum(np.square(reference - found))))


@pytest.mark.parametrize("level", LEVELS)
def test_onnxruntime_computes_the_same_at_every_level(pair, x, level):
    small, dense = pair
    assert snr(run(dense, x), run(small, x, level)) > 90


def test_openvino_computes_the_same(pair, x):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    compiled = openvino.Core().compile_model(
        str(pair[0]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert snr(run(pair[1], x), next(iter(compiled(x).values()))) > 90


def test_a_conversion_to_float16_keeps_the_outputs_and_the_size(pair, x, tmp_path):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    narrow = convert_float_to_float16(onnx.load(pair[0]), keep_io_types=True)
    onnx.save(narrow, tmp_path / "narrow.onnx")
    assert snr(run(pair[1], x), run(tmp_path / "narrow.onnx", x)) > 50
    grown = (tmp_path / "narrow.onnx").stat().st_size - pair[0].stat().st_size
    assert grown < 3000, "bytes for types and Cast nodes"


def test_a_quantization_after_folding_is_that_of_the_dense_model(pair, x, tmp_path):
    pytest.importorskip("sympy", reason="quant_pre_process needs sympy")
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"x": x}])

        def get_next(self):
            return next(self.batches, None)

    outputs = []
    for file in pair:
        quant_pre_process(file, tmp_path / "prepared.onnx")
        quantize_static(tmp_path / "prepared.onnx", tmp_path / "quantized.onnx", Reader())
        outputs.append(run(tmp_path / "quantized.onnx", x))
    assert snr(outputs[1], outputs[0]) > 40
