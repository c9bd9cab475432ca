"""Embeddings and recurrent weights: constants that no linear layer multiplies with."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxcompress as oc
from onnxcompress.compression.expand import expand
from onnxcompress.compression.inspect import examine
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.method_spec import parse
from onnxcompress.compression.validate.fidelity import Fidelity
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_constants, find_layers, rewrite, with_values

CLASSES, EMBEDDED, HIDDEN, WINDOW = 40, 32, 48, 6


@pytest.fixture(scope="module")
def net():
    """Embedding, LSTM, head; tokens to 40 scores."""
    rng = np.random.default_rng(0)

    def tensor(name, *shape):
        value = rng.normal(size=shape) / np.sqrt(shape[-1])
        return numpy_helper.from_array(value.astype(np.float32), name)

    tensors = [
        tensor("embedding", CLASSES, EMBEDDED),
        tensor("input", 1, 4 * HIDDEN, EMBEDDED),
        tensor("recurrence", 1, 4 * HIDDEN, HIDDEN),
        tensor("head.w", HIDDEN, CLASSES),
        numpy_helper.from_array(np.array([0]), "axis"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["read"]),
        helper.make_node("Transpose", ["read"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "LSTM", ["steps", "input", "recurrence"], ["", "last"], hidden_size=HIDDEN
        ),
        helper.make_node("Squeeze", ["last", "axis"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.w"], ["scores"], "head"),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", WINDOW])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])
    graph = helper.make_graph(nodes, "net", [tokens], [scores], tensors)
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=8))


@pytest.fixture(scope="module")
def batches():
    tokens = np.random.default_rng(1).integers(0, CLASSES, (128, WINDOW))
    return [{"tokens": tokens[i : i + 16]} for i in range(0, 128, 16)]


def test_embeddings_and_recurrent_weights_are_found(net):
    found = find_constants(net, find_layers(net)[0])
    assert set(found) == {"embedding", "input", "recurrence"}
    assert found["recurrence"].weight.shape == (4 * HIDDEN, HIDDEN)


def test_inspection_lists_them_after_the_layers(net):
    rows = {row["layer"]: row for row in examine(net)["layers"]}
    assert list(rows) == ["head", "embedding", "input", "recurrence"]
    assert rows["recurrence"]["type"] == "Constant"
    assert rows["recurrence"]["shape"] == [1, 4 * HIDDEN, HIDDEN]
    assert "integer" in rows["embedding"]["methods"] and "basis" not in rows["embedding"]["methods"]
    assert rows["embedding"]["bytes"] == 4 * CLASSES * EMBEDDED


@pytest.mark.parametrize("spec", ["basis", "basis+integer"])
def test_a_chain_of_layers_cannot_stand_for_a_constant(net, spec):
    [method] = parse(spec)
    for layer in find_constants(net, find_layers(net)[0]).values():
        assert method.declined(layer)
        assert not list(method.settings(layer))
        assert not list(method.candidates(layer, oc.Statistics.white(layer)))


@pytest.mark.parametrize("spec", ["basis integer", "integer", "binary", "hashed"])
def test_constants_are_compressed_with_the_layers(net, batches, spec):
    methods = [method for word in spec.split() for method in parse(word)]
    target = oc.Target(ratio=2.2)
    result, report = oc.compress(net, methods=methods, target=target, samples=batches)
    assert net.nbytes >= 2.2 * result.nbytes
    rows = {row.layer: row for row in report.rows}
    assert set(rows) == {"embedding", "input", "recurrence", "head"}
    assert not any(rows[name].method.startswith("basis") for name in rows if name != "head")
    [scores] = Session(result).run(batches[0])
    assert scores.shape == (16, CLASSES)
    assert np.isfinite(scores).all()


def test_basis_is_for_the_layers_alone(net, batches):
    _, report = oc.compress(net, methods=[oc.Basis()], target=oc.Target(macs=0.7), samples=batches)
    assert [row.layer for row in report.rows] == ["head"]


def recurrent(op_type, direction, states):
    """One recurrent node; sequences ``[T, N, 24]`` to all its states, or to the last ones."""
    rng = np.random.default_rng(2)
    gates, directions = GATES[op_type], 2 if direction == "bidirectional" else 1
    weights = [
        numpy_helper.from_array((rng.normal(size=shape) / 5).astype(np.float32), name)
        for name, shape in {
            "input": (directions, gates * HIDDEN, 24),
            "recurrence": (directions, gates * HIDDEN, HIDDEN),
        }.items()
    ]
    outputs, shape = {
        "all": (["y"], ["t", directions, "n", HIDDEN]),
        "last": (["", "y"], [directions, "n", HIDDEN]),
    }[states]
    node = helper.make_node(
        op_type, ["x", "input", "recurrence"], outputs, hidden_size=HIDDEN, direction=direction
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "n", 24])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "net", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=8))


def sequences(count):
    """Batches whose entries differ in size by a hundred."""
    rng = np.random.default_rng(count)
    shape = (WINDOW, 8, 24)
    return [{"x": (rng.normal(size=shape) * np.geomspace(1, 0.01, 24)).astype(np.float32)}
            for _ in range(count)]  # fmt: skip


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
KINDS = [(op, way, out) for op in GATES for way in ("forward", "reverse", "bidirectional")
         for out in ("all", "last")]  # fmt: skip


@pytest.mark.parametrize(("op_type", "direction", "states"), KINDS)
def test_recurrent_weights_are_fitted_to_the_input_and_the_states(op_type, direction, states):
    model, batches = recurrent(op_type, direction, states), sequences(4)
    found = calibrate(model, find_constants(model, {}), batches)
    x = np.concatenate([batch["x"].reshape(-1, 24) for batch in batches])
    made = [Session(model).run(batch)[0] for batch in batches]
    read = [np.moveaxis(y, -3, 0).reshape(y.shape[-3], -1, HIDDEN) for y in made]
    h = np.concatenate(read, axis=1)
    for seen, true in ((found["input"], x[None]), (found["recurrence"], h)):
        assert seen.count == true.shape[1] and not seen.mean.any()
        assert seen.moment == pytest.approx(true.swapaxes(1, 2) @ true, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("spec", ["integer:bits=3", "codebook:vector=2", "binary:stacks=3"])
@pytest.mark.parametrize("op_type", GATES)
def test_samples_lower_the_error_of_recurrent_weights(op_type, spec):
    model, unseen = recurrent(op_type, "bidirectional", "all"), sequences(3)
    errors = []
    for samples in (None, sequences(16)):
        result, _ = oc.compress(
            model, target=oc.Target(), methods=parse(spec), samples=samples, seed=0
        )
        fidelity = Fidelity()
        for batch in unseen:
            fidelity.add(["y"], Session(model).run(batch), Session(result).run(batch))
        errors.append(fidelity.loss)
    assert errors[1] < 0.8 * errors[0]


def test_a_product_of_two_constants_is_no_layer_and_both_are_compressed():
    rng = np.random.default_rng(3)
    tensors = [
        numpy_helper.from_array((rng.normal(size=(64, 64)) / 8).astype(np.float32), name)
        for name in "abc"
    ]
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"], "once"),
        helper.make_node("MatMul", ["x", "ab"], ["h"], "computed"),
        helper.make_node("MatMul", ["h", "c"], ["y"], "layer"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 64]) for n in "xy")
    opset = [helper.make_opsetid("", 17)]
    graph = helper.make_graph(nodes, "net", [x], [y], tensors)
    model = Model(helper.make_model(graph, opset_imports=opset, ir_version=8))
    samples = [{"x": rng.normal(size=(32, 64)).astype(np.float32)}]
    _, report = oc.compress(model, target=oc.Target(ratio=3), samples=samples)
    assert {row.layer for row in report.rows} == {"layer", "a", "b"}
    assert report.skipped["once"] == "it runs once, when the model is loaded"


@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_constant_that_a_caller_may_give_is_compressed_and_stays_an_input(ir_version):
    model = recurrent("LSTM", "forward", "all")
    for tensor in model.graph.initializer:
        given = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(given)
    model.proto.ir_version = ir_version
    target, methods = oc.Target(ratio=4), parse("integer")
    result, report = oc.compress(
        Model(model.proto), target=target, methods=methods, samples=sequences(4)
    )
    assert result.nbytes * 4 <= model.nbytes and min(report.comparison.snr.values()) > 20
    warned = "inputs that give weights (input, recurrence) are still there, but nothing reads them"
    assert (warned in report.warnings) == (ir_version > 3)


ROWS, COLUMNS = 4096, 96  # of a table that is worth being looked up as codes


def lookup(kind=np.float32, readers=("Gather",), opset=17):
    """A large table, looked up with whatever indices."""
    table = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(kind)
    nodes = [helper.make_node(op, ["table", "ids"], [f"y{i}"]) for i, op in enumerate(readers)]
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(kind))] * len(nodes)
    outputs = [
        helper.make_tensor_value_info(name, k, None)
        for name, k in zip((n.output[0] for n in nodes), kinds, strict=True)
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, None)
    graph = helper.make_graph(nodes, "g", [ids], outputs, [numpy_helper.from_array(table, "table")])
    opsets = [helper.make_opsetid("", opset)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def folded_bytes(model, tmp_path):
    """Bytes of the constants that the runtime holds once it has loaded a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    ort.InferenceSession(
        model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return oc.load(tmp_path / "loaded.onnx").weight_bytes


BY_ROWS = ["integer:bits=8", "integer:bits=7", "integer:bits=4", "integer:bits=4,group=16",
           "integer:bits=6,zero_point=channel", "codebook:vector=4", "half"]  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("spec", BY_ROWS)
def test_a_large_table_is_never_decoded_whole(spec, kind, tmp_path):
    if spec == "half" and kind == np.float16:
        pytest.skip("a table in float16 is not compressed by half")
    model = lookup(kind)
    layer = find_constants(model, {})["table"]
    [method] = [m.settings(layer)[0] for m in parse(spec)]
    weight = method.fit(layer, oc.Statistics.white(layer))
    result = rewrite(model, {"table": weight})
    rng = np.random.default_rng(1)
    for ids in (rng.integers(-ROWS, ROWS, (3, 5)), np.array(7), np.zeros((0, 2), np.int64)):
        [y] = Session(result).run({"ids": ids})
        expected = weight.decode()[ids]
        assert y.shape == expected.shape and y.dtype == kind
        np.testing.assert_allclose(y, expected, rtol=np.finfo(kind).eps, atol=0)
        np.testing.assert_allclose(
            ReferenceEvaluator(result.proto).run(None, {"ids": ids})[0], expected,
            rtol=np.finfo(kind).eps,
        )  # fmt: skip
    assert folded_bytes(result, tmp_path) < ROWS * COLUMNS * 2.2


@pytest.mark.parametrize("spec, readers", [
    ("integer:bits=7", ("Gather", "GatherElements")),  # read by something else as well
    ("integer:levels=3", ("Gather",)),  # five numbers in a byte: 96 are no whole bytes
])  # fmt: skip
def test_other_tables_are_decoded_whole(spec, readers):
    model = lookup(readers=readers)
    layer = find_constants(model, {})["table"]
    [method] = parse(spec)
    weight = method.fit(layer, oc.Statistics.white(layer))
    result = rewrite(model, {"table": weight})
    ids = np.random.default_rng(1).integers(0, COLUMNS, (3, 5))
    np.testing.assert_array_equal(Session(result).run({"ids": ids})[0], weight.decode()[ids])


def test_lookups_of_one_table_share_its_codes():
    model = lookup(readers=("Gather", "Gather"))
    result, _ = oc.compress(model, methods=["integer:bits=8"], shapes={"ids": (4,)})
    assert result.nbytes < ROWS * COLUMNS * 1.1


def spelled(rng, weight):
    """A MatMul whose weight is numbers in a Constant node, in the shape that others say."""
    numbers = weight.ravel().tolist()
    nodes = [
        helper.make_node("Constant", [], ["flat"], value_floats=numbers),
        helper.make_node("Constant", [], ["shape"], value_ints=[*weight.shape]),
        helper.make_node("Reshape", ["flat", "shape"], ["w"], "shaped"),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Constant", [], ["first"], value_int=0),
        helper.make_node("Mul", ["x", "half"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "w"], ["many"], "head"),
        helper.make_node("Gather", ["many", "first"], ["y"], axis=2),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["n", 3, len(weight)]), ("y", ["n", 3]))
    )
    graph = helper.make_graph(nodes, "net", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=8))


