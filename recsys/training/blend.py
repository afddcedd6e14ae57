"""Which models to blend, and how much each counts: greedy selection on a validation slice.

Decides the weights as Caruana et al. (2004) do: again and again the model is added, once more or for the
first time, that makes the blend better by most, from the lists that each model gave; so that a model
which only repeats another gets no weight. More than one model is kept only where the blend is better
than the best alone beyond chance, since each costs its training and its time in every request.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numba
import numpy as np

from recsys.datasets.problem import Judged
from recsys.models.held_out import AT

ROUNDS = 10  # weights are tenths
CONSTANTS = (3.0, 10.0, 60.0)


@dataclass(frozen=True, slots=True)
class Weights:
    of: Mapping[str, float]  # model -> weight > 0, adding up to 1
    constant: float  # of the fusion
    gain: np.ndarray  # float64 [B] NDCG of each query


def choose_weights(lists: Mapping[str, np.ndarray], judged: Judged, *, most: int, items: int) -> Weights:
    """The best single model of `lists`, or a blend of at most `most` that is better beyond chance."""
    names, stacked = list(lists), np.stack(list(lists.values()))
    alone = [_ndcg(stacked[[n]], np.ones(1), 1.0, judged, items) for n in range(len(names))]
    best = int(np.argmax([gain.mean() for gain in alone]))
    chosen = Weights({names[best]: 1.0}, CONSTANTS[0], alone[best])
    for constant in CONSTANTS:
        counts = np.zeros(len(names))
        for _ in range(ROUNDS):
            tried = []
            for n in range(len(names)):
                more = counts + (np.arange(len(names)) == n)
                allowed = (more > 0).sum() <= most
                tried.append(_ndcg(stacked, more, constant, judged, items) if allowed else np.zeros(1))
            added = int(np.argmax([gain.mean() for gain in tried]))
            counts[added] += 1
            if (counts > 0).sum() > 1 and tried[added].mean() > chosen.gain.mean():
                of = {name: c / counts.sum() for name, c in zip(names, counts) if c}
                chosen = Weights(of, constant, tried[added])
    difference = chosen.gain - alone[best]
    if difference.mean() < 2 * difference.std() / np.sqrt(max(len(difference), 1)):
        return Weights({names[best]: 1.0}, CONSTANTS[0], alone[best])
    return chosen


def _ndcg(lists: np.ndarray, weights: np.ndarray, constant: float, judged: Judged, items: int) -> np.ndarray:
    """NDCG@AT of the fused lists int32 [M, B, DEPTH], float64 [B]."""
    return _fused_ndcg(
        lists, weights.astype(np.float32), constant, judged.target_offsets, judged.target, AT, items
    )


@numba.njit(cache=True)
def _fused_ndcg(  # type: ignore[no-untyped-def]
    lists, weights, constant, target_offsets, target, at, items
):
    """A target's rank is 1 + how many items have a larger sum of weight / (constant + rank), and half of the
    others that have the same: a blend has many, a single model none."""
    models, queries, depth = lists.shape
    total = np.zeros(items, np.float32)
    touched = np.empty(models * depth, np.int32)
    found = np.zeros(queries)
    for b in range(queries):
        n = 0
        for m in range(models):
            if weights[m] == 0:
                continue
            for place in range(depth):
                item = lists[m, b, place]
                if item < 0:
                    break
                if total[item] == 0:
                    touched[n] = item
                    n += 1
                total[item] += weights[m] / np.float32(constant + 1 + place)
        wanted = target_offsets[b + 1] - target_offsets[b]
        ideal = 0.0
        for place in range(min(wanted, at)):
            ideal += 1 / np.log2(2 + place)
        for t in range(target_offsets[b], target_offsets[b + 1]):
            own = total[target[t]]
            if own == 0:
                continue
            better = -0.5  # it is among its equals
            for k in range(n):
                better += (total[touched[k]] > own) + 0.5 * (total[touched[k]] == own)
            if better < at:
                found[b] += 1 / np.log2(2 + better) / ideal
        for k in range(n):
            total[touched[k]] = 0
    return found
