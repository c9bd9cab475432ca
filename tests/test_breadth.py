"""Models in every form: compressed as the plain one is, and the same by onnxruntime."""

from dataclasses import replace
from itertools import pairwise

import kinds
import numpy as np
import onnxruntime as ort
import pytest
from kinds import KINDS, node
from onnx import TensorProto, helper

import onnxcompress as oc
from onnxcompress.compression.inspect import examine
from onnxcompress.compression.method_spec import parse
from onnxcompress.execution.session import Session
from onnxcompress.graph import check, find_constants, find_layers, inline_functions

DECODED, FACTORED = parse("integer:bits=4"), parse("basis:unfolding=filter,rank=16")
SIZES = {"float16": 0.5, "bfloat16": 0.5, "double": 2}  # of what is stored as it is


@pytest.fixture(scope="module")
def compressed():
    """Kind and methods -> original, result, report; each is made once."""
    known = {}

    def compress(kind, methods):
        key = kind, str(methods)
        if key not in known:
            made = KINDS[kind]()
            known[key] = made, *oc.compress(made, methods=methods, shapes=kinds.shapes(made))
        return known[key]

    return compress


def samples(rng, made, count=6):
    """Random inputs, the truth values in turn."""
    shapes = {name: array.shape for name, array in inputs(rng, made).items()}
    batches = [inputs(rng, made) for _ in range(count)]
    flags = [{"flag": np.array(i % 2 == 0)} if "flag" in shapes else {} for i in range(count)]
    return [batch | flag for batch, flag in zip(batches, flags, strict=True)]


def inputs(rng, made):
    given = oc.random_samples(oc.input_specs(made), 1, int(rng.integers(1 << 30)))
    return dict(next(iter(given)))


def reasons(report):
    """Why a result is worse, without figures."""
    return {failure.partition(":")[0] for failure in report.failures}


# ------------------------------------------------------------------------------------- the table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("methods", [DECODED, FACTORED], ids=["decoded", "factored"])
def test_every_kind_of_model_is_compressed_like_the_plain_one(compressed, kind, methods):
    _, smallest, plain = compressed(kinds.plain_form(kind), methods)
    made, result, report = compressed(kind, methods)
    check(made)
    check(result)
    assert reasons(report) <= reasons(plain), "the floor refuses no form that it accepts elsewhere"
    assert len(report.rows) >= len(plain.rows)
    assert all(row.method for row in report.rows), "every layer is compressed"
    share = SIZES.get(kind, 1) if methods is FACTORED else 1
    assert result.nbytes <= 1.05 * share * smallest.nbytes
    # Errors that cancel in one reader of a shared weight do not in another.
    lost = 8 if kind in ("shared weights", "local function called twice") else 6
    assert report.comparison.worst_snr > plain.comparison.worst_snr - lost


INSIDE = [
    kind for kind in KINDS if any(word in kind for word in ("If,", "Loop,", "Scan,", "local"))
]


@pytest.mark.parametrize("kind", INSIDE)
def test_layers_inside_compute_with_the_weights_that_they_were_given(kind, rng):
    made = KINDS[kind]()
    model = inline_functions(made)
    layers, _ = find_layers(model)
    exact = {
        name: oc.Half().fit(layer, oc.Statistics.white(layer)) for name, layer in layers.items()
    }
    result = oc.rewrite(model, exact)
    assert result.nbytes < 0.52 * model.nbytes
    original, changed = Session(made), Session(result)
    for sample in samples(rng, made):
        for a, b in zip(original.run(sample), changed.run(sample), strict=True):
            np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * np.abs(a).max())


# -------------------------------------------------------------------------------- bodies of nodes


def mixed():
    """A layer, branches with a layer that they share and one with its own, and another layer."""
    rng = np.random.default_rng(0)
    weights = {name: kinds.structured(rng, 64, 64) for name in ("first", "inner", "last")}

    def branch(name, *nodes):
        made = [node("MatMul", ["h", "inner"], ["i"], "product"), *nodes]
        own = kinds.tensors({"own": kinds.structured(np.random.default_rng(1), 64, 64)})
        return helper.make_graph(made, name, [], [kinds.value("z", None)], own)

    yes = branch("yes", node("MatMul", ["i", "own"], ["z"], "own product"))
    no = branch("no", node("Add", ["i", "h"], ["z"]))
    del no.initializer[:]
    nodes = [
        node("MatMul", ["x", "first"], ["h"], "first"),
        node("If", ["flag"], ["w"], "if", then_branch=yes, else_branch=no),
        node("MatMul", ["w", "last"], ["y"], "last"),
    ]
    inputs = [kinds.value("x", ["n", 64]), kinds.value("flag", [], TensorProto.BOOL)]
    return kinds.model(nodes, weights, inputs, [kinds.value("y", ["n", 64])])


