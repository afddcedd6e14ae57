"""The values that cross borders: histories, request batches, candidates, slates.

Everything that has one entry per request, event or candidate is a numpy column; a ragged column is
`offsets` plus `values`, and the entries of request r are `values[offsets[r]:offsets[r + 1]]`.
Times are epoch seconds (UTC, int64). An item is its row in the release's vocabulary (int32): ids
appear at the borders only. Nothing here does I/O.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

HOUR, DAY = 3_600, 86_400  # seconds


class Removal(IntEnum):
    """Why a candidate is not in the slate (`Candidates.removed_by`); 0 means that it is alive."""

    ALIVE = 0
    CONSUMED = 1  # the scene hides what the user already bought
    EXCLUDED = 2  # the request named it
    UNAVAILABLE = 3
    EXPIRED = 4
    COUNTRY = 5
    AGE = 6
    RULE = 7  # an expression of the rules file
    BELOW_CUT = 8  # ranked, but not among those that diversity looked at
    DIVERSITY = 9  # ranked higher, but too like what stands above it
    BELOW_SLATE = 10  # ranked below the last place of the slate
    UNKNOWN = 11  # nobody has described it here yet: an index shard has read further
    DELETED = 12  # from the catalog, since the release


class Sources(IntFlag):
    """The bit of each source in `Candidates.source`: the pipeline's own, and every retrieval model."""

    TWO_TOWER = 1
    EASE = 2
    EASE_DECAYED = 4
    BASKET = 8
    HISTORY = 16
    POPULARITY = 32
    BACKFILL = 64
    COVISITATION = 1 << 7
    NORMALIZED_EASE = 1 << 8
    SPARSE_EASE = 1 << 9
    GRAPH_FILTER = 1 << 10
    GF_CF = 1 << 11
    BSPM = 1 << 12
    IALS = 1 << 13
    SVD = 1 << 14
    BPR = 1 << 15
    WARP = 1 << 16
    LOGISTIC = 1 << 17
    SASREC = 1 << 18
    GRU4REC = 1 << 19

    @property
    def label(self) -> str:
        return str(self.name).lower()


