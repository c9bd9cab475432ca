"""Pictures that stand in for samples, and what a graph tells of its inputs."""

from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.compression.measure.no_data import find_stand_ins
from onnxcompress.data.stand_ins import stand_ins
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, first_scaling, index_ranges

FOLDER = files("onnxcompress") / "data" / "pictures"
WHEEL_BYTES = 1_500_000


def model_of(nodes, inputs, constants=None, output=("y", TensorProto.FLOAT, None)):
    """A small model; inputs are (name, type, shape)."""
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    out = [helper.make_tensor_value_info(*output)]
    graph = helper.make_graph(nodes, "g", values, out, tensors)
    opset = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opset, ir_version=8))


def picture_model(shape=("n", 3, 32, 32), kind=TensorProto.FLOAT, nodes=(), constants=None):
    """A model of one picture input that nothing is known of but these first nodes."""
    nodes = list(nodes) or [helper.make_node("Identity", ["x"], ["y"])]
    return model_of(nodes, [("x", kind, shape)], constants, ("y", kind, None))


def no_scores(batch):
    return None


def first(made):
    return next(iter(made.fit))["x"]


def classifier_of(mean, scale):
    """Scores of a network that only tells pictures apart whose values are in its own range.

    The class is how bright the left and the upper half are; far from the range it is the same.
    """

    def scores(batch):
        x = (batch["x"] - mean) / scale
        height, width = x.shape[2:]
        bright = np.stack(
            [x[..., : width // 2].mean((1, 2, 3)), x[:, :, : height // 2].mean((1, 2, 3))]
        )
        typical = np.exp(-9 * np.square(np.log(x.std((1, 2, 3)) / 0.22)))
        return np.concatenate([bright - 0.45, 0.45 - bright]).T * 40 * typical[:, None]

    return scores


def test_the_photographs_are_small_and_each_has_its_licence():
    pictures = [file for file in FOLDER.iterdir() if file.name.endswith(".jpg")]
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sum(len(file.read_bytes()) for file in pictures) < WHEEL_BYTES
    for file in pictures:
        assert file.name in listed or file.name.startswith("panorama_")
    assert "panorama_*.jpg" in listed


@pytest.mark.parametrize("shape", [("n", 3, 24, 40), (1, 40, 24, 3), (2, 1, 16, 16)])
def test_stand_ins_have_the_shape_that_the_input_declares(shape):
    made = stand_ins(picture_model(shape), no_scores)
    x = first(made)
    assert x.shape[1:] == shape[1:]
    assert x.dtype == np.float32
    assert shape[0] in ("n", len(x))


def test_stand_ins_are_the_same_for_the_same_seed_whatever_is_read_before():
    model = picture_model()
    one, other = stand_ins(model, no_scores, 3), stand_ins(model, no_scores, 3)
    _ = [*one.fit]
    np.testing.assert_array_equal(first(one), first(other))
    assert not np.array_equal(first(one), first(stand_ins(model, no_scores, 4)))


def test_no_photograph_serves_for_fitting_and_for_validation():
    from onnxcompress.data.stand_ins import _photographs

    fitted, held_out = (
        {photograph.tobytes() for photograph in _photographs(which)} for which in (False, True)
    )
    assert fitted and held_out and not fitted & held_out


@pytest.mark.parametrize(
    "shape", [("n", 10), ("n", 4, 32, 32), ("n", 3, 1, 512), ("n", 3, 32), None]
)
def test_what_is_no_picture_has_no_stand_ins(shape):
    assert stand_ins(picture_model(shape), no_scores) is None


def test_bytes_are_fed_as_they_are():
    made = stand_ins(picture_model(kind=TensorProto.UINT8), no_scores)
    assert first(made).dtype == np.uint8 and first(made).max() > 200


def test_without_class_scores_values_are_0_to_1_but_for_noise():
    x = first(stand_ins(picture_model(), no_scores))
    assert -0.7 < x.min() < x.max() < 1.7
    assert 0.3 < x.mean() < 0.6


def test_what_decides_nothing_reads_details_in_as_many_pixels():
    model = picture_model(("n", 3, "h", "w"))
    nothing, classes = stand_ins(model, no_scores), stand_ins(model, classifier_of(0, 1))
    contrasts = [np.abs(np.diff(first(made), axis=3)).mean() for made in (nothing, classes)]
    assert contrasts[0] > 1.5 * contrasts[1]
    pixels = [sum(batch["x"].size for batch in made.fit) for made in (nothing, classes)]
    assert 0.9 < pixels[0] / pixels[1] < 1.1
    stated = stand_ins(model, no_scores, 0, {"x": (1, 3, 64, 80)})
    assert first(stated).shape[2:] == (64, 80)


@pytest.mark.parametrize(("strides", "noisy"), [([1, 1], True), ([2, 2], False)])
def test_only_what_gives_pictures_of_the_same_size_sees_noise(strides, noisy):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=strides)
    model = picture_model(nodes=[node], constants={"w": np.ones((3, 3, *strides), "f")})
    made = find_stand_ins(model, 0, {})
    x = np.concatenate([batch["x"] for batch in made.fit])
    assert (x.min() < 0 and x.max() > 1) == noisy


@pytest.mark.parametrize(
    ("mean", "scale", "name"),
    [(0, 1, "unit"), (0, 255, "none"), (-1, 2, "inception")],
)
def test_the_range_is_the_one_that_the_classes_tell_most_about(mean, scale, name):
    made = stand_ins(picture_model(), classifier_of(mean, scale))
    assert f"preprocess={name!r} " in made.words


def test_a_classifier_is_judged_on_the_pictures_of_every_class_that_it_is_surest_of():
    scores = classifier_of(0, 1)
    made = stand_ins(picture_model(), scores)
    answers = [np.concatenate([scores(b) for b in part]) for part in (made.fit, made.held_out)]
    fit, judged = (np.exp(a) / np.exp(a).sum(1, keepdims=True) for a in answers)
    assert len(judged) == len(fit) // 4
    assert np.median(judged.max(1)) > np.quantile(fit.max(1), 0.75)
    shares = np.bincount(judged.argmax(1), minlength=4) / len(judged)
    assert np.all(shares > 0.05)


def test_where_the_mean_says_nothing_pixels_up_to_255_are_less_their_mean_and_blue_first():
    def scores(batch):
        edges = np.diff(batch["x"].astype(np.float64), axis=3).mean((1, 2))
        return edges[:, :10] * 4

    assert "preprocess='imagenet-caffe' " in stand_ins(picture_model(), scores).words


@pytest.mark.parametrize(
    ("op", "value", "name"),
    [
        ("Sub", [[[123.0]], [[117.0]], [[104.0]]], "none"),
        ("Div", 255.0, "none"),
        ("Sub", 0.45, "unit"),
        ("Mul", 1 / 127.5, "none"),
    ],
)
def test_a_model_that_scales_its_input_tells_the_range(op, value, name):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node(op, ["t", "c"], ["y"]),
    ]
    model = picture_model(nodes=nodes, constants={"c": np.asarray(value, np.float32)})
    assert f"preprocess={name!r} " in stand_ins(model, no_scores).words


