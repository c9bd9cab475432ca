"""The contract of every method.  A new file in onnxcompress/methods is tested here unchanged."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from models import KINDS, layer_model
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import find_layers, rewrite
from onnxcompress.methods import METHODS

SETTINGS = 8  # tried on each layer, evenly taken from all
# Errors of some candidates are read between those of others, 0.3 dB from the truth.
READ_BETWEEN = 1.1
CLOSE = {"float32": 2e-5, "float16": 2e-2, "bfloat16": 5e-2}  # of the largest output


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]()


@pytest.fixture
def case(kind, rng):
    """Model, sample, layer, and statistics of correlated inputs."""
    model, sample = layer_model(kind, rng)
    layers, skipped = find_layers(model)
    assert not skipped
    statistics = calibrate(model, layers, [sample], exact=True)
    return model, sample, layers["layer"], statistics["layer"]


def some(items):
    items = list(items)
    return items[:: max(1, len(items) // SETTINGS)]


def output(model, sample):
    return Session(model).run(sample)[0]


def close(a, b, dtype="float32"):
    np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE[dtype] * np.abs(b).max())


def with_weight(model, weight):
    """The model with another weight of the layer's, given output first."""
    [node] = [node for node in model.graph.node if node.name == "layer"]
    result = model.copy()
    if node.op_type == "ConvTranspose":
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        split = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
        weight = split.swapaxes(1, 2).reshape(-1, len(weight) // groups, *weight.shape[2:])
    if node.op_type == "MatMul" and node.input[0] == "x":
        weight = weight.T
    if node.op_type == "Gemm":
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        weight = weight / attributes.get("alpha", 1)
        weight = weight if attributes.get("transB") else weight.T
    [stored] = [tensor for tensor in result.graph.initializer if tensor.name == "w"]
    dtype = onnx.numpy_helper.to_array(stored).dtype
    stored.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(weight.astype(dtype)), "w"))
    return result


def test_decode_keeps_shape_and_type(method, case):
    _, _, layer, statistics = case
    for setting in some(method.settings(layer)):
        decoded = setting.fit(layer, statistics).decode()
        assert (decoded.shape, decoded.dtype) == (layer.weight.shape, layer.weight.dtype)


def test_candidates_say_what_a_fit_will_cost_and_about_at_most_err(method, case):
    _, _, layer, statistics = case
    for candidate in some(method.candidates(layer, statistics)):
        fitted = candidate.setting.fit(layer, statistics)
        assert candidate.nbytes == fitted.nbytes
        assert candidate.factors == fitted.factors
        assert candidate.nbytes < layer.weight.nbytes
        error = statistics.error(layer.weight, fitted.decode())
        assert -1e-6 <= error <= READ_BETWEEN * candidate.error + 1e-5


def test_the_emitted_subgraph_computes_with_the_decoded_weight(method, case):
    model, sample, layer, statistics = case
    for setting in some(method.settings(layer)):
        fitted = setting.fit(layer, statistics)
        emitted = output(rewrite(model, {"layer": fitted}), sample)
        close(emitted, output(with_weight(model, fitted.decode()), sample))


def test_the_emitted_model_is_valid_and_a_second_evaluator_agrees(method, case):
    model, sample, layer, statistics = case
    for setting in some(method.settings(layer))[:3]:
        emitted = rewrite(model, {"layer": setting.fit(layer, statistics)})
        onnx.checker.check_model(emitted.proto, full_check=True)
        onnx.shape_inference.infer_shapes(emitted.proto, strict_mode=True, data_prop=True)
        try:
            ReferenceEvaluator(model.proto).run(None, sample)
        except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError):
            continue  # it cannot run the original
        close(ReferenceEvaluator(emitted.proto).run(None, sample)[0], output(emitted, sample))


