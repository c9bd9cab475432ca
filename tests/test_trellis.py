"""Bytes whose tables the bytes before them choose: trellis-coded vectors."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcompress.compression.method_spec import parse
from onnxcompress.core.layer import Layer
from onnxcompress.core.method import Plain
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_layers, overhead, rewrite
from onnxcompress.methods.codebook import normal_vectors
from onnxcompress.methods.lookup.trellis import (
    WORDS,
    normal_tables,
    places,
    remembering,
    segment_of,
    trained,
)

SPEC = "codebook:vector={},table=shared,memory={}"


def drawn(rng, shape=(64, 32, 3, 3), **attributes):
    return Layer("layer", "Conv", rng.normal(size=shape).astype(np.float32), attributes=attributes)


def seen(rng, layer):
    """What a layer reads: correlated inputs."""
    n = layer.fan_in
    mixed = rng.normal(size=(n, n)) * (np.arange(n) + 1) ** -0.3
    return Statistics.of((rng.normal(size=(layer.groups, 3000, n)) @ mixed).astype(np.float32))


def fitted(spec, layer, statistics):
    [setting] = parse(spec)[0].settings(layer)
    return setting.fit(layer, statistics)


def coded(table, points):
    """The rows of the table that the Viterbi algorithm picks for points ``(d, rows)``."""
    scale, part = np.ones((1, 1, points.shape[1]), np.float32), np.zeros(1, int)
    one = np.eye(len(points), dtype=np.float32)[None, None]
    codes, values = remembering(table, scale, part, 16, one)(points[None], 0)
    return codes[0], values[0]


@pytest.mark.parametrize(("d", "least"), [(2, 1.3), (3, 0.9), (4, 0.7)])
def test_memory_errs_less_on_normal_numbers_at_equal_bytes(d, least, rng):
    points = rng.standard_normal((d, 4096), np.float32)
    plain, (table, unit) = normal_vectors(d).astype(np.float32), normal_tables(d, 3)
    _, values = coded(table.astype(np.float32) * np.float32(unit), points)
    ratio = np.abs(plain).max()
    sizes = np.linspace(2.5, 4.5, 41) / ratio  # The scale of the plain table is not stored.
    errors = [np.square(points.T[:, None] - plain * size).sum(2).min(1).sum() for size in sizes]
    assert 10 * np.log10(min(errors) / np.square(points - values).sum()) > least


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_tables_are_what_more_rounds_leave_nearly_as_they_are(bits, rng):
    table, unit = normal_tables(2, bits)
    assert table.shape == (2**bits * WORDS, 2) and table.dtype == np.int8
    points = rng.standard_normal((2, 4096), np.float32)
    long, short = (
        np.square(points - coded(each, points)[1]).mean()
        for each in (table.astype(np.float32) * np.float32(unit), trained(2, bits, 20, drawn=2048))
    )
    assert long < short < 1.3 * long


def test_the_path_is_the_best_one_and_bytes_alone_tell_it(rng):
    table = rng.standard_normal((2 * WORDS, 2)).astype(np.float32)
    table[7:WORDS] = table[WORDS + 7 :] = 99  # few are near: all paths can be tried
    points = rng.standard_normal((2, 16), np.float32)
    codes, values = coded(table, points)
    np.testing.assert_array_equal(places((codes % WORDS)[:, None], 16, table)[:, 0], codes)
    costs = np.square(points.T[:, None] - table).sum(2).reshape(16, 2, WORDS)[:, :, :7]
    best = np.array([0, np.inf])
    for cost in costs:  # the least sums for paths to each state
        steps = (best[:, None] + cost).min(0)
        best = np.array([steps[0::2].min(), steps[1::2].min()])
    np.testing.assert_allclose(np.square(points - values).sum(), best.min(), rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "segment"), [(64, 16), (24, 12), (30, 15), (8, 8), (17, 0), (7, 0), (1, 0)]
)
def test_segments_are_equal_parts_of_8_to_16_rows(rows, segment):
    assert segment_of(rows) == segment


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("d", [2, 3, 4])
def test_at_equal_bytes_outputs_err_less_with_memory(d, groups, rng):
    layer = drawn(rng, group=groups)
    known = seen(rng, layer)
    plain, memory = (fitted(SPEC.format(d, bits), layer, known) for bits in (0, 3))
    assert memory.nbytes == plain.nbytes and memory.segment == 16
    errors = [known.error(layer.weight, each.decode()) for each in (plain, memory)]
    assert 10 * np.log10(errors[0] / errors[1]) > {2: 0.7, 3: 0.5, 4: 0.45}[d]


def test_without_samples_weights_err_less_with_memory(rng):
    layer = drawn(rng)
    white = Statistics.white(layer)
    off = [
        np.square(layer.weight - fitted(SPEC.format(2, bits), layer, white).decode()).sum()
        for bits in (0, 3)
    ]
    assert 10 * np.log10(off[0] / off[1]) > 1


def test_more_bits_of_memory_err_less(rng):
    layer = drawn(rng)
    known = seen(rng, layer)
    errors = [
        known.error(layer.weight, fitted(SPEC.format(2, bits), layer, known).decode())
        for bits in (3, 2, 1)
    ]
    assert errors == sorted(errors)


def two_layers(rng, opset=17):
    """A model of two convolutions in which bytes remember, another without, and a sample."""
    x = np.asarray(rng.normal(size=(2, 8, 6, 6)), np.float32)
    weights = [(rng.normal(size=(32, n, 3, 3)) / 20).astype(np.float32) for n in (8, 32)]
    tensors = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    nodes = [
        helper.make_node("Conv", [read, f"w{i}"], [made], f"layer{i}", pads=[1] * 4)
        for i, (read, made) in enumerate([("x", "h"), ("h", "y")])
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, channels, 6, 6])
        for name, channels in (("x", 8), ("y", 32))
    ]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", opset)]
    model = Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    fits = {
        name: fitted(SPEC.format(2 if name == "layer0" else 4, 3), layer, Statistics.white(layer))
        for name, layer in find_layers(model)[0].items()
    }
    plain = {name: Plain(weight.decode()) for name, weight in fits.items()}
    return rewrite(model, fits), rewrite(model, plain), {"x": x}


@pytest.mark.parametrize("opset", [7, 9, 10, 13, 17])
def test_onnxruntime_computes_what_decode_says(opset, rng):
    made, plain, sample = two_layers(rng, opset)
    onnx.checker.check_model(made.proto, full_check=True)
    assert (opset >= 10) == any(n.op_type == "ConvInteger" for n in made.graph.node)
    expected = Session(plain).run(sample)[0]
    np.testing.assert_allclose(Session(made).run(sample)[0], expected, atol=1e-5)
    np.testing.assert_allclose(Session(made, optimize=False).run(sample)[0], expected, atol=1e-5)


@pytest.mark.parametrize("opset", [7, 17])
def test_the_reference_computes_what_decode_says(opset, rng):
    made, plain, sample = two_layers(rng, opset)
    expected = Session(plain).run(sample)[0]
    values = ReferenceEvaluator(made.proto).run(None, sample)[0]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_openvino_computes_what_decode_says(rng):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    made, plain, sample = two_layers(rng)
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(made.proto.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    values = compiled([sample["x"]])[0]
    np.testing.assert_allclose(values, Session(plain).run(sample)[0], atol=1e-4)


def test_torch_computes_what_decode_says(rng):
    torch_graph = pytest.importorskip("onnxcompress.refinement.torch_graph")
    made, plain, sample = two_layers(rng)
    assert not torch_graph.unsupported(made)
    graph = torch_graph.TorchGraph(made)
    values = graph({name: torch_graph.torch.from_numpy(x) for name, x in sample.items()})
    np.testing.assert_allclose(values[0], Session(plain).run(sample)[0], atol=1e-4)


def test_layers_share_the_tables_and_what_repeats_them(rng):
    weight = rng.normal(size=(32, 8, 3, 3)).astype(np.float32)
    tensors = [numpy_helper.from_array(weight * (1 + i), f"w{i}") for i in range(3)]
    nodes = [helper.make_node("Conv", ["x", f"w{i}"], [f"y{i}"], f"l{i}") for i in range(3)]
    infos = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", c, "h", "w"])
        for name, c in (("x", 8), ("y0", 32), ("y1", 32), ("y2", 32))
    ]
    graph = helper.make_graph(nodes, "net", infos[:1], infos[1:], tensors)
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    layers = find_layers(model)[0]
    weights = {
        name: fitted(SPEC.format(2, 3), layer, Statistics.white(layer))
        for name, layer in layers.items()
    }
    made = rewrite(model, weights)
    assert sum(node.op_type == "Tile" for node in made.graph.node) == 1
    stored = [tensor.raw_data for tensor in made.initializers.values()]
    assert stored.count(normal_tables(2, 3)[0].tobytes()) == 1
    assert all(overhead(model, layers[name], w) < 600 for name, w in weights.items())
    x = rng.normal(size=(1, 8, 5, 5)).astype(np.float32)
    expected = Session(rewrite(model, {n: Plain(w.decode()) for n, w in weights.items()}))
    for one, other in zip(Session(made).run({"x": x}), expected.run({"x": x}), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_integers_times_scales_are_the_weight(rng):
    weight = fitted(SPEC.format(2, 3), drawn(rng), Statistics.white(drawn(rng)))
    numbers, scale = weight.integers()
    np.testing.assert_array_equal(numbers * scale[:, None, None, None], weight.decode())


def test_gains_and_types_leave_bytes_as_they_are(rng):
    weight = fitted(SPEC.format(2, 3), drawn(rng), Statistics.white(drawn(rng)))
    gain = rng.uniform(0.5, 2, 64).astype(np.float32)
    changed = weight.scaled(gain).astype(np.float32)
    assert changed.segment == weight.segment
    np.testing.assert_allclose(
        changed.decode(), weight.decode() * gain[:, None, None, None], rtol=2e-3
    )


def test_layers_without_segments_and_tables_that_are_looked_up_have_no_memory(rng):
    odd, looked_up = drawn(rng, (62, 32, 3, 3)), drawn(rng, indices=("i",))
    for layer in (odd, looked_up):
        [setting] = parse(SPEC.format(2, 3))[0].settings(layer)
        assert setting.memory == 0
        assert not any(s.memory for s in parse("codebook")[0].settings(layer))


def test_where_memory_is_open_it_is_for_layers_that_repay_it(rng):
    large, small = drawn(rng, (256, 256)), drawn(rng, (16, 8, 3, 3))
    [chosen], [other] = (parse("codebook:vector=2")[0].settings(x) for x in (large, small))
    assert (chosen.memory, other.memory) == (3, 0)
    assert {s.memory for s in parse("codebook")[0].settings(large)} == {0, 3, None}


@pytest.mark.parametrize(
    "spec", ["codebook:memory=4", "codebook:vector=6,memory=2", "codebook:table=own,memory=1",
             "codebook:levels=4,memory=1"],
)  # fmt: skip
def test_memory_that_makes_no_sense_is_refused(spec):
    with pytest.raises(ValueError, match="memory"):
        parse(spec)
