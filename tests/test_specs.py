"""Specs are read as they are written."""

import pytest

from onnxcompress.compression.method_spec import described, parse
from onnxcompress.compression.target import Target
from onnxcompress.core.layer import Layer
from onnxcompress.methods import METHODS
from onnxcompress.methods.basis import Basis
from onnxcompress.methods.composed import Packed
from onnxcompress.methods.integer import Integer


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_reads_back_as_it_is_written(name, rng):
    layer = Layer("layer", "Conv", rng.normal(size=(16, 8, 3, 3)))
    for setting in METHODS[name]().settings(layer):
        assert parse(str(setting)) == [setting]


def test_auto_stands_for_what_suits_the_target():
    def names(**target):
        return {method.name for method in parse("auto", Target(**target))}

    chosen = {name: method for name, method in METHODS.items() if method.auto}
    faster = {name for name, method in chosen.items() if method.faster}
    assert {"codebook", "half", "integer"} <= names(ratio=4) == chosen.keys() - faster
    assert names(min_snr=30) == names(ratio=4)
    assert {"basis"} <= names(macs=0.5) == faster
    assert names(macs=0.5, ratio=4) == names(ratio=4) | {f"{name}+integer" for name in faster}
    assert "basis" not in {method.name for method in parse("auto")}


def test_a_plus_packs_the_arrays_of_a_method():
    [method] = parse("basis:rank=4+integer:bits=8")
    assert method == Packed(Basis(rank=4), Integer(bits=8))
    assert str(method) == "basis:rank=4+integer:bits=8"
    assert not parse("basis+half")[0].fixed and parse("hashed:share=2+half")[0].fixed


@pytest.mark.parametrize("spec", ["basis+basis", "basis+hashed", "basis+", "basis+half+half"])
def test_only_what_stores_arrays_comes_after_a_plus(spec):
    with pytest.raises(ValueError, match="half"):
        parse(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bases", "did you mean 'basis'"),
        ("basis:rnk=1", "did you mean 'rank'"),
        ("basis:rank=many", "a whole number"),
        ("basis:unfolding=filtre", "did you mean 'filter'"),
        ("basis:unfolding=4", "there are: filter, spatial, tucker"),
        ("basis:first=left", "whole numbers joined by x"),
        ("basis:rank=1,rank=2", "sets rank twice"),
        ("basis:energy=2", "at most 1"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_right_spelling(spec, message):
    with pytest.raises(ValueError, match=message):
        parse(spec)


def test_settings_of_every_kind_are_read():
    assert parse("basis:first=0x1,energy=0.5,unfolding=spatial") == [
        Basis("spatial", first=(0, 1), energy=0.5)
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_every_method_is_explained(name):
    summary, settings = described(METHODS[name])
    assert summary and all(meaning for _, _, meaning in settings)
