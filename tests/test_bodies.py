"""Layers in the bodies of If, Loop and Scan are fitted to what they read there."""

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_constants, find_layers

WIDTH, ROWS, TURNS = 48, 5, 3
node = helper.make_node
FLOAT = TensorProto.FLOAT
QUICK: dict[str, Any] = {"progress": False, "jobs": 1}


def drawn(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def weight(seed):
    return drawn(WIDTH, WIDTH, seed=seed) / np.sqrt(np.float32(WIDTH))


def info(name, kind=FLOAT, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, weights, more=()):
    x = info("x", FLOAT, ["n", WIDTH])
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", [x, *more], [info("y")], stored)
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=9))


def branches():
    """Each branch of an If has a layer; a flag chooses."""
    bodies: dict[str, Any] = {
        f"{way}_branch": helper.make_graph(
            [node("MatMul", ["h", f"w.{way}"], [f"{way}.y"], way)], way, [], [info(f"{way}.y")]
        )
        for way in ("then", "else")
    }
    nodes = [
        node("MatMul", ["x", "w.first"], ["h"], "first"),
        node("If", ["flag"], ["y"], "if", **bodies),
    ]
    weights = {"w.first": weight(2), "w.then": weight(3), "w.else": weight(4)}
    return model(nodes, weights, [info("flag", TensorProto.BOOL, [])])


def turns():
    """A Loop whose body multiplies its state with a weight."""
    body = helper.make_graph(
        [
            node("MatMul", ["h", "w"], ["g"], "inside"),
            node("Tanh", ["g"], ["h.next"]),
            node("Identity", ["go"], ["go.on"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("h")],
        [info("go.on", TensorProto.BOOL, []), info("h.next")],
    )
    nodes = [node("Loop", ["count", "", "x"], ["y"], "loop", body=body)]
    return model(nodes, {"w": weight(5), "count": np.array(TURNS)})


def scanned():
    """A Scan over the rows of the input, with a layer inside."""
    body = helper.make_graph(
        [
            node("MatMul", ["row", "w"], ["g"], "inside"),
            node("Add", ["s", "g"], ["s.next"]),
            node("Tanh", ["s.next"], ["out"]),
        ],
        "body",
        [info("s", FLOAT, [WIDTH]), info("row", FLOAT, [WIDTH])],
        [info("s.next", FLOAT, [WIDTH]), info("out", FLOAT, [WIDTH])],
    )
    scan = node("Scan", ["zero", "x"], ["", "y"], "scan", body=body, num_scan_inputs=1)
    scan.output[0] = "last"
    return model([scan], {"w": weight(6), "zero": np.zeros(WIDTH, np.float32)})


def nested():
    """A Loop in a branch of an If."""
    inner = turns().graph.node[0]
    inner.output[0] = "t.y"
    then = helper.make_graph([inner], "then", [], [info("t.y")])
    other = helper.make_graph([node("Neg", ["x"], ["e.y"])], "else", [], [info("e.y")])
    chosen = node("If", ["flag"], ["y"], "if", then_branch=then, else_branch=other)
    weights = {"w": weight(5), "count": np.array(TURNS)}
    return model([chosen], weights, [info("flag", TensorProto.BOOL, [])])


def second_moment(rows):
    return rows.T @ rows


def read_in_turns(net, x):
    w, reads = net.read("w"), []
    for _ in range(TURNS):
        reads.append(x)
        x = np.tanh(x @ w)
    return np.concatenate(reads)


def test_a_branch_sees_the_samples_with_which_it_runs():
    net = branches()
    layers, _ = find_layers(net)
    x = drawn(8, ROWS, WIDTH)
    samples = [{"x": part, "flag": np.array(i % 4 == 0)} for i, part in enumerate(x)]
    seen = calibrate(net, layers, samples)
    h = x @ net.read("w.first")
    for name, runs in (("then", h[::4]), ("else", np.delete(h, [0, 4], axis=0))):
        [key] = [key for key in layers if key.endswith(name)]
        assert seen[key].count == runs.shape[0] * ROWS
        expected, moment = second_moment(runs.reshape(-1, WIDTH)), seen[key].moment
        assert moment is not None
        np.testing.assert_allclose(moment[0], expected, rtol=1e-3, atol=1e-3)


def test_a_branch_that_never_runs_has_no_statistics():
    net = branches()
    layers, _ = find_layers(net)
    seen = calibrate(net, layers, [{"x": drawn(ROWS, WIDTH), "flag": np.array(True)}])
    assert {key.split("/")[-1] for key in seen} == {"first", "then"}


@pytest.mark.parametrize("make", [turns, nested])
def test_a_layer_in_a_loop_sees_what_it_reads_in_every_turn(make):
    net = make()
    layers, _ = find_layers(net)
    [name] = layers
    x = drawn(4, ROWS, WIDTH)
    given = {} if make is turns else {"flag": np.array(True)}
    seen = calibrate(net, layers, [{"x": part, **given} for part in x])[name]
    reads = np.concatenate([read_in_turns(net, part) for part in x])
    assert seen.count == len(reads)
    assert seen.moment is not None
    np.testing.assert_allclose(seen.moment[0], second_moment(reads), rtol=1e-3, atol=1e-3)


def test_a_layer_in_a_scan_sees_every_slice():
    net, x = scanned(), drawn(4, ROWS, WIDTH)
    layers, _ = find_layers(net)
    [seen] = calibrate(net, layers, [{"x": part} for part in x]).values()
    assert seen.count == 4 * ROWS and seen.moment is not None
    moment = second_moment(x.reshape(-1, WIDTH))
    np.testing.assert_allclose(seen.moment[0], moment, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [branches, turns, scanned, nested])
def test_data_lower_the_error_of_layers_in_bodies(make):
    net, scale = make(), np.geomspace(1, 0.003, WIDTH, dtype=np.float32)
    proto = net.copy().proto
    for tensor in proto.graph.initializer:
        if tensor.name == "w.first":  # so that branches read what the input is
            tensor.CopyFrom(numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), tensor.name))
    net, flag = Model(proto), len(net.graph.input) > 1
    given = {"flag": np.array(True)} if flag else {}
    every = [{"x": drawn(ROWS, WIDTH, seed=i) * scale, **given} for i in range(96)]
    samples, tests, errors = every[:64], every[64:], []
    exact = Session(net)
    for data in (None, samples):
        result, _ = oc.compress(
            net,
            methods="integer:bits=3",
            samples=data,
            only=lambda name: name != "first",
            force=True,
            **QUICK,
        )
        after = Session(result)
        off = (after.run(test)[-1] - exact.run(test)[-1] for test in tests)
        errors.append(sum(np.square(part).sum() for part in off))
    assert errors[1] < 0.9 * errors[0]


