"""Statistics are exact for every kind of layer, and cost no memory for more samples."""

import subprocess
import sys

import numpy as np
import pytest

import onnxcompress as oc
from models import KINDS, images, layer_model, network
from onnxcompress.compression.measure import calibrate as calibrating
from onnxcompress.compression.measure.calibrate import calibrate
from onnxcompress.compression.measure.patches import patches
from onnxcompress.compression.search import candidates
from onnxcompress.core.layer import Layer
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import find_layers


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_predict_mean_and_energy_of_the_layers_real_output(kind, rng):
    model, sample = layer_model(kind, rng)
    layers, _ = find_layers(model)
    layer = layers["layer"]
    statistics = calibrate(model, layers, [sample], exact=True)["layer"]
    y = Session(model).run(sample)[0].astype(np.float64)
    axis = {"MatMul": -2 if layer.attributes.get("left") else -1, "Gemm": -1}.get(layer.op_type, 1)
    answers = np.moveaxis(y, axis, -1).reshape(-1, len(layer.weight))
    answers = answers - (0 if layer.bias is None else layer.bias)
    moment = statistics.output_moment(layer.weight)
    np.testing.assert_allclose(np.diag(moment), np.square(answers).mean(0), rtol=2e-3)
    mean = (layer.grouped @ statistics.mean[:, :, None]).ravel()
    np.testing.assert_allclose(mean, answers.mean(0), atol=1e-4)
    assert statistics.count == len(answers)


def test_errors_of_a_layer_that_sees_few_patches_are_those_on_patches_that_it_has_not_seen(rng):
    mixed = rng.normal(size=(96, 96)) * np.linspace(2, 0.2, 96)[:, None]

    def seen_in(count):
        patches = np.maximum(rng.normal(size=(count, 96)) @ mixed, 0)
        return Statistics.of(patches.astype(np.float32)[None])

    weight = rng.normal(size=(140, 96)).astype(np.float32)
    layer = Layer("layer", "Gemm", weight, None, {})
    few, others, all_there_are = map(seen_in, (20, 40, 20_000))
    found = [c for m in (oc.Integer(), oc.Codebook()) for c in m.candidates(layer, few)]
    job = candidates._tried(found), candidates._part(layer), few, others
    judged = candidates._adjusted(found, candidates._on_others(job))
    for before, after in zip(found, judged, strict=True):
        approximation = before.setting.fit(layer, few).decode()
        true = all_there_are.error(weight, approximation)
        assert before.error < 0.75 * true
        assert 0.8 < after.error / true < 1.3


@pytest.mark.parametrize("varying", [0, 1e-6, 1e-4, 1e-3])
def test_patches_that_hardly_vary_say_nothing_about_errors(varying, rng):
    layer = Layer("layer", "Gemm", rng.normal(size=(64, 96)).astype(np.float32), None, {})
    mean, patches = rng.normal(size=96), rng.normal(size=(2, 40, 96))
    few = Statistics.of(patches[:1].astype(np.float32))
    others = Statistics.of((mean + varying * patches[1:, :20]).astype(np.float32))
    found = [*oc.Integer().candidates(layer, few)]
    _, factors = candidates._on_others((found, layer, few, others))
    assert factors == [1] * len(found)


def test_a_drawn_part_of_the_patches_is_close_to_all(rng):
    model, batches = network(rng), images(rng, 64)
    layers, _ = find_layers(model)
    whole = calibrate(model, layers, batches, exact=True)
    some = {name: patches(layers[name], batches[0]["x"], 300, 1) for name in ("stem",)}
    part = Statistics.of(some["stem"])
    weight = layers["stem"].weight
    assert part.count == 300
    few, all_of_them = (variance(s, weight) for s in (part, whole["stem"]))
    assert few == pytest.approx(all_of_them, rel=0.3)


def variance(statistics, weight):
    """Output variance without the ridge, which is larger where there are fewer patches."""
    ridge = statistics.ridge * np.square(weight, dtype=np.float64).sum()
    return statistics.energy(weight) - ridge


def test_threads_and_groups_of_layers_do_not_change_a_bit(rng, monkeypatch):
    model, batches = network(rng), images(rng, 64)
    layers, _ = find_layers(model)
    once = calibrate(model, layers, batches, jobs=1)
    twice = calibrate(model, layers, batches, jobs=2)
    monkeypatch.setattr(calibrating, "EXPOSED_BYTES", 1)
    monkeypatch.setattr(calibrating, "EXPOSED_OF_ONE", 1)
    apart = calibrate(model, layers, batches, jobs=1)
    for name in layers:
        assert once[name].moment.tobytes() == twice[name].moment.tobytes()
        np.testing.assert_allclose(once[name].moment, apart[name].moment, rtol=1e-6)


