"""Graph filters: the contract of each, the sparse passes against the dense formula, the singular vectors."""

import numpy as np
import pytest
from scipy import sparse

from recsys.models.item_to_item.graph_filter import Bspm, GfCf, GraphFilter
from recsys.models.sparse_products import product
from tests.contracts.retrieval_model import (
    ALL,
    ITEMS,
    UNTAUGHT,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
)


class TestGraphFilter(RetrievalModelContract):
    model = GraphFilter(factors=4)


class TestGfCf(RetrievalModelContract):
    model = GfCf(factors=4)


class TestBspm(RetrievalModelContract):
    model = Bspm(factors=4)


def taken() -> np.ndarray:
    log = log_of(*pairs()).histories
    found = np.zeros((len(log), ITEMS))
    found[log.request, log.item] = 1
    return found


def leading(N: np.ndarray, k: int) -> np.ndarray:
    return np.linalg.svd(N)[2][:k].T


@pytest.mark.parametrize("k", [3, 40])
def test_gf_cf_is_its_formula(k):
    X = taken()
    users, items = np.maximum(X.sum(1), 1), np.maximum(X.sum(0), 1)
    N = X / np.sqrt(users)[:, None] / np.sqrt(items)
    V = leading(N, k)
    expected = X @ (N.T @ N + 0.3 * np.diag(items**-0.5) @ V @ V.T @ np.diag(items**0.5))
    found = GfCf(factors=k).fit(log_of(*pairs()), seed=0).score(queries_of(log_of(*pairs()), ALL[1:]))
    np.testing.assert_allclose(found[:, :UNTAUGHT], expected[1:, :UNTAUGHT], atol=1e-3)


def test_bspm_is_blurring_then_one_runge_kutta_step():
    X = taken()
    users, items = np.maximum(X.sum(1), 1), np.maximum(X.sum(0), 1)
    N = X / np.sqrt(users)[:, None] / np.sqrt(items)
    P, V = N.T @ N, leading(N, 3)
    blurred = X @ (P + 0.3 * np.diag(items**-0.5) @ V @ V.T @ np.diag(items**0.5))
    T = 2.5
    k1 = -blurred @ P
    k2 = -(blurred + T / 2 * k1) @ P
    k3 = -(blurred + T / 2 * k2) @ P
    k4 = -(blurred + T * k3) @ P
    expected = blurred + T / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    log = log_of(*pairs())
    found = Bspm(factors=3).fit(log, seed=0).score(queries_of(log, ALL[1:]))
    np.testing.assert_allclose(found[:, :UNTAUGHT], expected[1:, :UNTAUGHT], atol=1e-3)


def test_an_uncut_table_is_the_filter_without_the_item_itself():
    log = log_of(*pairs())
    fitted = GraphFilter(factors=4, neighbors=ITEMS).fit(log, seed=0)
    single = queries_of(log, ALL[1:])
    table = fitted.export()
    weights = np.ones(len(single.histories.item), np.float32)
    found, scores = table.score(single.histories, weights=weights).toarray(), fitted.score(single)
    other = taken()[1:] == 0
    other[:, UNTAUGHT] = False
    np.testing.assert_allclose(found[other], scores[other], atol=1e-4)


def test_a_product_on_threads_is_the_product():
    rng = np.random.default_rng(1)
    A = sparse.random_array((50, 30), density=0.1, rng=rng, dtype=np.float32).tocsr()
    columns = rng.normal(size=(30, 7)).astype(np.float32)
    np.testing.assert_allclose(product(A, columns), A @ columns, atol=1e-5)
    assert product(sparse.csr_array((4, 30), dtype=np.float32), columns).tolist() == np.zeros((4, 7)).tolist()