def test_the_model_grows_by_what_nbytes_says(method, case):
    model, _, layer, statistics = case
    for setting in some(method.settings(layer)):
        fitted = setting.fit(layer, statistics)
        emitted = rewrite(model, {"layer": fitted})
        stored = fitted.nbytes - layer.weight.nbytes
        positions = np.prod(layer.kernel, dtype=int)
        tables = sum(array.nbytes for array in fitted.shared_arrays())
        constants = 400 + 4 * positions**2 + tables  # of the decoder, and a bias written out
        assert abs(emitted.weight_bytes - model.weight_bytes - stored) < constants
        assert abs(emitted.nbytes - model.nbytes - stored) < 2500 + constants  # and names and nodes


def test_the_multiplications_are_those_of_the_emitted_nodes(method, case):
    model, sample, layer, statistics = case
    shapes, macs = input_shapes(model, sample)
    assert layer.macs(shapes["layer"]) == macs["layer"]
    for setting in some(method.settings(layer)):
        fitted = setting.fit(layer, statistics)
        emitted = rewrite(model, {"layer": fitted})
        counted = sum(input_shapes(emitted, sample)[1].values())
        assert layer.macs(shapes["layer"], *fitted.factors) == counted


def test_scaled_multiplies_every_output_channel(method, case, rng):
    _, _, layer, statistics = case
    gain = rng.uniform(0.5, 2, len(layer.weight))
    shape = (-1, *(1,) * (layer.weight.ndim - 1))
    for setting in some(method.settings(layer))[:3]:
        fitted = setting.fit(layer, statistics)
        scaled = fitted.scaled(gain).decode()
        narrow = any(array.dtype == np.float16 for array in fitted.arrays())
        close(scaled, fitted.decode() * gain.reshape(shape), "float16" if narrow else "float32")


def test_knowing_the_inputs_never_hurts_on_these_inputs(method, case):
    _, _, layer, statistics = case
    for setting in some(method.settings(layer)):
        known = setting.fit(layer, statistics).decode()
        blind = setting.fit(layer, Statistics.white(layer)).decode()
        error = statistics.error(layer.weight, known)
        assert error <= 1.05 * statistics.error(layer.weight, blind) + 1e-5


def test_a_new_bias_takes_the_place_of_the_old_one_in_the_last_node(method, case, rng):
    model, sample, layer, statistics = case
    new = rng.normal(size=len(layer.weight)).astype(np.float32)
    more = new - (0 if layer.bias is None else layer.bias)
    axis = {"MatMul": -2 if layer.attributes.get("left") else -1, "Gemm": -1}.get(layer.op_type, 1)
    for setting in some(method.settings(layer))[:3]:
        fitted = setting.fit(layer, statistics)
        changed = output(rewrite(model, {"layer": fitted}, {"layer": new}), sample)
        before = output(rewrite(model, {"layer": fitted}), sample)
        close(np.moveaxis(changed, axis, -1), np.moveaxis(before, axis, -1) + more)


def test_settings_come_smallest_first_and_print_alike_when_made_again(method, case):
    _, _, layer, _ = case
    settings = method.settings(layer)
    assert list(map(str, settings)) == list(map(str, method.settings(layer)))
    assert len(set(map(str, settings))) == len(settings)
    sizes = [setting.blank(layer).nbytes for setting in some(settings)]
    assert sizes == sorted(sizes)


def test_a_fit_is_no_larger_than_its_blank_but_for_zero_points_and_wide_scales(method, case):
    model, _, layer, statistics = case
    if method.name == "hashed":
        pytest.skip("which bands are exact depends on the inputs")
    choosy = method.name in ("integer", "codebook")  # which of several forms they take
    for setting in some(method.settings(layer)):
        blank, fit = setting.blank(layer), setting.fit(layer, statistics)
        if choosy:  # three bytes more for every scale
            assert fit.nbytes <= blank.nbytes + 3 * len(layer.weight)
        else:
            sizes = [rewrite(model, {"layer": weight}).nbytes for weight in (blank, fit)]
            assert abs(sizes[0] - sizes[1]) <= 32


def test_the_same_fit_gives_the_same_bytes(method, case):
    _, _, layer, statistics = case
    for setting in some(method.settings(layer))[:3]:
        first, second = (setting.fit(layer, statistics) for _ in range(2))
        assert [a.tobytes() for a in first.arrays()] == [a.tobytes() for a in second.arrays()]


