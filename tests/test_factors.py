"""Cholesky factors of Gram matrices, and their inverses."""

import numpy as np
import pytest

from onnxcompress.methods.lookup.gram import gram_root, triangular_inverse


@pytest.mark.parametrize("size", [1, 20, 200])
def test_a_factor_multiplies_out_to_the_matrix_and_its_inverse_to_the_identity(size, rng):
    samples = rng.normal(size=(size, 2 * size)) * np.logspace(0, 3, size)[:, None]
    gram = samples @ samples.T
    root = gram_root(gram.copy(), 1e-14)
    deviations = np.sqrt(np.diagonal(gram))
    np.testing.assert_allclose(root @ root.T / deviations, gram / deviations, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(triangular_inverse(root) @ root, np.eye(size), atol=1e-9)
    np.testing.assert_array_equal(triangular_inverse(root), np.tril(triangular_inverse(root)))


def test_a_matrix_that_rounding_made_indefinite_has_a_factor_with_little_more_on_the_diagonal(rng):
    samples = rng.normal(size=(30, 5)).astype(np.float32)  # of rank 5, so that 25 are noise
    gram = samples @ samples.T
    root = gram_root(gram.astype(np.float64), 1e-13)
    np.testing.assert_allclose(root @ root.T, gram, atol=1e-4 * gram.max())