def test_with_data_the_layers_around_a_body_are_calibrated_and_those_inside_compressed(rng):
    made, batches = mixed(), []
    for i in range(8):
        x = rng.standard_normal((32, 64)).astype(np.float32)
        batches.append({"x": x, "flag": np.array(i % 2 == 0)})
    methods = parse("integer:bits=4")
    result, report = oc.compress(made, methods=methods, samples=batches)
    rows = {row.layer: row for row in report.rows}
    inside = ["if/then_branch/product", "if/then_branch/own product", "if/else_branch/product"]
    assert set(rows) == {"first", "last", *inside}
    assert all(row.method for row in rows.values())
    assert rows["first"].snr and rows["last"].snr and rows[inside[0]].snr is None
    assert any(rows[name].note.startswith("shares the weight of if/") for name in inside)
    assert made.proto.graph.ByteSize() > 5 * result.proto.graph.ByteSize()
    assert report.comparison.worst_snr > 10


def test_what_is_not_compressed_in_a_body_stays_byte_for_byte(rng):
    made = mixed()
    layers, _ = find_layers(made)
    name = "if/then_branch/own product"
    weight = oc.Half().fit(layers[name], oc.Statistics.white(layers[name]))
    result = oc.rewrite(made, {name: weight})
    [before], [after] = ([n for n in m.graph.node if n.op_type == "If"] for m in (made, result))
    branches = {a.name: a.g for a in before.attribute}
    for attribute in after.attribute:
        if attribute.name == "else_branch":
            assert attribute.g == branches["else_branch"]
        else:
            assert not attribute.g.initializer
            assert attribute.g.node[0] == branches["then_branch"].node[0]
    assert {t.name for t in made.graph.initializer} < {t.name for t in result.graph.initializer}


def test_inspection_lists_layers_in_bodies_with_their_multiplications():
    rows = {row["layer"]: row for row in examine(KINDS["Loop in If, weights in both"]())["layers"]}
    row = rows["choice/then_branch/loop/body/hidden"]
    assert row["type"] == "MatMul" and row["macs"] == kinds.X[0] * 1024 * kinds.HIDDEN
    assert {"integer", "basis"} <= set(row["methods"])


# -------------------------------------------------------------------------------- local functions


def test_a_function_without_layers_stays_byte_for_byte(rng):
    net = kinds.network()
    act = kinds.function("Act", ["x"], [node("Relu", ["x"], ["y"])], "y")
    nodes = list(net.nodes)
    nodes[1] = node("Act", ["a"], ["b"], "act", domain="local")
    made = kinds.model(nodes, net.weights, domains=["local"], functions=[act])
    result, report = oc.compress(made, methods=DECODED)
    assert not report.failures
    assert result.proto.functions == made.proto.functions
    assert nodes[1] in list(result.graph.node)


def test_a_function_whose_layers_are_left_alone_stays_byte_for_byte(rng):
    made = KINDS["local functions, nested, given weights"]()
    result, _ = oc.compress(made, methods=DECODED, only=lambda name: name in ("hidden", "head"))
    assert result.proto.functions == made.proto.functions


@pytest.mark.parametrize("calls", [1, 30])
def test_functions_that_call_themselves_or_grow_without_bound_are_not_inlined(calls):
    net = kinds.network()
    names = ["F", "F"] if calls == 1 else [f"F{i}" for i in range(8)]
    weights = [n for n in net.weights if n.startswith("conv2")]
    functions = []
    for outer, inner in pairwise(names):
        nodes = [node(inner, ["x"], [f"t{i}"], domain="local") for i in range(calls)]
        nodes.append(node("Add", ["t0", f"t{calls - 1}"], ["y"]))
        functions.append(kinds.function(outer, ["x"], nodes, "y"))
    same = {"pads": [1, 1, 1, 1]}
    last = [*(kinds.constant(n, net.weights[n]) for n in weights)]
    last.append(node("Conv", ["x", *weights], ["y"], "conv", **same))
    if calls > 1:
        functions.append(kinds.function(names[-1], ["x"], last, "y"))
    else:
        functions[0].node.extend([*last[:-1], node("Conv", ["x", *weights], ["z"], **same)])
    made = kinds.model(
        [node(names[0], ["x"], ["y"], domain="local")], {}, domains=["local"], functions=functions
    )
    assert inline_functions(made) is made


# ------------------------------------------------------------------------------- other constants


