"""Samples: sources, preprocessing, views, and what is said of bad data."""

import os
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcompress.core.errors import DataError, SamplesTypeError
from onnxcompress.data.convert import as_samples
from onnxcompress.data.inputs import InputSpec, with_shapes
from onnxcompress.data.load import load_samples
from onnxcompress.data.preprocess import PRESETS, Preprocessing, load_preprocessing
from onnxcompress.data.quality import check_samples
from onnxcompress.data.random import random_samples
from onnxcompress.data.samples import spread
from onnxcompress.data.transform import transform_for

F32 = np.dtype(np.float32)


def spec(*shape, name="x", dtype=F32):
    return InputSpec(name, np.dtype(dtype), shape)


NCHW = [spec("N", 3, 8, 8)]
FLAT = [spec("N", 4)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    """Twenty 8x8 images in two folders; file i has pixels[i]."""
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / ("cat" if i < 10 else "dog") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def everything(samples, name="x"):
    return np.concatenate([batch[name] for batch in samples])


def message(*args, **kwargs):
    with pytest.raises(DataError) as caught:
        samples = load_samples(*args, **kwargs)
        list(samples)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Spreading, views, batches


def test_spread_takes_one_of_each_equal_part(rng):
    for total, count in rng.integers(1, [3000, 600], (300, 2)).tolist():
        index = spread(total, count)
        assert len(index) == min(total, count)
        if count < total:
            parts = np.arange(count + 1) * total // count
            assert np.all((parts[:-1] <= index) & (index < parts[1:]))


@pytest.mark.parametrize("period", [2, 5, 10])
def test_spread_does_not_fall_into_step_with_data_that_repeats(period):
    classes = spread(5120, 512) % period
    assert np.bincount(classes).min() > 512 / period * 0.8


def test_a_limit_takes_samples_of_every_class_of_sorted_data(tmp_path):
    y = np.repeat(np.arange(10), 100)
    path = npz(tmp_path, x=np.zeros((1000, 4), np.float32), y=y)
    labels = load_samples(path, FLAT, limit=50).labels
    assert np.array_equal(np.bincount(labels), np.full(10, 5))


def test_a_limit_takes_the_first_samples_where_they_follow_one_another(tmp_path):
    x = np.arange(400, dtype=np.float32).reshape(-1, 4)
    for path in (npz(tmp_path, x=x), tmp_path / "x.npy"):
        np.save(tmp_path / "x.npy", x)
        samples = load_samples(path, FLAT, limit=10, ordered=True)
        assert np.array_equal(everything(samples), x[:10])


@pytest.mark.parametrize(
    ("count", "held"), [(2000, 256), (512, 128), (64, 16), (40, 16), (20, 10), (2, 1)]
)
def test_a_quarter_is_held_out_but_16_to_256_and_no_more_than_half(tmp_path, count, held):
    x = np.arange(count * 4, dtype=np.float32).reshape(-1, 4)
    fit, validate = load_samples(npz(tmp_path, x=x), FLAT, limit=count).split()
    assert len(validate) == held
    rows = np.concatenate([everything(fit), everything(validate)])
    assert np.array_equal(np.sort(rows[:, 0]), x[:, 0])


def test_the_split_keeps_labels_with_samples_and_spreads_the_classes(tmp_path):
    y = np.repeat(np.arange(8), 32)
    x = np.repeat(y[:, None], 4, 1).astype(np.float32)
    for part in load_samples(npz(tmp_path, x=x, y=y), FLAT).split():
        assert np.array_equal(everything(part)[:, 0], part.labels)
        assert np.ptp(np.bincount(part.labels)) <= 1


def test_of_a_sequence_the_last_samples_are_held_out(tmp_path):
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    fit, validate = load_samples(npz(tmp_path, x=x), FLAT).split(sequence=True)
    assert np.array_equal(everything(fit), x[:10]) and np.array_equal(everything(validate), x[10:])


def test_a_single_sample_serves_for_both_parts_and_says_so(tmp_path):
    fit, validate = load_samples(npz(tmp_path, x=np.zeros((1, 4), np.float32)), FLAT).split()
    assert len(fit) == len(validate) == 1
    assert "the only batch" in fit.notes[0]


def test_views_are_counted_from_the_view_they_are_taken_of(tmp_path):
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    samples = load_samples(npz(tmp_path, x=x), FLAT)
    assert np.array_equal(everything(samples[5:15].take([9, 0])), x[[14, 5]])
    assert len(samples.spread(7)) == 7
    assert len(samples[:0]) == 0 and list(samples[:0]) == []


def test_batches_are_as_large_as_asked_and_can_be_read_again(tmp_path):
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    samples = load_samples(npz(tmp_path, x=x), FLAT, batch=3)
    for _ in range(2):
        assert [len(b["x"]) for b in samples] == [3, 3, 3, 1]
    assert [len(b["x"]) for b in samples.batches(4)] == [4, 4, 2]
    assert np.array_equal(everything(samples), x)


def test_batches_are_bounded_by_their_bytes(tmp_path):
    wide = [spec("N", 1 << 20)]
    samples = load_samples(npz(tmp_path, x=np.zeros((6, 1 << 20), np.float32)), wide)
    assert samples.batch == 4
    small = load_samples(npz(tmp_path, x=np.zeros((200, 4), np.float32)), FLAT)
    assert small.batch == 64


@pytest.mark.parametrize("size", [1, 6])
def test_a_fixed_batch_is_kept_exactly_and_the_rest_left_out_with_a_reason(tmp_path, size):
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    y = np.arange(20)
    samples = load_samples(npz(tmp_path, x=x, y=y), [spec(size, 4)], batch=5)
    kept = 20 - 20 % size
    assert {len(b["x"]) for b in samples.batches(7)} == {size}
    assert np.array_equal(samples.labels, y[:kept])
    assert samples.notes == (
        () if size == 1 else ("2 of 20 samples are left out: the model's batch is 6",)
    )
    for part in (*samples.split(), samples.spread(7)):
        assert len(part) and len(part) % size == 0
        assert np.array_equal(everything(part)[:, 0], 4 * part.labels)


def test_too_few_samples_for_a_fixed_batch_are_an_error(tmp_path):
    path = npz(tmp_path, x=np.zeros((5, 4), np.float32))
    assert "5 samples do not fill the model's fixed batch of 8" in message(path, [spec(8, 4)])


# Arrays


def test_an_npz_feeds_inputs_by_name_and_y_is_no_input(tmp_path):
    inputs = [spec("N", 4, name="a"), spec("N", 2, name="b", dtype=np.int64)]
    b = np.arange(10).reshape(5, 2)
    path = npz(tmp_path, b=b, a=np.ones((5, 4), np.float32), y=np.arange(5), other=np.zeros(3))
    samples = load_samples(path, inputs)
    assert np.array_equal(everything(samples, "b"), b)
    assert np.array_equal(samples.labels, np.arange(5))


@pytest.mark.parametrize("name", ["input", "x", "anything"])
def test_one_input_takes_x_or_the_only_array(tmp_path, name):
    path = npz(tmp_path, **{name: np.ones((3, 4), np.float32), "y": np.arange(3)})
    [batch] = load_samples(path, [spec("N", 4, name="input")])
    assert batch["input"].shape == (3, 4)


def test_y_is_an_input_if_the_model_has_one_of_that_name(tmp_path):
    samples = load_samples(npz(tmp_path, y=np.ones((3, 4), np.float32)), [spec("N", 4, name="y")])
    assert samples.labels is None
    assert everything(samples, "y").shape == (3, 4)


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (np.float64, np.float32),
        (np.float32, np.float16),
        (np.uint8, np.float32),
        (np.int64, np.int32),
        (bool, np.int64),
    ],
)
def test_safe_casts_are_made(tmp_path, have, want):
    samples = load_samples(npz(tmp_path, x=np.ones((3, 4), have)), [spec("N", 4, dtype=want)])
    assert everything(samples).dtype == want


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (0.5, np.int64),
        (300, np.uint8),
        (-1, np.uint8),
        (1 + 0j, np.float32),
        (1e6, np.float16),
        ("a", np.float32),
    ],
)
def test_unsafe_casts_are_refused(tmp_path, values, want):
    path = npz(tmp_path, x=np.full((3, 4), values))
    assert "cannot be fed to the input 'x'" in message(path, [spec("N", 4, dtype=want)])


