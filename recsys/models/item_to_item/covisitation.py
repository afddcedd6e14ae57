"""Co-visitation: what is taken shortly after what, with time decay on both sides.

Decides what a pair of events says by what the log knows of time: with an order, an event points at those
that come within a window after it, less the farther they are; with a clock also less the longer they are
apart; without either, or where any event may be the missing one, a history is a set, and each of its
pairs shares one unit. What a query's events count fades the same way, from its newest. With an order an
item may point at itself: what is taken again is counted like all else. Few items are taken again often
enough to be counted by, so each event also speaks for its own item, by how often that happens in all.
Same pair twice: the sum, in a set the larger; an event of weight 0 points nowhere.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numba
import numpy as np
from scipy import sparse

from recsys.interactions import Asked, Interactions, Queries, Timing
from recsys.models.item_to_item.table import ItemTable, answer_all, pair_matrix, truncate_sparse
from recsys.models.retrieval import Estimate, NamedArrays, Progress, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space, Uniform
from recsys.models.sparse_scores import history_matrix
from recsys.types import DAY, Histories

_BLOCK = 2048  # rows of the pair counts that are made at once where a history is a set


@dataclass(frozen=True, slots=True)
class FittedCovisitation(NamedArrays):
    neighbor: np.ndarray  # int32 [V, K] what comes after each item; -1 = none
    weight: np.ndarray  # float32 [V, K]
    popularity: np.ndarray  # float32 [V] weight of the events of each item; 0 = nothing taught it
    fading: np.ndarray  # float64 [2] what the next older event counts of the last, half-life in days
    again: np.ndarray  # float32 [V] what each event of a query says of its own item besides
    table: sparse.csr_array = field(init=False, repr=False, compare=False)  # of neighbors and weights, [V, V]

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", ItemTable(self.neighbor, self.weight).matrix)

    def score(self, queries: Queries) -> np.ndarray:
        """What no event reaches is at -1 to 0, the popular first; what some event reaches is above."""
        histories = queries.histories
        weights = recency_weights(histories, next_older=self.fading[0], half_life_days=self.fading[1])
        taken = history_matrix(histories, weights=weights, items=len(self.popularity), repeats="max")
        evenly = recency_weights(histories, next_older=1, half_life_days=self.fading[1])
        own = history_matrix(histories, weights=evenly, items=len(self.popularity))
        own.data *= self.again[own.indices]
        found = taken @ self.table + own
        scores = np.tile(self.popularity / self.popularity.max() - 1, (len(queries), 1))
        row = np.repeat(np.arange(len(queries)), np.diff(found.indptr))
        scores[row, found.indices] = found.data
        return answer_all(scores, reached=np.diff(found.indptr) > 0, popularity=self.popularity)

    def export(self) -> ItemTable:
        """Without what an item says of itself: what is served beside an item is another one."""
        own = self.neighbor == np.arange(len(self.neighbor))[:, None]
        return ItemTable(np.where(own, np.int32(-1), self.neighbor), np.where(own, 0, self.weight))


@dataclass(frozen=True, slots=True)
class Covisitation:
    """w(i, j) = n(i -> j) / ((n(i) + shrinkage) n(j)^damping), n(i -> j) the decayed count of j after i.

    Sequential rules (Kamehkhosh, Jannach and Ludewig 2017) with 1 / distance, over item-based top-N
    (Deshpande and Karypis 2004).
    """

    window: int = 10  # events after an event that it points at; 1 = a Markov chain
    backward: float = 0.5  # what an event says of those before it, over what it says of those after
    half_life_days: float = 30.0  # between two events on a clock
    damping: float = 0.0  # exponent of the neighbor's own frequency: 0 favors popular, 1 favors rare items
    shrinkage: float = 5.0  # added to the item's own count: evidence from few events is discounted
    next_older: float = 0.6  # what an event of a query counts, over the next younger one
    again: float = 2.0  # what each says of its own item besides, over the share of events taken again
    neighbors: int = 500

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "window": Choice((1, 2, 5, 10, 20, 50)),
        "backward": Uniform(0, 1),
        "damping": Uniform(0, 0.8),
        "shrinkage": LogUniform(0.5, 100),
        "next_older": Uniform(0.2, 1),
        "again": Uniform(0, 5),
    }

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("window", "neighbors"),
            endless=("half_life_days",),
            exponents=("damping",),
            not_negative=("backward", "shrinkage", "again"),
            shares=("next_older",),
        )

    def estimate(self, data: Interactions) -> Estimate:
        data = _as_asked(data)
        if data.timing is Timing.NONE:
            pairs = min((data.histories.counts.astype(np.float64) ** 2).sum(), float(data.items) ** 2)
            held = min(pairs, 4e7)  # made in blocks
        else:
            pairs = held = 2.0 * _pairs_within(data.histories.offsets, self.window)
        memory = 150 + 40e-6 * held + 16e-6 * data.items * self.neighbors + 60e-6 * len(data)
        return Estimate(memory, 1 + pairs / 5e6)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedCovisitation:
        """Raises DataError without an event of positive weight."""
        data = _as_asked(data.teaching())
        count = np.bincount(data.histories.item, data.weights, data.items)
        popular = np.maximum(count, 1e-12) ** self.damping
        if data.timing is Timing.NONE:
            row, column, shared = _set_pairs(data, damped=popular, keep=self.neighbors)
        else:
            row, column, shared = self._ordered_pairs(data)
        weight = shared / ((count[row] + self.shrinkage) * popular[column])
        table = truncate_sparse(row, column, weight, items=data.items, k=self.neighbors)
        next_older = 1.0 if data.timing is Timing.NONE else self.next_older
        half_life = self.half_life_days if data.timing is Timing.CLOCK else np.inf
        fading = np.array([next_older, half_life])
        again = self.again * shared[row == column].sum() / count.sum() / popular
        return FittedCovisitation(
            table.neighbor, table.weight, count.astype(np.float32), fading, again.astype(np.float32)
        )

    def _ordered_pairs(self, data: Interactions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items i, j [N] and their decayed count of j after i; where what was taken is taken again, i = j."""
        half_life = self.half_life_days * DAY if data.timing is Timing.CLOCK else np.inf
        log, size = data.histories, _pairs_within(data.histories.offsets, self.window)
        first, second, value = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.float32)
        _follow(log.offsets, log.item, log.time, data.weights, self.window, half_life, first, second, value)
        forward = sparse.csr_array((value, (first, second)), shape=(data.items, data.items))
        both = sparse.coo_array(forward + self.backward * forward.T)
        some = both.data > 0
        return both.row[some], both.col[some], both.data[some]


