"""Popularity: how often each item was taken lately. The baseline that every model must beat, and the source
of last resort.

Decides that one order counts once for an item however many lines it has, by the weightiest of them, that
age halves the weight, and how far a segment of users may differ from everyone: as far as its events
show that it does. Of the user it knows nothing but that segment; what the scene hides is left out when
proposing.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recsys.interactions import Interactions, Queries, Timing, Tokens
from recsys.models.retrieval import Arrays, Estimate, NamedArrays, Progress, Vectors, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space
from recsys.models.sparse_scores import Proposals
from recsys.types import DAY, offsets_of, ragged_index

MOST_SEGMENTS = 64  # attributes of users that are told apart: the most frequent ones
LEAST_USERS = 20  # that an attribute has, to be told apart
HALF_LIFE_SHARE = 0.1  # of the time that the log spans


@dataclass(frozen=True, slots=True)
class SegmentEncoder(NamedArrays):
    """Queries to the weight of everyone, then of each of S segments. A stranger is of everyone."""

    offsets: np.ndarray  # int64 [U + 1] the segments of user u
    segment: np.ndarray  # int32 [N] 0 .. S - 1
    segments: np.ndarray  # int64 [] S

    def encode(self, queries: Queries) -> np.ndarray:
        """float32 [B, 1 + S]: 1 / n for each of a user's n segments, or all for everyone; a user of a later
        log is a stranger."""
        found = np.zeros((len(queries), 1 + int(self.segments)), np.float32)
        known = (queries.user >= 0) & (queries.user < len(self.offsets) - 1)
        counts = np.zeros(len(queries), np.int64)
        counts[known] = np.diff(self.offsets)[queries.user[known]]
        some = np.flatnonzero(counts)
        rows = ragged_index(self.offsets[queries.user[some]], counts[some])
        found[np.repeat(some, counts[some]), 1 + self.segment[rows]] = 1 / np.repeat(
            counts[some], counts[some]
        )
        found[counts == 0, 0] = 1
        return found


@dataclass(frozen=True, slots=True)
class FittedPopularity:
    items: np.ndarray  # float32 [V, 1 + S] log of its share of events, everyone's and segments'; NaN = none
    encoder: SegmentEncoder

    def score(self, queries: Queries) -> np.ndarray:
        scores = self.encoder.encode(queries) @ np.nan_to_num(self.items).T
        scores[:, np.isnan(self.items[:, 0])] = -np.inf
        return scores

    def arrays(self) -> Arrays:
        return {"items": self.items, **self.encoder.arrays()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "FittedPopularity":
        return cls(arrays["items"], SegmentEncoder.from_arrays(arrays))

    def export(self) -> Vectors:
        return Vectors(self.items, self.encoder)


@dataclass(frozen=True, slots=True)
class Popularity:
    """Share of the decayed events, in the mean of logarithms over the segments that a user is in.

    A segment's share is (c + m p) / (n + m): its own count c of n, and m events as everyone's share p has
    them; m is the moment estimate of a Dirichlet prior, which is large where the segment is like everyone.
    """

    half_life_days: float | None = None  # on a clock; None = HALF_LIFE_SHARE of the log's span
    segments: bool = True  # by attributes of users, where there are any

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {"half_life_days": LogUniform(1, 1000), "segments": Choice((True, False))}

    def __post_init__(self) -> None:
        check_settings(self, endless=("half_life_days",))

    def estimate(self, data: Interactions) -> Estimate:
        columns = 1 + (MOST_SEGMENTS if self.segments and data.user_tokens is not None else 0)
        return Estimate(100 + 60e-6 * len(data) + 24e-6 * columns * data.items, 0.1 + len(data) / 1e6)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> FittedPopularity:
        """Raises DataError without an event of positive weight."""
        data = data.teaching()
        log, now, half_life = data.histories, 0, np.inf
        if data.timing is Timing.CLOCK:
            now = int(log.time.max())
            span = (now - int(log.time.min())) / DAY
            half_life = span * HALF_LIFE_SHARE if self.half_life_days is None else self.half_life_days
        weight = _decayed(data, now=now, half_life_days=half_life)
        count = np.bincount(log.item, weight, data.items)
        offsets, segment, segments = _segments(data.user_tokens if self.segments else None, users=data.users)
        columns = [count / count.sum()]
        for s in range(segments):
            inside = np.zeros(data.users, bool)
            inside[np.repeat(np.arange(data.users), np.diff(offsets))[segment == s]] = True
            own = np.bincount(log.item, weight * inside[log.request], data.items)
            columns.append(shrunken_share(own, columns[0]))
        with np.errstate(divide="ignore"):
            items = np.log(np.stack(columns, axis=1))
        items[count == 0] = np.nan
        return FittedPopularity(
            items.astype(np.float32), SegmentEncoder(offsets, segment, np.asarray(segments))
        )


def shrunken_share(count: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(count + m share) / (n + m) of `count` [V], n in all, and everyone's `share` [V]; float64 [V].

    Under a Dirichlet prior of m events, Pearson's statistic over its degrees of freedom is expected to be
    (n + m) / (1 + m): solved for m, and m without bound where it is 1 or less.
    """
    some, n = share > 0, count.sum()
    if n == 0 or some.sum() < 2:
        return share
    excess = ((count[some] - n * share[some]) ** 2 / (n * share[some])).sum() / (some.sum() - 1)
    if excess <= 1:
        return share
    prior = max(n - excess, 1.0) / (excess - 1)
    return (count + prior * share) / (n + prior)