def test_bfloat16_inputs_take_floats(tmp_path):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs = [spec("N", 4, dtype=bfloat16)]
    assert everything(load_samples(npz(tmp_path, x=np.ones((3, 4))), inputs)).dtype == bfloat16
    assert next(iter(random_samples(inputs, 1)))["x"].dtype == bfloat16


def test_an_npy_stays_on_disk(tmp_path, monkeypatch):
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    np.save(tmp_path / "x.npy", x)
    opened = []
    load = np.lib.format.open_memmap
    monkeypatch.setattr(
        np.lib.format, "open_memmap", lambda *a, **k: opened.append(load(*a, **k)) or opened[0]
    )
    samples = load_samples(tmp_path / "x.npy", FLAT, limit=10)
    assert isinstance(opened[0], np.memmap)
    batch = next(iter(samples))["x"]
    assert not isinstance(batch, np.memmap) and np.array_equal(batch, x[spread(100, 10)])


def test_an_npz_keeps_only_the_chosen_rows_in_memory(tmp_path):
    samples = load_samples(npz(tmp_path, x=np.zeros((1000, 4), np.float32)), FLAT, limit=10)
    assert samples.index.max() == 9


def test_an_npz_with_pickles_is_refused(tmp_path):
    path = npz(tmp_path, x=np.array([{}, []], dtype=object))
    assert (
        "'x' cannot be read: it holds Python objects (a pickle), which are never loaded"
        in message(path, FLAT)
    )
    np.save(tmp_path / "x.npy", np.array([{}, []], dtype=object))
    assert "Python objects" in message(tmp_path / "x.npy", FLAT)


@pytest.mark.parametrize("keep", [0, 10, 300, -30])
def test_a_damaged_npz_is_refused(tmp_path, keep):
    path = npz(tmp_path, x=np.random.default_rng(0).normal(size=(100, 4)))
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: the file cannot be read" in message(path, FLAT)


def test_an_npz_with_a_damaged_array_is_refused(tmp_path):
    path = npz(tmp_path, x=np.zeros((100, 4)))
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)
    assert "the array 'x' cannot be read: Bad CRC" in message(path, FLAT)


def test_a_truncated_npy_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((100, 4)))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:500])
    assert "the file cannot be read" in message(tmp_path / "x.npy", FLAT)


def test_wrong_arrays_are_named(tmp_path):
    two = [spec("N", 4, name="image"), spec("N", 2, name="mask")]
    a, b = np.zeros((5, 4), np.float32), np.zeros((5, 2), np.float32)
    path = npz(tmp_path, imag=a, mask=b)
    assert "no array is called 'image' like the input; did you mean 'imag'?" in message(path, two)
    path = npz(tmp_path, image=a, mask=b[:3])
    assert "5 in 'image', 3 in 'mask'" in message(path, two)
    path = npz(tmp_path, y=np.arange(3))
    assert "there is no array for the input 'x'" in message(path, FLAT)
    path = npz(tmp_path, x=a[:, :3])
    text = message(path, FLAT)
    assert "samples of shape [N, 3] do not fit the input 'x' (float32 [N, 4])" in text
    path = npz(tmp_path, x=a, y=np.arange(4))
    assert "labels 'y' of shape (4,) do not match 5 samples" in message(path, FLAT)
    path = npz(tmp_path, x=a[:0])
    assert "0 in 'x'" in message(path, FLAT)
    np.save(tmp_path / "x.npy", a)
    assert "an .npy feeds one input, but the model has 'image', 'mask'" in message(
        tmp_path / "x.npy", two
    )
    path = npz(tmp_path, image=a, mask=b)
    fixed = [spec(5, 4, name="image"), spec(1, 2, name="mask")]
    assert "the model's inputs have no common batch axis" in message(path, fixed)


