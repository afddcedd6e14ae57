"""User vectors of a factorization for anybody: a linear map of what their history pools to.

Decides how a model that learned a vector for each user serves users it never saw: the trained vectors
are regressed on the pooled histories, in closed form, and the map is applied to any history, to those
of the trained users too: on every data set tried it ranks better than the vectors that it was fitted
to, which know their training items too well. Arrays only; knows nothing of how they were trained.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.interactions import Interactions, Queries
from recsys.models.retrieval import NamedArrays
from recsys.models.sparse_scores import history_matrix
from recsys.types import Histories


@dataclass(frozen=True, slots=True)
class FoldIn(NamedArrays):
    """Queries to vectors of D dimensions."""

    items: np.ndarray  # float32 [V, D]; 0 = nothing was learned of this item
    weight: np.ndarray  # float32 [2 D + 2, D]

    def encode(self, queries: Queries) -> np.ndarray:
        """float32 [B, D]; an empty history gives the vector of the average user."""
        return (_pooled(queries.histories, self.items) @ self.weight).astype(np.float32)

    @classmethod
    def fit(
        cls, data: Interactions, *, users: np.ndarray, items: np.ndarray, regularization: float = 1.0
    ) -> "FoldIn":
        """Ridge regression of the trained vectors `users` [U, D] (NaN = none) on their pooled histories."""
        items = np.nan_to_num(items)
        known = ~np.isnan(users[:, 0])
        features = _pooled(data.histories.take(np.flatnonzero(known)), items).astype(np.float64)
        gram = features.T @ features
        gram[np.diag_indices(len(gram) - 1)] += regularization  # not of the constant, which comes last
        weight = np.linalg.lstsq(gram, features.T @ users[known].astype(np.float64), rcond=None)[0]
        return cls(items, weight.astype(np.float32))


def _pooled(histories: Histories, items: np.ndarray) -> np.ndarray:
    """What the map sees of each history, float32 [B, 2 D + 2]: mean of its distinct items' vectors, the same
    times the root of their number, the logarithm of the number, and 1."""
    ones = np.ones(len(histories.item), np.float32)
    taken = history_matrix(histories, weights=ones, items=len(items), repeats="max")
    count = np.diff(taken.indptr)[:, None].astype(np.float32)
    mean = (sparse.csr_array(taken) @ items) / np.maximum(count, 1)
    return np.concatenate((mean, mean * np.sqrt(count), np.log1p(count), np.ones_like(count)), axis=1)