def test_weights_of_two_recurrent_nodes_are_fitted_to_what_both_read():
    rng = np.random.default_rng(7)
    weights = {
        "w": (rng.normal(size=(1, 4 * WIDTH, WIDTH)) / 5).astype(np.float32),
        "r": (rng.normal(size=(1, 4 * WIDTH, WIDTH)) / 5).astype(np.float32),
        "axis": np.array([1]),
    }
    nodes = [
        node("Unsqueeze", ["x", "axis"], ["steps"]),
        node("LSTM", ["steps", "w", "r"], ["a"], hidden_size=WIDTH),
        node("Squeeze", ["a", "axis"], ["b"]),
        node("LSTM", ["b", "w", "r"], ["y"], hidden_size=WIDTH),
    ]
    net, x = model(nodes, weights), drawn(20, WIDTH)
    seen = calibrate(net, find_constants(net, {}), [{"x": x}])
    assert seen["w"].count == seen["r"].count == 40
    assert seen["w"].moment is not None
    first = second_moment(x)
    assert np.all(np.diag(seen["w"].moment[0]) > np.diag(first) * 0.999)


def test_constants_whose_rows_are_put_in_another_order_for_an_lstm_are_fitted_too():
    rng = np.random.default_rng(8)
    stored = (rng.normal(size=(4 * WIDTH, WIDTH)) / 5).astype(np.float32)
    weights = {"w": stored, "r": stored[::-1].copy(), "axis": np.array([0]), "one": np.array([1])}
    weights |= {f"at{i}": np.array([i * WIDTH]) for i in range(5)}
    nodes = [node("Unsqueeze", ["x", "one"], ["steps"])]
    for name in ("w", "r"):  # gates as another framework orders them
        for i in (0, 3, 1, 2):
            read = [name, f"at{i}", f"at{i + 1}", "axis"]
            nodes.append(node("Slice", read, [f"{name}{i}"]))
        nodes.append(node("Concat", [f"{name}{i}" for i in (0, 3, 1, 2)], [f"{name}.c"], axis=0))
        nodes.append(node("Unsqueeze", [f"{name}.c", "axis"], [f"{name}.u"]))
    nodes.append(node("LSTM", ["steps", "w.u", "r.u"], ["y"], hidden_size=WIDTH))
    net = model(nodes, weights)
    seen = calibrate(net, find_constants(net, {}), [{"x": drawn(20, WIDTH)}])
    assert seen["w"].count == seen["r"].count == 20