# Preprocessing


def reference(image, *, size=None, resize=None, method=Image.Resampling.BILINEAR):
    """Short side to ``resize``, then the central ``size`` square: as torchvision does it."""
    image = Image.fromarray(image)
    width, height = image.size
    short = min(width, height)
    if resize:
        image = image.resize((int(resize * width / short), int(resize * height / short)), method)
    if size:
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image, np.float64)


ARITHMETIC = {
    "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "imagenet-caffe": lambda x: x[..., ::-1] - [104, 117, 123],
    "inception": lambda x: x / 127.5 - 1,
    "unit": lambda x: x / 255,
    "none": lambda x: x,
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_presets_compute_what_their_authors_do(tmp_path, pixels, preset, layout):
    inputs = NCHW if layout == "NCHW" else [spec("N", 8, 8, 3)]
    x = everything(load_samples(npz(tmp_path, x=pixels), inputs, preprocess=preset))
    want = ARITHMETIC[preset](pixels.astype(np.float64))
    assert x.dtype == np.float32 and x.flags.c_contiguous
    np.testing.assert_allclose(
        x, want.transpose(0, 3, 1, 2) if layout == "NCHW" else want, 1e-5, 1e-5
    )


@pytest.mark.parametrize("shape", [(40, 60, 3), (61, 35, 3), (28, 28, 3), (28, 90, 3)])
@pytest.mark.parametrize("preset", ["imagenet", "imagenet-caffe", "inception", "unit", "none"])
def test_presets_resize_and_crop_to_the_declared_size(tmp_path, rng, shape, preset):
    image = rng.integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    inputs = [spec("N", 28, 28, 3)]
    x = everything(load_samples(tmp_path, inputs, preprocess=preset))
    ready = shape[:2] == (28, 28)
    want = ARITHMETIC[preset](reference(image, size=28, resize=None if ready else 32))
    np.testing.assert_allclose(x[0], want, 1e-4, 1e-4)
    y = everything(load_samples(npz(tmp_path, x=image[None]), inputs, preprocess=preset))
    assert np.array_equal(x, y)


def test_imagenet_is_256_and_224_where_the_model_leaves_the_size_open(tmp_path, rng):
    image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    for preset in ("imagenet", "imagenet-caffe"):
        x = everything(load_samples(tmp_path, [spec("N", "h", "w", 3)], preprocess=preset))
        want = ARITHMETIC[preset](reference(image, size=224, resize=256))
        np.testing.assert_allclose(x[0], want, 1e-4, 1e-4)
    x = everything(load_samples(tmp_path, [spec("N", "h", "w", 3)], preprocess="unit"))
    np.testing.assert_allclose(x[0], image / 255, 1e-5, 1e-5)


def test_presets_cover_a_size_that_is_not_square(tmp_path, rng):
    image = rng.integers(0, 256, (100, 300, 3), dtype=np.uint8)
    x = transform_for(spec("N", 14, 28, 3), PRESETS["none"]).arrays(image[None])
    resized = Image.fromarray(image).resize((48, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(x[0], np.asarray(resized.crop((10, 1, 38, 15)), np.float32))


def test_a_yaml_file_does_exactly_what_it_says(tmp_path, pixels):
    (tmp_path / "p.yaml").write_text(
        "resize: [12, 10]\ncrop: 8\ninterpolation: bicubic\ncolor: bgr\nscale: 2\n"
        "mean: [1, 2, 3]\nstd: 4\nlayout: NHWC\ndtype: float32\n"
    )
    inputs = [spec(None, None, None, None)]
    x = everything(load_samples(npz(tmp_path, x=pixels), inputs, preprocess=tmp_path / "p.yaml"))
    for got, image in zip(x, pixels, strict=True):
        resized = Image.fromarray(image).resize((10, 12), Image.Resampling.BICUBIC)
        want = np.asarray(resized.crop((1, 2, 9, 10)), np.float64)[..., ::-1]
        np.testing.assert_allclose(got, (want / 2 - [1, 2, 3]) / 4, 1e-5, 1e-5)


def test_a_yaml_file_resizes_images_that_have_the_right_size_already(tmp_path, pixels):
    (tmp_path / "p.yaml").write_text("resize: 9\ncrop: 8\ninterpolation: nearest\n")
    path = npz(tmp_path, x=pixels)
    x = everything(load_samples(path, [spec("N", 8, 8, 3)], preprocess=tmp_path / "p.yaml"))
    want = reference(pixels[0], size=8, resize=9, method=Image.Resampling.NEAREST)
    assert np.array_equal(x[0], want)


def test_a_model_of_one_channel_gets_gray_images(tmp_path, folder, pixels):
    x = everything(load_samples(folder, [spec("N", 1, 8, 8)], preprocess="none"))
    want = np.asarray(Image.fromarray(pixels[3]).convert("L"), np.float32)
    assert np.array_equal(x[3, 0], want)
    y = everything(load_samples(npz(tmp_path, x=pixels), [spec("N", 1, 8, 8)], preprocess="none"))
    assert np.array_equal(x, y)


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1)])
def test_gray_arrays_serve_models_of_one_or_three_channels(tmp_path, rng, shape):
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    path = npz(tmp_path, x=x)
    for channels in (1, 3):
        got = everything(load_samples(path, [spec("N", 8, 8, channels)], preprocess="none"))
        assert np.array_equal(got, np.broadcast_to(x.reshape(5, 8, 8, 1), got.shape))


