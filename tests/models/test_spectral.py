"""Singular vectors by sampling are those of a dense decomposition."""

import numpy as np
from scipy import sparse

from recsys.interactions import interactions_from_pairs
from recsys.models.spectral import item_factors, singular_vectors


def test_singular_vectors_are_those_of_a_dense_decomposition():
    rng = np.random.default_rng(1)
    A = sparse.random_array((120, 90), density=0.1, rng=rng, dtype=np.float32).tocsr()
    found, values = singular_vectors(A, k=5, seed=0)
    _, expected, right = np.linalg.svd(A.toarray())
    np.testing.assert_allclose(values, expected[:5], rtol=1e-2)
    assert abs(found[:, 0] @ right[0]) > 0.99
    np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-4)


def test_factors_beyond_the_rank_are_0():
    """Two groups who share nothing: two factors, each of one group's items, and nothing else."""
    user = np.repeat(np.arange(6), 3)
    item = np.concatenate([[0, 1, 2]] * 4 + [[3, 4, 5]] * 2)
    factors = item_factors(interactions_from_pairs(user, item, users=6, items=7), dimensions=4, seed=0)
    assert factors.shape == (7, 4)
    np.testing.assert_allclose(factors @ factors.T @ np.eye(7)[0], [1 / 3] * 3 + [0] * 4, atol=1e-5)
    assert not factors[:, 2:].any()
