"""The cache serves what was computed, whole, or nothing."""

import pytest

from onnxcompress.execution.cache import Cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "deep" / "cache")


def refuse():
    raise AssertionError("it was there")


def test_a_value_is_made_once_for_each_key(cache):
    assert cache.get(["a", 1], lambda: {"x": 1}) == {"x": 1}
    assert cache.get(["a", 1], refuse) == {"x": 1}
    assert cache.get(["a", 2], lambda: 2) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"!" * 20])
def test_a_damaged_entry_is_made_again(cache, damage):
    cache.get("key", lambda: list(range(100)))
    [path] = cache.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("key", lambda: "anew") == "anew"
    assert cache.get("key", refuse) == "anew"


def test_a_failure_leaves_nothing_behind(cache):
    with pytest.raises(ZeroDivisionError):
        cache.get("key", lambda: 1 / 0)
    assert not cache.folder.exists()
    with pytest.raises(Exception, match=r"pickle|local"):
        cache.get("key", lambda: lambda: None)
    assert not list(cache.folder.glob("*")) if cache.folder.exists() else True


def test_without_a_folder_nothing_is_kept():
    assert [Cache(None).get("key", lambda n=n: n) for n in (1, 2)] == [1, 2]
