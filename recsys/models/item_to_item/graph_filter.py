"""Graph filters: a history as a signal on the items, blurred along who took what, then sharpened.

Decides that the whole filter is linear and never a V x V matrix: a query passes through the normalized
user-item matrix and back, a low-pass over the leading singular vectors is added, and what blurring smeared
is taken back by powers of the same operator. Nothing is trained but the singular vectors. Who took what
counts; when does not. Strangers and known users are answered alike, by their history.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import sparse

from recsys.interactions import Interactions, Queries
from recsys.models.item_to_item.normalized_ease import damping
from recsys.models.item_to_item.table import ItemTable, answer_all, pair_matrix, table_of, taken_matrix
from recsys.models.retrieval import Estimate, NamedArrays, Progress, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space, Uniform
from recsys.models.sparse_products import CHUNK, product
from recsys.models.spectral import EXTRA, ROUNDS, singular_vectors

MOST_FACTORS = 1024
LOW_PASS_EXPONENT = 0.5  # of the items' degrees around the singular vectors, as in GF-CF


@dataclass(frozen=True, slots=True)
class FittedGraphFilter(NamedArrays):
    offsets: np.ndarray  # int32 [U + 1] N, who took what, normalized, largest singular value 1: row u has
    column: np.ndarray  # int32 [Z] these items
    value: np.ndarray  # float32 [Z] with these values
    series: np.ndarray  # float32 [terms] coefficient of each power of N'N after the first
    into: np.ndarray  # float32 [V, K] a history to its K low frequencies
    out_of: np.ndarray  # float32 [K, V] and those to scores
    popularity: np.ndarray  # float32 [V] weight of the pairs of each item; 0 = nothing taught it
    neighbors: np.ndarray  # int64 [] how many a row of the table keeps

    def score(self, queries: Queries) -> np.ndarray:
        taken = taken_matrix(queries, items=len(self.popularity))
        taken.data[self.popularity[taken.indices] == 0] = 0
        taken.eliminate_zeros()
        scores = self._filter(taken)
        return answer_all(scores, reached=np.diff(taken.indptr) > 0, popularity=self.popularity)

    def export(self) -> ItemTable:
        """The filter of each item alone, without the item itself, which none wants next."""
        active = np.flatnonzero(self.popularity > 0)
        ones = sparse.eye_array(len(self.popularity), format="csr", dtype=np.float32)[active]

        def rows(start: int, stop: int) -> np.ndarray:
            block = self._filter(sparse.csr_array(ones[start:stop]))[:, active]
            block[np.arange(stop - start), np.arange(start, stop)] = 0
            return block

        return table_of(rows, active, items=len(self.popularity), k=int(self.neighbors))

    def _filter(self, taken: sparse.csr_array) -> np.ndarray:
        """h (N' (sum over t of series[t] (N N')^t) N + into out_of) for each row h of CSR [B, V]."""
        users, items = len(self.offsets) - 1, len(self.popularity)
        graph = sparse.csr_array((self.value, self.column, self.offsets), shape=(users, items))
        back = sparse.csr_array(graph.T)
        found = np.empty(taken.shape, np.float32)
        for start in range(0, taken.shape[0], CHUNK):
            block = taken[start : start + CHUNK]
            signal = (graph @ block.T).toarray()  # [U, b]
            total = self.series[0] * signal
            for coefficient in self.series[1:]:
                signal = product(graph, product(back, signal))
                total += coefficient * signal
            found[start : start + CHUNK] = product(back, total).T
            found[start : start + CHUNK] += (block @ self.into) @ self.out_of
        return found


@dataclass(frozen=True, slots=True)
class GraphFilter:
    """h (N'N (I - T N'N + T^2/2 (N'N)^2 ...) + w D^-1/2 V V' D^1/2), V the K leading singular vectors of N.

    N = D_U^(-q/2) X D_I^-s, scaled to a largest singular value of 1, X [U, V] who took what (a pair counts
    once, with its largest weight). The first term is one heat step, sharpened by `terms` - 1 terms of
    exp(-T N'N); the second an ideal low-pass, which favors popular items where the first does not. With
    q = 1, s = 1/2, T = 0 it is GF-CF (Shen et al. 2021); see `Bspm` for its successor. Milder exponents and
    a low-pass that isn't sharpened find more of what is held out at random, on four data sets; where the
    test is of a later time than training (gowalla's, by its items' frequencies), theirs hold their own.
    """

    user_exponent: float = 0.7  # q
    item_exponent: float = 0.45  # s
    sharpen: float = 1.5  # T
    terms: int = 5  # of the sharpening series, the first being 1
    low_pass: float = 0.1  # w
    factors: int | None = None  # K; None = a 50th of the items, a 20th of the users, at most MOST_FACTORS
    sharpen_low_pass: bool = False
    neighbors: int = 200  # k of the exported table

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "user_exponent": Uniform(0.3, 1),
        "item_exponent": Uniform(0.2, 0.6),
        "sharpen": Uniform(0, 3),
        "low_pass": LogUniform(0.01, 1),
    }

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("terms", "factors", "neighbors"),
            not_negative=("sharpen", "low_pass"),
            exponents=("user_exponent", "item_exponent"),
        )

    def estimate(self, data: Interactions) -> Estimate:
        users = max(int((data.histories.counts > 0).sum()), 1)
        items = max(len(np.unique(data.histories.item)), 1)
        width = self._factors(users, items) + EXTRA
        memory = 150 + 4e-6 * width * (5 * data.items + 2 * data.users) + 60e-6 * len(data)
        work = ROUNDS * width * (2 * len(data) + 4.0 * data.items * width)
        return Estimate(memory, 1 + work / 1e10)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedGraphFilter:
        """Raises DataError without an event of positive weight."""
        pairs = pair_matrix(data)
        popularity, activity = np.asarray(pairs.sum(0), np.float32), np.asarray(pairs.sum(1))
        users = damping(activity, self.user_exponent / 2)
        graph = sparse.csr_array(pairs * users[:, None] * damping(popularity, self.item_exponent))
        k = self._factors(int((activity > 0).sum()), int((popularity > 0).sum()))
        vectors, values = singular_vectors(graph, k=k, seed=seed, progress=progress)
        graph.data /= np.float32(values[0])
        # series[t] = (-T)^t / t!
        steps = np.arange(1, self.terms)
        series = np.cumprod(np.concatenate(([1.0], -self.sharpen / steps))).astype(np.float32)
        degree = damping(popularity, -LOW_PASS_EXPONENT)
        out_of = np.float32(self.low_pass) * (vectors * degree[:, None]).T
        if self.sharpen_low_pass:
            out_of = _sharpened(out_of, graph, series)
        return FittedGraphFilter(
            graph.indptr.astype(np.int32),
            graph.indices.astype(np.int32),
            graph.data,
            series,
            np.ascontiguousarray(vectors / degree[:, None]),
            np.ascontiguousarray(out_of),
            popularity,
            np.asarray(self.neighbors),
        )

    def _factors(self, users: int, items: int) -> int:
        """K for so many users and items that take part."""
        wanted = self.factors or min(MOST_FACTORS, items // 50, users // 20)
        return max(1, min(wanted, users, items))


@dataclass(frozen=True, slots=True)
class GfCf(GraphFilter):
    """GF-CF (Shen et al. 2021, "How powerful is graph convolution for recommendation?")."""

    user_exponent: float = 1.0
    item_exponent: float = 0.5
    sharpen: float = 0.0
    terms: int = 1
    low_pass: float = 0.3
    factors: int | None = 256

    space: ClassVar[Space] = {"factors": Choice((32, 64, 128, 256, 512)), "low_pass": LogUniform(0.03, 3)}


@dataclass(frozen=True, slots=True)
class Bspm(GraphFilter):
    """Blurring-sharpening process (BSPM, Choi et al. 2023): one heat step and .3 of an ideal
    low-pass, then dh/dt = -h N'N until `sharpen`, in one Runge-Kutta step: five terms of the series."""

    user_exponent: float = 1.0
    item_exponent: float = 0.5
    sharpen: float = 2.5
    terms: int = 5
    low_pass: float = 0.3
    factors: int | None = 448
    sharpen_low_pass: bool = True

    space: ClassVar[Space] = {
        "factors": Choice((64, 128, 256, 448, 768)),
        "sharpen": Uniform(0.5, 4),
        "low_pass": LogUniform(0.03, 3),
    }


def _sharpened(rows: np.ndarray, graph: sparse.csr_array, series: np.ndarray) -> np.ndarray:
    """rows (sum over t of series[t] (N'N)^t), float32 [K, V]."""
    back = sparse.csr_array(graph.T)
    power, total = rows.T, series[0] * rows
    for coefficient in series[1:]:
        power = product(back, product(graph, power))
        total = total + coefficient * power.T
    return total