def ragged_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Flat indices of B runs, `starts[b] + 0 .. counts[b] - 1`, int64 [sum(counts)]."""
    counts = counts.astype(np.int64)
    before = np.cumsum(counts) - counts
    return np.repeat(starts.astype(np.int64) - before, counts) + np.arange(counts.sum())


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Offsets int32 [B + 1] of ragged entries with these counts [B]."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Histories:
    """What B users consumed, oldest first; the events of user b are rows offsets[b]:offsets[b + 1]."""

    offsets: np.ndarray  # int32 [B + 1]
    item: np.ndarray  # int32 [M] item row
    time: np.ndarray  # int64 [M] epoch seconds
    quantity: np.ndarray  # float32 [M]
    value: np.ndarray  # float32 [M] revenue of the line, or the rating; NaN = not given
    order: np.ndarray  # int64 [M] hash of the order id: lines of one basket share it

    COLUMNS = ("item", "time", "quantity", "value", "order")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def request(self) -> np.ndarray:
        """The request of each event, int64 [M]."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, requests: np.ndarray) -> "Histories":
        counts = self.counts[requests]
        rows = ragged_index(self.offsets[requests], counts)
        return Histories(offsets_of(counts), *(getattr(self, c)[rows] for c in self.COLUMNS))

    def where(self, keep: np.ndarray) -> "Histories":
        """The same users with only the events of `keep` bool [M]."""
        before = np.concatenate(([0], np.cumsum(keep)))
        offsets = before[self.offsets].astype(np.int32)
        return Histories(offsets, *(getattr(self, c)[keep] for c in self.COLUMNS))

    @classmethod
    def empty(cls, requests: int = 0) -> "Histories":
        return cls(
            offsets=np.zeros(requests + 1, np.int32),
            item=np.zeros(0, np.int32),
            time=np.zeros(0, np.int64),
            quantity=np.zeros(0, np.float32),
            value=np.zeros(0, np.float32),
            order=np.zeros(0, np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Histories"]) -> "Histories":
        """All users of `parts`, in order."""
        counts = np.concatenate([p.counts for p in parts])
        return cls(offsets_of(counts), *(np.concatenate([getattr(p, c) for p in parts]) for c in cls.COLUMNS))


@dataclass(frozen=True, slots=True)
class RequestBatch:
    """B requests that cross each stage together. The first six columns come from the request;
    `arms` from the experiments step; the rest from the hydrator."""

    user_ids: tuple[str, ...]  # [B]
    scene: tuple[str, ...]  # [B]
    n: np.ndarray  # int32 [B] items asked for
    now: np.ndarray  # int64 [B] epoch seconds
    exclude: tuple[tuple[int, ...], ...]  # [B] item rows that the request names
    country: tuple[str | None, ...] = ()
    arms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # layer -> arm [B]
    histories: Histories = field(default_factory=Histories.empty)
    user_features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [B, F]
    birth_year: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # [B], 0 = not known
    hidden: tuple[np.ndarray, ...] = ()  # [B] rows that no source may propose (consumed or excluded)
    degraded: tuple[tuple[str, ...], ...] = ()  # [B] what the answer must admit

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, requests: np.ndarray) -> "RequestBatch":
        """The batch of these requests, in this order."""

        def pick(column: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(column[r] for r in requests) if column else ()

        return replace(
            self,
            user_ids=pick(self.user_ids),
            scene=pick(self.scene),
            n=self.n[requests],
            now=self.now[requests],
            exclude=pick(self.exclude),
            country=pick(self.country),
            arms={layer: pick(arms) for layer, arms in self.arms.items()},
            histories=self.histories.take(requests) if len(self.histories) else self.histories,
            user_features=self.user_features[requests] if len(self.user_features) else self.user_features,
            birth_year=self.birth_year[requests] if len(self.birth_year) else self.birth_year,
            hidden=pick(self.hidden),
            degraded=pick(self.degraded),
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items proposed for B requests; those of request r are rows offsets[r]:offsets[r + 1].

    A stage never deletes a row: it marks `removed_by`, so that "why not" can be answered for any
    item and a test can state that no candidate is ever lost.
    """

    offsets: np.ndarray  # int32 [B + 1]
    item: np.ndarray  # int32 [N] row in the vocabulary
    score: np.ndarray  # float32 [N] the current stage's score; NaN = not scored, never 0
    source: np.ndarray  # uint32 [N] bits of `Sources`
    removed_by: np.ndarray  # uint8 [N] `Removal`
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)  # named float32 [N], NaN = none
    proposed: Mapping[str, np.ndarray] = field(default_factory=dict)  # source -> int32 [B], before merging
    degraded: tuple[tuple[str, ...], ...] = ()  # [B] what the answer must admit; () = nothing

    def __len__(self) -> int:
        return len(self.item)

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def request(self) -> np.ndarray:
        """The request of each candidate, int64 [N]."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    @property
    def alive(self) -> np.ndarray:
        return self.removed_by == Removal.ALIVE

    def rows(self, rows: np.ndarray, counts: np.ndarray) -> "Candidates":
        """The candidates at these flat rows, grouped anew with `counts` [B] a request."""
        return Candidates(
            offsets_of(counts),
            self.item[rows],
            self.score[rows],
            self.source[rows],
            self.removed_by[rows],
            {name: column[rows] for name, column in self.scores.items()},
            self.proposed,
            self.degraded,
        )

    def take(self, requests: np.ndarray) -> "Candidates":
        """The candidates of these requests, in this order."""
        counts = self.counts[requests]
        return replace(
            self.rows(ragged_index(self.offsets[requests], counts), counts),
            proposed={name: n[requests] for name, n in self.proposed.items()},
            degraded=tuple(self.degraded[r] for r in requests) if self.degraded else (),
        )

    def admit(self, what: str) -> "Candidates":
        """The same candidates, and every answer of the batch says `what`."""
        degraded = self.degraded or ((),) * (len(self.offsets) - 1)
        return replace(self, degraded=tuple((*d, what) for d in degraded))

    @classmethod
    def concatenate(cls, parts: Sequence["Candidates"]) -> "Candidates":
        """The requests of all parts, in order; a named score that a part lacks is NaN there."""
        names = sorted({name for part in parts for name in part.scores})
        return cls(
            offsets_of(np.concatenate([p.counts for p in parts])),
            np.concatenate([p.item for p in parts]),
            np.concatenate([p.score for p in parts]),
            np.concatenate([p.source for p in parts]),
            np.concatenate([p.removed_by for p in parts]),
            {
                name: np.concatenate([p.scores.get(name, np.full(len(p), np.nan, np.float32)) for p in parts])
                for name in names
            },
            {
                name: np.concatenate([p.proposed.get(name, np.zeros(len(p.counts), np.int32)) for p in parts])
                for name in sorted({name for part in parts for name in part.proposed})
            },
            tuple(d for p in parts for d in (p.degraded or ((),) * len(p.counts)))
            if any(p.degraded for p in parts)
            else (),
        )


def rank_by_score(candidates: Candidates) -> np.ndarray:
    """Rank of each candidate in its request, 0 = best: alive first, then score (NaN last); int64 [N].

    The item row breaks ties, so that equal scores come out alike on every machine and placement.
    """
    score = np.where(np.isnan(candidates.score), -np.inf, candidates.score)
    order = np.lexsort((candidates.item, -score, ~candidates.alive, candidates.request))
    rank = np.empty(len(candidates), np.int64)
    rank[order] = np.arange(len(candidates)) - candidates.offsets[:-1][candidates.request[order]]
    return rank


@dataclass(frozen=True, slots=True)
class SlateItem:
    item: int  # row
    score: float  # NaN = not ranked (backfill, or the ranker failed)
    sources: Sources


@dataclass(frozen=True, slots=True)
class Slate:
    """The ordered items of one answer."""

    slate_id: str
    user_id: str
    scene: str
    items: tuple[SlateItem, ...]
    arms: Mapping[str, str]
    degraded: tuple[str, ...]
