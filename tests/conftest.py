"""Fixtures for all tests."""

import numpy as np
import pytest

from onnxcompress.parallel import one_thread_each


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _blas_on_one_thread():
    """Small products on many threads wait for each other wherever the machine is busy."""
    with one_thread_each():
        yield
