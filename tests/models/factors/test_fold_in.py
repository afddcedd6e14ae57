"""Anybody gets the vector that the map makes of their history."""

import numpy as np

from recsys.models.factors.fold_in import FoldIn
from tests.contracts.retrieval_model import ALL, ITEMS, USERS, log_of, pairs, queries_of


def test_vectors_that_are_pooled_histories_are_found_again():
    """Users whose vectors are twice the mean of their items: a map that ridge regression can learn."""
    log = log_of(*pairs())
    rng = np.random.default_rng(0)
    items = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    users = np.full((USERS, 6), np.nan, np.float32)
    for user in range(1, USERS):
        mine = np.unique(log.histories.item[log.histories.offsets[user] : log.histories.offsets[user + 1]])
        users[user] = 2 * items[mine].mean(0)
    fold_in = FoldIn.fit(log, users=users, items=items, regularization=1e-4)
    for strangers in (False, True):
        found = fold_in.encode(queries_of(log, ALL[1:], strangers=strangers))
        np.testing.assert_allclose(found, users[1:], atol=0.01)


def test_who_has_no_vector_and_no_history_gets_a_finite_one():
    log = log_of(*pairs())
    users = np.ones((USERS, 3), np.float32)
    users[0] = np.nan
    fold_in = FoldIn.fit(log, users=users, items=np.ones((ITEMS, 3), np.float32))
    assert np.isfinite(fold_in.encode(queries_of(log, np.array([0])))).all()
