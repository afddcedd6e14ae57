"""Popularity: how often each item was bought lately. The baseline that every model must beat, and the
source of last resort.

Decides that one order counts once for an item however many lines it has, and that age halves the
weight. It knows nothing of the user; what the scene hides is left out when proposing.
"""

from dataclasses import dataclass

import numpy as np

from recsys.interactions import Interactions
from recsys.models.sparse_scores import Proposals
from recsys.types import DAY, offsets_of


@dataclass(frozen=True, slots=True)
class PopularitySettings:
    window_days: float = 28.0  # older events count nothing
    half_life_days: float = float("inf")  # inf = all events in the window count alike


def popularity(interactions: Interactions, *, now: int, settings: PopularitySettings) -> np.ndarray:
    """Decayed number of orders with each item in the window before `now`; float32 [V], 0 = none."""
    log = interactions.histories
    recent = (log.time < now) & (log.time >= now - settings.window_days * DAY)
    item, order, time = log.item[recent], log.order[recent], log.time[recent]
    by_pair = np.lexsort((order, item))
    item, order, time = item[by_pair], order[by_pair], time[by_pair]
    first = np.ones(len(item), bool)
    first[1:] = (item[1:] != item[:-1]) | (order[1:] != order[:-1])
    weight = np.exp2(-((now - time[first]) / DAY) / settings.half_life_days)
    return np.bincount(item[first], weight, interactions.items).astype(np.float32)


def propose_popular(
    scores: np.ndarray, *, requests: int, k: int, hidden: tuple[np.ndarray, ...] = ()
) -> Proposals:
    """The k best items with a positive score [V] for each of B requests, without their `hidden` rows."""
    deepest = k + max((len(h) for h in hidden), default=0)
    best = np.lexsort((np.arange(len(scores)), -scores))[:deepest].astype(np.int32)
    best = best[scores[best] > 0]
    if not hidden:
        lists = [best[:k]] * requests
    else:
        blocked = np.zeros(len(scores), bool)
        lists = []
        for rows in hidden:
            inside = rows[rows < len(scores)]
            blocked[inside] = True
            lists.append(best[~blocked[best]][:k])
            blocked[inside] = False
    item = np.concatenate([*lists, np.zeros(0, np.int32)])
    return Proposals(offsets_of(np.array([len(rows) for rows in lists], int)), item, scores[item])
