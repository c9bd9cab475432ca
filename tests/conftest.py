"""Fixtures for all tests."""

import math
import warnings

import numpy as np
import pytest

from onnxcompress.core.parallel import one_thread_each
from onnxcompress.execution.latency import Latency


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason="refinement needs torch")


@pytest.fixture(scope="session", autouse=True)
def _blas_on_one_thread():
    """Small products on many threads wait for each other wherever the machine is busy."""
    with one_thread_each():
        yield


@pytest.fixture(autouse=True)
def _level_clock(monkeypatch):
    """What validation takes the time to be: no verdict of a test may hang on a busy machine."""
    level = Latency(before=1, after=1, ratio=1, low=0.9, high=1.1)
    monkeypatch.setattr("onnxcompress.compression.validate.validation.latency", lambda *_: level)


@pytest.fixture(autouse=True)
def _no_lines_while_it_runs(monkeypatch):
    """How far a run is, is not said: how often depends on how busy the machine is."""
    monkeypatch.setattr("onnxcompress.report.progress.EVERY", math.inf)


@pytest.fixture
def unrecorded(monkeypatch):
    """Results do not say how they were made, which takes more bytes than some tiny models have."""
    monkeypatch.setattr("onnxcompress.compression.pipeline.recorded", lambda settings, *_: settings)
