"""Expanding: decoded weights are stored, all else stays as it is."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import ONNX_TYPES, images, network
from onnxcompress.cli.commands import main
from onnxcompress.compression import expand as expansion
from onnxcompress.compression.expand import expand
from onnxcompress.compression.method_spec import parse
from onnxcompress.compression.validate.deviation import ROUNDING, deviation, rounding
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.inputs import input_specs
from onnxcompress.data.random import random_samples
from onnxcompress.execution.runnable import verify
from onnxcompress.execution.session import Session
from onnxcompress.graph import (
    Model,
    annotate,
    check,
    find_constants,
    find_layers,
    fold_constants,
    linear_nodes,
    load,
    rewrite,
    save,
)
from onnxcompress.methods import METHODS

LARGE_LAYERS = ("first", "second", "wide")
DECODING = [name for name, made in METHODS.items() if name != "basis" and not made.sampled]


# ------------------------------------------------------------------------------------- builders


def fitted(layer, spec):
    """A layer's weight as a method stores it."""
    [method] = parse(spec)
    setting = list(method.settings(layer))[-1]
    return setting.fit(layer, Statistics.white(layer))


def compressed(model, spec, names=LARGE_LAYERS):
    layers, _ = find_layers(model)
    return rewrite(model, {name: fitted(layers[name], spec) for name in names})