def _as_asked(data: Interactions) -> Interactions:
    """Without its times where a random part is asked for: on a slice of ml-100k they took 40 % of NDCG."""
    return replace(data, timing=Timing.NONE) if data.asked is Asked.MISSING else data


def recency_weights(histories: Histories, *, next_older: float, half_life_days: float) -> np.ndarray:
    """What each event counts, float32 [M]: `next_older` of the next younger one, and half for each half-life
    that it is older than the newest."""
    last = np.repeat(histories.offsets[1:].astype(np.int64) - 1, histories.counts)
    place = last - np.arange(len(histories.item))
    age = (histories.time[last] - histories.time) / DAY
    decay = place * np.log2(max(next_older, 1e-9)) - age / half_life_days
    return np.exp2(np.maximum(decay, -100)).astype(np.float32)


def ordered_pairs_slowly(data: Interactions, *, model: Covisitation) -> np.ndarray:
    """The counts n(i -> j) by their definition, dense float64 [V, V]. For tests."""
    log, found = data.histories, np.zeros((data.items, data.items))
    for user in range(data.users):
        events = range(log.offsets[user], log.offsets[user + 1])
        for a in events:
            for b in events:
                distance = abs(b - a)
                if not 0 < distance <= model.window:
                    continue
                said = data.weights[a] * data.weights[b] / distance * (1.0 if a < b else model.backward)
                if data.timing is Timing.CLOCK:
                    said *= 2.0 ** -(abs(log.time[b] - log.time[a]) / DAY / model.half_life_days)
                found[log.item[a], log.item[b]] += said
    return found


def _pairs_within(offsets: np.ndarray, window: int) -> int:
    counts = np.diff(offsets).astype(np.int64)
    short = np.minimum(counts, window)
    return int((short * counts - short * (short + 1) // 2).sum())


@numba.njit(cache=True)
def _follow(  # type: ignore[no-untyped-def]
    offsets, item, time, weight, window, half_life, first, second, value
):
    """Each pair of events of a history at most `window` apart, the older one first."""
    found = 0
    for user in range(len(offsets) - 1):
        for a in range(offsets[user], offsets[user + 1]):
            for b in range(a + 1, min(a + window + 1, offsets[user + 1])):
                first[found], second[found] = item[a], item[b]
                age = (time[b] - time[a]) / half_life
                value[found] = weight[a] * weight[b] / (b - a) * 2.0**-age
                found += 1


def _set_pairs(
    data: Interactions, *, damped: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items i, j [N] of common histories and what these say together, each history 1 over its size; of each
    i at most the `keep` largest, over `damped` float64 [V] of j."""
    pairs = pair_matrix(data)
    size = np.maximum(np.diff(pairs.indptr), 1)
    shares, by_item = sparse.csr_array(pairs / size[:, None]), sparse.csr_array(pairs.T)
    rows, columns, values = [], [], []
    for start in range(0, data.items, _BLOCK):
        block = sparse.coo_array(by_item[start : start + _BLOCK] @ shares)
        apart = block.row + start != block.col
        row, column = block.row[apart], block.col[apart]
        table = truncate_sparse(row, column, block.data[apart] / damped[column], items=block.shape[0], k=keep)
        row, place = np.nonzero(table.neighbor >= 0)
        rows.append(row + start)
        columns.append(table.neighbor[row, place])
        values.append(table.weight[row, place] * damped[columns[-1]])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)
