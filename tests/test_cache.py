"""The cache serves what was computed, whole, or nothing."""

import pytest

from onnxcompress.execution.cache import Cache


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "deep" / "cache")


def test_a_value_is_kept_under_its_own_key(cache):
    cache.store(["a", 1], {"x": 1})
    assert cache.find(["a", 1]) == {"x": 1}
    assert cache.find(["a", 2]) is None


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:40] + b"!" * 20])
def test_a_damaged_entry_is_missing_until_it_is_made_again(cache, damage):
    cache.store("key", list(range(100)))
    [path] = cache.folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.find("key") is None
    cache.store("key", "anew")
    assert cache.find("key") == "anew"


def test_a_failure_leaves_nothing_behind(cache):
    with pytest.raises(Exception, match=r"pickle|local"):
        cache.store("key", lambda: None)
    assert not list(cache.folder.glob("*")) if cache.folder.exists() else True


def test_without_a_folder_nothing_is_kept():
    cache = Cache(None)
    cache.store("key", 1)
    assert cache.find("key") is None