def _segments(tokens: Tokens | None, *, users: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Ragged offsets int64 [U + 1] and segments int32 [N] of each user, and how many segments there are."""
    if tokens is None:
        return np.zeros(users + 1, np.int64), np.zeros(0, np.int32), 0
    owner = np.repeat(np.arange(users), np.diff(tokens.offsets))
    pairs = np.unique(np.stack((owner, tokens.id), axis=1), axis=0)
    ids, counts = np.unique(pairs[:, 1], return_counts=True)
    # What nearly everyone has tells nobody apart.
    telling = np.flatnonzero((counts >= LEAST_USERS) & (counts < users))
    kept = np.sort(ids[telling[np.argsort(-counts[telling], kind="stable")][:MOST_SEGMENTS]])
    pairs = pairs[np.isin(pairs[:, 1], kept)]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(pairs[:, 0], minlength=users)))).astype(np.int64)
    return offsets, np.searchsorted(kept, pairs[:, 1]).astype(np.int32), len(kept)


def _decayed(data: Interactions, *, now: int, half_life_days: float) -> np.ndarray:
    """What each event counts at `now`, float64 [M]: its weight, decayed; 0 for the lines of an order that
    has a weightier one of the item."""
    log, weight = data.histories, data.weights.astype(np.float64)
    by_pair = np.lexsort((-weight, log.order, log.item))
    item, order = log.item[by_pair], log.order[by_pair]
    weight[by_pair[1:][(item[1:] == item[:-1]) & (order[1:] == order[:-1])]] = 0
    # At most 100 half-lives, so that nothing that was ever taken counts as never taken.
    age = np.clip((now - log.time) / DAY / max(half_life_days, 1e-9), 0, 100)
    return weight * np.exp2(-age)


@dataclass(frozen=True, slots=True)
class PopularitySettings:
    """Of the column in a release."""

    window_days: float = 28.0  # older events count nothing
    half_life_days: float = float("inf")  # inf = all events in the window count alike


def popularity(interactions: Interactions, *, now: int, settings: PopularitySettings) -> np.ndarray:
    """Decayed number of orders with each item in the window before `now`; float32 [V], 0 = none."""
    time = interactions.histories.time
    recent = interactions.where((time < now) & (time >= now - settings.window_days * DAY))
    weight = _decayed(recent, now=now, half_life_days=settings.half_life_days)
    return np.bincount(recent.histories.item, weight, interactions.items).astype(np.float32)


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