def test_numbers_in_constant_nodes_are_constants_as_tensors_are(rng):
    weight = rng.normal(size=(48, 64)).astype(np.float32)
    net = spelled(rng, weight)
    assert {*net.constants} == {"flat", "shape", "half", "first"}
    kinds = {name: net.value(tensor).dtype for name, tensor in net.constants.items()}
    assert kinds == {"flat": np.float32, "shape": np.int64, "half": np.float32, "first": np.int64}
    assert net.value(net.constants["half"]).shape == net.value(net.constants["first"]).shape == ()
    assert net.weight_bytes == 4 * weight.size + 16 + 4 + 8
    layers, skipped = find_layers(net)
    np.testing.assert_array_equal(layers["head"].weight, weight.T)
    assert layers["head"].stored == 4 * weight.size and not skipped
    [row] = examine(net, {})["layers"]
    assert row["methods"] and row["bytes"] == 4 * weight.size


def test_numbers_in_constant_nodes_are_compressed_and_written_out_again(rng):
    net = spelled(rng, rng.normal(size=(48, 64)).astype(np.float32))
    samples = {"x": rng.normal(size=(32, 3, 48)).astype(np.float32)}
    small, report = oc.compress(net, methods=parse("integer:bits=8"), samples=samples, jobs=1)
    assert not report.worse and small.nbytes < 0.4 * net.nbytes
    assert "flat" not in small.constants and report.comparison.worst_snr > 35
    dense = expand(small)
    assert dense.weight_bytes >= 4 * 48 * 64
    [expected], [given] = (Session(model).run(samples) for model in (small, dense))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4)


def test_numbers_in_constant_nodes_can_be_given_other_values(rng):
    net = spelled(rng, rng.normal(size=(48, 64)).astype(np.float32))
    other = with_values(net, {"half": np.float32(0.25)})
    samples = {"x": rng.normal(size=(2, 3, 48)).astype(np.float32)}
    [expected], [given] = (Session(model).run(samples) for model in (net, other))
    np.testing.assert_allclose(2 * given, expected, rtol=1e-6)
