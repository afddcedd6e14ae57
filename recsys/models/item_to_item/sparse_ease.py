"""Sparse EASE: each item predicted from its nearest neighbors alone, each by an exact ridge regression.

Decides the neighbors: the items that share the most takers with an item, for their popularity. What is
left out is the rest of the catalog, so that memory follows the neighbors and time the takers, and a
catalog of 100,000 items takes minutes where V x V would not fit. An item isn't its own neighbor, so the
diagonal is zero without being barred. Items are independent of each other: threads share them out.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numba
import numpy as np
import torch
from scipy import sparse

from recsys.interactions import Interactions, Queries
from recsys.models.item_to_item.normalized_ease import damping
from recsys.models.item_to_item.table import ItemTable, answer_all, pair_matrix, table_of, taken_matrix
from recsys.models.retrieval import Estimate, NamedArrays, Progress, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space, Uniform
from recsys.models.threads import available_threads

_BATCH_MB = 64.0  # of small Gram matrices that are solved at once, for each thread


@dataclass(frozen=True, slots=True)
class FittedSparseEase(NamedArrays):
    offsets: np.ndarray  # int64 [V + 1] row i: what taking item i says of
    column: np.ndarray  # int32 [Z] these items
    value: np.ndarray  # float32 [Z]
    popularity: np.ndarray  # float32 [V] weight of the pairs of each item; 0 = nothing taught it
    neighbors: np.ndarray  # int64 [] how many a row of the table keeps

    def score(self, queries: Queries) -> np.ndarray:
        """What no event reaches has 0, and among these the popular come first."""
        taken = taken_matrix(queries, items=len(self.popularity))
        taken.data[self.popularity[taken.indices] == 0] = 0
        taken.eliminate_zeros()
        scores = (taken @ self._weights()).toarray()
        scores += self.popularity * np.float32(1e-6 / self.popularity.max())
        return answer_all(scores, reached=np.diff(taken.indptr) > 0, popularity=self.popularity)

    def export(self) -> ItemTable:
        items, weights = len(self.popularity), self._weights()
        every = np.arange(items)
        return table_of(lambda a, b: weights[a:b].toarray(), every, items=items, k=int(self.neighbors))

    def _weights(self) -> sparse.csr_array:
        items = len(self.popularity)
        return sparse.csr_array((self.value, self.column, self.offsets), shape=(items, items))


@dataclass(frozen=True, slots=True)
class SparseEase:
    """`NormalizedEase`, item by item on its `neighborhood` S: w = (Y_S'Y_S + lambda I)^-1 Y_S't_j.

    The neighborhood ridge of SLIM's family (Ning and Karypis 2011; Steck 2019 for the closed form). With
    exponents of 0 and every item in every neighborhood it is EASE.
    """

    neighborhood: int = 200  # m: items that predict one item
    regularization: float = 8.0  # lambda over the mean diagonal of Y'Y
    user_exponent: float = 0.5  # c, see `NormalizedEase`
    item_exponent: float = 0.2  # a
    neighbors: int = 200  # k of the exported table

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "neighborhood": Choice((50, 100, 200, 400)),
        "regularization": LogUniform(1, 100),
        "user_exponent": Uniform(0, 1),
        "item_exponent": Uniform(0, 0.6),
    }

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("neighborhood", "neighbors"),
            positive=("regularization",),
            exponents=("user_exponent", "item_exponent"),
        )

    def estimate(self, data: Interactions) -> Estimate:
        items = len(np.unique(data.histories.item))
        memory = 200 + 3 * _BATCH_MB * available_threads() + 28e-6 * items * self.neighborhood
        counts = data.histories.counts.astype(np.float64)
        scanned = float((counts**2).sum()) * (1 + self.neighborhood / 4)
        work = scanned / 1e9 + items * self.neighborhood**3 / 3e9
        return Estimate(memory + 90e-6 * len(data), 3 + work)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedSparseEase:
        """Raises DataError without an event of positive weight."""
        pairs = pair_matrix(data)
        popularity = np.asarray(pairs.sum(0), np.float32)
        users = damping(np.asarray(pairs.sum(1)), self.user_exponent)
        targets = sparse.csr_array(pairs * damping(popularity, self.item_exponent))
        by_item = sparse.csr_array(targets.T)
        mean = ((targets.multiply(users[:, None])).power(2).sum(0))[popularity > 0].mean()
        active = np.flatnonzero(popularity > 0)
        m = max(1, min(self.neighborhood, len(active) - 1))
        size = max(1, int(_BATCH_MB * 1e6 / 4 / m**2))
        batches = [active[start : start + size] for start in range(0, len(active), size)]
        ridge = np.float32(self.regularization * mean)

        def solve(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            chosen = np.full((len(batch), m), -1, np.int32)
            gram, wanted = np.zeros((len(batch), m, m), np.float32), np.zeros((len(batch), m), np.float32)
            _neighborhoods(*_csr(by_item), *_csr(targets), popularity, users, batch, chosen, gram, wanted)
            gram[:, np.arange(m), np.arange(m)] += ridge
            factor = torch.linalg.cholesky(torch.from_numpy(gram))
            found = torch.cholesky_solve(torch.from_numpy(wanted)[:, :, None], factor)[:, :, 0].numpy()
            return chosen, found

        chosen, weight = [], []
        with ThreadPoolExecutor(available_threads()) as pool:
            for done, (rows, values) in enumerate(pool.map(solve, batches)):
                progress(done / len(batches), f"{len(active):,} ridge regressions")
                chosen.append(rows)
                weight.append(values)
        source, value = np.concatenate(chosen).ravel(), np.concatenate(weight).ravel()
        target = np.repeat(active, m)
        given = (source >= 0) & (value != 0)
        scale = damping(popularity, self.item_exponent)
        matrix = sparse.csr_array(
            (value[given] * scale[source[given]], (source[given], target[given])), shape=(data.items,) * 2
        )
        return FittedSparseEase(
            matrix.indptr.astype(np.int64),
            matrix.indices.astype(np.int32),
            matrix.data.astype(np.float32),
            popularity,
            np.asarray(self.neighbors),
        )


def _csr(matrix: sparse.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return matrix.indptr, matrix.indices, matrix.data


@numba.njit(nogil=True, cache=True, fastmath=True)
def _neighborhoods(  # type: ignore[no-untyped-def]
    item_offsets, taker, taker_value, user_offsets, item, value, popularity, user_scale, batch,
    chosen, gram, wanted,
):  # fmt: skip
    """Of each item of `batch` [n]: its neighbors into `chosen` [n, m], best first, their Gram matrix into
    `gram` [n, m, m] (lower half, diagonal included), what they share with the item into `wanted` [n, m]."""
    items, m = len(popularity), chosen.shape[1]
    shared = np.zeros(items, np.float32)
    seen = np.empty(items, np.int32)
    place = np.full(items, -1, np.int32)
    for b in range(len(batch)):
        j, found = batch[b], 0
        for entry in range(item_offsets[j], item_offsets[j + 1]):
            u = taker[entry]
            weight = taker_value[entry] * user_scale[u]
            for other in range(user_offsets[u], user_offsets[u + 1]):
                i = item[other]
                if shared[i] == 0:
                    seen[found] = i
                    found += 1
                shared[i] += weight * value[other]
        nearness = np.empty(found, np.float32)
        for n in range(found):
            i = seen[n]
            nearness[n] = 0 if i == j else -shared[i] / np.sqrt(popularity[i])
        count = 0
        for n in np.argsort(nearness, kind="mergesort")[:m]:
            if nearness[n] < 0:
                i = seen[n]
                chosen[b, count], wanted[b, count] = i, shared[i]
                place[i] = count
                count += 1
        for n in range(found):
            shared[seen[n]] = 0
        for s in range(count):
            i = chosen[b, s]
            row = gram[b, s]
            for entry in range(item_offsets[i], item_offsets[i + 1]):
                u = taker[entry]
                weight = taker_value[entry] * user_scale[u] * user_scale[u]
                for other in range(user_offsets[u], user_offsets[u + 1]):
                    p = place[item[other]]
                    if p >= 0:
                        row[p] += weight * value[other]
        for s in range(count):
            place[chosen[b, s]] = -1
