"""Sessions of models that are slow to load, or take much memory to run."""

from threading import Thread

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from onnxcompress.execution import room, session
from onnxcompress.graph import detached

FLOAT = TensorProto.FLOAT


def network(nodes, weights, size=32):
    """The product of what the nodes make of x, called a, with w."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["a", "w"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [2, size])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def weight(rng):
    return rng.normal(size=(32, 32)).astype(np.float32)


def chain(length, weight):
    """Very many nodes one after another."""
    names = ["x", *(f"r{i}" for i in range(length - 1)), "a"]
    nodes = [helper.make_node("Relu", names[i : i + 1], names[i + 1 : i + 2], f"n{i}")
             for i in range(length)]  # fmt: skip
    return network(nodes, {"w": weight})


def loads(monkeypatch):
    """The models that onnxruntime loads from now on."""
    seen, load = [], session._load

    def counted(model, *args):
        seen.append(model)
        return load(model, *args)

    monkeypatch.setattr(session, "_load", counted)
    return seen


def test_a_model_that_is_slow_to_load_is_loaded_once_for_each_purpose(weight, monkeypatch):
    monkeypatch.setattr(session, "SLOW", 0)
    seen = loads(monkeypatch)
    oc.compress(chain(300, weight), methods="integer:bits=8", jobs=1, progress=False)
    assert len(seen) == 3  # the original, the same with all shapes as outputs, the result


def test_others_are_not_kept(weight, monkeypatch):
    monkeypatch.setattr(session, "SLOW", 1e9)
    model = oc.Model(chain(3, weight))
    assert session.session_of(model) is not session.session_of(model)
    monkeypatch.setattr(session, "SLOW", 0)
    assert session.session_of(model) is session.session_of(model)
    model.changed()
    monkeypatch.setattr(session, "SMALL_BYTES", 0)  # It holds its weights once more.
    assert session.session_of(model) is not session.session_of(model)


def test_what_nothing_reads_is_not_given_to_the_runtime_but_what_shapes_need_is(weight):
    rows = np.ones(2048, np.int64)
    nodes = [
        helper.make_node("Constant", [], [f"k{i}"], value=numpy_helper.from_array(weight[0]))
        for i in range(9)
    ]
    split = helper.make_node("Split", ["t", "rows"], [f"p{i}" for i in range(2048)], axis=0)
    nodes += [split, helper.make_node("Sum", ["x", "p3", "k4"], ["a"])]
    table = np.zeros((2048, 32), np.float32)
    model = oc.Model(network(nodes, {"w": weight, "rows": rows, "t": table}))
    graph = onnx.ModelProto.FromString(detached(model)[0]).graph
    assert [n.output[0] for n in graph.node if n.op_type == "Constant"] == ["k4"]
    result, _ = oc.compress(model, methods="integer:bits=8", jobs=1, progress=False)
    assert len(result.graph.node) > 11


def test_runs_that_take_much_memory_wait_for_one_another():
    there, most = [], []

    def run():
        with room.room_for(room.ROOM):
            there.append(1)
            most.append(len(there))
            there.pop()

    threads = [Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1] * 8
    with room.room_for(room.ROOM // 4), room.room_for(room.ROOM // 4):
        assert len(room._taken) == 2  # Small ones do not.
    assert not room._taken


def test_what_the_first_run_takes_is_known_of_every_copy(weight, monkeypatch):
    monkeypatch.setattr(session, "ROOM", 1)  # So every session does without a pool of memory.
    monkeypatch.setattr(session, "LENT_BYTES", 0)
    peaks = iter([100, 500])
    monkeypatch.setattr(session, "peak_bytes", lambda: next(peaks, 500))
    model = oc.Model(chain(3, weight))
    sample = {"x": np.ones((2, 32), np.float32)}
    [expected] = session.Session(model).run(sample, 10.0)
    other = model.copy()
    assert other.costs == {"run": 400}
    [y] = session.Session(other).run(sample)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("kind", "other", "why"), [
    ("Add", (3, 9), "Attempting to broadcast"), ("Concat", (3, 9), "Non concat axis dimensions"),
    ("MatMul", (9, 3), "MatMul dimension mismatch"),
])  # fmt: skip
def test_a_run_that_fails_names_the_node_and_the_reason_and_no_line_of_the_runtimes_source(
    kind, other, why
):
    attributes = {"axis": 0} if kind == "Concat" else {}
    node = helper.make_node(kind, ["a", "b"], ["y"], "both", **attributes)
    opened = [helper.make_tensor_value_info(name, FLOAT, None) for name in "aby"]
    graph = helper.make_graph([node], "g", opened[:2], opened[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {"a": np.ones((3, 7), np.float32), "b": np.ones(other, np.float32)}
    with pytest.raises(oc.OnnxCompressError) as raised:
        session.Session(oc.Model(model)).run(feeds)
    assert f"cannot run the model: both ({kind}): {why}" in str(raised.value)
    assert ".h:" not in str(raised.value) and "Status" not in str(raised.value)
