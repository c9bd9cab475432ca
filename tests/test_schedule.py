"""What a refinement does that needs no torch: more images, and the lengths of steps."""

import numpy as np
import pytest

from onnxcompress.core.errors import RefineError
from onnxcompress.refinement.augment import augment, parse_augmentations
from onnxcompress.refinement.schedule import (
    ALONE,
    LEAP,
    TRAVEL,
    TRIAL_STEPS,
    is_settled,
    plan,
    plan_trial,
)
from onnxcompress.report.report import Epoch


def test_augmented_images_are_mirrored_and_shifted(rng):
    picture = rng.normal(size=(64, 3, 12, 14)).astype(np.float32)
    changed = augment({"x": picture, "other": picture[:, 0, 0]}, ["flip", "crop"], rng)
    assert changed["x"].shape == picture.shape
    assert (changed["other"] == picture[:, 0, 0]).all()
    wide = np.pad(picture, ((0, 0), (0, 0), (4, 4), (4, 4)))
    seen = set()
    for image, before in zip(changed["x"], wide, strict=True):
        places = [
            (flip, i, j)
            for flip in (False, True)
            for i in range(9)
            for j in range(9)
            if (before[:, :, ::-1] if flip else before)[:, i : i + 12, j : j + 14].tobytes()
            == image.tobytes()
        ]
        assert len(places) == 1
        seen.update(places)
    assert len({place[1:] for place in seen}) > 20
    assert {place[0] for place in seen} == {False, True}


def test_mixed_images_are_two_of_the_batch_in_shares_of_one(rng):
    pictures = np.zeros((64, 64, 12, 12), np.float32)
    pictures[np.arange(64), np.arange(64)] = 1  # the channel says which image it was
    mixed = augment({"x": pictures}, ["mix"], rng)["x"]
    shares = mixed[..., 0, 0]
    np.testing.assert_allclose(mixed, np.broadcast_to(shares[..., None, None], mixed.shape))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    assert set((shares > 0).sum(1)) == {1, 2}
    assert mixed.dtype == np.float32


def test_augmentations_are_listed_with_commas():
    assert parse_augmentations("flip, mix,") == ("flip", "mix")
    assert parse_augmentations("") == ()
    with pytest.raises(RefineError, match="unknown augmentation 'twist'"):
        parse_augmentations("flip,twist")


def test_steps_of_floats_rise_to_the_rate_and_fall_to_nothing():
    schedule = plan(0.01, epochs=10, steps=20)
    lengths = np.array([schedule.float_step(step) for step in range(200)])
    top = int(lengths.argmax())
    assert lengths[top] == pytest.approx(0.01)
    assert (np.diff(lengths[: top + 1]) > 0).all() and (np.diff(lengths[top:]) < 0).all()
    assert 0 < lengths[-1] < 0.001 * 0.01


@pytest.mark.parametrize("epochs", [1, 7, 40])
def test_codes_wait_and_then_travel_so_far_and_never_leap(epochs):
    schedule = plan(0.01, epochs, steps=20)
    lengths = np.array([schedule.code_step(step) for step in range(20 * epochs)])
    waiting = 20 * int(np.ceil(ALONE * epochs))
    assert not lengths[:waiting].any()
    assert (lengths[waiting:] > 0).all() and lengths.max(initial=0) <= LEAP
    assert lengths.sum() <= 1.05 * TRAVEL  # a latent that keeps its direction


@pytest.mark.parametrize("steps", [1, 300, 100_000])
def test_a_trial_is_short_and_leaves_codes_alone(steps):
    trial = plan_trial(0.01, steps)
    assert trial.steps >= TRIAL_STEPS[0]
    assert trial.steps <= max(TRIAL_STEPS[1], steps // 8)
    assert not any(trial.code_step(step) for step in range(trial.steps))


def test_it_is_over_when_half_of_the_epochs_brought_nothing_better():
    rows = [Epoch(i, 0, loss, 0) for i, loss in enumerate([0.1, 0.3, 0.2, *[0.25] * 10])]
    over = [is_settled(rows[:count], epochs=12) for count in range(1, len(rows) + 1)]
    assert over.index(True) == 8  # the best is epoch 2, and six are half of twelve
