"""Rounding in the metric of the inputs."""

import numpy as np
import pytest

from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.lookup.error_feedback import (
    NARROW,
    descend,
    feedback,
    feedback_factor,
    metrics,
    row_errors,
)
from onnxcompress.methods.lookup.row_fit import picker


def correlated(rng, count=2000, width=48, groups=1):
    mixed = rng.normal(size=(groups, width, width)) * (np.arange(width) + 1) ** -0.7
    return Statistics.of((rng.normal(size=(groups, count, width)) @ mixed).astype(np.float32))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_error_feedback_and_descent_each_lower_the_output_error(width, groups, rng):
    metric = correlated(rng, groups=groups).block(0, 48)
    weight = rng.normal(size=(groups, 32, 48))
    table = rng.normal(size=(16, width))
    table = np.sort(table, axis=0) if width == 1 else table
    scale, part = np.ones((groups, 32, 1)), np.zeros(48 // width, int)
    picks = picker(table, scale, part)

    def error(values):
        return row_errors(weight - values, metric).sum()

    identity = np.stack([np.eye(48)] * groups)
    _, apart = feedback(weight, picks, identity, width)
    factor = np.stack(list(map(feedback_factor, metric)))
    codes, fed = feedback(weight, picks, factor, width)
    codes, better, gradient = descend(codes, fed, (fed - weight) @ metric, picks, metric, width)
    assert error(better) < error(fed) < error(apart)
    np.testing.assert_allclose(gradient, (better - weight) @ metric, atol=1e-9)
    np.testing.assert_array_equal(better, table[codes].reshape(weight.shape))


def test_a_factor_multiplies_out_to_the_inverse_of_the_metric(rng):
    root = rng.normal(size=(20, 30))
    metric = root @ root.T
    factor = feedback_factor(metric)
    np.testing.assert_allclose(factor.T @ factor @ metric, np.eye(20), atol=1e-5)
    np.testing.assert_array_equal(factor, np.triu(factor))


@pytest.mark.parametrize("fan_in", [5, 48, NARROW + 2, 5000])
@pytest.mark.parametrize("width", [1, 4, 5])
def test_the_metrics_of_a_layer_cover_every_input_once(fan_in, width, rng):
    statistics = Statistics.of(rng.normal(size=(1, 50, fan_in)).astype(np.float32))
    parts = metrics(statistics, width)
    columns = np.concatenate([part.columns for part in parts])
    assert sorted(columns) == list(range(len(columns)))
    assert fan_in <= len(columns) < fan_in + 24
    for part in parts:
        pieces = part.columns.reshape(-1, width)
        np.testing.assert_array_equal(pieces - pieces[:, :1], [range(width)] * len(pieces))
        taken = part.taken(np.ones((1, 2, fan_in)))
        assert taken.sum() == 2 * (part.columns < fan_in).sum()
