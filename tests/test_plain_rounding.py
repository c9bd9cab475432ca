"""No fit errs more than plain rounding of its size, whatever the law of the weights."""

import numpy as np
import pytest

from onnxcompress.core.layer import Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.methods.binary import Binary
from onnxcompress.methods.codebook import Codebook
from onnxcompress.methods.half import Half
from onnxcompress.methods.integer import Integer

OUT, INPUTS = 16, 96
EQUAL = 90.0  # dB, above which nobody sees a difference
CLOSE = 0.3  # dB


def one_outlier_a_row(rng):
    weight = rng.normal(size=(OUT, INPUTS))
    weight[np.arange(OUT), rng.integers(0, INPUTS, OUT)] = -18
    return weight


def one_outlier_column(rng):
    return rng.normal(size=(OUT, INPUTS)) * np.where(np.arange(INPUTS) == 7, 30, 1)


def one_channel(factor):
    return lambda rng: (
        rng.normal(size=(OUT, INPUTS)) * np.where(np.arange(OUT) == 5, factor, 1)[:, None]
    )


LAWS = {
    "normal": lambda rng: rng.normal(size=(OUT, INPUTS)),
    "Laplace": lambda rng: rng.laplace(size=(OUT, INPUTS)),
    "Student": lambda rng: rng.standard_t(2, size=(OUT, INPUTS)),
    "outlier in each row": one_outlier_a_row,
    "outlier column": one_outlier_column,
    "zeros": lambda rng: rng.normal(size=(OUT, INPUTS)) * (rng.random((OUT, INPUTS)) < 0.1),
    "large channel": one_channel(1e6),
    "small channel": one_channel(1e-6),
    "identity": lambda _: np.eye(OUT, INPUTS),
    "constant": lambda _: np.full((OUT, INPUTS), 0.37),
    "signs": lambda rng: rng.choice([-0.3, 0.3], size=(OUT, INPUTS)),
    "one sign": lambda rng: np.abs(rng.normal(size=(OUT, INPUTS))),
}


@pytest.fixture(params=LAWS)
def layer(request, rng):
    return Layer("layer", "Gemm", (0.05 * LAWS[request.param](rng)).astype(np.float32))


@pytest.fixture(params=["weights alone", "data"])
def statistics(request, layer, rng):
    if request.param == "weights alone":
        return Statistics.white(layer)
    mixed = rng.normal(size=(INPUTS, INPUTS)) * (np.arange(INPUTS) + 1) ** -0.6
    return Statistics.of((rng.normal(size=(1, 1000, INPUTS)) @ mixed).astype(np.float32))


def plain(weight, bits):
    """Min-max rounding of every row, symmetric and asymmetric."""
    levels = 2**bits
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    scale = (np.maximum(high, -low) / max(levels // 2 - 1, 1))[:, None]
    yield np.clip(np.rint(weight / scale), -levels // 2, levels // 2 - 1) * scale
    scale = ((high - low) / (levels - 1))[:, None]
    zero = np.rint(-low[:, None] / scale)
    yield (np.clip(np.rint(weight / scale) + zero, 0, levels - 1) - zero) * scale


def snr(statistics, layer, approximation):
    error = statistics.error(layer.weight, approximation.astype(np.float32))
    return min(-10 * np.log10(max(error, 1e-30)), EQUAL)


def best_plain(statistics, layer, bits):
    both = plain(layer.weight.astype(np.float64), bits)
    return max(snr(statistics, layer, weight) for weight in both)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_integers_err_no_more_than_plain_rounding_to_their_bits(bits, layer, statistics):
    fitted = Integer(bits=bits).fit(layer, statistics)
    assert snr(statistics, layer, fitted.decode()) > best_plain(statistics, layer, bits) - CLOSE
    assert fitted.nbytes <= bits * layer.weight.size / 8 + 5 * OUT


@pytest.mark.parametrize(
    "method",
    [Codebook(vector=2), Codebook(vector=4), Codebook(levels=16), Codebook(levels=6),
     Binary(stacks=1)],
    ids=str,
)  # fmt: skip
def test_tables_and_signs_err_no_more_than_plain_rounding_of_their_size(method, layer, statistics):
    [setting] = method.settings(layer)
    fitted = setting.fit(layer, statistics)
    bits = 8 * (fitted.nbytes - 2 * OUT) // layer.weight.size
    assert snr(statistics, layer, fitted.decode()) > best_plain(statistics, layer, bits) - CLOSE


def test_half_keeps_11_bits_of_every_weight_or_declines(layer):
    for setting in Half().settings(layer):
        decoded = setting.fit(layer, Statistics.white(layer)).decode()
        largest = np.abs(layer.weight).max(1, keepdims=True)
        assert (np.abs(decoded - layer.weight) <= 2.0**-10 * largest).all()


@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_half_declines_a_channel_that_float16_does_not_hold(factor, rng):
    layer = Layer("layer", "Gemm", one_channel(factor)(rng).astype(np.float32))
    assert Half().declined(layer) == "float16 does not hold its values"


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e6])
@pytest.mark.parametrize("spec", [Integer(bits=8), Codebook(vector=2), Binary(stacks=3)], ids=str)
def test_every_channel_keeps_its_precision_however_small_or_large(factor, spec, rng):
    layer = Layer("layer", "Gemm", one_channel(factor)(rng).astype(np.float32))
    [setting] = spec.settings(layer)
    decoded = setting.fit(layer, Statistics.white(layer)).decode()
    off = np.square(decoded - layer.weight).sum(1) / np.square(layer.weight).sum(1)
    assert off[5] < 2 * np.delete(off, 5).max()


@pytest.mark.parametrize("factor", [1e-20, 1e-8, 1e8])
def test_a_layer_of_tiny_or_huge_weights_is_rounded_as_well_as_any(factor, rng):
    weight = rng.normal(size=(OUT, INPUTS)).astype(np.float32)
    for spec in (Integer(bits=8), Integer(bits=3), Codebook(vector=2), Binary(stacks=2)):
        errors = []
        for scale in (1, factor):
            layer = Layer("layer", "Gemm", weight * np.float32(scale))
            [setting] = spec.settings(layer)
            white = Statistics.white(layer)
            errors.append(white.error(layer.weight, setting.fit(layer, white).decode()))
        assert errors[1] < 1.05 * errors[0]
