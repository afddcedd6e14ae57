"""EASE between normalized sides: busy users and popular items no longer decide for everyone.

Decides the regression: what a user took, each item damped by its popularity, from the same divided by
how much the user took. Plain EASE lets a user with a thousand items weigh a million times one with one.
The diagonal is barred as in EASE. Like there, one V x V buffer is enough: the weights themselves are never
formed, a query goes through their factors.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from recsys.interactions import Interactions, Queries
from recsys.models.item_to_item.ease import dense_estimate, gram_of, inverse
from recsys.models.item_to_item.table import ItemTable, answer_all, pair_matrix, table_of, taken_matrix
from recsys.models.retrieval import Estimate, NamedArrays, Progress, check_settings, silent
from recsys.models.search_space import LogUniform, Space, Uniform
from recsys.models.sparse_products import CHUNK, product

_BLOCK = 512


@dataclass(frozen=True, slots=True)
class FittedNormalizedEase(NamedArrays):
    precision: np.ndarray  # float32 [A, A] P = (Y'Y + lambda I)^-1 of the items `active`
    barred: np.ndarray  # float32 [A] mu: what keeps an item from predicting itself
    item_scale: np.ndarray  # float32 [A] damping of each item's events
    user_scale: np.ndarray  # float32 [U] damping of each user
    offsets: np.ndarray  # int32 [U + 1] T, what users took, damped by item: row u has
    column: np.ndarray  # int32 [Z] these places in `active`
    value: np.ndarray  # float32 [Z] and these values
    active: np.ndarray  # int64 [A] the items that somebody took
    popularity: np.ndarray  # float32 [V] weight of the pairs of each item; 0 = nothing taught it
    neighbors: np.ndarray  # int64 [] how many a row of the table keeps

    def score(self, queries: Queries) -> np.ndarray:
        items = len(self.popularity)
        taken = taken_matrix(queries, items=items)[:, self.active]
        scores = np.zeros((len(queries), items), np.float32)
        scores[:, self.active] = self._predict(taken)
        return answer_all(scores, reached=np.diff(taken.indptr) > 0, popularity=self.popularity)

    def export(self) -> ItemTable:
        ones = sparse.eye_array(len(self.active), format="csr", dtype=np.float32)

        def rows(start: int, stop: int) -> np.ndarray:
            block = self._predict(sparse.csr_array(ones[start:stop]))
            block[np.arange(stop - start), np.arange(start, stop)] = 0
            return block

        return table_of(rows, self.active, items=len(self.popularity), k=int(self.neighbors))

    def _predict(self, taken: sparse.csr_array) -> np.ndarray:
        """h D^-a (P Y'T - P diag(mu)) for each row h of CSR [B, A]; float32 [B, A]."""
        targets = sparse.csr_array(
            (self.value, self.column, self.offsets), shape=(len(self.user_scale), len(self.active))
        )
        by_item = sparse.csr_array(targets.T)
        found = np.empty(taken.shape, np.float32)
        for start in range(0, taken.shape[0], CHUNK):
            damped = sparse.csr_array(taken[start : start + CHUNK] * self.item_scale)
            solved = damped @ self.precision
            by_user = product(targets, solved.T) * self.user_scale[:, None]
            found[start : start + CHUNK] = product(by_item, by_user).T - solved * self.barred
        return found


@dataclass(frozen=True, slots=True)
class NormalizedEase:
    """Ridge regression of T on Y with a zero diagonal: B = P Y'T - P diag(mu), P = (Y'Y + lambda I)^-1.

    T = X D_I^-a and Y = D_U^-c T, where X [U, V] says who took what (a pair counts once, with its largest
    weight) and D_U, D_I are what each user and item counts over the mean; mu makes the diagonal of B zero.
    With c = a = 0 it is EASE (Steck 2019). Memory as EASE; a fit takes little more, a query some
    milliseconds more, for two products with the users.
    """

    regularization: float = 12.0  # lambda over the mean diagonal of Y'Y
    user_exponent: float = 0.5  # c
    item_exponent: float = 0.2  # a
    neighbors: int = 200  # k of the exported table

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "regularization": LogUniform(1, 100),
        "user_exponent": Uniform(0, 1),
        "item_exponent": Uniform(0, 0.6),
    }

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("neighbors",),
            not_negative=("regularization",),
            exponents=("user_exponent", "item_exponent"),
        )

    def estimate(self, data: Interactions) -> Estimate:
        return dense_estimate(data, passes=1.1)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedNormalizedEase:
        """Raises DataError without an event of positive weight."""
        pairs = pair_matrix(data)
        popularity = np.asarray(pairs.sum(0), np.float32)
        active = np.flatnonzero(popularity > 0)
        item_scale = damping(popularity[active], self.item_exponent)
        user_scale = damping(np.asarray(pairs.sum(1)), self.user_exponent)
        targets = sparse.csr_array(pairs[:, active] * item_scale)
        inputs = sparse.csr_array(targets * user_scale[:, None])
        gram = gram_of(inputs, regularization=0)
        gram[np.diag_indices(len(active))] += self.regularization * gram.diagonal().mean()
        progress(0.1, f"inverting a matrix of {len(active):,} items")
        precision = inverse(gram)
        return FittedNormalizedEase(
            precision,
            _barred(precision, inputs, targets),
            item_scale,
            user_scale,
            targets.indptr.astype(np.int32),
            targets.indices.astype(np.int32),
            targets.data,
            active,
            popularity,
            np.asarray(self.neighbors),
        )


def damping(amount: np.ndarray, exponent: float) -> np.ndarray:
    """(amount over the mean of those above 0)^-exponent, 1 where it is 0; float32 [N]."""
    some = amount > 0
    relative = np.where(some, amount, 1) / np.where(some, amount[some].mean(), 1)
    return (relative**-exponent).astype(np.float32)


def _barred(precision: np.ndarray, inputs: sparse.csr_array, targets: sparse.csr_array) -> np.ndarray:
    """mu = diag(P Y'T) / diag(P), by blocks of rows; float32 [A]."""
    by_item, own = sparse.csr_array(targets.T), np.empty(len(precision), np.float32)
    for start in range(0, len(precision), _BLOCK):
        block = slice(start, start + _BLOCK)  # Y'T is symmetric: Y is T with its rows scaled
        shared = sparse.csr_array(by_item[block] @ inputs)
        own[block] = shared.multiply(precision[block]).sum(1)
    return own / precision.diagonal()