def test_float_arrays_pass_unchanged_and_a_preprocessing_not_used_is_noted(tmp_path, rng):
    x = rng.normal(size=(5, 3, 8, 8)).astype(np.float32)
    samples = load_samples(npz(tmp_path, x=x), NCHW, preprocess="imagenet")
    assert np.array_equal(everything(samples), x)
    assert samples.notes == ("the preprocessing is not used: the samples are no 8-bit images",)
    assert load_samples(npz(tmp_path, x=x), NCHW).notes == ()


def test_pixels_pass_unchanged_into_an_8_bit_input(tmp_path, folder, pixels):
    inputs = [spec("N", 8, 8, 3, dtype=np.uint8)]
    for path in (folder, npz(tmp_path, x=pixels)):
        assert np.array_equal(everything(load_samples(path, inputs)), pixels)
    text = message(folder, inputs, preprocess="unit")
    assert "takes whole numbers: use preprocess='none', or a YAML file with 'dtype: uint8'" in text


def test_a_signed_8_bit_input_takes_shifted_pixels(tmp_path, pixels):
    (tmp_path / "p.yaml").write_text("mean: 128\ndtype: int8")
    inputs = [spec("N", 8, 8, 3, dtype=np.int8)]
    samples = load_samples(npz(tmp_path, x=pixels), inputs, preprocess=tmp_path / "p.yaml")
    assert np.array_equal(everything(samples), pixels.astype(int) - 128)


def test_8_bit_images_without_preprocessing_are_refused_for_a_float_input(tmp_path, folder, pixels):
    for path in (folder, npz(tmp_path, x=pixels)):
        text = message(path, NCHW)
        assert (
            "preprocess=..., which takes imagenet, imagenet-caffe, inception, unit, none or a YAML"
            in text
        )


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("men: 3", "no setting is called 'men'; did you mean 'mean'?"),
        ("zzz: 3", "no setting is called 'zzz'; there are: resize, crop, interpolation, color"),
        ("resize: big", "'resize' must be a number of pixels (the short side) or [height, width]"),
        ("resize: true", "'resize' must be"),
        ("crop: [1, 2, 3]", "'crop' must be a number of pixels or [height, width], not [1, 2, 3]"),
        ("crop: 0", "'crop' must be"),
        ("scale: 0", "'scale' must be a positive number"),
        ("scale: .nan", "'scale' must be a positive number"),
        ("std: [1, 0, 1]", "'std' must be a number other than 0"),
        ("color: rbg", "'color' must be rgb, bgr or gray, not 'rbg'"),
        ("interpolation: lanczos", "'interpolation' must be bilinear, bicubic or nearest"),
        ("layout: CHW", "'layout' must be NCHW or NHWC"),
        ("dtype: int7", "'dtype' must be the model's input type"),
        ("dtype: float16", "'dtype' is float16, but the model's input is 'x' (float32"),
        ("mean: [1, 2]", "'mean' must have one value, or one for each of 3"),
        ("color: gray", "images in gray have 1 channel, the input 'x' (float32"),
        ("- 1", "must hold settings such as 'scale: 255'"),
        ("a: [", "is no readable YAML"),
        ("!!python/object/apply:os.getcwd []", "is no readable YAML"),
        ("crop: 9", "a crop of 9x9 does not fit into an image of 8x8; set 'resize'"),
        ("crop: 7", "samples of shape [N, 3, 7, 7] do not fit the input 'x'"),
    ],
)
def test_a_wrong_preprocessing_file_is_explained(tmp_path, folder, yaml, says):
    (tmp_path / "p.yaml").write_text(yaml)
    assert says in message(folder, NCHW, preprocess=tmp_path / "p.yaml")


def test_an_unknown_preprocessing_is_explained(folder):
    text = message(folder, NCHW, preprocess="imagenett")
    assert text == "no preprocessing is called 'imagenett'; did you mean 'imagenet'?"
    assert "there is no preprocessing file no.yaml" in message(folder, NCHW, preprocess="no.yaml")
    assert load_preprocessing(PRESETS["unit"]) is PRESETS["unit"]


def test_inputs_of_unknown_rank_take_arrays_and_with_a_layout_images(tmp_path, folder, pixels):
    unknown = [InputSpec("x", F32, None)]
    x = np.ones((3, 2, 2), np.float32)
    assert np.array_equal(everything(load_samples(npz(tmp_path, x=x), unknown)), x)
    settings = Preprocessing(layout="NCHW")
    got = everything(load_samples(folder, unknown, preprocess=settings))
    assert np.array_equal(got, pixels.transpose(0, 3, 1, 2))
    assert "'x' (float32 [?]): its channels" in message(folder, unknown, preprocess="unit")


def test_inputs_that_take_no_images_are_named(tmp_path, folder, pixels):
    assert "images do not go into the input 'x'" in message(folder, FLAT, preprocess="unit")
    anything = [spec(None, None, None, None)]
    assert "set 'layout' in a preprocessing file" in message(folder, anything, preprocess="unit")
    path = npz(tmp_path, x=pixels.transpose(0, 3, 1, 2))
    assert "must be (N, H, W, 1 or 3), not (20, 3, 8, 8)" in message(path, NCHW, preprocess="unit")


# Folders of images


def test_images_come_in_the_order_of_their_names(folder, pixels):
    x = everything(load_samples(folder, [spec("N", 8, 8, 3)], preprocess="none"))
    assert np.array_equal(x, pixels)


