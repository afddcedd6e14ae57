"""iALS: the contract of retrieval models, each step against its normal equations, what it decides."""

import numpy as np
import pytest
from scipy import sparse

from recsys.models.factors.ials import Ials
from recsys.models.factors.weighted_ridge import Side, solve_rows, solve_rows_slowly
from tests.contracts.retrieval_model import ALL, RetrievalModelContract, log_of, pairs, queries_of


class TestIals(RetrievalModelContract):
    model = Ials(factors=8, regularization=0.01, epochs=4)
    renaming_noise = 0.05


@pytest.mark.parametrize("dimensions", [3, 8, 40])  # rows longer and shorter than that
def test_a_step_is_the_solution_of_the_normal_equations(dimensions):
    rng = np.random.default_rng(dimensions)
    taken = sparse.random_array((17, 30), density=0.3, rng=rng, dtype=np.float32).tocsr()
    taken.data += 0.1
    side = Side.of(rng.normal(size=(30, dimensions)).astype(np.float32), unobserved=0.1)
    penalty = rng.uniform(0.5, 2, 17).astype(np.float32)
    slow = solve_rows_slowly(side, taken, penalty=penalty)
    for threads in (1, 3):
        np.testing.assert_allclose(solve_rows(side, taken, penalty=penalty, threads=threads), slow, atol=2e-4)


def test_a_side_is_the_same_vectors_turned():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 5)).astype(np.float32)
    side = Side.of(vectors, unobserved=0.5)
    np.testing.assert_allclose(side.vectors @ side.vectors.T, vectors @ vectors.T, atol=1e-4)
    np.testing.assert_allclose(0.5 * side.vectors.T @ side.vectors, np.diag(side.spectrum), atol=1e-4)


def test_what_is_not_set_is_decided_by_the_data():
    log = log_of(*pairs())
    shaped = Ials().shaped(log)
    assert shaped.factors == 8
    assert shaped.unobserved_weight == 0.5  # a dense table
    fitted = Ials().fit(log, seed=0)
    again = Ials().fit(log, seed=0)
    np.testing.assert_array_equal(fitted.score(queries_of(log, ALL)), again.score(queries_of(log, ALL)))
