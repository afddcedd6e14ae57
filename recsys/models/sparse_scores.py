"""Scores of B requests over V items where most are missing: scipy CSR, never a dense B x V array.

Decides how a history becomes such a matrix (which events count how much), how the best k are
proposed and how given candidates are looked up. An absent entry is a missing score (NaN), not 0.
Loops run over requests, not over items, so that the cost follows the entries, not the catalog.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recsys.types import DAY, Histories, offsets_of


@dataclass(frozen=True, slots=True)
class Proposals:
    """What one source proposes to B requests, best first; request r: rows offsets[r]:offsets[r + 1]."""

    offsets: np.ndarray  # int32 [B + 1]
    item: np.ndarray  # int32 [N]
    score: np.ndarray  # float32 [N]


@dataclass(frozen=True, slots=True)
class HistoryWeights:
    """How fast the events of a history fade for each score; the ranker learned with these."""

    ease_decayed_half_life_days: float = 90.0  # score `ease` counts every event alike
    history_half_life_days: float = 90.0


def even_weights(histories: Histories) -> np.ndarray:
    """Every event counts alike; float32 [M]."""
    return np.ones(len(histories.item), np.float32)


def decay_weights(histories: Histories, *, now: np.ndarray, half_life_days: float) -> np.ndarray:
    """Weight of each event, 1/2 for each half-life of age at its request's `now` int64 [B]; float32 [M]."""
    age = (np.repeat(now, histories.counts) - histories.time) / DAY
    return np.exp2(-np.maximum(age, 0) / half_life_days).astype(np.float32)


def last_order_weights(histories: Histories) -> np.ndarray:
    """1 for the events of each request's newest order, 0 for all others; float32 [M]."""
    if not len(histories.item):
        return np.zeros(0, np.float32)
    newest = histories.order[np.maximum(histories.offsets[1:] - 1, 0)]
    return (histories.order == np.repeat(newest, histories.counts)).astype(np.float32)


def history_matrix(
    histories: Histories, *, weights: np.ndarray, items: int, repeats: str = "sum"
) -> sparse.csr_array:
    """The histories as CSR float32 [B, items]: the `sum` or the `max` of `weights` [M] over an item's events.

    Events of weight 0 and of rows outside 0 .. items - 1 (younger than the model) are left out.
    """
    known = (weights > 0) & (histories.item >= 0) & (histories.item < items)
    key = histories.request[known] * items + histories.item[known]
    weights = weights[known]
    order = np.argsort(key, kind="stable")
    key, weights = key[order], weights[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    combine = np.maximum if repeats == "max" else np.add
    data = combine.reduceat(weights, first) if len(key) else weights
    unique = key[first]
    indptr = np.searchsorted(unique, np.arange(len(histories) + 1) * items)
    return sparse.csr_array(
        (data.astype(np.float32), (unique % max(items, 1)).astype(np.int32), indptr.astype(np.int32)),
        shape=(len(histories), items),
    )


def propose_top(scores: sparse.csr_array, *, k: int, hidden: tuple[np.ndarray, ...] = ()) -> Proposals:
    """The k best positive entries of each row that are not among `hidden` [B] rows of items.

    Ties at the border go to the lower item row, so that a proposal never depends on batch-mates.
    """
    blocked = np.zeros(scores.shape[1], bool)
    items, values = [], []
    for request in range(scores.shape[0]):
        entries = slice(scores.indptr[request], scores.indptr[request + 1])
        item, value = scores.indices[entries], scores.data[entries]
        usable = value > 0
        if hidden and len(hidden[request]):
            inside = hidden[request][hidden[request] < len(blocked)]
            blocked[inside] = True
            usable &= ~blocked[item]
            blocked[inside] = False
        item, value = item[usable], value[usable]
        if len(value) > k:
            threshold = np.partition(value, len(value) - k)[len(value) - k]
            item, value = item[value >= threshold], value[value >= threshold]
        best = np.lexsort((item, -value))[:k]
        items.append(item[best])
        values.append(value[best])
    if not items:
        return Proposals(np.zeros(1, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    return Proposals(
        offsets_of(np.array([len(i) for i in items])),
        np.concatenate(items).astype(np.int32),
        np.concatenate(values).astype(np.float32),
    )


def look_up(scores: sparse.csr_array, *, offsets: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The score of each candidate (ragged `offsets` [B + 1], `item` [N]); float32 [N], NaN = no entry."""
    scratch = np.full(max(scores.shape[1], int(item.max(initial=-1)) + 1), np.nan, np.float32)
    found = np.empty(len(item), np.float32)
    for request in range(scores.shape[0]):
        entries = slice(scores.indptr[request], scores.indptr[request + 1])
        mine = slice(offsets[request], offsets[request + 1])
        scratch[scores.indices[entries]] = scores.data[entries]
        found[mine] = scratch[item[mine]]
        scratch[scores.indices[entries]] = np.nan
    return found
