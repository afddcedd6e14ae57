"""Threads: as many as the process may use, about the same work for each."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import sparse

from recsys.models import sparse_products, top_k
from recsys.models.factors import gibbs, weighted_ridge
from recsys.models.factors.ials import Ials
from recsys.models.factors.svd import Svd
from recsys.models.item_to_item import sparse_ease
from recsys.models.item_to_item.sparse_ease import SparseEase
from recsys.models.threads import available_threads, even_cuts
from tests.contracts.retrieval_model import log_of, pairs


@pytest.mark.parametrize("allowed", [1, 3])
def test_a_worker_of_ray_takes_the_threads_it_was_given(monkeypatch, allowed):
    """Ray says so by OMP_NUM_THREADS; some asked numba, which knows the machine's cores only."""
    taken = []

    class Recording(ThreadPoolExecutor):
        def __init__(self, workers):
            taken.append(workers)
            super().__init__(workers)

    for module in (top_k, gibbs, sparse_ease, sparse_products, weighted_ridge):
        monkeypatch.setattr(module, "ThreadPoolExecutor", Recording)
    monkeypatch.setenv("OMP_NUM_THREADS", str(allowed))
    log = log_of(*pairs())
    SparseEase(neighborhood=5).fit(log, seed=0)
    Svd(factors=2, warmup=1, samples=1, thinning=1).fit(log, seed=0)
    Ials(factors=4, regularization=0.01, epochs=1).fit(log, seed=0)
    sparse_products.product(sparse.eye_array(9, format="csr", dtype=np.float32), np.ones((9, 2)))
    top_k.top_k(np.ones((9, 4), np.float32), k=2, tie_order=np.arange(4))
    assert set(taken) == {allowed}
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert available_threads() == len(os.sched_getaffinity(0))


def test_cuts_cover_all_rows():
    assert even_cuts(np.zeros(0), 4).tolist() == [0]
    assert even_cuts(np.ones(8), 4).tolist() == [0, 1, 3, 5, 8]
    assert even_cuts(np.ones(2), 9)[-1] == 2
