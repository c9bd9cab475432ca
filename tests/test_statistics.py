"""Statistics merge: two batches say together what they would say as one."""

from dataclasses import replace

import numpy as np
import pytest

from onnxcompress.core.statistics import Statistics


@pytest.mark.parametrize("counts", [(40, 40), (10, 90), (1, 30)])
def test_merged_sketches_keep_the_variance_between_their_means(counts, rng, monkeypatch):
    """Pooled scatter = both scatters + n m / (n + m) d dᵀ, d the difference of the means."""
    monkeypatch.setattr("onnxcompress.core.statistics.SKETCH_ABOVE", 8)
    first, second = (rng.normal(size=(2, count, 12)) for count in counts)
    second = second + np.linspace(-3, 3, 12)
    merged = Statistics.of(first) + Statistics.of(second)
    assert merged.rows is not None and merged.count == sum(counts)
    whole = np.concatenate([first, second], axis=1)
    centred = whole - whole.mean(1, keepdims=True)
    np.testing.assert_allclose(
        merged.rows.swapaxes(1, 2) @ merged.rows, centred.swapaxes(1, 2) @ centred, atol=1e-9
    )


def test_a_folded_sketch_estimates_the_scatter_without_bias(rng, monkeypatch):
    monkeypatch.setattr("onnxcompress.core.statistics.SKETCH_ABOVE", 4)
    monkeypatch.setattr("onnxcompress.core.statistics.SKETCH_ROWS", 64)
    direction = rng.normal(size=6)
    ratios = []
    for _ in range(60):
        patches = rng.normal(size=(1, 512, 6)) + 5
        sketch = Statistics.of(patches)
        assert sketch.rows is not None and sketch.rows.shape[1] <= 128
        centred = patches[0] - patches[0].mean(0)
        known = np.square(centred @ direction).sum()
        ratios.append(np.square(sketch.rows[0] @ direction).sum() / known)
    # One estimate has a relative variance of about 2 / 64, the mean of 60 a deviation of 0.023.
    assert np.mean(ratios) == pytest.approx(1, abs=4 * np.sqrt(2 / 64 / 60))


def test_doubt_is_added_in_every_direction(rng):
    seen = Statistics.of(rng.normal(size=(1, 5000, 6)).astype(np.float32) * [9, 1, 1, 1, 1, 0])
    doubted = replace(seen, doubt=1.0)
    variance = np.trace(seen.block(0, 6)[0]) - 6 * seen.ridge
    added = doubted.block(0, 6) - seen.block(0, 6)
    np.testing.assert_allclose(added[0], np.eye(6) * (variance / 6 - seen.ridge), atol=1e-5)


@pytest.mark.parametrize("batches", [1, 4])
def test_copies_of_one_patch_leave_all_directions_alike(batches, rng):
    patch = np.maximum(rng.normal(size=(1, 1, 512)), 0).astype(np.float32)
    copies = [Statistics.of(np.repeat(patch, 48 // batches, 1)) for _ in range(batches)]
    eigenvalues = np.linalg.eigvalsh(sum(copies[1:], copies[0]).block(0, 512)[0])
    assert 0 < eigenvalues[-1] < 1.2 * eigenvalues[0]