def test_images_are_decoded_only_when_asked(folder, monkeypatch):
    decoded = []
    load = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda *a: decoded.append(a) or load(*a))
    samples = load_samples(folder, NCHW, preprocess="unit", batch=4)
    fit, validate = samples.split(5)
    assert decoded == []
    next(iter(validate))
    assert len(decoded) == 4
    list(fit)
    assert len(decoded) == 19


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp"])
def test_every_image_format_is_read(tmp_path, pixels, suffix):
    Image.fromarray(pixels[0]).save(tmp_path / f"a{suffix}")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(load_samples(tmp_path, NCHW, preprocess="unit")) == 1


def test_images_with_palette_or_transparency_become_rgb(tmp_path, pixels):
    image = Image.fromarray(pixels[0])
    image.convert("P").save(tmp_path / "a.png")
    image.convert("RGBA").save(tmp_path / "b.png")
    x = everything(load_samples(tmp_path, [spec("N", 8, 8, 3)], preprocess="none"))
    assert np.array_equal(x[1], pixels[0])


def test_select_filters_the_relative_paths(folder):
    assert len(load_samples(folder, NCHW, preprocess="unit", select="dog/*")) == 10
    text = message(folder, NCHW, preprocess="unit", select="dgo/*")
    assert "no image matches select='dgo/*'; did you mean 'dog/*'?" in text


def test_select_is_refused_where_there_are_no_files_to_choose_from(tmp_path):
    path = npz(tmp_path, x=np.zeros((3, 4), np.float32))
    assert "select='a*' chooses among a folder's images" in message(path, FLAT, select="a*")


@pytest.mark.parametrize("place", ["here", "above"])
def test_labels_are_found_from_the_folder_or_above_images(tmp_path, folder, place):
    root = folder if place == "here" else tmp_path
    lines = [f"{'cat' if i < 10 else 'dog'}/{i:02}.png,{i}\n" for i in range(20)]
    (root / "labels.csv").write_text("file,label\n" + "".join(lines[::-1]))
    samples = load_samples(root, NCHW, preprocess="unit")
    assert np.array_equal(samples.labels, np.arange(20))


def test_images_without_label_are_left_out_only_where_labels_are_needed(folder):
    (folder / "labels.csv").write_text("file,label,name\ncat/03.png,7,a\ndog/11.png,,b\n")
    assert load_samples(folder, NCHW, preprocess="unit").labels is None
    samples = load_samples(folder, NCHW, preprocess="unit", labelled=True)
    assert list(samples.labels) == [7]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "name,label\na,1\n",
            "labels.csv: it needs a first line with the columns 'file' and 'label'",
        ),
        ("file,label\na,b\n", "labels.csv: line 2: the label 'b' is no whole number"),
        ("file,label\na.png,1\n", "labels.csv has no label for 'cat/00.png' or any other image"),
        (None, "there are no labels; give an array 'y' in the .npz, a labels.csv"),
    ],
)
def test_missing_or_wrong_labels_are_explained(folder, content, says):
    if content:
        (folder / "labels.csv").write_text(content)
    assert says in message(folder, NCHW, preprocess="unit", labelled=True)