def test_another_float_type_leaves_integers_and_shapes_alone(method, case):
    _, _, layer, statistics = case
    for setting in some(method.settings(layer))[:3]:
        fitted = setting.fit(layer, statistics)
        for before, after in zip(fitted.arrays(), fitted.astype(np.float16).arrays(), strict=True):
            floating = before.dtype.kind == "f"
            assert after.shape == before.shape
            assert after.dtype == (np.float16 if floating else before.dtype)
            if not floating:
                np.testing.assert_array_equal(after, before)


DEGENERATE = {
    "zeros": lambda x: 0 * x,
    "constant": lambda x: 0 * x + 3,
    "one patch": lambda x: x[:, :1],
    "tiny": lambda x: 1e-8 * x,
    "half dead": lambda x: x * (np.arange(x.shape[2]) % 2),
    "far from zero": lambda x: x + 1000,
}


@pytest.mark.parametrize("inputs", DEGENERATE)
@pytest.mark.parametrize("kind", ["conv", "grouped", "gemm"])
def test_inputs_that_say_little_give_finite_weights(method, kind, inputs, rng):
    layer = find_layers(layer_model(kind, rng)[0])[0]["layer"]
    groups, _, fan_in = layer.grouped.shape
    patches = DEGENERATE[inputs](rng.normal(size=(groups, 300, fan_in))).astype(np.float32)
    statistics = Statistics.of(patches)
    for candidate in some(method.candidates(layer, statistics)):
        assert 0 <= candidate.error <= 1.5
        decoded = candidate.setting.fit(layer, statistics).decode()
        assert np.abs(decoded).max() < 1000 * np.abs(layer.weight).max()


def test_a_weight_of_zeros_stays_one(method, rng):
    model, _ = layer_model("conv", rng)
    layer = replace(find_layers(model)[0]["layer"], weight=np.zeros((12, 8, 3, 3), np.float32))
    for candidate in some(method.candidates(layer, Statistics.white(layer))):
        fitted = candidate.setting.fit(layer, Statistics.white(layer))
        assert candidate.error == 0
        assert not fitted.decode().any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["conv", "gemm", "transposed"])
def test_a_model_of_narrow_floats_stays_one(kind, dtype, method, rng):
    model, sample = layer_model(kind, rng, dtype)
    layer = find_layers(model)[0]["layer"]
    for setting in some(method.settings(layer))[:3]:
        fitted = setting.fit(layer, Statistics.white(layer))
        decoded = fitted.astype(np.float32).decode()  # numpy computes little in bfloat16
        emitted = rewrite(model, {"layer": fitted})
        onnx.checker.check_model(emitted.proto, full_check=True)
        stored = [onnx.numpy_helper.to_array(t) for t in emitted.graph.initializer]
        wide = sum(array.nbytes for array in stored if array.dtype in (np.float32, np.float64))
        assert wide <= 8 + 4 * np.prod(layer.kernel, dtype=int) ** 2  # of the decoder
        close(output(emitted, sample), output(with_weight(model, decoded), sample), dtype)


@pytest.mark.parametrize("kind", ["conv", "gemm"])
def test_narrow_floats_are_decoded_to_narrow_floats(kind, method, rng):
    layer = find_layers(layer_model(kind, rng, "float16")[0])[0]["layer"]
    for setting in some(method.settings(layer))[:3]:
        assert setting.fit(layer, Statistics.white(layer)).decode().dtype == np.float16


@pytest.mark.parametrize("kind", ["conv", "grouped", "pointwise"])
def test_openvino_computes_the_same(kind, method, rng):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model, sample = layer_model(kind, rng)
    layer = find_layers(model)[0]["layer"]
    for setting in some(method.settings(layer))[:3]:
        emitted = rewrite(model, {"layer": setting.fit(layer, Statistics.white(layer))})
        read = openvino.Core().read_model(emitted.proto.SerializeToString(), b"")
        compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        close(next(iter(compiled(sample).values())), output(emitted, sample))
