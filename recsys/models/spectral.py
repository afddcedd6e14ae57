"""Item factors of the interaction matrix: a fast start for what gradient descent then improves.

The truncated SVD of the symmetrically normalized matrix by randomized subspace iteration (Halko,
Martinsson and Tropp 2011): what the low-pass filter of GF-CF (Shen et al. 2021) projects on.
"""

import numpy as np
from scipy import linalg, sparse

from recsys.interactions import Interactions
from recsys.models.sparse_scores import history_matrix

_EXTRA, _ROUNDS = 16, 4  # columns beyond those asked for, and multiplications by X'X


def item_factors(interactions: Interactions, *, dimensions: int, seed: int) -> np.ndarray:
    """The leading right singular vectors of D_U^-1/2 X D_V^-1/2, largest first, float32 [V, d].

    X [U, V] says who took what. Columns beyond its rank, if `dimensions` exceeds it, are 0.
    """
    log = interactions.histories
    ones = np.ones(len(log.item), np.float32)
    taken = history_matrix(log, weights=ones, items=interactions.items, repeats="max")
    users, items = (np.maximum(np.asarray(taken.sum(axis)).ravel(), 1) for axis in (1, 0))
    scaled = sparse.diags_array(1 / np.sqrt(users)) @ taken @ sparse.diags_array(1 / np.sqrt(items))
    scaled = sparse.csr_array(scaled, dtype=np.float32)
    back = sparse.csr_array(scaled.T)
    width = min(dimensions + _EXTRA, *scaled.shape)
    found = np.random.default_rng(seed).normal(size=(scaled.shape[1], width)).astype(np.float32)
    for _ in range(_ROUNDS):
        found, _ = linalg.qr(back @ (scaled @ found), mode="economic", overwrite_a=True, check_finite=False)
    image = scaled @ found
    values, vectors = np.linalg.eigh((image.T @ image).astype(np.float64))
    order = np.argsort(-values)[:dimensions]
    order = order[values[order] > 1e-8]
    factors = np.zeros((interactions.items, dimensions), np.float32)
    factors[:, : len(order)] = found @ vectors[:, order].astype(np.float32)
    return factors