MEMORY = """
import sys, resource
sys.path.insert(0, {tests!r})
import numpy as np
from models import network
from onnxcompress.data.samples import Samples
from onnxcompress.graph import find_layers
from onnxcompress.compression.measure.calibrate import calibrate

model = network(np.random.default_rng(0), 96)
def read(rows):
    rng = np.random.default_rng(int(rows[0]))
    return {{"x": rng.normal(size=(len(rows), 3, 96, 96)).astype(np.float32)}}
samples = Samples(read, np.arange({count}), batch=8, exact=True)
calibrate(model, find_layers(model)[0], samples)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ten_times_the_samples_need_no_more_memory(request):
    peaks = []
    for count in (32, 320):
        code = MEMORY.format(tests=str(request.path.parent), count=count)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.1 * peaks[0]


# ------------------------------------------------------------------------ the Statistics type


@pytest.fixture(name="patches")
def correlated_patches(rng):
    return rng.normal(size=(2, 300, 18)) @ rng.normal(size=(2, 18, 18)) + 1


def metric(patches, statistics):
    centred = patches - patches.mean(1, keepdims=True)
    identity = np.eye(patches.shape[2])
    return centred.swapaxes(1, 2) @ centred / patches.shape[1] + statistics.ridge * identity


def test_batches_sum_to_the_whole(patches):
    parts = [Statistics.of(patches[:, i : i + 100]) for i in range(0, 300, 100)]
    total, whole = sum(parts[1:], parts[0]), Statistics.of(patches)
    np.testing.assert_allclose(total.moment, whole.moment)
    np.testing.assert_allclose(total.mean, whole.mean)
    assert total.count == whole.count


def test_products_with_the_metric_are_those_of_the_definition(patches, rng):
    statistics = Statistics.of(patches)
    h = metric(patches, statistics)
    x = rng.normal(size=(2, 5, 18))
    np.testing.assert_allclose(statistics.times(x), x @ h, atol=1e-8 * np.abs(h).max())
    columns = np.array([3, 7, 11])
    wide = np.zeros((2, 5, 18))
    wide[:, :, columns] = x[:, :, :3]
    np.testing.assert_allclose(
        statistics.times(x[:, :, :3], columns), statistics.times(wide), atol=1e-8
    )
    partial = statistics.partial((2, 3, 3), (0, 1))
    blocks = h.reshape(2, 2, 3, 3, 2, 3, 3)
    np.testing.assert_allclose(partial, np.einsum("gabxcdx->gabcd", blocks).reshape(2, 6, 6))
    weight = rng.normal(size=(8, 18))
    direct = np.einsum("gof,gfh,goh->", weight.reshape(2, 4, 18), h, weight.reshape(2, 4, 18))
    assert statistics.energy(weight) == pytest.approx(direct)


def test_without_data_every_direction_counts_alike(rng):
    layer = Layer("layer", "Conv", rng.normal(size=(8, 2, 3, 3)), None, {"group": 2})
    white = Statistics.white(layer)
    assert white.energy(layer.weight) == pytest.approx(np.sum(np.square(layer.weight)))
    np.testing.assert_array_equal(white.partial((2, 3, 3), (0,)), np.stack([9 * np.eye(2)] * 2))
    assert not white.shift(layer.weight, 0 * layer.weight).any()


def test_the_shift_keeps_the_mean_output(patches, rng):
    weight, other = rng.normal(size=(2, 8, 18))
    shift = Statistics.of(patches).shift(weight, other)
    mean = patches.mean(1)
    expected = np.einsum("gof,gf->go", (weight - other).reshape(2, 4, 18), mean).ravel()
    np.testing.assert_allclose(shift, expected)


def test_a_sketch_is_exact_while_it_is_short_and_close_later(patches, rng, monkeypatch):
    from onnxcompress.core import statistics as core

    whole = Statistics.of(patches)
    weight = rng.normal(size=(8, 18))
    monkeypatch.setattr(core, "SKETCH_ABOVE", 10)
    monkeypatch.setattr(core, "SKETCH_ROWS", 150)
    short = Statistics.of(patches)
    assert short.moment is None and short.energy(weight) == pytest.approx(whole.energy(weight))
    monkeypatch.setattr(core, "SKETCH_ROWS", 60)
    parts = [Statistics.of(patches[:, i : i + 50]) for i in range(0, 300, 50)]
    sketch = sum(parts[1:], parts[0])
    assert sketch.rows.shape[1] <= 120
    assert sketch.energy(weight) == pytest.approx(whole.energy(weight), rel=0.5)
