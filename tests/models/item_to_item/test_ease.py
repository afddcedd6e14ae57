"""EASE and its normalized form: the contract, the closed form, the inverse in place, what is refused."""

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.interactions import Interactions
from recsys.models.item_to_item.ease import Ease, EaseSettings, ease, inverse
from recsys.models.item_to_item.normalized_ease import NormalizedEase, damping
from recsys.types import Histories
from tests.contracts.retrieval_model import (
    ALL,
    ITEMS,
    UNTAUGHT,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
)


class TestEase(RetrievalModelContract):
    model = Ease(regularization=5)


class TestNormalizedEase(RetrievalModelContract):
    model = NormalizedEase(regularization=1)


def taken() -> np.ndarray:
    """Who took what in the contract's world, dense float64 [U, V]."""
    log = log_of(*pairs()).histories
    found = np.zeros((len(log), ITEMS))
    found[log.request, log.item] = 1
    return found


def test_ease_is_the_closed_form():
    X = taken()
    precision = np.linalg.inv(X.T @ X + 3 * np.eye(ITEMS))
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0)
    log = log_of(*pairs())
    scores = Ease(regularization=3).fit(log, seed=0).score(queries_of(log, ALL[1:]))
    taught = np.arange(ITEMS) != UNTAUGHT
    np.testing.assert_allclose(scores[:, taught], (X[1:] @ expected)[:, taught], atol=1e-4)
    table = ease(log, settings=EaseSettings(regularization=3, neighbors=ITEMS))
    np.testing.assert_allclose(table.matrix.toarray(), expected, atol=1e-5)


@pytest.mark.parametrize(("c", "a"), [(0.5, 0.2), (0.3, 0.0), (0.0, 0.0)])
def test_normalized_ease_is_its_regression_with_a_zero_diagonal(c, a):
    log = log_of(*pairs())
    model = NormalizedEase(regularization=2, user_exponent=c, item_exponent=a, neighbors=ITEMS)
    X = taken()[:, :UNTAUGHT]
    T = X * damping(X.sum(0), a)
    Y = T * damping(X.sum(1), c)[:, None]
    gram = Y.T @ Y
    ridge = 2 * np.diag(gram).mean()
    expected = np.zeros((UNTAUGHT, UNTAUGHT))
    for j in range(UNTAUGHT):  # item by item, on all others
        others = np.arange(UNTAUGHT) != j
        left = gram[np.ix_(others, others)] + ridge * np.eye(UNTAUGHT - 1)
        expected[others, j] = np.linalg.solve(left, Y[:, others].T @ T[:, j])
    expected *= damping(X.sum(0), a)[:, None]
    fitted = model.fit(log, seed=0)
    scores = fitted.score(queries_of(log, ALL[1:]))[:, :UNTAUGHT]
    np.testing.assert_allclose(scores, X[1:] @ expected, atol=1e-4)
    np.testing.assert_allclose(fitted.export().matrix.toarray()[:UNTAUGHT, :UNTAUGHT], expected, atol=1e-4)


def test_without_exponents_it_is_ease():
    log = log_of(*pairs())
    trace = taken().sum(0)[:UNTAUGHT].mean()
    plain = Ease(regularization=3).fit(log, seed=0).score(queries_of(log, ALL[1:]))
    model = NormalizedEase(regularization=3 / trace, user_exponent=0, item_exponent=0)
    np.testing.assert_allclose(model.fit(log, seed=0).score(queries_of(log, ALL[1:])), plain, atol=1e-4)


def test_the_inverse_is_made_in_place():
    rng = np.random.default_rng(0)
    for size in (1, 7, 530):  # more than a block
        X = rng.normal(size=(size + 20, size)).astype(np.float32)
        gram = X.T @ X + np.eye(size, dtype=np.float32)
        expected = np.linalg.inv(gram.astype(np.float64))
        found = inverse(gram)
        assert np.shares_memory(found, gram)
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert inverse(np.zeros((0, 0), np.float32)).shape == (0, 0)


def test_an_indefinite_matrix_is_refused_with_the_remedy():
    with pytest.raises(DataError, match="regularization"):
        inverse(np.diag([1.0, -1.0]).astype(np.float32))


def test_a_table_of_nothing_and_of_one_item_is_empty():
    nobody = Interactions(np.array(["a"], object), Histories.empty(1), 3)
    assert (ease(nobody, settings=EaseSettings()).neighbor == -1).all()
    one = log_of(np.array([3]), np.array([5]))
    assert (ease(one, settings=EaseSettings()).neighbor == -1).all()


def test_the_estimate_grows_with_the_square_of_the_items_taken():
    few, many = log_of(np.zeros(10, int), np.arange(10)), log_of(np.zeros(30, int), np.arange(30))
    assert Ease().estimate(many).memory_mb > Ease().estimate(few).memory_mb


def test_the_inverse_by_halves_is_the_inverse(monkeypatch):
    """LAPACK ended the process at 41,000 items: beyond some size only halves go to it."""
    monkeypatch.setattr("recsys.models.item_to_item.ease.LAPACK_ITEMS", 20)
    matrix = np.random.default_rng(4).normal(size=(200, 131)).astype(np.float32)
    gram = matrix.T @ matrix + 5 * np.eye(131, dtype=np.float32)
    expected = np.linalg.inv(gram.astype(np.float64))
    found = inverse(gram)
    assert found is gram
    np.testing.assert_allclose(found, expected, atol=1e-5)
