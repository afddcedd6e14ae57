"""Point-in-time cuts of the interaction log: what was known of a user strictly before a moment.

Decides the one meaning of "history": events before `now`, never at it, at most the newest
`MAX_HISTORY`. Training and materialization cut here; the online store keeps the same cut.
"""

import numpy as np

from recsys.interactions import Interactions
from recsys.types import Histories, offsets_of, ragged_index

MAX_HISTORY = 2048  # events; the newest are kept


def histories_at(
    interactions: Interactions, *, users: np.ndarray, now: np.ndarray, max_history: int = MAX_HISTORY
) -> Histories:
    """The histories of `users` int [B] (codes), each cut strictly before its own `now` int64 [B].

    A user may be asked for several times, at several moments.
    """
    log = interactions.histories
    start, end = _event_range(log, users, now)
    counts = np.minimum(end - start, max_history)
    rows = ragged_index(end - counts, counts)
    return Histories(offsets_of(counts), *(getattr(log, column)[rows] for column in Histories.COLUMNS))


def _event_range(log: Histories, users: np.ndarray, now: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [start, end) of each user's events before `now`: one bisection for all users at once."""
    start = log.offsets[users].astype(np.int64)
    low, high = start.copy(), log.offsets[np.asarray(users) + 1].astype(np.int64)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        earlier = open_ & (log.time[np.minimum(middle, len(log.time) - 1)] < now)
        low = np.where(earlier, middle + 1, low)
        high = np.where(open_ & ~earlier, middle, high)
    return start, low
