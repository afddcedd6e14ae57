"""What a data set is, in the figures that decide which models suit it.

Counts only: nothing here depends on the names of users and items, or on their order.
"""

from dataclasses import dataclass

import numpy as np

from recsys.interactions import COLD_ITEM_EVENTS, Asked, Interactions, Timing


@dataclass(frozen=True, slots=True)
class Profile:
    users: int  # with an event
    items: int  # of the catalog
    events: int  # of a positive weight
    median_history: float  # events of a user
    density: float  # distinct pairs of user and item, over all
    explicit: float  # share of events with a value (rating)
    timing: Timing
    asked: Asked
    described: float  # share of items with content
    cold_items: float  # share of items with fewer than COLD_ITEM_EVENTS events
    repeats: float  # share of events whose user took the item before

    @property
    def ordered(self) -> bool:
        """What comes next is asked for, and the log has an order that could tell."""
        return self.timing is not Timing.NONE and self.asked in (Asked.NEXT, Asked.SESSION)


def profile(data: Interactions) -> Profile:
    """Of a log with or without events."""
    log = data.where(data.weights > 0).histories
    counts, taken = log.counts[log.counts > 0], np.bincount(log.item, minlength=data.items)
    pairs = len(np.unique(log.request * max(data.items, 1) + log.item))
    events, tokens = len(log.item), data.item_tokens
    return Profile(
        users=len(counts),
        items=data.items,
        events=events,
        median_history=float(np.median(counts)) if len(counts) else 0.0,
        density=pairs / max(len(counts) * data.items, 1),
        explicit=float(np.mean(~np.isnan(log.value))) if events else 0.0,
        timing=data.timing,
        asked=data.asked,
        described=float(np.mean(np.diff(tokens.offsets) > 0)) if tokens is not None and len(tokens) else 0.0,
        cold_items=float(np.mean(taken < COLD_ITEM_EVENTS)) if data.items else 0.0,
        repeats=(events - pairs) / max(events, 1),
    )
