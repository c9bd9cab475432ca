"""Specs are read as they are written."""

import pytest

from onnxcompress.core import Layer
from onnxcompress.methods import METHODS
from onnxcompress.specs import parse


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_reads_back_as_it_is_written(name, rng):
    layer = Layer("layer", "Conv", rng.normal(size=(16, 8, 3, 3)))
    for setting in METHODS[name]().settings(layer):
        assert parse(str(setting)) == [setting]


def test_auto_stands_for_all_methods():
    assert {type(method) for method in parse("auto")} == set(METHODS.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bases", "did you mean 'basis'"),
        ("basis:rnk=1", "did you mean 'rank'"),
        ("basis:rank=many", "a whole number"),
        ("basis:unfolding=filtre", "did you mean 'filter'"),
        ("basis:energy=2", "at most 1"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_right_spelling(spec, message):
    with pytest.raises(ValueError, match=message):
        parse(spec)
