"""The best few of many scores, a row for each query.

Decides ties by an order that the caller gives, so that the place of an item among the columns need not
decide; and that what has no score takes no place.
"""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from recsys.models.threads import available_threads

STRIDE = 256  # scores that are looked at together


def top_k(scores: np.ndarray, *, k: int, tie_order: np.ndarray) -> np.ndarray:
    """The k best columns of each row of float32 [B, V], best first, int32 [B, k]; -1 beyond those with a
    finite score. Equal scores are ordered by `tie_order` int [V], ascending. NaN counts as no score.

    One pass over each row with a heap of its best; threads share the rows.
    """
    ranked = np.full((len(scores), k), -1, np.int32)
    if k and scores.size:
        size = -(-len(scores) // available_threads())
        parts = [slice(start, start + size) for start in range(0, len(scores), size)]
        # Shuffled, since scores that rise from first to last would pass through the heap one and all.
        starts = np.random.default_rng(0).permutation(np.arange(0, scores.shape[1], STRIDE))
        with ThreadPoolExecutor(len(parts)) as threads:
            list(threads.map(lambda rows: _select(scores[rows], starts, tie_order, ranked[rows]), parts))
    return ranked


@numba.njit(cache=True, nogil=True)
def _select(scores: np.ndarray, starts: np.ndarray, tie_order: np.ndarray, ranked: np.ndarray) -> None:
    """`top_k` of each row into `ranked`, which is full of -1, a stretch after each of `starts`."""
    k = ranked.shape[1]
    for b in range(len(scores)):
        row, heap = scores[b], ranked[b]  # the heap's root is the worst that is kept
        kept, least = 0, np.float32(-np.inf)  # `least` = the root's score once k are kept
        for start in starts:
            stretch = row[start : start + STRIDE]
            offers = 0
            for score in stretch:  # without a branch, so in vectors; most stretches have nothing to offer
                offers += score >= least
            if not offers:
                continue
            for item in range(start, start + len(stretch)):
                score = row[item]
                if not (score >= least and score > -np.inf):
                    continue
                if kept < k:
                    place, kept = kept, kept + 1
                    while place and _worse(row, tie_order, item, heap[(place - 1) // 2]):
                        heap[place] = heap[(place - 1) // 2]
                        place = (place - 1) // 2
                    heap[place] = item
                elif _worse(row, tie_order, heap[0], item):
                    _sink(row, tie_order, heap, k, item)
                if kept == k:
                    least = row[heap[0]]
        for end in range(kept - 1, 0, -1):
            worst, last = heap[0], heap[end]
            _sink(row, tie_order, heap, end, last)
            heap[end] = worst


@numba.njit(cache=True, nogil=True)
def _worse(row: np.ndarray, tie_order: np.ndarray, one: int, other: int) -> bool:
    return row[one] < row[other] or (row[one] == row[other] and tie_order[one] > tie_order[other])


@numba.njit(cache=True, nogil=True)
def _sink(row: np.ndarray, tie_order: np.ndarray, heap: np.ndarray, size: int, item: int) -> None:
    """Puts `item` in the root's stead, and down to its place in the first `size` of the heap."""
    place = 0
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _worse(row, tie_order, heap[child + 1], heap[child]):
            child += 1
        if not _worse(row, tie_order, heap[child], item):
            break
        heap[place] = heap[child]
        place = child
    heap[place] = item


def top_k_slowly(scores: np.ndarray, *, k: int, tie_order: np.ndarray) -> np.ndarray:
    """`top_k` by its definition. For tests."""
    ranked = np.full((len(scores), k), -1, np.int32)
    for row, values in enumerate(scores):
        usable = [i for i in range(len(values)) if values[i] > -np.inf]
        best = sorted(usable, key=lambda i: (-values[i], tie_order[i]))[:k]
        ranked[row, : len(best)] = best
    return ranked
