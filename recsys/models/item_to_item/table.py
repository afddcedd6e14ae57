"""Item-to-item tables: for each item, the k items that its takers want next, and how much.

What every model that scores items from items shares: which pairs teach it, the truncated table that
serves it (one sparse product, so that a request costs what its history is long, not what the catalog
is), and what an empty history is told. Does not know how a table was filled, nor which events of a
history count (the caller weighs them).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from recsys.interactions import Interactions, Queries
from recsys.models.sparse_scores import even_weights, history_matrix
from recsys.types import Histories

_BLOCK = 1024  # rows of a table that are made at once


@dataclass(frozen=True, slots=True)
class ItemTable:
    """The k neighbors of each item. Arrays may be memory-mapped."""

    neighbor: np.ndarray  # int32 [V, K]; -1 = none
    weight: np.ndarray  # float32 [V, K]
    matrix: sparse.csr_array = field(init=False, repr=False, compare=False)  # the same, [V, V]

    def __post_init__(self) -> None:
        items, k = self.neighbor.shape
        given = self.neighbor.ravel() >= 0
        if given.all():
            indptr, neighbor, weight = np.arange(items + 1) * k, self.neighbor.ravel(), self.weight.ravel()
        else:
            indptr = np.concatenate(([0], np.cumsum(given.reshape(items, k).sum(axis=1))))
            neighbor, weight = self.neighbor.ravel()[given], self.weight.ravel()[given]
        matrix = sparse.csr_array((weight, neighbor, indptr.astype(np.int32)), shape=(items, items))
        object.__setattr__(self, "matrix", matrix)

    def score(self, histories: Histories, *, weights: np.ndarray) -> sparse.csr_array:
        """Score of each item that some event reaches, CSR float32 [B, V].

        `weights` float32 [M] says how much each event counts (0 = not at all); of several events of
        one item the largest counts. Rows beyond the table are ignored.
        """
        return (
            history_matrix(histories, weights=weights, items=len(self.neighbor), repeats="max") @ self.matrix
        )

    def score_slowly(self, histories: Histories, *, weights: np.ndarray) -> np.ndarray:
        """`score` by its definition, dense float64 [B, V], NaN = not reached. For tests."""
        items = len(self.neighbor)
        scores = np.full((len(histories), items), np.nan)
        for b in range(len(histories)):
            events = range(histories.offsets[b], histories.offsets[b + 1])
            largest: dict[int, float] = {}
            for e in events:
                if weights[e] > 0 and 0 <= histories.item[e] < items:
                    row = int(histories.item[e])
                    largest[row] = max(largest.get(row, 0.0), float(weights[e]))
            for row, weight in largest.items():
                for neighbor, value in zip(self.neighbor[row], self.weight[row], strict=True):
                    if neighbor >= 0:
                        scores[b, neighbor] = np.nan_to_num(scores[b, neighbor]) + weight * float(value)
        return scores


def pair_matrix(data: Interactions) -> sparse.csr_array:
    """Who took what, CSR float32 [U, V]: the largest weight of a pair's events over their mean weight, so 1
    where all events weigh alike. Raises DataError without an event of positive weight."""
    data = data.teaching()
    weights = (data.weights / data.weights.mean(dtype=np.float64)).astype(np.float32)
    return history_matrix(data.histories, weights=weights, items=data.items, repeats="max")


def taken_matrix(queries: Queries, *, items: int) -> sparse.csr_array:
    """What each query's history holds, CSR float32 [B, items] of ones."""
    return history_matrix(
        queries.histories, weights=even_weights(queries.histories), items=items, repeats="max"
    )


def answer_all(scores: np.ndarray, *, reached: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """`scores` float32 [B, V], changed in place: who isn't `reached` bool [B] is answered by `popularity`
    float32 [V], and an item of popularity 0 has no score."""
    scores[~reached] = popularity
    scores[:, popularity == 0] = -np.inf
    return scores


def truncate(weights: np.ndarray, active: np.ndarray, *, items: int, k: int) -> ItemTable:
    """The k weights of largest magnitude of each row; rows and columns of `weights` are items `active`."""
    return table_of(lambda start, stop: weights[start:stop], active, items=items, k=k)


def table_of(rows: Callable[[int, int], np.ndarray], active: np.ndarray, *, items: int, k: int) -> ItemTable:
    """`truncate` of a matrix that is made in blocks: `rows(start, stop)` are its rows, float32 [n, A]."""
    neighbor = np.full((items, k), -1, np.int32)
    weight = np.zeros((items, k), np.float32)
    kept = min(k, len(active))
    for start in range(0, len(active) if kept else 0, _BLOCK):
        stop = min(start + _BLOCK, len(active))
        block = rows(start, stop)
        top = np.argpartition(-np.abs(block), kept - 1, axis=1)[:, :kept]
        neighbor[active[start:stop], :kept] = active[top]
        weight[active[start:stop], :kept] = np.take_along_axis(block, top, axis=1)
    neighbor[weight == 0] = -1
    return ItemTable(neighbor, weight)


def truncate_sparse(
    row: np.ndarray, column: np.ndarray, weight: np.ndarray, *, items: int, k: int
) -> ItemTable:
    """The k largest positive weights of each row of a sparse matrix given by its entries."""
    order = np.lexsort((column, -weight, row))
    row, column, weight = row[order], column[order], weight[order]
    first = np.searchsorted(row, np.arange(items))
    position = np.arange(len(row)) - first[row]
    kept = (position < k) & (weight > 0)
    neighbor = np.full((items, k), -1, np.int32)
    value = np.zeros((items, k), np.float32)
    neighbor[row[kept], position[kept]] = column[kept]
    value[row[kept], position[kept]] = weight[kept]
    return ItemTable(neighbor, value)
