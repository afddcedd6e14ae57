"""Ratings: the contract of explicit models, the sampler against its definition, what it learns."""

import numpy as np

from recsys.models.factors.gibbs import Prior, Values, mean_rows_slowly, sample_rows
from recsys.models.factors.svd import Svd
from tests.contracts.retrieval_model import ALL, USERS, ExplicitModelContract, log_of, pairs, queries_of

SMALL = Svd(factors=4, warmup=20, samples=20)


class TestSvd(ExplicitModelContract):
    model = SMALL
    renaming_noise = 0.08
    expected_taste = 0.3  # it learns how items are rated, not which are taken


def test_a_row_is_drawn_around_its_ridge_solution():
    rng = np.random.default_rng(0)
    rows, others, k = 9, 12, 4
    counts = rng.integers(0, 7, rows)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    n = int(offsets[-1])
    other = rng.integers(0, others, n).astype(np.int32)
    values = Values(offsets, other, rng.normal(size=n), rng.random(n) + 0.5)
    table = rng.normal(size=(others, k))
    root = rng.normal(size=(k, k))
    prior = Prior(rng.normal(size=k), root @ root.T + np.eye(k))
    means, covariances = mean_rows_slowly(values, table, prior=prior, noise_precision=1.7)
    at_zero = sample_rows(values, table, prior=prior, noise_precision=1.7, normal=np.zeros((rows, k)))
    np.testing.assert_allclose(at_zero, means, atol=1e-9)
    total = np.zeros_like(covariances)
    for axis in np.eye(k):  # the draws of the unit vectors are the columns of the covariance's root
        normal = np.tile(axis, (rows, 1))
        moved = sample_rows(values, table, prior=prior, noise_precision=1.7, normal=normal) - at_zero
        total += moved[:, :, None] * moved[:, None, :]
    np.testing.assert_allclose(total, covariances, atol=1e-9)


def test_predictions_beat_the_mean():
    log = log_of(*pairs())
    fitted = SMALL.fit(log, seed=0)
    user, item, value = log.histories.request, log.histories.item, log.histories.value
    predicted = fitted.predict(queries_of(log, user), item)
    assert np.sqrt(np.mean((predicted - value) ** 2)) < 0.8 * value.std()


def test_who_rated_nothing_gets_the_items_biases():
    log = log_of(*pairs())
    scores = SMALL.fit(log, seed=0).score(queries_of(log, ALL[:1], strangers=True))[0]
    means = np.array([log.histories.value[log.histories.item == i].mean() for i in range(30)])
    assert np.corrcoef(scores[:30], means)[0, 1] > 0.5
    assert len(ALL) == USERS
