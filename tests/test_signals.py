"""Made-up signals for models of sound and other series."""

import numpy as np
import onnx.parser
import pytest

import onnxcompress as oc
from onnxcompress.data.signals import LONG, signal, signals
from onnxcompress.graph import convolved_inputs

SERIES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 512] x, float[batch, 512] features) => (float[n, k, m] y, float[batch, 1] z)
<int64[1] axis = {1}, float half = {0.5}, float[2, 1, 4] w = {1, 2, 3, 4, 5, 6, 7, 8},
 float[512, 1] v = {WEIGHTS}>
{ scaled = Mul (x, half)  both = Concat <axis = 0> (scaled, scaled)
  rows = Unsqueeze (both, axis)  y = Conv (rows, w)
  z = MatMul (features, v) }
"""


@pytest.fixture
def net():
    return oc.Model(onnx.parser.parse_model(SERIES.replace("WEIGHTS", ", ".join("1" * 512))))


def test_inputs_that_convolutions_read_are_known_by_the_graph(net):
    assert convolved_inputs(net) == {"x"}


def test_only_a_series_is_a_signal_and_other_inputs_are_random(net):
    made = signals(net)
    assert made is not None and not made.pictures
    sample = next(iter(made.fit))
    smooth, white = (
        np.square(np.diff(sample[name])).mean() / np.square(sample[name]).mean()
        for name in ("x", "features")
    )
    assert {x.shape for x in sample.values()} == {(1, 512)}
    assert smooth < 1 and 1.5 < white < 2.5
    assert signals(net, input_shapes={"x": (1, 512)}, seed=1) is not None


def test_fit_and_validation_hear_different_signals_and_the_same_every_time(net):
    one, other = signals(net), signals(net)
    assert one is not None and other is not None
    a, b, c = (next(iter(part))["x"] for part in (one.fit, other.fit, one.held_out))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_signal_runs_along_its_longest_axis():
    x = signal(np.random.default_rng(0), (2, 4 * LONG, 3))
    steps = [np.square(np.diff(x, axis=axis)).mean() for axis in (1, 2)]
    assert x.shape == (2, 4 * LONG, 3) and np.isfinite(x).all() and steps[0] < steps[1]
