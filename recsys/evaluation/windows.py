"""Temporal windows: [the past | training slices of the ranker | the held-out window].

A window ends where the next begins and the last one ends with the data, so nothing that a model or
a ranker learned from happened after what it is tested on. Data in which few users come back within a
window gets longer ones: doubled until every window has enough users to learn from and to judge by. A
single stage has no ranker and needs the held-out window alone, so any data will do.
"""

from dataclasses import dataclass

import numpy as np

from recsys.datasets.splits import moment_of
from recsys.errors import DataError
from recsys.interactions import Interactions
from recsys.types import DAY

ENOUGH_USERS = 50  # who have a past and come back, in every window


@dataclass(frozen=True, slots=True)
class Windows:
    """Epoch seconds, ascending; window i is [starts[i], starts[i + 1]), the last ends at `end`."""

    starts: tuple[int, ...]
    end: int

    @property
    def held_out(self) -> int:
        """The release's moment: nothing that it serves has seen anything from then on."""
        return self.starts[-1]

    @property
    def days(self) -> int:
        return round((self.end_of(0) - self.starts[0]) / DAY)

    def end_of(self, window: int) -> int:
        return (*self.starts, self.end)[window + 1]


def choose_windows(interactions: Interactions, *, days: int, slices: int) -> Windows:
    """`slices` training windows and the held-out one, each of `days` days or a power of two more.

    The held-out window starts at the midnight (UTC) `days` before the last event. Raises DataError
    when no length gives every window enough users.
    """
    first, last = _span(interactions)
    counts = []
    length = days
    while True:
        held_out = _midnight(last, days=length)
        starts = tuple(held_out - i * length * DAY for i in range(slices, -1, -1))
        windows = Windows(starts, last + 1)
        if starts[0] <= first:
            break
        users = [_returning(interactions, s, windows.end_of(i)) for i, s in enumerate(starts)]
        if min(users) >= ENOUGH_USERS:
            return windows
        counts.append(f"{length} d: {min(users)}")
        length *= 2
    raise DataError(
        f"too few users come back: the data must span {slices + 1} windows of {days} days or more after "
        f"a first past, with {ENOUGH_USERS} returning users each "
        f"(found {'; '.join(counts) or 'a span too short'}); "
        "set training.window_days or training.slices lower, training.model to auto (a single stage), or "
        "bring more data"
    )


def held_out_window(interactions: Interactions, *, days: int) -> Windows:
    """The held-out window of a single stage: of `days` days, if enough users come back in it and half of the
    events lie before it. Else it holds the last tenth of the events; or none, after all events, where these
    have no order. Raises DataError without any event."""
    time = interactions.histories.time
    _, last = _span(interactions)
    start = _midnight(last, days=days)
    if np.mean(time < start) < 0.5 or _returning(interactions, start, last + 1) < ENOUGH_USERS:
        start = moment_of(interactions)
        if not (time < start).any():
            start = last + 1
    return Windows((start,), last + 1)


def _span(interactions: Interactions) -> tuple[int, int]:
    """The times of the first event and the last."""
    time = interactions.histories.time
    if not len(time):
        raise DataError("no interaction to learn from: ingest events first, see `recsys ingest --help`")
    return int(time.min()), int(time.max())


def _midnight(last: int, *, days: int) -> int:
    """The midnight (UTC) before the moment `days` days before `last`."""
    return (last - days * DAY) // DAY * DAY


def _returning(interactions: Interactions, start: int, end: int) -> int:
    """Users with an event before `start` and one in [start, end)."""
    log = interactions.histories
    users = len(interactions.user_ids)
    before = np.bincount(log.request[log.time < start], minlength=users) > 0
    within = np.bincount(log.request[(log.time >= start) & (log.time < end)], minlength=users) > 0
    return int((before & within).sum())