def test_images_of_several_sizes_are_batches_of_their_own_where_the_model_allows(tmp_path, rng):
    images = [rng.integers(0, 256, (8, w, 3), dtype=np.uint8) for w in (5, 9, 5)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    for first in ("N", 1):
        batches = list(load_samples(tmp_path, [spec(first, "h", "w", 3)], preprocess="none"))
        assert all(np.array_equal(b["x"][0], i) for b, i in zip(batches, images, strict=True))
    for inputs in ([spec(2, "h", "w", 3)], [spec("N", 8, 5, 3)]):
        text = message(tmp_path, inputs, preprocess=Preprocessing())
        assert "the images have 2 different sizes" in text and "set 'resize' and 'crop'" in text


def test_a_folder_without_images_is_refused(tmp_path):
    assert "there are no images (.bmp, .jpeg, .jpg, .png, .webp)" in message(tmp_path, NCHW)


def test_a_folder_of_images_feeds_one_input_only(folder):
    text = message(folder, [*NCHW, spec("N", 2, name="z")], preprocess="unit")
    assert "a folder of images feeds one input, but the model has 'x', 'z'" in text


def test_an_unreadable_image_is_named_when_opened_or_when_decoded(folder, pixels):
    broken = folder / "cat" / "05.png"
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    assert f"the image {broken} cannot be read" in message(folder, NCHW, preprocess="unit")
    broken.write_bytes(content[:-40])
    samples = load_samples(folder, NCHW, preprocess="unit")
    with pytest.raises(DataError, match=r"05\.png cannot be read"):
        list(samples)


@pytest.mark.parametrize("limit", [20, 40])
def test_decompression_bombs_are_refused(folder, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = message(folder, NCHW, preprocess="unit")
    assert "00.png" in text and "40 pixels" in text


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "a.png")
    text = message(tmp_path, NCHW, preprocess="unit")
    assert "a.png: has more than 8 bits per channel; convert it to 8 bits" in text


# test_data_set folders


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """Eleven test_data_set folders; the "tensors" are .npy files."""
    monkeypatch.setattr("onnxcompress.data.batches.read_tensor", np.load)
    for i in range(11):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        for j, array in enumerate([np.full((i + 1, 4), i, np.float32), np.float32(i)]):
            with (folder / f"input_{j}.pb").open("wb") as file:
                np.save(file, array)
    return tmp_path


def test_test_data_sets_are_whole_batches_in_the_order_of_their_numbers(data_sets):
    inputs = [spec("seq", 4, name="a"), spec(name="b")]
    samples = load_samples(data_sets, inputs)
    assert [int(b["b"]) for b in samples.batches(8)] == list(range(11))
    assert [len(b["a"]) for b in samples] == list(range(1, 12))
    [batch] = load_samples(data_sets / "test_data_set_3", inputs)
    assert batch["a"].shape == (4, 4)
    assert len(load_samples(data_sets, inputs, limit=4)) == 4


def test_wrong_test_data_sets_are_explained(data_sets):
    three = [spec("n", 4, name=n) for n in "abc"]
    text = message(data_sets, three)
    assert "test_data_set_0 needs input_0.pb to input_2.pb, for the inputs 'a', 'b', 'c'" in text
    (data_sets / "test_data_set_2" / "input_0.pb").write_bytes(b"")
    assert "a tensor cannot be read" in message(data_sets, three[:1])


def test_onnx_tensors_are_read(tmp_path):
    pytest.importorskip("onnxcompress.graph")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    x = np.arange(4, dtype=np.float32)[None]
    (tmp_path / "test_data_set_0").mkdir()
    path = tmp_path / "test_data_set_0" / "input_0.pb"
    path.write_bytes(numpy_helper.from_array(x).SerializeToString())
    assert np.array_equal(everything(load_samples(tmp_path, FLAT)), x)


# Functions


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(body):
        name = f"samples_{tmp_path.name}".replace("-", "_")
        monkeypatch.delitem(sys.modules, name, raising=False)
        Path(f"{name}.py").write_text(f"import numpy as np\ndef batches():\n    {body}\n")
        return f"{name}:batches"

    return write


def test_a_function_of_the_current_folder_gives_whole_batches(module):
    path = list(sys.path)
    name = module("for i in range(5): yield {'x': np.full((i + 1, 4), i)}")
    samples = load_samples(name, [spec("N", 4, dtype=np.int64)])
    assert [len(b["x"]) for b in samples.batches(100)] == [1, 2, 3, 4, 5]
    assert samples.labels is None and sys.path == path


def test_a_function_is_read_until_there_are_enough_rows(module):
    name = module("while True: yield {'x': np.zeros((8, 4))}")
    assert len(load_samples(name, FLAT, limit=20)) == 3


def test_a_function_may_yield_labels(module):
    name = module("for i in range(4): yield {'x': np.zeros((2, 4))}, [i, 10 + i]")
    samples = load_samples(name, FLAT, labelled=True)
    assert list(samples.take([2, 0]).labels) == [2, 12, 0, 10]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("yield {'xx': np.zeros((2, 4))}", "the model has no input 'xx'; did you mean 'x'?"),
        ("yield {}", "the function yields nothing for the input 'x'"),
        ("yield np.zeros((2, 4))", "the function must yield {input: array}, not ndarray"),
        ("yield {'x': np.zeros((2, 5))}", "samples of shape [2, 5] do not fit the input 'x'"),
        ("yield from ()", "the function yields nothing"),
        ("return None", "the function failed: TypeError"),
        ("yield {}['a']", "the function failed: KeyError: 'a'"),
        (
            "x = {'x': np.zeros((2, 4))}; yield x; yield x, [1, 2]",
            "yields labels with some batches only",
        ),
    ],
)
def test_wrong_functions_are_explained(module, body, says):
    assert says in message(module(body), FLAT)


def test_a_wrong_name_of_a_function_is_explained(module):
    name = module("yield {}")
    assert "no function 'batchs'; did you mean 'batches'?" in message(name[:-7] + "batchs", FLAT)
    assert "ModuleNotFoundError: No module named 'nowhere'" in message("nowhere:batches", FLAT)


def test_a_path_that_leads_nowhere_is_explained(tmp_path):
    npz(tmp_path, x=np.zeros((2, 4)))
    text = message(tmp_path / "date.npz", FLAT)
    assert text.endswith("date.npz: there is no such file or folder; did you mean 'data.npz'?")
    (tmp_path / ".date.npz.swp").write_text("")
    assert ".date" not in message(tmp_path / "other", FLAT).split(": ", 1)[1]
    (tmp_path / "lost.npz").symlink_to(tmp_path / "nowhere.npz")
    assert "'lost.npz'" not in message(tmp_path / "lost.npz", FLAT)
    (tmp_path / "a.txt").write_text("")
    assert "samples are an .npz, an .npy, a folder" in message(tmp_path / "a.txt", FLAT)
    for wrong in ({"limit": 0}, {"batch": 0}):
        assert "must be 1 or more, not 0" in message(tmp_path / "data.npz", FLAT, **wrong)
    assert "the model has no inputs" in message(tmp_path / "data.npz", [])


# What may not be: endless, blocking, or no array at all


def test_a_batch_without_rows_is_refused_instead_of_waited_for(module):
    text = message(module("while True: yield {'x': np.zeros((0, 4))}"), FLAT)
    assert "batch 0 of the function is empty: [0, 4]" in text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys; sys.exit(0); yield", "it ends the process (exit code 0)"),
        ("raise type('Odd', (BaseException,), {})('why'); yield", "Odd: why"),
        ("yield {'x': [[1, 2], [3]]}", "no array for the input 'x'"),
    ],
)
def test_code_that_ends_the_process_is_an_error_of_the_data(module, body, says):
    assert says in message(module(body), FLAT)


def test_a_module_that_ends_the_process_when_it_is_imported_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ends_at_once.py").write_text("raise SystemExit(0)\n")
    assert "'ends_at_once:f' cannot be imported: it ends" in message("ends_at_once:f", FLAT)


def test_what_a_function_prints_does_not_reach_the_standard_output(module, capsys):
    load_samples(module("print('hello'); yield {'x': np.zeros((2, 4))}"), FLAT)
    printed = capsys.readouterr()
    assert not printed.out and printed.err == "hello\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="it makes pipes")
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"data{suffix}")
    assert "it is no regular file" in message(tmp_path / f"data{suffix}", FLAT)