def build(nodes, weights, ir=8, outputs=("y",), inputs=(), kind=TensorProto.FLOAT, opset=17):
    """A checked model that reads x (2, 32) and has initializers, which ``inputs`` may name too."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    given = [helper.make_tensor_value_info("x", kind, [2, 32])]
    given += [
        helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in tensors
        if ir < 4 or t.name in inputs
    ]
    made = [helper.make_tensor_value_info(name, kind, [None, None]) for name in outputs]
    graph = helper.make_graph(nodes, "net", given, made, tensors)
    imports = [helper.make_opsetid("", opset)]
    model = Model(helper.make_model(graph, ir_version=ir, opset_imports=imports))
    check(model)
    return model


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], **attributes)


def halves(rng, shape=(32, 40)):
    return rng.normal(size=shape).astype(np.float16)


def cast_weight(*more, to=TensorProto.FLOAT):
    """w, stored in 16 bits -> Cast -> MatMul -> y, and more nodes after the Cast."""
    return [node("Cast", ["w"], "wide", to=to), *more, node("MatMul", ["x", "wide"], "y")]


def sample(rng, dtype=np.float32):
    return {"x": rng.normal(size=(2, 32)).astype(dtype)}


def same_outputs(a, b, feeds):
    pairs = zip(Session(a).run(feeds), Session(b).run(feeds), strict=True)
    for first, second in pairs:
        np.testing.assert_allclose(second, first, rtol=0, atol=ROUNDING * np.abs(first).max())


def operators(model):
    return [(n.op_type, n.name) for n in model.graph.node]


def bytes_of(items):
    return {item.name: item.SerializeToString(deterministic=True) for item in items}


def fold(model):
    """With whatever is computed from constants written out, not decoders alone."""
    return fold_constants(model, expansion.run_alone)


def unchanged(model):
    done = fold(model)
    return done.proto.SerializeToString() == model.proto.SerializeToString()


# ----------------------------------------------------------------------------- what methods decode


@pytest.mark.parametrize("spec", [*DECODING, "binary+half"])
def test_what_a_method_decodes_is_stored_again_and_the_outputs_stay(spec, rng):
    original = network(rng)
    small = compressed(original, spec)
    dense = expand(small)
    verify(dense)
    assert operators(small) != operators(original) == operators(dense)
    for layer in linear_nodes(dense).values():
        assert set(layer.input[1:]) <= set(dense.initializers)
    assert len(dense.initializers) == len(original.initializers)
    assert abs(dense.nbytes - original.nbytes) < 0.01 * original.nbytes
    assert small.nbytes < 0.9 * original.nbytes
    [batch] = images(rng, 4)
    same_outputs(small, dense, batch)


@pytest.mark.parametrize("spec", [*DECODING, "basis+integer", "binary+half"])
def test_no_weight_is_too_small_to_be_stored_again(spec, rng):
    small = compressed(network(rng), spec, ("stem", "head"))  # of 432 and 320 entries
    dense = expand(small)
    assert not dense.makers
    same_outputs(small, dense, images(rng, 4)[0])


def test_a_chain_of_smaller_layers_stays_a_chain_with_its_weights_stored(rng):
    original = network(rng)
    assert unchanged(compressed(original, "basis"))
    small = compressed(original, "basis+half", ["wide"])
    dense = expand(small)
    assert len(linear_nodes(dense)) == len(linear_nodes(small)) > len(linear_nodes(original))
    assert dense.nbytes > small.nbytes
    same_outputs(small, dense, images(rng, 2)[0])


@pytest.mark.parametrize("dtype", ONNX_TYPES)
@pytest.mark.parametrize("spec", DECODING)
def test_a_weight_gets_its_float_type_back(spec, dtype, rng):
    element = ONNX_TYPES[dtype]
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weight = rng.normal(size=(32, 40)).astype(dtype)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")]
    model = build(nodes, {"w": weight}, kind=element, opset=22)
    layer = find_layers(model)[0]["layer"]
    if METHODS[spec]().declined(layer):
        pytest.skip("the method does not take this type")
    small = rewrite(model, {"layer": fitted(layer, spec)})
    dense = expand(small)
    verify(dense)
    [tensor] = dense.graph.initializer
    assert (tensor.data_type, list(tensor.dims)) == (element, [32, 40])
    assert operators(dense) == [("MatMul", "layer")]
    samples = random_samples(input_specs(small), 2)
    assert deviation(small, dense, samples) <= rounding(dense)


def test_what_was_not_compressed_stays_byte_for_byte(rng):
    model = network(rng)
    proto = model.proto
    proto.producer_name, proto.doc_string = "somebody", "a model"
    proto.graph.value_info.append(
        helper.make_tensor_value_info("wide.y", TensorProto.FLOAT, ["n", 32, 6, 6])
    )
    for item in (*proto.graph.node, *proto.graph.initializer):
        item.doc_string = f"about {item.name}"
    small = annotate(compressed(Model(proto), "integer", ["wide"]), {"key": "value"})
    before = small.proto.SerializeToString()
    dense = expand(small)
    assert small.proto.SerializeToString() == before
    old, new = bytes_of(small.graph.node), bytes_of(dense.graph.node)
    assert new == {name: text for name, text in old.items() if name}  # a decoder has no name
    old, new = (bytes_of(m.graph.initializer).items() for m in (small, dense))
    [weight] = {name for name, _ in new - old}
    [reader] = [n for n in dense.graph.node if n.name == "wide"]
    assert weight == reader.input[1]
    for part in (small.proto, dense.proto):
        del part.graph.node[:], part.graph.initializer[:]
    assert dense.proto == small.proto


# ------------------------------------------------------------------------------- what is left alone


def test_what_the_model_itself_computes_from_constants_is_left_alone(rng):
    """A grid of positions is small as a row and a count, and megabytes when it is written out."""
    nodes = [
        node("Tile", ["row", "counts"], "grid"),
        node("MatMul", ["x", "w"], "z"),
        node("Add", ["z", "grid"], "y"),
    ]
    weights = {"row": rng.normal(size=(1, 40)).astype(np.float32), "counts": np.array([2, 1])}
    weights["w"] = rng.normal(size=(32, 40)).astype(np.float32)
    original = build(nodes, weights)
    assert not unchanged(original)
    assert expand(original).proto == original.proto
    [layer] = find_layers(original)[0]
    small = compressed(original, "integer", [layer])
    dense = expand(small)
    assert operators(dense) == operators(original)
    assert set(dense.initializers) - {"row", "counts"} == {dense.graph.node[1].input[1]}
    same_outputs(small, dense, sample(rng))


@pytest.mark.parametrize("spec", DECODING)
def test_a_constant_that_was_decoded_under_its_own_name_is_stored_again(spec, rng):
    table = rng.normal(size=(100, 40)).astype(np.float32)
    nodes = [
        node("ArgMax", ["x"], "ids", axis=1, keepdims=0),
        node("Gather", ["table", "ids"], "picked"),
        node("Neg", ["picked"], "y"),
    ]
    original = build(nodes, {"table": table})
    [layer] = find_constants(original, {}).values()
    if not METHODS[spec]().settings(layer):
        pytest.skip("the method has no setting for it")
    small = rewrite(original, {"table": fitted(layer, spec)})
    dense = expand(small)
    assert operators(dense) == operators(original) != operators(small)
    assert list(dense.initializers) == ["table"]
    same_outputs(small, dense, sample(rng))


RANDOM_CHAINS = {
    "RandomNormal": [node("RandomNormal", [], "w", shape=[32, 40])],
    "RandomUniform": [node("RandomUniform", [], "w", shape=[32, 40])],
    "RandomNormalLike": [node("RandomNormalLike", ["c"], "w")],
    "RandomUniformLike": [node("RandomUniformLike", ["c"], "w")],
    "Bernoulli": [node("Bernoulli", ["c"], "w")],
    "Multinomial": [
        node("Multinomial", ["c"], "picked", sample_size=40),
        node("Cast", ["picked"], "w", to=TensorProto.FLOAT),
    ],
    "Dropout": [node("Dropout", ["c", "half", "yes"], "w")],
}


@pytest.mark.parametrize("name", RANDOM_CHAINS)
def test_random_numbers_are_left_alone(name, rng):
    weights = {"c": rng.random((32, 40), np.float32), "half": np.float32(0.5), "yes": np.bool_(1)}
    nodes = [*RANDOM_CHAINS[name], node("Mul", ["w", "half"], "v"), node("MatMul", ["x", "v"], "y")]
    assert unchanged(build(nodes, {key: np.asarray(value) for key, value in weights.items()}))


def test_nodes_with_bodies_are_left_alone_and_count_as_readers(rng):
    branches = {
        f"{which}_branch": helper.make_graph(
            [node(op_type, ["wide"], which)],
            which,
            [],
            [helper.make_tensor_value_info(which, TensorProto.FLOAT, [32, 40])],
        )
        for which, op_type in (("then", "Abs"), ("else", "Neg"))
    }
    nodes = [
        node("Cast", ["w"], "wide", to=TensorProto.FLOAT),
        node("If", ["yes"], "v", **branches),
        node("MatMul", ["x", "v"], "y"),
    ]
    model = build(nodes, {"w": halves(rng), "yes": np.array(True)})
    dense = fold(model)
    assert [name for name, _ in operators(dense)] == ["If", "MatMul"]
    assert set(dense.initializers) == {"wide", "yes"}
    same_outputs(model, dense, sample(rng))


def test_what_callers_may_override_is_left_alone(rng):
    assert unchanged(build(cast_weight(), {"w": halves(rng)}, inputs=["w"]))


def test_indices_are_left_alone():
    nodes = [
        node("Cast", ["w"], "picked", to=TensorProto.INT64),
        node("GatherElements", ["x", "picked"], "y", axis=1),
    ]
    assert unchanged(build(nodes, {"w": np.ones((2, 1000), np.uint8)}))


SCALES = {"scale": np.float32(0.01), "zero": np.int8(3)}


@pytest.mark.parametrize("per_row", [False, True])
def test_weights_that_are_dequantized_for_products_in_8_bits_are_left_alone(per_row, rng):
    size = (32,) if per_row else ()
    weights = {name: np.full(size, value) for name, value in SCALES.items()}
    weights["w"] = rng.integers(-128, 128, (32, 40), np.int8)
    weights["v"] = rng.integers(-128, 128, (32, 32), np.int8)
    nodes = [
        node("DequantizeLinear", ["v", "scale", "zero"], "square", axis=0),
        node("Transpose", ["square"], "turned"),
        node("MatMul", ["x", "turned"], "z"),
        node("DequantizeLinear", ["w", "scale", "zero"], "wide", axis=0),
        node("MatMul", ["z", "wide"], "y"),
    ]
    assert unchanged(build(nodes, weights))


def test_weights_that_were_quantized_as_they_are_decoded_are_stored_in_8_bits(rng):
    grid = ("scale", "zero")
    nodes = [
        node("DequantizeLinear", ["codes", *grid], "known"),
        node("Mul", ["known", "scales"], "wide"),
        node("QuantizeLinear", ["wide", *grid], "narrow"),
        node("DequantizeLinear", ["narrow", *grid], "again"),
        node("MatMul", ["x", "again"], "y"),
    ]
    weights = {name: np.asarray(value) for name, value in SCALES.items()}
    weights["codes"] = rng.integers(-128, 128, (32, 40), np.int8)
    weights["scales"] = rng.random((32, 1), np.float32)
    dense = fold(build(nodes, weights))
    assert [name for name, _ in operators(dense)] == ["DequantizeLinear", "MatMul"]
    assert set(dense.initializers) == {*grid, "narrow"}
    stored = dense.read("narrow")
    assert stored.dtype == np.int8
    exact = (weights["codes"] - 3.0) * weights["scales"]
    assert np.abs(stored - 3.0 - exact).max() < 0.51


def test_large_constants_are_no_chain(rng):
    value = numpy_helper.from_array(halves(rng).astype(np.float32), "")
    nodes = [node("Constant", [], "w", value=value), node("MatMul", ["x", "w"], "y")]
    assert unchanged(build(nodes, {}))


def test_a_node_that_nothing_reads_is_left_alone(rng):
    nodes = [node("Cast", ["w"], "unread", to=TensorProto.FLOAT), node("Relu", ["x"], "y")]
    assert unchanged(build(nodes, {"w": halves(rng)}))


# --------------------------------------------------------------------------------- what is removed


def test_only_what_served_the_chain_alone_is_removed(rng):
    """Whole numbers that stay read the codes, another node the table, and none the shape."""
    nodes = [
        node("Gather", ["table", "codes"], "flat"),
        node("Reshape", ["flat", "shape"], "wide"),
        node("MatMul", ["x", "wide"], "product"),
        node("Slice", ["codes", "start", "end"], "few"),
        node("Gather", ["product", "few"], "picked", axis=1),
        node("Add", ["picked", "table"], "y"),
    ]
    weights = {
        "table": rng.random(40, np.float32),
        "codes": rng.integers(0, 40, 1280, np.int32),
        "shape": np.array([32, 40]),
        "start": np.array([0]),
        "end": np.array([40]),
    }
    model = build(nodes, weights)
    dense = fold(model)
    assert [name for name, _ in operators(dense)] == ["MatMul", "Slice", "Gather", "Add"]
    assert set(dense.initializers) == {"table", "codes", "start", "end", "wide"}
    same_outputs(model, dense, sample(rng))


def test_a_tensor_on_the_way_that_is_read_too_is_stored_and_read(rng):
    nodes = cast_weight(
        node("Mul", ["wide", "two"], "doubled"), node("MatMul", ["x", "doubled"], "z")
    )
    model = build(nodes, {"w": halves(rng), "two": np.array(2, np.float32)}, outputs=("y", "z"))
    dense = fold(model)
    assert [name for name, _ in operators(dense)] == ["MatMul", "MatMul"]
    assert set(dense.initializers) == {"wide", "doubled"}
    same_outputs(model, dense, sample(rng))


def test_a_node_with_several_outputs_goes_as_a_whole(rng):
    split = helper.make_node("Split", ["wide", "sizes"], ["most", "rest", "unread"], axis=1)
    nodes = [
        node("Cast", ["w"], "wide", to=TensorProto.FLOAT),
        split,
        node("MatMul", ["x", "most"], "y"),
        node("MatMul", ["x", "rest"], "z"),
    ]
    model = build(nodes, {"w": halves(rng), "sizes": np.array([35, 3, 2])}, outputs=("y", "z"))
    dense = fold(model)
    assert [name for name, _ in operators(dense)] == ["MatMul", "MatMul"]
    assert set(dense.initializers) == {"most", "rest"}
    same_outputs(model, dense, sample(rng))


def test_constant_nodes_and_ranges_go_with_their_chain(rng):
    nodes = [
        node("Constant", [], "end", value_int=1280),
        node("Range", ["zero", "end", "one"], "span"),
        node("Cast", ["span"], "wide", to=TensorProto.FLOAT),
        node("Constant", [], "shape", value_ints=[32, 40]),
        node("Reshape", ["wide", "shape"], "v"),
        node("MatMul", ["x", "v"], "y"),
    ]
    model = build(nodes, {"zero": np.array(0), "one": np.array(1)})
    dense = fold(model)
    assert [name for name, _ in operators(dense)] == ["MatMul"]
    np.testing.assert_array_equal(dense.read("v"), np.arange(1280.0).reshape(32, 40))


def test_an_output_of_the_graph_is_stored_and_stays_an_output(rng):
    model = build(cast_weight(), {"w": halves(rng)}, outputs=("y", "wide"))
    dense = fold(model)
    verify(dense)
    assert [name for name, _ in operators(dense)] == ["MatMul"]
    same_outputs(model, dense, sample(rng))


def test_in_ir_3_the_weights_are_inputs_too_and_the_codes_no_longer(rng):
    model = build(cast_weight(), {"w": halves(rng)}, ir=3)
    dense = fold(model)
    verify(dense)
    assert [item.name for item in dense.graph.input] == ["x", "wide"]
    same_outputs(model, dense, sample(rng))


def test_codes_in_another_file_are_read_and_no_longer_needed(rng, tmp_path):
    model = build(cast_weight(), {"w": halves(rng)})
    save(model, tmp_path / "net.onnx", external=True)
    dense = fold(load(tmp_path / "net.onnx"))
    assert not dense.data_files
    same_outputs(model, dense, sample(rng))


def test_one_chain_is_computed_at_a_time(rng, monkeypatch):
    small, ran = compressed(network(rng), "integer"), []

    def run(part):
        ran.append({name for name, tensor in part.initializers.items() if len(tensor.dims) > 1})
        return Session(part).run({})

    monkeypatch.setattr(expansion, "run_alone", run)
    expand(small)
    assert len(ran) == len(LARGE_LAYERS)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not ran[first] & ran[second]


# ------------------------------------------------------------------------- the check, the command


def test_a_deviation_counts_in_shares_of_the_largest_output(rng):
    weight = {"w": rng.normal(size=(32, 40)).astype(np.float32)}
    model = build([node("MatMul", ["x", "w"], "y")], weight)
    samples = random_samples(input_specs(model), 3)

    def other(value):
        return build([node("MatMul", ["x", "w"], "y")], {"w": value})

    assert deviation(model, model, samples) == 0
    assert deviation(model, other(1.01 * weight["w"]), samples) == pytest.approx(0.01, rel=1e-3)
    assert deviation(model, other(weight["w"][:, :39]), samples) == np.inf
    assert deviation(model, other(np.nan * weight["w"]), samples) == np.inf
    assert deviation(other(np.nan * weight["w"]), other(np.nan * weight["w"]), samples) == 0


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out, printed.err

    return run


def test_the_command_writes_a_file_of_the_old_size_or_nothing(command, rng, monkeypatch):
    original = network(rng)
    small = compressed(original, "codebook")
    save(small, "small.onnx")
    code, out, err = command("expand small.onnx dense.onnx")
    before, after = (os.path.getsize(name) for name in ("small.onnx", "dense.onnx"))
    assert (code, err) == (0, "") and out == (
        f"3 weights written out, file {before:,} → {after:,} bytes; written to dense.onnx\n"
    )
    assert operators(load("dense.onnx")) == operators(original)
    same_outputs(small, load("dense.onnx"), images(rng, 4)[0])

    code, out, _ = command("expand small.onnx new/dense.onnx --save-as-external-data --json")
    facts = json.loads(out)
    assert (code, facts["exit_code"], facts["output"]) == (0, 0, "new/dense.onnx")
    assert len(facts["expanded"]) == 3 and facts["deviation"] <= ROUNDING
    assert (facts["before"], facts["after"]) == (before, after)
    name, data = sorted(os.listdir("new"))
    assert name == "dense.onnx" and fnmatch(data, "dense.onnx.*.data")

    assert command("expand small.onnx small.onnx")[0] == 2
    assert command("expand small.onnx none.onnx --dry-run")[1].endswith("written (--dry-run)\n")
    monkeypatch.setattr(
        "onnxcompress.compression.validate.deviation.deviation", lambda *models, **_: 0.1
    )
    code, out, err = command("expand small.onnx none.onnx")
    assert (code, out) == (1, "") and "differ by 0.1 of the largest" in err
    assert json.loads(command("expand small.onnx none.onnx --json")[1])["output"] is None
    assert not Path("none.onnx").exists()
