"""Item-to-item tables: for each item, the k items that its buyers want next, and how much.

Two ways to fill one: EASE (a linear model in closed form, from who bought what) and baskets (what
lies in the same order). Both are exported as the same truncated table and scored by one sparse
product, so that serving costs what a history is long, not what the catalog is. Decides k and the
damping of popular items; does not know which events of a history count (the caller weighs them).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import linalg, sparse

from recsys.interactions import Interactions
from recsys.models.sparse_scores import history_matrix
from recsys.types import Histories


@dataclass(frozen=True, slots=True)
class EaseSettings:
    regularization: float = 100.0  # lambda: larger damps rare items
    neighbors: int = 200  # k; see `ease` for what the cut costs


@dataclass(frozen=True, slots=True)
class BasketSettings:
    damping: float = 0.5  # exponent of the neighbor's own frequency: 0 favors popular, 1 favors rare items
    min_orders: int = 2  # orders that must hold both items: one is chance
    shrinkage: float = 5.0  # added to the item's order count: evidence from few orders is discounted
    neighbors: int = 200


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


def ease(interactions: Interactions, *, settings: EaseSettings) -> ItemTable:
    """EASE (Steck 2019, "Embarrassingly shallow autoencoders"): B = I - P / diag(P), P = (X'X + lambda I)^-1.

    X [U, V] says who bought what, ever. Memory 3 V^2 float32, time V^3: for catalogs to some 20,000
    items; rows that nobody bought get no neighbors. Each item keeps its `neighbors` weights of
    largest magnitude (negative ones too): of V = 3,555, k = 200 costs 3 % of recall@100 of all items
    and nothing of new ones, k = 100 costs 6 %.
    """
    log = interactions.histories
    bought = history_matrix(
        log, weights=np.ones(len(log.item), np.float32), items=interactions.items, repeats="max"
    )
    gram = (bought.T @ bought).toarray()
    active = np.flatnonzero(gram.diagonal() > 0)
    gram = gram[np.ix_(active, active)]
    gram[np.diag_indices(len(active))] += settings.regularization
    inverse = _inverse(gram)
    weights = -inverse / inverse.diagonal()  # column j: how each item i predicts item j
    weights[np.diag_indices(len(active))] = 0
    return _truncate(weights, active, items=interactions.items, k=settings.neighbors)


def baskets(interactions: Interactions, *, settings: BasketSettings) -> ItemTable:
    """Co-purchase within one order: n(i, j) / ((n(i) + shrinkage) n(j)^damping), n counting orders.

    With damping 0 it is the shrunken conditional probability P(j | i); with 1, lift (the item-based
    top-N family of Deshpande and Karypis 2004). Sparse throughout.
    """
    log = interactions.histories
    _, order = np.unique(log.order, return_inverse=True)
    ones = np.ones(len(log.item), np.float32)
    contains = sparse.csr_array(
        (ones, (order, log.item)), shape=(order.max(initial=-1) + 1, interactions.items)
    )
    contains.data[:] = 1  # an item on several lines of an order counts once
    together = sparse.csr_array(contains.T @ contains)
    count = together.diagonal()
    row = np.repeat(np.arange(interactions.items), np.diff(together.indptr))
    shared = (together.data >= settings.min_orders) & (row != together.indices)
    row, column = row[shared], together.indices[shared]
    weight = together.data[shared] / ((count[row] + settings.shrinkage) * count[column] ** settings.damping)
    return _truncate_sparse(row, column, weight, items=interactions.items, k=settings.neighbors)


def _inverse(gram: np.ndarray) -> np.ndarray:
    """Inverse of a symmetric positive definite matrix, float32 [V, V], in half the time of a general one."""
    if not len(gram):
        return gram
    factor, info = linalg.lapack.spotrf(gram.astype(np.float32), lower=1, overwrite_a=1)
    if info == 0:
        factor, info = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    if info != 0:
        raise linalg.LinAlgError(f"the item-item matrix is not positive definite (LAPACK info {info})")
    lower = np.tril(factor)
    return lower + np.tril(lower, -1).T


def _truncate(weights: np.ndarray, active: np.ndarray, *, items: int, k: int) -> ItemTable:
    """The k weights of largest magnitude of each row; rows and columns of `weights` are items `active`."""
    neighbor = np.full((items, k), -1, np.int32)
    weight = np.zeros((items, k), np.float32)
    kept = min(k, len(active))
    if kept:
        top = np.argpartition(-np.abs(weights), kept - 1, axis=1)[:, :kept]
        neighbor[active, :kept] = active[top]
        weight[active, :kept] = np.take_along_axis(weights, top, axis=1)
        neighbor[weight == 0] = -1
    return ItemTable(neighbor, weight)


def _truncate_sparse(
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