def test_an_npz_whose_member_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x", b"hello")
    assert "the array 'x': it is no array" in message(tmp_path / "data.npz", FLAT)


def test_a_picture_that_resizing_blows_up_is_refused_before_it_is_read(tmp_path):
    Image.new("RGB", (1, 12_000)).save(tmp_path / "a.png")
    text = message(tmp_path, [spec("N", 3, 224, 224)], preprocess="imagenet")
    assert "resizing makes 12000x1 pixels 3072000x256, more than" in text


# Samples that say nothing


def test_repeated_constant_and_zero_samples_are_counted(tmp_path, rng):
    x = rng.normal(size=(12, 4)).astype(np.float32)
    x[3:6], x[6], x[7] = x[3], 0, 2
    samples = check_samples(load_samples(npz(tmp_path, x=x), FLAT))
    assert samples.notes == (
        "2 of 12 samples repeat others: only 10 are different",
        "1 of 12 samples is zero everywhere",
        "1 of 12 samples is the same value everywhere",
    )
    assert check_samples(samples) is samples
    fit, held_out = samples.split()
    assert fit.notes == held_out.notes == samples.notes


def test_samples_that_differ_in_one_input_do_not_repeat(tmp_path, rng):
    inputs = [spec("N", 4, name="a"), spec("N", 1, name="b")]
    a, b = np.ones((6, 4), np.float32), np.arange(6, dtype=np.float32)[:, None]
    assert check_samples(load_samples(npz(tmp_path, a=a, b=b), inputs)).notes == (
        "6 of 6 samples are the same value everywhere",
    )
    a = rng.normal(size=(6, 4)).astype(np.float32)
    a[1] = a[0]
    assert check_samples(load_samples(npz(tmp_path, a=a, b=b), inputs)).notes == ()


def test_nan_in_a_sample_is_refused_with_its_number(tmp_path, rng, module):
    x = rng.normal(size=(100, 4)).astype(np.float32)
    x[71, 2] = np.nan
    with pytest.raises(DataError, match="sample 71 has NaN in the input 'x'"):
        check_samples(load_samples(npz(tmp_path, x=x), FLAT))
    name = module("yield {'x': np.zeros((3, 4))}; yield {'x': np.full((1, 4), np.nan)}")
    with pytest.raises(DataError, match="sample 3 has NaN"):
        check_samples(load_samples(name, FLAT))


def test_a_buffer_that_is_reused_is_copied(module):
    name = module(
        "x = np.zeros((1, 4), np.float32)\n    for i in range(3): x[:] = i; yield {'x': x}"
    )
    assert np.array_equal(everything(load_samples(name, FLAT))[:, 0], [0, 1, 2])

    def batches():
        x = np.zeros((1, 4), np.float32)
        for i in range(3):
            x[:] = i
            yield {"x": x}

    assert np.array_equal(everything(as_samples(batches(), FLAT))[:, 0], [0, 1, 2])


# Batch axes that are none


def test_an_array_with_a_sample_axis_in_front_holds_whole_batches(tmp_path, rng):
    x = rng.normal(size=(6, 1, 5, 4)).astype(np.float32)
    for first in ("batch", 1):
        samples = load_samples(npz(tmp_path, x=x), [spec(first, 5, 4)])
        assert len(samples) == 6
        assert all(np.array_equal(batch["x"], x[i]) for i, batch in enumerate(samples.batches(8)))
    inputs = [spec("t", 4, name="a"), spec(name="b")]
    samples = load_samples(npz(tmp_path, a=x[:, 0], b=np.arange(6, dtype=np.float32)), inputs)
    assert [float(batch["b"]) for batch in samples] == [0, 1, 2, 3, 4, 5]
    assert next(iter(samples))["a"].shape == (5, 4)


def test_a_stated_shape_is_obeyed_by_the_samples(tmp_path, rng):
    x = rng.normal(size=(6, 5, 4)).astype(np.float32)
    inputs = with_shapes([spec("batch", "t", 4)], {"x": (2, 5, 4)})
    assert [len(b["x"]) for b in load_samples(npz(tmp_path, x=x), inputs).batches(6)] == [2, 2, 2]
    for shapes, says in [({"x": (2, 5, 3)}, "do not fit"), ({"xx": (1,)}, "did you mean 'x'?")]:
        with pytest.raises(DataError, match=says):
            with_shapes([spec("batch", "t", 4)], shapes)


# Objects of Python


X = np.arange(48, dtype=np.float32).reshape(12, 4)
LABELS = np.arange(12)


def batches_of(size, make):
    return [make(X[i : i + size], LABELS[i : i + size]) for i in range(0, 12, size)]


class Tensor:
    """What a tensor of another library offers."""

    def __init__(self, values):
        self.values, self.ndim, self.dtype = values, values.ndim, values.dtype

    def detach(self):
        return self

    cpu = detach

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


@pytest.mark.parametrize(
    "source",
    [
        X,
        Tensor(X),
        X.astype(np.float64),
        {"x": X},
        {"input": X},
        {"x": X, "y": LABELS},
        [X],
        [*X],
        batches_of(5, lambda x, y: x),
        batches_of(5, lambda x, y: (x, y)),
        batches_of(4, lambda x, y: [Tensor(x), Tensor(y)]),
        batches_of(3, lambda x, y: {"x": x, "labels": y}),
        batches_of(3, lambda x, y: ({"x": x}, y)),
        (x for x in batches_of(3, lambda x, y: x)),
    ],
    ids=range(14),
)
def test_python_takes_what_people_have(source):
    samples = as_samples(source, FLAT)
    assert len(samples) == 12 and np.array_equal(everything(samples), X)
    assert [len(b["x"]) for b in samples.batches(8)] == [8, 4]
    assert samples.labels is None or np.array_equal(samples.labels, LABELS)
    assert len(as_samples(X, FLAT, limit=7)) == 7


