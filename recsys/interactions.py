"""What models learn from and are asked: interactions, the content of items and users, queries.

Decides how little a data set must bring: who and what; weights, values, times, and content where
there are any. `Timing` says what the times mean, so that no model takes an invented order for a
clock; `Asked` what a model will be asked, so that it validates by such questions. Items and users
are numbers here; ids appear at the borders only. Nothing here does I/O.
"""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from recsys.errors import DataError
from recsys.types import DAY, Histories, offsets_of

COLD_ITEM_EVENTS = 5  # an item with fewer training events is a cold item


class Timing(Enum):
    CLOCK = "clock"  # epoch seconds
    SEQUENCE = "sequence"  # only the order within a history means something: its events are a day apart
    NONE = "none"  # a history is a set; all times are 0


class Asked(Enum):
    """What queries will want to know."""

    NEXT = "next"  # what somebody takes after all that is known of them
    MISSING = "missing"  # a random part of what somebody took
    OTHER = "other"  # other things that somebody took; nobody says how they were set apart
    SESSION = "session"  # what comes next in a session: users are sessions, and whoever asks is a stranger


@dataclass(frozen=True, slots=True)
class Tokens:
    """Hashed tokens of n things (title words, categories, attributes); those of thing i are
    id[offsets[i]:offsets[i + 1]]. A model folds them into as many buckets as it has."""

    offsets: np.ndarray  # int32 [n + 1]
    id: np.ndarray  # int32 [T], 0 or more

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class Interactions:
    """The training log: the histories of all users, and who they are.

    `histories` is sorted by user code, then time. Rows are item rows of the catalog. A pair may stand
    in it several times; an event of weight 0 is known, but teaches nothing.
    """

    user_ids: np.ndarray  # str objects [U]; position = user code
    histories: Histories  # of all U users
    items: int  # V: rows 0 .. V - 1 exist
    weight: np.ndarray | None = None  # float32 [M] >= 0, how much each event says; None = all alike
    timing: Timing = Timing.CLOCK
    asked: Asked = Asked.NEXT
    repeats: bool = False  # what a user took before is asked for, too, and is ranked
    item_tokens: Tokens | None = None  # content of the V items
    user_tokens: Tokens | None = None  # attributes of the U users

    def __len__(self) -> int:
        return len(self.histories.item)

    @property
    def users(self) -> int:
        return len(self.user_ids)

    @property
    def weights(self) -> np.ndarray:
        """`weight`, or ones; float32 [M]."""
        return np.ones(len(self), np.float32) if self.weight is None else self.weight

    def before(self, now: int) -> "Interactions":
        """Only what happened strictly before `now`; users stay, items first seen later lose their events."""
        return self.where(self.histories.time < now)

    def below(self, items: int) -> "Interactions":
        """Only the rows 0 .. items - 1, their content, and what happened to them."""
        told = self.item_tokens
        if told is not None:
            told = Tokens(told.offsets[: items + 1], told.id[: told.offsets[items]])
        return replace(self.where(self.histories.item < items), items=items, item_tokens=told)

    def where(self, keep: np.ndarray) -> "Interactions":
        """The same users and items with only the events of `keep` bool [M]."""
        weight = None if self.weight is None else self.weight[keep]
        return replace(self, histories=self.histories.where(keep), weight=weight)

    def teaching(self) -> "Interactions":
        """Only the events of positive weight. Raises DataError without any."""
        taught = self if self.weight is None else self.where(self.weight > 0)
        if not len(taught):
            raise DataError("no interaction of a positive weight to learn from")
        return taught


@dataclass(frozen=True, slots=True)
class Queries:
    """B times the question what comes next, for somebody with a history."""

    user: np.ndarray  # int64 [B] user code; -1 = not among the users that were trained on
    histories: Histories  # [B] all that is known of them; may be empty
    now: np.ndarray  # int64 [B] the moment of the question, in the time of `histories`

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "Queries":
        return Queries(self.user[rows], self.histories.take(rows), self.now[rows])


def interactions_from_pairs(
    user: np.ndarray,
    item: np.ndarray,
    *,
    users: int,
    items: int,
    time: np.ndarray | None = None,
    value: np.ndarray | None = None,
    timing: Timing = Timing.NONE,
) -> Interactions:
    """The log of N events given by columns: `user` and `item` int [N], codes; `value` = ratings.

    With `Timing.SEQUENCE` the order of the rows is the order of a user's events, and `time` is made.
    User ids are the codes as text.
    """
    if timing is Timing.CLOCK:
        assert time is not None, "a clock needs times"
        order = np.lexsort((np.arange(len(user)), time, user))
    else:
        order = np.argsort(user, kind="stable")
    counts = np.bincount(user, minlength=users)
    offsets = offsets_of(counts)
    if timing is Timing.CLOCK and time is not None:
        times = time[order].astype(np.int64)
    elif timing is Timing.SEQUENCE:
        times = (np.arange(len(user)) - np.repeat(offsets[:-1], counts)).astype(np.int64) * DAY
    else:
        times = np.zeros(len(user), np.int64)
    histories = Histories(
        offsets=offsets,
        item=item[order].astype(np.int32),
        time=times,
        quantity=np.ones(len(user), np.float32),
        value=np.full(len(user), np.nan, np.float32) if value is None else value[order].astype(np.float32),
        order=np.arange(len(user), dtype=np.int64),
    )
    ids = np.arange(users).astype(str).astype(object)
    asked = Asked.OTHER if timing is Timing.NONE else Asked.NEXT
    return Interactions(ids, histories, items, timing=timing, asked=asked)
