"""What a model's outputs are taken for, and how equal decisions are counted."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcompress as oc
from models import network
from onnxcompress.compression.validate.decisions import Decision, find_decisions
from onnxcompress.compression.validate.fidelity import Fidelity, decibel
from onnxcompress.execution.session import Session
from onnxcompress.report.report import Share

CLASSES, IDS = Decision("classes"), Decision("ids")


def chain(rng, *nodes, shape=("n", 16), opset=17):
    """A model of nodes (operator, constants, attributes) one after the other, x to y."""
    made, tensors, x = [], [], "x"
    for index, (op_type, constants, attributes) in enumerate(nodes):
        names = [f"c{index}_{i}" for i in range(len(constants))]
        tensors += [numpy_helper.from_array(c, n) for c, n in zip(constants, names, strict=True)]
        y = "y" if index == len(nodes) - 1 else f"t{index}"
        made.append(helper.make_node(op_type, [x, *names], [y], f"n{index}", **attributes))
        x = y
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    graph = helper.make_graph(made, "g", [info], [onnx.ValueInfoProto(name="y")], tensors)
    opsets = [helper.make_opsetid("", opset)]
    return oc.Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def weight(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def decided(model, x, classes=None):
    session = Session(model)
    outputs = dict(zip(session.outputs, session.run({"x": x}), strict=True))
    return find_decisions(model, outputs, classes)


def test_a_dense_layer_with_its_bias_computes_classes(rng):
    dense = ("MatMul", [weight(rng, 16, 5)], {}), ("Add", [weight(rng, 5)], {})
    x = weight(rng, 8, 16)
    assert decided(chain(rng, *dense), x) == {"y": CLASSES}
    assert decided(chain(rng, *dense, ("Sigmoid", [], {})), x) == {"y": CLASSES}
    cast = ("Cast", [], {"to": TensorProto.FLOAT})
    assert decided(chain(rng, dense[0], cast, dense[1], cast), x) == {"y": CLASSES}
    assert decided(network(rng), weight(rng, 2, 3, 12, 12)) == {"y": CLASSES}


def test_pooled_scores_of_a_convolution_are_classes_and_other_means_are_not(rng):
    scores = ("Conv", [weight(rng, 5, 3, 1, 1)], {})
    x = weight(rng, 8, 3, 6, 6)
    for pool in (("GlobalAveragePool", [], {}), ("ReduceMean", [], {"axes": [2, 3]})):
        assert decided(chain(rng, scores, pool, shape=("n", 3, 6, 6)), x) == {"y": CLASSES}
    tokens = ("MatMul", [weight(rng, 16, 5)], {}), ("ReduceMean", [], {"axes": [1], "keepdims": 0})
    assert decided(chain(rng, *tokens, shape=("n", 7, 16)), weight(rng, 8, 7, 16)) == {"y": None}


def test_what_is_computed_from_a_layer_in_another_way_is_no_class(rng):
    dense = ("MatMul", [weight(rng, 16, 5)], {})
    for last in (("Relu", [], {}), ("LpNormalization", [], {"axis": 1})):
        assert decided(chain(rng, dense, last), weight(rng, 8, 16)) == {"y": None}


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax"])
def test_probabilities_along_any_axis_but_the_first_are_decisions(rng, last):
    relu, x = ("Relu", [], {}), 3 * weight(rng, 8, 6, 7)
    made = {
        axis: chain(rng, relu, (last, [], {"axis": axis}), shape=("n", 6, 7)) for axis in (1, 2)
    }
    for axis, model in made.items():
        assert decided(model, x) == {"y": Decision("positions", axis)}
    model = chain(rng, relu, (last, [], {"axis": 1}))
    assert decided(model, weight(rng, 8, 16)) == {"y": CLASSES}


def test_bare_logits_at_positions_are_judged_by_their_snr_unless_stated(rng):
    model = chain(rng, ("MatMul", [weight(rng, 16, 5)], {}), shape=("n", 7, 16))
    x = weight(rng, 8, 7, 16)
    assert decided(model, x) == {"y": None}
    assert decided(model, x, {"y": None}) == {"y": Decision("positions", 2)}
    assert decided(model, x, {"y": -2}) == {"y": Decision("positions", 1)}
    assert decided(network(rng), weight(rng, 2, 3, 12, 12), {}) == {"y": None}
    with pytest.raises(oc.TargetError, match="no output 'z'; there are: y"):
        decided(model, x, {"z": None})
    with pytest.raises(oc.TargetError, match="3 axes"):
        decided(model, x, {"y": 3})


def test_whole_numbers_and_truth_values_are_ids(rng):
    x = weight(rng, 8, 16)
    assert decided(chain(rng, ("ArgMax", [], {"axis": 1})), x) == {"y": IDS}
    assert decided(chain(rng, ("Greater", [np.float32(0)], {})), x) == {"y": IDS}


# ---------------------------------------------------------------------- how outputs are compared


def compared(a, b, **decisions):
    fidelity = Fidelity(decisions)
    fidelity.add(["y"], [a], [b])
    return fidelity


def test_ids_and_labels_count_by_the_share_that_is_equal():
    for a, b in (([1, 2, 3, 4], [1, 2, 0, 4]), (["a", "b", "c", "d"], ["a", "b", "x", "d"])):
        fidelity = compared(np.array(a), np.array(b))
        assert fidelity.shares(4) == {"y": Share("ids", 3, 4, 4)}
        assert (fidelity.agreement, fidelity.worst_snr, fidelity.loss) == (0.75, None, 0.25)
    objects = [np.array(list("ab"), object), np.array(list("aa"), object)]
    assert compared(*objects).agreement == 0.5


def test_positions_count_one_by_one_and_their_interval_by_samples(rng):
    a = rng.normal(size=(4, 10, 6))
    b = a.copy()
    b[0, :3] = np.eye(6)[(a[0, :3].argmax(1) + 1) % 6] * 9
    found = compared(a, b, y=Decision("positions", 2)).shares(4)["y"]
    assert found == Share("positions", 37, 40, 4)
    wide = found.interval[1] - found.interval[0]
    assert wide > np.diff(Share("classes", 37, 40, 40).interval)


def test_maps_are_compared_by_their_keys():
    a = [{"cat": 0.9, "dog": 0.1}, {"cat": 0.2, "dog": 0.8}]
    b = [{"dog": 0.2, "cat": 0.8}, {"dog": 0.4, "cat": 0.6}]
    fidelity = compared(a, b)
    assert fidelity.shares(2) == {"y": Share("classes", 1, 2, 2)}
    logs = np.log([[0.9, 0.1], [0.2, 0.8]]), np.log([[0.8, 0.2], [0.6, 0.4]])
    assert fidelity.snr["y"] == pytest.approx(
        decibel(np.square(logs[0]).sum(), np.square(logs[0] - logs[1]).sum())
    )


def test_sequences_are_compared_item_by_item(rng):
    a = [rng.normal(size=3), rng.normal(size=4)]
    fidelity = compared(a, [a[0], 1.1 * a[1]])
    assert fidelity.snr == {"y[0]": 200, "y[1]": pytest.approx(20)}
    assert compared(a, a[:1]).resized == {"y": 1}


def test_empty_equals_empty_and_says_nothing():
    empty = np.zeros((0, 4), np.float32)
    fidelity = compared(empty, empty)
    assert fidelity.finite and not fidelity.compared and not fidelity.resized


def test_another_number_of_rows_counts_as_nothing_and_is_said(rng):
    a = rng.normal(size=(5, 4))
    for other in (a[:4], a[:0]):
        fidelity = compared(a, other)
        fidelity.add(["y"], [a], [a])
        assert fidelity.finite and fidelity.resized == {"y": 1}
        assert fidelity.snr["y"] == pytest.approx(decibel(2, 1))
    assert compared(np.arange(5), np.arange(4)).agreement == 0


def test_what_is_not_finite_in_the_original_may_be_the_same_in_the_same_place():
    a = np.array([[1.0, np.nan, -np.inf, 2.0]])
    assert compared(a, a).finite and compared(a, a).snr["y"] == 200
    for b in ([[1.0, np.nan, np.inf, 2.0]], [[1.0, 0.0, -np.inf, 2.0]], [[np.nan] * 2 + [1, 2]]):
        assert not compared(a, np.array(b)).finite


def test_a_probability_that_float16_rounds_to_0_counts_as_the_least_that_it_holds():
    a, b = (np.array([[1.0, p]], np.float16) for p in (6e-8, 0))
    assert compared(a, b).noise["y"] == 0


def test_the_interval_is_the_one_of_wilson():
    low, high = Share("classes", 125, 128, 128).interval
    assert (low, high) == pytest.approx((0.9334, 0.9920), abs=1e-4)
    assert Share("classes", 8, 8, 8).interval == pytest.approx((0.6756, 1), abs=1e-4)


def test_detections_match_by_class_and_overlap(rng):
    boxes = np.zeros((1, 4 + 3, 100), np.float32)
    boxes[0, :4] = [np.arange(100) * 10 + 5, np.full(100, 50), np.full(100, 9), np.full(100, 9)]
    boxes[0, 4, :4] = 0.9  # four are found
    other = boxes.copy()
    other[0, 0, 1] += 2  # 7 x 9 of 11 x 9 are shared
    other[0, 0, 2] += 4  # 5 of 13
    other[0, 4:6, 3] = [0.1, 0.8]  # of another class
    fidelity = compared(boxes, other)
    assert fidelity.detections(1) == {"y": Share("detections", 4, 8, 1)}
    assert fidelity.agreement is None
    assert not compared(rng.normal(size=boxes.shape).astype(np.float32), other).detections(1)
    assert compared(0 * boxes, 0 * boxes).detections(1) == {}


def test_scores_of_detections_count_beside_boxes_that_are_thousands_of_times_larger():
    boxes = np.zeros((1, 4 + 3, 100), np.float32)
    boxes[0, :4], boxes[0, 4, :4] = 500, 0.9
    other = boxes.copy()
    other[0, 4, :4] = 0.1
    fidelity = compared(boxes, other)
    assert fidelity.worst_snr > 70
    assert fidelity.loss == pytest.approx((0.8 / 0.9) ** 2 / 2, rel=1e-4)