def test_labels_of_a_loader_stay_with_their_samples():
    samples = as_samples(batches_of(5, lambda x, y: (x, y)), FLAT)
    assert np.array_equal(samples.labels, LABELS)
    for part in samples.split(4):
        assert np.array_equal(everything(part)[:, 0], 4 * part.labels)


def test_a_loader_feeds_several_inputs_in_the_order_of_the_model():
    inputs = [spec("N", 4, name="a"), spec("N", name="b", dtype=np.int64)]
    samples = as_samples(batches_of(5, lambda x, y: (x, y, y)), inputs)
    assert len(samples) == 12 and np.array_equal(everything(samples, "b"), LABELS)
    assert np.array_equal(samples.labels, LABELS)


def test_a_tuple_of_arrays_is_inputs_and_labels():
    samples = as_samples((X, LABELS), FLAT)
    assert np.array_equal(everything(samples), X) and np.array_equal(samples.labels, LABELS)
    inputs = [spec("N", 4, name="a"), spec("N", name="b", dtype=np.int64)]
    both, labelled = as_samples((X, LABELS), inputs), as_samples((X, LABELS, LABELS), inputs)
    assert np.array_equal(everything(both, "b"), LABELS) and both.labels is None
    assert np.array_equal(labelled.labels, LABELS)
    assert len(as_samples((X[:6], X[6:]), FLAT)) == 12  # These are batches.


def test_batches_that_cannot_be_joined_are_samples_of_their_own():
    inputs = [spec("N", "t", name="x")]
    samples = as_samples([np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)], inputs)
    assert [b["x"].shape for b in samples.batches(8)] == [(2, 3), (2, 4)]
    assert len(as_samples([X[:6], X[6:]], [spec(6, 4)])) == 2


def test_torch_loaders_and_tensors_are_samples(torch):
    images = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(LABELS))
    samples = as_samples(torch.utils.data.DataLoader(images, batch_size=5), FLAT)
    assert np.array_equal(everything(samples), X) and np.array_equal(samples.labels, LABELS)
    half = torch.tensor(X, dtype=torch.bfloat16, requires_grad=True)
    assert np.array_equal(everything(as_samples([half], FLAT)), X)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "samples cannot be int: give an array"),
        ([5], "a batch cannot be int"),
        ([{"xx": X}], "nothing for the input 'x'; did you mean 'xx'?"),
        (iter(()), "gives no batch"),
        ([X[:, :3]], r"samples of shape \[12, 3\] do not fit the input 'x'"),
    ],
)
def test_what_is_no_samples_is_explained_in_terms_of_arguments(source, says):
    with pytest.raises(DataError, match=says) as caught:
        as_samples(source, FLAT)
    assert isinstance(caught.value, SamplesTypeError) == ("cannot be" in says or "xx" in says)
    assert "--" not in str(caught.value)


# Random samples


def test_values_that_would_fill_the_memory_are_not_made_up():
    shape = (40_000, 50_000)  # 8 GB, by a model of a few bytes
    with pytest.raises(DataError, match="too many values to make them up; give samples"):
        next(iter(random_samples([spec(*shape)], 1)))


def test_random_samples_fill_open_axes(rng):
    inputs = [
        spec("N", 3, "h", "w", name="image"),
        spec("N", "h", 1, 3, name="boxes"),
        spec("N", "seq", name="ids", dtype=np.int64),
        spec("N", "seq", name="mask", dtype=bool),
        spec(name="scalar", dtype=np.float16),
    ]
    [batch] = random_samples(inputs, 1)
    assert [a.shape for a in batch.values()] == [
        (1, 3, 224, 224), (1, 224, 1, 3), (1, 8), (1, 8), ()
    ]  # fmt: skip
    assert all(batch[i.name].dtype == i.dtype for i in inputs)
    [batch] = random_samples(inputs, 1, input_shapes={"ids": (2, 77), "image": (2, 3, 16, 20)})
    assert [a.shape for a in batch.values()][:4] == [
        (2, 3, 16, 20),
        (2, 16, 1, 3),
        (2, 77),
        (2, 77),
    ]


def test_random_samples_repeat_with_the_seed_and_differ_from_each_other():
    a, b, c = (list(random_samples(FLAT, 3, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(x["x"], y["x"]) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0]["x"], c[0]["x"]) and not np.array_equal(a[0]["x"], a[1]["x"])


def test_random_whole_numbers_stay_in_their_range():
    inputs = [spec(1000, name="ids", dtype=np.int32)]
    [batch] = random_samples(inputs, 1)
    assert set(batch["ids"]) == {0, 1}
    [batch] = random_samples(inputs, 1, ranges={"ids": (5, 8)})
    assert set(batch["ids"]) == {5, 6, 7}


def test_random_samples_that_cannot_be_made_are_explained():
    unknown = InputSpec("x", F32, None)
    for inputs, shapes, says in [
        (FLAT, {"xx": (1, 4)}, "the model has no input 'xx'; did you mean 'x'"),
        (FLAT, {"x": (1, 5)}, r"samples of shape \[1, 5\] do not fit the input 'x'"),
        ([unknown], {}, "needs a shape: shapes=\\{'x': \\(1, 8\\)\\}"),
        ([spec(2, dtype=object)], {}, "no random values can be made"),
    ]:
        with pytest.raises(DataError, match=says):
            list(random_samples(inputs, 1, input_shapes=shapes))
    [batch] = random_samples([unknown], 1, input_shapes={"x": (2, 3)})
    assert batch["x"].shape == (2, 3)
