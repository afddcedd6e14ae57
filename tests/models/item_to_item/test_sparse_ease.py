"""Sparse EASE: the contract, all neighbors give EASE, few are the ridge regressions of their definition."""

import numpy as np
import pytest

from recsys.models.item_to_item.normalized_ease import NormalizedEase, damping
from recsys.models.item_to_item.sparse_ease import SparseEase
from tests.contracts.retrieval_model import (
    ALL,
    ITEMS,
    UNTAUGHT,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
)


class TestSparseEase(RetrievalModelContract):
    model = SparseEase(regularization=1, neighborhood=20)


def test_with_all_neighbors_it_is_normalized_ease():
    log = log_of(*pairs())
    queries = queries_of(log, ALL[1:])
    sparse = SparseEase(regularization=2, neighborhood=ITEMS).fit(log, seed=0).score(queries)
    full = NormalizedEase(regularization=2).fit(log, seed=0).score(queries)
    # Items that nobody took together aren't neighbors, though others relate them.
    together = [np.corrcoef(a[:UNTAUGHT], b[:UNTAUGHT])[0, 1] for a, b in zip(sparse, full)]
    assert min(together) > 0.95


@pytest.mark.parametrize("m", [1, 4, 9])
def test_weights_are_the_ridge_regression_on_the_nearest(m):
    log = log_of(*pairs())
    X = np.zeros((len(log.histories), ITEMS))
    X[log.histories.request, log.histories.item] = 1
    X = X[:, :UNTAUGHT]
    count, scale = X.sum(0), damping(X.sum(0), 0.2)
    T = X * scale
    users = damping(X.sum(1), 0.5)[:, None]
    Y = T * users
    gram, shared = Y.T @ Y, Y.T @ T
    found = SparseEase(regularization=2, neighborhood=m).fit(log, seed=0)
    weights = found.export().matrix.toarray()
    for j in range(UNTAUGHT):
        nearness = shared[:, j] / np.sqrt(count)
        nearness[j] = 0
        order = np.argsort(-nearness)
        if m < len(order) and np.isclose(nearness[order[m - 1]], nearness[order[m]]):
            continue  # a tie at the border
        chosen = np.sort(order[:m][nearness[order[:m]] > 0])
        left = gram[np.ix_(chosen, chosen)] + 2 * np.diag(gram).mean() * np.eye(len(chosen))
        expected = np.zeros(UNTAUGHT)
        expected[chosen] = np.linalg.solve(left, shared[chosen, j]) * scale[chosen]
        np.testing.assert_allclose(weights[:UNTAUGHT, j], expected, atol=1e-4)
