"""The leading singular vectors of who took what: a fast start for gradient descent, and a low-pass filter.

By randomized subspace iteration (Halko, Martinsson and Tropp 2011). The symmetrically normalized matrix's
are what GF-CF projects on (Shen et al. 2021).
"""

import numpy as np
from scipy import linalg, sparse

from recsys.interactions import Interactions
from recsys.models.retrieval import Progress, silent
from recsys.models.sparse_products import product
from recsys.models.sparse_scores import history_matrix

# Columns beyond those asked for, and multiplications by X'X. Five leave the cut between kept and left vectors
# soft, which as a filter finds more of what is held out than an exact one (12 rounds) or a softer one (2).
EXTRA, ROUNDS = 32, 5


def singular_vectors(
    matrix: sparse.csr_array, *, k: int, seed: int, progress: Progress = silent
) -> tuple[np.ndarray, np.ndarray]:
    """The k leading right singular vectors float32 [V, k] and values float64 [k] of CSR X [U, V], largest
    first; fewer than k where X has fewer rows or columns."""
    back = sparse.csr_array(matrix.T)
    width = min(k + EXTRA, *matrix.shape)
    found = np.random.default_rng(seed).normal(size=(matrix.shape[1], width)).astype(np.float32)
    for done in range(ROUNDS):
        progress(done / ROUNDS, f"{k:,} singular vectors")
        found = product(back, product(matrix, found))
        found, _ = linalg.qr(found, mode="economic", overwrite_a=True, check_finite=False)
    image = product(matrix, found)
    squares, rotation = np.linalg.eigh((image.T @ image).astype(np.float64))
    best = np.argsort(-squares)[:k]
    return found @ rotation[:, best].astype(np.float32), np.sqrt(np.maximum(squares[best], 1e-12))


def item_factors(interactions: Interactions, *, dimensions: int, seed: int) -> np.ndarray:
    """The leading right singular vectors of D_U^-1/2 X D_V^-1/2, largest first, float32 [V, d].

    X [U, V] says who took what. Columns beyond its rank, if `dimensions` exceeds it, are 0.
    """
    log = interactions.histories
    ones = np.ones(len(log.item), np.float32)
    taken = history_matrix(log, weights=ones, items=interactions.items, repeats="max")
    users, items = (np.maximum(np.asarray(taken.sum(axis)).ravel(), 1) for axis in (1, 0))
    scaled = sparse.diags_array(1 / np.sqrt(users)) @ taken @ sparse.diags_array(1 / np.sqrt(items))
    vectors, values = singular_vectors(sparse.csr_array(scaled, dtype=np.float32), k=dimensions, seed=seed)
    rank = int((values > 1e-4).sum())  # values are at most 1
    factors = np.zeros((interactions.items, dimensions), np.float32)
    factors[:, :rank] = vectors[:, :rank]
    return factors
