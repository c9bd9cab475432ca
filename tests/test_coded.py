"""Weights as bytes that pick rows of a table: integer, codebook, half, and packed arrays."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import onnxcompress as oc
from models import layer_model, network
from onnxcompress.compression.method_spec import parse
from onnxcompress.core.layer import Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import find_layers, overhead, rewrite
from onnxcompress.methods.codebook import normal_vectors
from onnxcompress.methods.lookup.coded import Coded
from onnxcompress.methods.lookup.tables import LEVELS
from onnxcompress.methods.lookup.uniform import Uniform
from onnxcompress.methods.lookup.weight import CodedWeight


def wide(rng, out=64, inputs=32):
    """A layer, what it reads, and the same of inputs that no fit has seen."""
    layer = Layer("wide", "Conv", rng.normal(size=(out, inputs, 3, 3)).astype(np.float32))
    mixed = rng.normal(size=(9 * inputs, 9 * inputs)) * (np.arange(9 * inputs) + 1) ** -0.6
    known, unseen = (
        Statistics.of((rng.normal(size=(1, 3000, 9 * inputs)) @ mixed).astype(np.float32))
        for _ in range(2)
    )
    return layer, known, unseen


def fitted(spec, layer, statistics):
    [setting] = parse(spec)[0].settings(layer)
    return setting.fit(layer, statistics)


@pytest.mark.parametrize("kind", ["odd", "signed", "shifted"])
@pytest.mark.parametrize("levels", LEVELS)
def test_numbers_decode_to_evenly_spaced_values(levels, kind, rng):
    layer = Layer("layer", "MatMul", np.zeros((5, 7), np.float32))
    grid = Uniform(levels, "signed" if levels == 256 and kind == "odd" else kind)
    numbers, scale = rng.integers(0, levels, (5, 7)), rng.uniform(1, 2, (5, 1))
    zero = rng.choice(grid.table[:, 0], (5, 1)) if kind == "shifted" else None
    weight = CodedWeight.of_numbers(Coded(numbers, scale, grid.table, 0.0, zero), grid, layer)
    units = 2 * numbers - (levels - 1) if grid.odd else numbers - levels // 2
    expected = scale.astype(np.float16).astype(np.float32) * (units - (0 if zero is None else zero))
    np.testing.assert_allclose(weight.decode(), expected, rtol=1e-6)
    integers = weight.integers()
    if integers is not None:
        np.testing.assert_array_equal(integers[0] * integers[1][:, None], weight.decode())
    assert integers is not None or (kind == "shifted" and levels > 64)


def test_more_bits_err_less_and_vectors_err_less_than_a_grid_of_their_bits(rng):
    layer, known, unseen = wide(rng)

    def error(spec):
        return unseen.error(layer.weight, fitted(spec, layer, known).decode())

    grid = [error(f"integer:bits={bits}") for bits in (8, 6, 5, 4, 3, 2)]
    assert grid == sorted(grid) and grid[0] < 1e-4 < 0.1 < 1
    vectors = [error(f"codebook:vector={d},table=shared") for d in (2, 3, 4, 6, 8, 12)]
    assert vectors == sorted(vectors)
    assert vectors[0] < grid[3] and vectors[2] < grid[5]  # at 4 and 2 bits
    assert error("codebook:vector=4,table=own") < vectors[2]
    assert error("codebook:levels=4") < 1.02 * grid[5]


@pytest.mark.parametrize("spec", ["integer:bits=3", "codebook:vector=4,table=shared"])
def test_a_fit_that_knows_the_inputs_is_better_on_inputs_that_it_has_not_seen(spec, rng):
    layer, known, unseen = wide(rng)
    blind, aware = (fitted(spec, layer, s).decode() for s in (Statistics.white(layer), known))
    assert unseen.error(layer.weight, aware) < 0.8 * unseen.error(layer.weight, blind)


def test_few_patches_do_not_mislead_the_rounding(rng):
    layer, *_ = wide(rng)
    root = rng.normal(size=(288, 288)) * (np.arange(288) + 1) ** -0.6
    few = Statistics.of((rng.normal(size=(1, 40, 288)) @ root).astype(np.float32))
    many = Statistics.of((rng.normal(size=(1, 9000, 288)) @ root).astype(np.float32))
    blind, aware = (
        many.error(layer.weight, fitted("integer:bits=4", layer, s).decode())
        for s in (Statistics.white(layer), few)
    )
    assert aware < 1.1 * blind


def test_scales_of_groups_of_inputs_follow_their_sizes(rng):
    weight = rng.normal(size=(16, 8, 3, 3)) * np.array([1, 1, 1, 1, 8, 8, 8, 8])[:, None, None]
    layer = Layer("layer", "Conv", weight.astype(np.float32))
    white = Statistics.white(layer)
    specs = ("integer:bits=3", "integer:bits=3,group=4")
    off = [np.square(layer.weight - fitted(spec, layer, white).decode()) for spec in specs]
    whole, grouped = (each.sum() for each in off)
    assert fitted("integer:bits=3,group=5", layer, white).scale.shape == (16, 2)
    assert grouped < 0.8 * whole
    whole, grouped = (each[:, :4].sum() for each in off)  # of the small inputs
    assert grouped < 0.1 * whole


@pytest.mark.parametrize("spec", ["integer:bits=4", "integer:bits=3", "codebook:vector=4"])
def test_a_layer_costs_few_bytes_besides_its_numbers_and_scales(spec, rng):
    net = network(rng)
    for layer in find_layers(net)[0].values():
        for setting in parse(spec)[0].settings(layer):
            assert overhead(net, layer, setting.blank(layer)) < 600


def test_equal_tables_are_stored_once(rng):
    net = network(rng)
    layers, _ = find_layers(net)
    weights = {
        name: fitted("codebook:vector=4,table=shared", layer, Statistics.white(layer))
        for name, layer in layers.items()
        if name in ("first", "second", "wide")
    }
    stored = rewrite(net, weights).initializers.values()
    table = normal_vectors(4).tobytes()
    assert sum(tensor.raw_data == table for tensor in stored) == 1


@pytest.mark.parametrize("spec", ["integer:levels=12", "codebook:vector=5,table=shared"])
def test_opset_7_is_enough(spec, rng):
    model, sample = layer_model("conv", rng, opset=7)
    layer = find_layers(model)[0]["layer"]
    emitted = rewrite(model, {"layer": fitted(spec, layer, Statistics.white(layer))})
    onnx.checker.check_model(emitted.proto, full_check=True)
    expected = ReferenceEvaluator(emitted.proto).run(None, sample)[0]
    np.testing.assert_allclose(Session(emitted).run(sample)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "spec",
    ["integer:bits=9", "integer:levels=5", "integer:bits=4,levels=3", "codebook:vector=1",
     "codebook:levels=4,vector=2", "integer:group=0"],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(spec):
    with pytest.raises(ValueError, match=r"bits|levels|vector|group"):
        parse(spec)


# ----------------------------------------------------------------------------------- packed arrays


@pytest.mark.parametrize("unfolding", ["filter,rank=12", "spatial,rank=24", "tucker,rank=24"])
def test_packing_a_chain_to_8_bits_costs_next_to_nothing(unfolding, rng):
    layer, known, _ = wide(rng)
    for basis in parse(f"basis:unfolding={unfolding}")[0].settings(layer)[:2]:
        plain = basis.fit(layer, known)
        packed = oc.Packed(basis, oc.Integer(bits=8)).fit(layer, known)
        errors = [known.error(layer.weight, w.decode()) for w in (plain, packed)]
        assert errors[1] < errors[0] + 1e-3
        assert packed.factors == plain.factors
        assert packed.nbytes < 0.3 * plain.nbytes


@pytest.mark.parametrize(
    "kind", ["conv", "grouped", "strided", "transposed grouped", "gemm", "matmul from the left"]
)
@pytest.mark.parametrize("spec", ["basis+integer:bits=8", "basis+half", "hashed:share=2+half"])
def test_a_packed_weight_emits_what_it_decodes_to(kind, spec, rng):
    model, sample = layer_model(kind, rng)
    layer = find_layers(model)[0]["layer"]
    settings = parse(spec)[0].settings(layer)
    for setting in settings[:: max(1, len(settings) // 3)]:
        weight = setting.fit(layer, Statistics.white(layer))
        emitted = rewrite(model, {"layer": weight})
        onnx.checker.check_model(emitted.proto, full_check=True)
        dense = rewrite(model, {"layer": Dense(weight.decode())})
        expected = Session(dense).run(sample)[0]
        np.testing.assert_allclose(
            Session(emitted).run(sample)[0], expected, atol=3e-5 * np.abs(expected).max()
        )
        assert weight.nbytes < layer.weight.nbytes


class Dense(oc.CompressedWeight):
    """A weight that is stored as it is."""

    def __init__(self, weight):
        object.__setattr__(self, "weight", weight)

    def decode(self):
        return self.weight

    def scaled(self, gain):
        return self

    def emit(self, op, x, layer):
        return layer.apply(op, x, self.weight, bias=layer.bias)


def test_an_array_of_another_method_is_packed_too(rng):
    layer, known, _ = wide(rng)
    plain, packed = (
        fitted(spec, layer, known) for spec in ("hashed:share=2", "hashed:share=2+integer:bits=8")
    )
    errors = [known.error(layer.weight, w.decode()) for w in (plain, packed)]
    assert errors[1] < 1.05 * errors[0] and packed.nbytes < 0.3 * plain.nbytes


@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_its_own_finds_the_few_vectors_that_a_weight_is_made_of(seed):
    rng = np.random.default_rng(seed)
    few = rng.choice([-1, -0.5, 0, 0.5, 1], size=(120, 4))
    weight = few[rng.integers(len(few), size=(48, 36))].reshape(48, 144)
    weight /= np.sqrt(np.square(weight).mean(1, keepdims=True))
    layer = Layer("layer", "Gemm", weight.astype(np.float32))
    statistics = Statistics.of(rng.normal(size=(1, 600, 144)).astype(np.float32))
    approximation = fitted("codebook:vector=4,table=own", layer, statistics).decode()
    assert statistics.error(layer.weight, approximation) < 1e-4


def test_a_table_of_its_own_may_have_more_rows_than_a_weight_has_pieces(rng):
    layer = Layer("layer", "Gemm", rng.normal(size=(12, 24)).astype(np.float32))
    statistics = Statistics.of(rng.normal(size=(1, 200, 24)).astype(np.float32))
    approximation = fitted("codebook:vector=3,table=own", layer, statistics).decode()
    assert statistics.error(layer.weight, approximation) < 1e-3


def test_a_nearly_dead_filter_leaves_the_scales_in_16_bits_and_has_its_own_precision(rng):
    weight = rng.normal(size=(8, 64)).astype(np.float32)
    weight[3] *= 2e-5
    layer = Layer("layer", "MatMul", weight)
    for method in (oc.Integer(bits=4), oc.Codebook(vector=2, table="shared")):
        fit = method.fit(layer, Statistics.white(layer))
        row = fit.decode()[3] - weight[3]
        assert fit.scale.dtype == np.float16
        assert np.sum(np.square(row)) < 0.03 * np.sum(np.square(weight[3]))
