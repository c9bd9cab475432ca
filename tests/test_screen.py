"""Settings that the price of a byte rules out are not fitted, and the result does not suffer."""

import numpy as np
import pytest

import onnxcompress as oc
from models import perceptron
from onnxcompress.compression.search import candidates, screen
from onnxcompress.execution.session import Session
from onnxcompress.methods.codebook import Codebook

pytestmark = pytest.mark.usefixtures("unrecorded")


@pytest.fixture(scope="module")
def net():
    return perceptron(np.random.default_rng(0), [24, 96, 64, 10])


def compressed(net, ratio, monkeypatch, screened=True):
    """The SNR of the result, and how many settings of codebooks were fitted."""
    fitted, fit = [], Codebook.candidates

    def counted(self, layer, statistics):
        fitted.extend(self.settings(layer))
        return fit(self, layer, statistics)

    monkeypatch.setattr(Codebook, "candidates", counted)
    if not screened:
        monkeypatch.setattr(candidates, "by_numbers", lambda job, targets: False)
    rng = np.random.default_rng(1)
    mixed = rng.normal(size=(640, 12)) @ rng.normal(size=(12, 24)) + rng.normal(size=(640, 24))
    samples = [{"x": part} for part in np.split(mixed.astype(np.float32), 10)]
    result, _ = oc.compress(net, target=oc.Target(ratio=ratio), samples=samples[:6], jobs=1)
    before, after = Session(net), Session(result)
    pairs = [(before.run(b)[0], after.run(b)[0]) for b in samples[6:]]
    error = sum(np.square(a - b).sum() for a, b in pairs)
    return 10 * np.log10(sum(np.square(a).sum() for a, _ in pairs) / error), len(fitted)


@pytest.mark.parametrize("ratio", [4, 6.5])
def test_fewer_settings_are_fitted_and_the_result_is_as_good(net, ratio, monkeypatch):
    with monkeypatch.context() as patch:
        every, all_fitted = compressed(net, ratio, patch, screened=False)
    with monkeypatch.context() as patch:
        snr, fitted = compressed(net, ratio, patch)
    assert fitted < all_fitted
    assert snr > every - 0.2


def test_all_settings_are_fitted_where_numbers_cannot_reach_the_size(net, monkeypatch):
    with monkeypatch.context() as patch:
        _, fitted = compressed(net, 6.7, patch)
    assert fitted > 0


def test_a_target_of_quality_needs_all_settings():
    assert not screen.by_numbers(None, [oc.Target(min_snr=20)])
    assert not screen.by_numbers(None, [oc.Target(ratio=4), oc.Target(ratio=4, macs=0.5)])
