"""EASE: the linear model that predicts each item from all others, in closed form.

Decides how one V x V buffer is enough: the Gram matrix is written into it by blocks, inverted in place by
its Cholesky factor, and mirrored and scaled in place into the weights. Who took what counts; when does
not. Scoring uses all weights, what is served keeps the largest of each row.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import linalg, sparse

from recsys.errors import DataError
from recsys.interactions import Interactions, Queries
from recsys.models.item_to_item.table import ItemTable, answer_all, pair_matrix, taken_matrix, truncate
from recsys.models.retrieval import Estimate, NamedArrays, Progress, check_settings, silent
from recsys.models.search_space import LogUniform, Space

_BLOCK = 512  # rows of the Gram matrix that are dense at once
LAPACK_ITEMS = 30_000  # spotrf of OpenBLAS ends the process at 33,000 rows, whose bytes 32 bits don't count


@dataclass(frozen=True, slots=True)
class FittedEase(NamedArrays):
    weights: np.ndarray  # float32 [A, A] row i: how taking item active[i] predicts each other
    active: np.ndarray  # int64 [A] the items that somebody took
    popularity: np.ndarray  # float32 [V] weight of the pairs of each item; 0 = nothing taught it
    neighbors: np.ndarray  # int64 [] how many a row of the table keeps

    def score(self, queries: Queries) -> np.ndarray:
        items = len(self.popularity)
        taken = taken_matrix(queries, items=items)[:, self.active]
        scores = np.zeros((len(queries), items), np.float32)
        scores[:, self.active] = taken @ self.weights
        return answer_all(scores, reached=np.diff(taken.indptr) > 0, popularity=self.popularity)

    def export(self) -> ItemTable:
        return truncate(self.weights, self.active, items=len(self.popularity), k=int(self.neighbors))


@dataclass(frozen=True, slots=True)
class Ease:
    """EASE (Steck 2019, "Embarrassingly shallow autoencoders"): B = I - P / diag(P), P = (X'X + lambda I)^-1.

    X [U, V] says who took what, ever; a pair counts once, with its largest weight. Memory V^2 float32,
    time V^3: 41,000 items take 7 GB and some 7 minutes.
    """

    regularization: float = 200.0  # lambda: larger damps rare items
    neighbors: int = 200  # k of the exported table; see `ease` for what the cut costs

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {"regularization": LogUniform(1, 3000)}

    def __post_init__(self) -> None:
        check_settings(self, counts=("neighbors",), not_negative=("regularization",))

    def estimate(self, data: Interactions) -> Estimate:
        return dense_estimate(data)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedEase:
        """Raises DataError without an event of positive weight."""
        pairs = pair_matrix(data)
        popularity = np.asarray(pairs.sum(0), np.float32)
        active = np.flatnonzero(popularity > 0)
        progress(0.0, f"inverting a matrix of {len(active):,} items")
        weights = inverse(gram_of(pairs[:, active], regularization=self.regularization))
        _to_weights(weights)
        return FittedEase(weights, active, popularity, np.asarray(self.neighbors))


@dataclass(frozen=True, slots=True)
class EaseSettings:
    """Of the table in a release."""

    regularization: float = 100.0
    neighbors: int = 200


def ease(interactions: Interactions, *, settings: EaseSettings) -> ItemTable:
    """`Ease` as a table of the `neighbors` weights of largest magnitude of each row (negative ones too): of
    V = 3,555, k = 200 costs 3 % of recall@100 of all items and nothing of new ones, k = 100 costs 6 %.
    Nothing to learn from gives a table without neighbors."""
    if not (interactions.weights > 0).any():
        k, items = settings.neighbors, interactions.items
        return ItemTable(np.full((items, k), -1, np.int32), np.zeros((items, k), np.float32))
    model = Ease(settings.regularization, settings.neighbors)
    return model.fit(interactions, seed=0).export()


def dense_estimate(data: Interactions, *, passes: float = 1.0) -> Estimate:
    """Of one matrix over the items that were taken, and `passes` times its inversion."""
    items = len(np.unique(data.histories.item))
    halves = 1.5 if items > LAPACK_ITEMS else 1.0
    memory = 150 + 4e-6 * halves * items**2 + 8e-6 * _BLOCK * items + 60e-6 * len(data)
    return Estimate(memory, 0.5 + passes * items**3 / 1.5e11 + len(data) / 1e6)


def gram_of(pairs: sparse.csr_array, *, regularization: float) -> np.ndarray:
    """X'X + lambda I of CSR X [U, A], dense float32 [A, A], by blocks of rows."""
    items = pairs.shape[1]
    by_item, dense = sparse.csr_array(pairs.T), np.empty((items, items), np.float32)
    for start in range(0, items, _BLOCK):
        dense[start : start + _BLOCK] = (by_item[start : start + _BLOCK] @ pairs).toarray()
    dense[np.diag_indices(items)] += np.float32(regularization)
    return dense


def inverse(gram: np.ndarray) -> np.ndarray:
    """The inverse of a symmetric positive definite matrix float32 [A, A], in the memory of `gram`; beyond
    LAPACK_ITEMS rows by halves, which takes half as much memory again.

    Raises DataError where rounding has made it indefinite.
    """
    if len(gram) > LAPACK_ITEMS:
        return _inverse_by_halves(gram)
    if not len(gram):
        return gram
    # LAPACK sees the transpose, whose lower triangle is our upper one.
    factor, info = linalg.lapack.spotrf(gram.T, lower=1, overwrite_a=1, clean=0)
    if info == 0:
        factor, info = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    if info != 0:
        raise DataError("the items' Gram matrix is not positive definite; raise the regularization")
    found = factor.T
    for start in range(0, len(found), _BLOCK):
        stop = start + _BLOCK
        square = np.triu(found[start:stop, start:stop])
        found[start:stop, start:stop] = square + np.triu(square, 1).T
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found


def _inverse_by_halves(gram: np.ndarray) -> np.ndarray:
    """[[A, B'], [B, C]] by the inverse of A and that of its Schur complement S = C - B A^-1 B'."""
    half = len(gram) // 2
    first, cross, second = gram[:half, :half], gram[half:, :half], gram[half:, half:]
    first[:] = inverse(first.copy())
    weights = cross @ first
    _subtract(second, weights, cross.T)
    second[:] = inverse(second.copy())
    np.matmul(second, weights, out=cross)  # S^-1 B A^-1
    _subtract(first, -weights.T, cross)
    np.negative(cross, out=cross)
    gram[:half, half:] = cross.T
    return gram


def _subtract(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """total -= left right, by blocks of rows."""
    for start in range(0, len(total), _BLOCK):
        total[start : start + _BLOCK] -= left[start : start + _BLOCK] @ right


def _to_weights(precision: np.ndarray) -> None:
    """P to I - P / diag(P) in place, column j by its own diagonal."""
    diagonal = precision.diagonal().copy()
    for start in range(0, len(precision), _BLOCK):
        precision[start : start + _BLOCK] /= -diagonal
    precision[np.diag_indices(len(precision))] = 0
