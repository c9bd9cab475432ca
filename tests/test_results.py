"""benchmarks/RESULTS.md says what was measured, and where others are better."""

from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results  # pyright: ignore[reportMissingImports]

    return results


@pytest.fixture
def rows(results):
    """A tool's file and one of ours that is as good in everything."""
    theirs = results.Row("theirs", "", "", 100, 90.0, 30.0, (0.5, 0.4, 0.6), 5.0, 50)
    return theirs, replace(theirs, title="ours, --ratio 8", nbytes=80)


def test_the_file_is_made_of_the_folder(results):
    assert results.TARGET.read_text() == results.text()


def test_a_tool_is_better_in_nothing_that_ours_does_as_well(results, rows):
    theirs, ours = rows
    assert results.better(theirs, [theirs, ours]) == []


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("score", {"score": 89.9}),
        ("SNR", {"snr": 29.0}),
        ("latency", {"latency": (1.0, 0.9, 1.1)}),
        ("seconds", {"seconds": 6.0}),
        ("memory", {"megabytes": 60}),
        ("size", {"nbytes": 101}),
    ],
)
def test_a_tool_is_better_where_ours_is_worse(results, rows, word, change):
    theirs, ours = rows
    assert results.better(theirs, [theirs, replace(ours, **change)]) == [word]


def test_latencies_that_overlap_are_no_difference(results, rows):
    theirs, ours = rows
    slower = replace(ours, latency=(0.7, 0.55, 0.8))
    assert results.better(theirs, [theirs, slower]) == []


def test_a_file_that_failed_is_no_rival(results, rows):
    theirs, ours = rows
    assert results.better(theirs, [theirs, replace(ours, failure="no memory")]) == ["size"]