def test_scalings_that_follow_one_another_are_one():
    nodes = [
        helper.make_node("Div", ["x", "c"], ["a"]),
        helper.make_node("Sub", ["a", "m"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "s", "o", "mean", "var"], ["y"], epsilon=0.0),
    ]
    three = np.ones(3, np.float32)
    constants = {
        "c": np.float32(255), "m": np.float32(0.5), "s": 2 * three, "o": three, "mean": 0 * three,
        "var": 4 * three,
    }  # fmt: skip
    model = picture_model(nodes=nodes, constants=constants)
    assert first_scaling(model, "x") == pytest.approx((1 / 255, 0.5))


def test_an_input_read_twice_is_not_scaled():
    nodes = [
        helper.make_node("Div", ["x", "c"], ["a"]),
        helper.make_node("Add", ["x", "a"], ["y"]),
    ]
    assert first_scaling(picture_model(nodes=nodes, constants={"c": np.float32(9)}), "x") is None


def test_indices_stay_below_the_rows_of_the_table():
    nodes = [
        helper.make_node("Cast", ["ids"], ["i"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "i"], ["y"]),
    ]
    inputs = [("ids", TensorProto.INT64, (1, 4)), ("mask", TensorProto.INT64, (1, 4))]
    model = model_of(nodes, inputs, {"table": np.zeros((7, 3), np.float32)})
    assert index_ranges(model) == {"ids": (0, 7)}


def test_other_inputs_of_a_model_of_pictures_get_random_values():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["row"]),
        helper.make_node("Mul", ["x", "row"], ["y"]),
    ]
    inputs = [("x", TensorProto.FLOAT, (1, 1, 8, 8)), ("ids", TensorProto.INT64, (1,))]
    model = model_of(nodes, inputs, {"table": np.ones((9, 1), np.float32)})
    made = stand_ins(model, no_scores)
    ids = np.concatenate([batch["ids"] for batch in made.fit])
    assert ids.max() == 8 and ids.min() == 0
    assert Session(model).run(next(iter(made.fit)))[0].shape == (1, 1, 8, 8)


def test_the_stand_ins_feed_the_model():
    model = picture_model(("n", 3, "h", "w"))
    [answer] = Session(model).run(next(stand_ins(model, no_scores).held_out.batches(1)))
    assert answer.shape == (1, 3, 128, 128)  # a model that may restore pictures


def test_a_long_line_of_copies_is_walked_once():
    count = 20_000
    names = ["ids", *(f"t{i}" for i in range(count))]
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
    nodes.append(helper.make_node("Gather", ["table", names[-1]], ["y"]))
    model = model_of(nodes, [("ids", TensorProto.INT64, ("n",))], {"table": np.ones((50, 2), "f")})
    assert index_ranges(model) == {"ids": (0, 50)}


def test_an_output_without_a_row_for_each_picture_holds_no_classes():
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["rows"]),
        helper.make_node("Not", ["all"], ["none"]),
        helper.make_node("Compress", ["rows", "none"], ["y"], axis=0),
    ]
    constants = {"w": np.ones((192, 4), "f"), "all": np.ones(1, bool)}
    model = model_of(nodes, [("x", TensorProto.FLOAT, (1, 3, 8, 8))], constants)
    assert find_stand_ins(model, 0, {}) is not None
