"""What `binary` stores, how it is fitted, and that bits come out of the graph as they went in."""

from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import layer_model
from onnxcompress.compression.measure.shapes import input_shapes
from onnxcompress.core.layer import Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import find_layers, rewrite
from onnxcompress.methods.binary import Binary
from onnxcompress.methods.lookup.bits import pack, unpack


def wide(rng, out=64, inputs=32):
    """A layer and the statistics of correlated inputs."""
    weight = rng.normal(size=(out, inputs, 3, 3)).astype(np.float32)
    layer = Layer("wide", "Conv", weight, None, {"group": 1})
    mix = rng.normal(size=(inputs * 9, inputs * 9)) / 10 + np.eye(inputs * 9)
    patches = (rng.normal(size=(1, 4000, inputs * 9)) @ mix).astype(np.float32)
    return layer, Statistics.of(patches[:, :3000]), Statistics.of(patches[:, 3000:])


@given(st.integers(1, 9), st.integers(1, 200), st.randoms(use_true_random=False))
def test_numbers_of_any_width_come_out_as_they_went_in(bits, count, random):
    numbers = np.array([random.randrange(1 << bits) for _ in range(count)])
    stored = pack(numbers, bits)
    assert stored.nbytes == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack(stored, bits, count), numbers)


@pytest.mark.parametrize("stacks", [1, 2])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("share", [None, 0.5])
def test_the_stored_bits_are_those_of_the_formula(stacks, parts, share, rng):
    layer, statistics, _ = wide(rng)
    [setting] = Binary(stacks, parts=parts, share=share).settings(layer)
    out, inputs, *kernel = layer.weight.shape
    width, pieces = inputs // parts * np.prod(kernel), out * parts
    bits = pieces * stacks * width
    if share:
        filters = pieces * share
        bits = filters * width + pieces * stacks * log2(filters)
    fitted = setting.fit(layer, statistics)
    assert 8 * fitted.nbytes == bits + 16 * pieces * stacks


def test_more_stacks_and_more_filters_lower_the_error(rng):
    layer, statistics, _ = wide(rng)

    def error(**given):
        [setting] = Binary(**given).settings(layer)
        return statistics.error(layer.weight, setting.fit(layer, statistics).decode())

    own = [error(stacks=stacks) for stacks in (1, 2, 3, 4)]
    assert own == sorted(own, reverse=True) and own[-1] < 0.02
    shared = [error(stacks=1, parts=4, share=share) for share in (0.125, 0.25, 0.5, 1)]
    assert shared == sorted(shared, reverse=True)


@pytest.mark.parametrize("setting", [{"stacks": 1}, {"stacks": 2}, {"stacks": 1, "share": 0.5}])
def test_a_fit_that_knows_the_inputs_is_better_on_inputs_that_it_has_not_seen(setting, rng):
    layer, known, unseen = wide(rng)
    [setting] = Binary(**setting, parts=2).settings(layer)
    blind = setting.fit(layer, Statistics.white(layer)).decode()
    aware = setting.fit(layer, known).decode()
    assert unseen.error(layer.weight, aware) < 0.95 * unseen.error(layer.weight, blind)


def test_no_shared_filter_is_left_unused(rng):
    layer, statistics, _ = wide(rng)
    [setting] = Binary(1, parts=4, share=0.25).settings(layer)
    fitted = setting.fit(layer, statistics)
    form = fitted.form
    used = np.unique(unpack(fitted.select, form.index_bits, form.scales))
    assert len(used) > 0.9 * form.filters


def test_channels_that_no_piece_divides_are_padded(rng):
    layer = find_layers(layer_model("conv", rng)[0])[0]["layer"]
    assert layer.weight.shape[1] % 3
    [setting] = Binary(2, channels=3).settings(layer)
    fitted = setting.fit(layer, Statistics.white(layer))
    assert fitted.decode().shape == layer.weight.shape
    assert Statistics.white(layer).error(layer.weight, fitted.decode()) < 0.3


@pytest.mark.parametrize(
    "setting",
    [{"stacks": 5}, {"share": 0}, {"filters": 3}, {"channels": 0}, {"channels": 1, "parts": 2}],
)
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(ValueError, match=r"stacks|share|filters|channels"):
        Binary(**setting)


@pytest.mark.parametrize("kind", ["conv", "conv 1-D", "conv 3-D", "strided", "same upper"])
@pytest.mark.parametrize("stacks", [1, 2])
def test_both_forms_compute_the_same_and_the_feature_form_counts_its_layers(kind, stacks, rng):
    model, sample = layer_model(kind, rng)
    layer = find_layers(model)[0]["layer"]
    shapes, _ = input_shapes(model, sample)
    outputs = []
    for form in ("weight", "feature"):
        [setting] = Binary(stacks, parts=2, filters=4, form=form).settings(layer)
        fitted = setting.fit(layer, Statistics.white(layer))
        emitted = rewrite(model, {"layer": fitted})
        outputs.append(Session(emitted).run(sample)[0])
        counted = sum(input_shapes(emitted, sample)[1].values())
        assert counted == layer.macs(shapes["layer"], *fitted.factors)
    np.testing.assert_allclose(*outputs, atol=1e-5 * np.abs(outputs[0]).max())


def test_few_filters_in_a_wide_layer_take_the_feature_form(rng):
    weight = rng.normal(size=(512, 512, 3, 3)).astype(np.float32)
    layer = Layer("wide", "Conv", weight, None, {"group": 1})
    for filters, form in ((16, "feature"), (256, "weight")):
        [setting] = Binary(1, channels=64, filters=filters).settings(layer)
        assert setting.form == form
