"""What is true of basis only."""

from math import prod

import numpy as np
import pytest

from onnxcompress.core.layer import Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.basis import Basis, BasisWeight


def layer_of(weight, **attributes):
    return Layer("layer", "Conv" if weight.ndim > 2 else "Gemm", weight, None, attributes)


def correlated(layer, rng, count=2000):
    groups, _, fan_in = layer.grouped.shape
    mix = rng.normal(size=(groups, fan_in, fan_in)) / np.sqrt(fan_in)
    return Statistics.of(rng.normal(size=(groups, count, fan_in)) @ mix + 0.5)


LOW_RANK = {
    "filter": (Basis("filter", 5), ((5, 8, 3, 3), (24, 5, 1, 1))),
    "vertical first": (Basis("spatial", 5, first=(0,)), ((5, 8, 3, 1), (24, 5, 1, 3))),
    "horizontal first": (Basis("spatial", 5, first=(1,)), ((5, 8, 1, 3), (24, 5, 3, 1))),
    "tucker": (
        Basis("tucker", 6, input_rank=4),
        ((4, 8, 1, 1), (6, 4, 3, 3), (24, 6, 1, 1)),
    ),
}


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_weight_of_low_rank_is_reproduced(name, calibrated, rng):
    setting, shapes = LOW_RANK[name]
    layer = layer_of(BasisWeight(tuple(rng.normal(size=shape) for shape in shapes)).decode())
    statistics = correlated(layer, rng) if calibrated else Statistics.white(layer)
    fitted = setting.fit(layer, statistics)
    assert [w.shape for w in fitted.chain] == list(shapes)
    np.testing.assert_allclose(
        fitted.decode(), layer.weight, atol=1e-10 * np.abs(layer.weight).max()
    )


def test_groups_are_fitted_one_by_one(rng):
    parts = [rng.normal(size=(12, 2)) @ rng.normal(size=(2, 72)) for _ in range(3)]
    layer = layer_of(np.concatenate(parts).reshape(36, 8, 3, 3), group=3)
    decoded = Basis("filter", 2).fit(layer, correlated(layer, rng)).decode()
    np.testing.assert_allclose(decoded, layer.weight, atol=1e-9)


def test_basis_filters_are_orthonormal(rng):
    layer = layer_of(rng.normal(size=(24, 8, 3, 3)))
    basis = Basis("filter", 7).fit(layer, correlated(layer, rng)).chain[0].reshape(7, -1)
    np.testing.assert_allclose(basis @ basis.T, np.eye(7), atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_predicted_error_of_the_filter_unfolding_is_exact(groups, rng):
    layer = layer_of(rng.normal(size=(24, 8, 3, 3)), group=groups)
    for statistics in (Statistics.white(layer), correlated(layer, rng)):
        for candidate in Basis("filter").candidates(layer, statistics):
            decoded = candidate.setting.fit(layer, statistics).decode()
            assert statistics.error(layer.weight, decoded) == pytest.approx(
                candidate.error, abs=1e-9
            )


@pytest.mark.parametrize("setting", [Basis("spatial", first=(0,)), Basis("tucker", input_rank=4)])
def test_alternating_lowers_the_error_below_the_prediction(setting, rng):
    layer = layer_of(rng.normal(size=(24, 8, 3, 3)))
    statistics = correlated(layer, rng)
    candidate = list(setting.candidates(layer, statistics))[2]
    decoded = candidate.setting.fit(layer, statistics).decode()
    assert statistics.error(layer.weight, decoded) < 0.99 * candidate.error


def test_a_higher_rank_errs_less(rng):
    layer = layer_of(rng.normal(size=(24, 8, 3, 3)))
    for setting in (Basis("filter"), Basis("spatial", first=(0,)), Basis("tucker", input_rank=3)):
        errors = [c.error for c in setting.candidates(layer, correlated(layer, rng))]
        assert errors == sorted(errors, reverse=True)


def test_the_papers_rule_takes_the_smallest_rank_that_keeps_the_energy(rng):
    layer = layer_of(
        rng.normal(size=(16, 8, 3, 3)) * np.geomspace(1, 0.05, 16)[:, None, None, None]
    )
    [setting] = Basis(energy=0.9).settings(layer)
    energy = np.linalg.svd(layer.weight.reshape(16, -1), compute_uv=False) ** 2
    kept = np.cumsum(energy) / energy.sum()
    assert setting == Basis("filter", setting.rank)
    assert kept[setting.rank - 1] >= 0.9 > kept[setting.rank - 2]


def test_three_dimensions_are_split_in_every_way(rng):
    settings = Basis("spatial").settings(layer_of(rng.normal(size=(8, 8, 3, 3, 3))))
    assert {s.first for s in settings} == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)}


def test_every_setting_is_smaller_than_the_weight(rng):
    layer = layer_of(rng.normal(size=(24, 8, 3, 3)))
    for setting in Basis().settings(layer):
        assert (
            sum(map(prod, setting.fit(layer, Statistics.white(layer)).factors)) < layer.weight.size
        )


def test_depthwise_and_single_channel_layers_are_declined_with_the_reason(rng):
    assert "depthwise" in Basis().declined(layer_of(rng.normal(size=(8, 1, 3, 3)), group=8))
    assert "single" in Basis().declined(layer_of(rng.normal(size=(1, 16))))
    assert Basis().declined(layer_of(rng.normal(size=(24, 8, 3, 3)))) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "at least 1"),
        ({"unfolding": "sideways"}, "spatial"),
        ({"energy": 0}, "above 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Basis(**settings)