def test_an_input_that_gave_a_weight_stays_and_the_report_says_that_nothing_reads_it(rng):
    made = KINDS["initializers that are inputs too"]()
    result, report = oc.compress(made, methods=DECODED)
    assert [v.name for v in result.graph.input] == [v.name for v in made.graph.input]
    assert [note for note in report.warnings if "nothing reads them" in note and "conv1.w" in note]
    x = rng.standard_normal(kinds.X, np.float32)
    session = ort.InferenceSession(result.proto.SerializeToString())
    given = {"x": x, "hidden.w": made.read("hidden.w")}
    np.testing.assert_array_equal(session.run(None, given)[0], session.run(None, {"x": x})[0])


def test_an_input_whose_layer_is_skipped_can_be_overridden_as_before(rng):
    made = KINDS["initializers that are inputs too"]()
    result, _ = oc.compress(made, methods=DECODED, only=lambda name: name != "hidden")
    session = ort.InferenceSession(result.proto.SerializeToString())
    x = {"x": rng.standard_normal(kinds.X, np.float32)}
    zero = {"hidden.w": np.zeros_like(made.read("hidden.w"))}
    assert not np.array_equal(session.run(None, x)[0], session.run(None, x | zero)[0])


def test_layers_that_compute_in_8_bits_stay_so_with_fewer_levels():
    made = kinds.quantized()
    _, skipped = find_layers(made)
    assert set(skipped) == {"conv1", "conv2", "hidden", "head"}
    assert set(skipped.values()) == {
        "it computes in 8 bits: its input and its weight are quantized"
    }
    stored = find_constants(made, {})
    assert stored and all(layer.attributes["integers"] == "int8" for layer in stored.values())
    result, _ = oc.compress(made, methods="integer:bits=4", force=True)
    assert result.nbytes < made.nbytes
    assert find_layers(result)[1] == skipped


def test_what_a_model_holds_beside_its_layers_stays_as_it_is(compressed):
    made, result, _ = compressed("training info, sparse, metadata, devices", DECODED)
    for field in ("producer_name", "model_version", "doc_string", "domain", "configuration"):
        assert getattr(made.proto, field) == getattr(result.proto, field)
    for field in ("training_info", "opset_import", "functions"):
        assert list(getattr(made.proto, field)) == list(getattr(result.proto, field))
    entries = [entry for entry in result.proto.metadata_props if "onnxcompress" not in entry.key]
    assert entries == list(made.proto.metadata_props)
    for field in ("quantization_annotation", "sparse_initializer", "metadata_props", "doc_string"):
        assert getattr(made.graph, field) == getattr(result.graph, field)
    nodes = {node.name: node for node in result.graph.node}
    for before in made.graph.node:
        assert nodes[before.name].doc_string == before.doc_string
        assert nodes[before.name].metadata_props == before.metadata_props
        assert nodes[before.name].device_configurations == before.device_configurations


# -------------------------------------------------------------------- operators of other domains


def test_a_model_that_onnxruntime_cannot_run_is_compared_layer_by_layer(rng):
    made = kinds.custom()
    batches = [{"x": rng.standard_normal(kinds.X, np.float32)}]
    result, report = oc.compress(made, methods=DECODED, samples=batches)
    assert set(report.comparison.snr) == {"conv1", "conv2", "hidden", "head"}
    assert report.comparison.samples == 0 and report.comparison.latency is None
    assert any("does not know somebody.Softsign2" in note for note in report.warnings)
    assert made.nbytes > 7 * result.nbytes
    for target in (None, oc.Target(macs=0.5), oc.Target(min_snr=30)):
        with pytest.raises(oc.TargetError, match=r"somebody.Softsign2.* Target\(ratio="):
            oc.compress(made, target=target, samples=batches)


def test_a_layer_that_is_broken_shows_in_a_model_that_cannot_run(monkeypatch):
    made = kinds.custom()
    layers, _ = find_layers(made)
    monkeypatch.setattr("onnxcompress.methods.integer.Integer.fit", lambda self, layer, _: (
        oc.Half().fit(replace(layer, weight=np.nan * layers[layer.name].weight), None)
    ))  # fmt: skip
    _, report = oc.compress(made, methods=DECODED)
    assert report.worse


def test_with_its_library_such_a_model_is_run():
    extensions = pytest.importorskip(
        "onnxruntime_extensions", reason="a library of operators is needed"
    )
    made = kinds.custom("ai.onnx.contrib", "NegPos", outputs=2)
    library = extensions.get_library_path()
    result, report = oc.compress(replace(made, extensions=(library,)), methods=DECODED)
    assert set(report.comparison.snr) == {"y"} and not report.failures
    assert result.extensions == (library,)
    assert made.nbytes > 7 * result.nbytes
