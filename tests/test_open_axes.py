"""Random inputs have sizes with which the model runs."""

import numpy as np
import onnx.parser
import pytest

import onnxcompress as oc
from onnxcompress.compression.measure.open_axes import inputs_that_run, shapes_that_run
from onnxcompress.core.errors import SlowError

SQUARE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 3, height, width] x) => (float[batch, n] y)
<int64[5] shape = {0, 3, SIDES, -1}>
{ rows = Reshape (x, shape)  flat = Flatten (rows)  y = Relu (flat) }
"""
ONE_ROW = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, length] x) => (float[batch, n] y) <int64[3] shape = {1, 1, 5000}>
{ rows = Reshape (x, shape)  y = Flatten (rows) }
"""
FAR = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 4] x) => (float[1, 4, 64] y)
<float far = {1e6}, float[2, 4] table = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 64] w = {WEIGHTS}>
{ scaled = Mul (x, far)  ids = Cast <to: int = 7> (scaled)
  rows = Gather (table, ids)  y = MatMul (rows, w) }
"""
IDS = """
<ir_version: 8, opset_import: ["" : 17]>
net (int64[batch, length] ids) => (float[batch, length, 2] y) <float[50, 2] table = {ROWS}>
{ y = Gather (table, ids) }
"""


def model(text):
    return oc.Model(onnx.parser.parse_model(text))


def test_sizes_with_which_a_model_does_not_run_are_not_taken():
    shapes = shapes_that_run(model(SQUARE.replace("SIDES", "64, 64")), {}, 0)
    assert shapes == {"x": (1, 3, 64, 64)}


def test_defaults_that_serve_are_left_as_they_are():
    assert shapes_that_run(model(SQUARE.replace("SIDES", "32, 1")), {}, 0) == {}


def test_a_model_that_runs_with_none_says_what_to_give():
    with pytest.raises(oc.ModelError, match=r"shapes=\.\.\. or samples="):
        shapes_that_run(model(ONE_ROW), {}, 0)
    assert shapes_that_run(model(ONE_ROW), {"x": (1, 5000)}, 0) == {"x": (1, 5000)}


def test_a_model_of_fixed_shapes_that_does_not_run_says_it_too():
    net = model(FAR.replace("WEIGHTS", ", ".join("1" * 256)))
    with pytest.raises(oc.ModelError, match="random inputs: give shapes="):
        oc.compress(net, methods=[oc.Half()])


def test_shapes_of_the_user_with_which_it_does_not_run_are_an_error_before_the_work():
    with pytest.raises(oc.ModelError, match=r"shapes=\.\.\. or samples="):
        oc.compress(model(ONE_ROW), methods=[oc.Half()], shapes={"x": (1, 20)})


def test_a_model_that_does_not_end_is_tried_once(monkeypatch):
    times = []

    def run(*_):
        times.append(1)
        raise SlowError("one run of the model takes more than 600 s")

    monkeypatch.setattr("onnxcompress.compression.measure.open_axes.first_run", run)
    with pytest.raises(oc.ModelError, match="more than 600 s"):
        shapes_that_run(model(ONE_ROW), {}, 0)
    assert times == [1]


def test_indices_are_among_the_rows_of_what_they_choose_from():
    net = model(IDS.replace("ROWS", ", ".join("0" * 100)))
    ids = np.concatenate([sample["ids"].ravel() for sample in inputs_that_run(net, 9, {})])
    assert ids.min() >= 0 and 25 < ids.max() < 50


def test_of_a_recurrent_state_the_batch_is_one():
    text = ONE_ROW.replace(
        "float[batch, length] x", "float[2, other, 128] state, float[batch, length] x"
    )
    net = model(text.replace("{1, 1, 5000}", "{1, 1, 512}"))
    assert shapes_that_run(net, {}, 0) == {"state": (2, 1, 128), "x": (1, 512)}
