"""From batches of the bus to commits of the event store: each event once, and its offset with it.

It decides what is a duplicate, gathers batches, and writes them with the offsets that they end at; the
store takes out the events of erased users. It holds nothing that can't be made anew: after any error, or
in another process, a new committer begins at the offsets of the store, reads again what was not
committed and decides alike. The store refuses the commit of a committer that was replaced.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.events.batch import Batch
from recsys.events.duplicates import SeenEvents, identities
from recsys.events.schema import PROVENANCE, REJECTED_SCHEMA, STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore
from recsys.events.validation import DUPLICATE, ERASED, LOST, split


@dataclass(frozen=True, slots=True)
class IngestionSettings:
    commit_s: float = 3.0  # between two commits of `--follow`
    commit_events: int = 500_000  # a commit comes earlier when so many wait for it
    duplicate_horizon_s: float = 3600.0  # how long an event's id is remembered
    readers: int = 2  # actors that read the bus in `--follow`, each some of its partitions
    metrics_port: int | None = None  # where `--follow` shows its metrics; null = nowhere

    def __post_init__(self) -> None:
        if not (self.commit_s > 0 and self.duplicate_horizon_s >= 0):
            raise ValueError("commit_s must be above 0 and duplicate_horizon_s 0 or more")
        if min(self.commit_events, self.readers) < 1:
            raise ValueError("commit_events and readers must be 1 or more")


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What became of the events that were read. Raises DataError if it doesn't add up."""

    read: int
    stored: int
    duplicate: int
    rejected: dict[str, int]  # reason -> events

    def __post_init__(self) -> None:
        if self.read != self.stored + self.duplicate + sum(self.rejected.values()):
            raise DataError(
                f"counts do not add up: {self}; compare the store with the source and report this bug"
            )

    def __add__(self, other: "IngestCounts") -> "IngestCounts":
        rejected = dict((Counter(self.rejected) + Counter(other.rejected)).most_common())
        duplicate = self.duplicate + other.duplicate
        return IngestCounts(self.read + other.read, self.stored + other.stored, duplicate, rejected)


@dataclass(frozen=True, slots=True)
class Committed:
    """One commit."""

    counts: IngestCounts
    offsets: dict[int, int]  # partition -> the offset after its last event
    read_lag_ms: int  # from the bus taking an event to its being read: the longest
    commit_lag_ms: int  # from the bus taking an event to its being committed: the longest


class Committer:
    """One at a time for a store and topic. After an error of any method: make a new one."""

    def __init__(
        self, store: EventStore, *, topic: str, begin: Mapping[int, int], settings: IngestionSettings
    ) -> None:
        """`begin`: partition -> offset at which to begin where the store holds nothing of it yet."""
        self.store, self.topic, self.settings = store, topic, settings
        self.committed = dict(begin) | store.committed(topic, len(begin))
        self.next = dict(self.committed)  # the offset from which each partition must be read on
        horizon_ms = int(1000 * settings.duplicate_horizon_s)
        self._seen = {p: SeenEvents(horizon_ms=horizon_ms) for p in begin}
        self._remember(horizon_ms)
        self._batches: list[Batch] = []

    @property
    def waiting(self) -> int:
        """Events that were added and are not committed."""
        return sum(len(batch.events) for batch in self._batches)

    def add(self, batch: Batch) -> None:
        """Raises DataError for a batch that does not begin where the one before ended."""
        if batch.start != self.next[batch.partition]:
            raise DataError(
                f"{self.topic} partition {batch.partition}: a batch begins at offset {batch.start}, "
                f"expected {self.next[batch.partition]}; this is a bug of the reader: report it"
            )
        self.next[batch.partition] = batch.end
        self._batches.append(batch)

    def check_lost(self, oldest: Mapping[int, int], *, accept: bool = False) -> None:
        """Whether the bus dropped events that were not ingested: what it holds begins at `oldest`.

        Raises DataError, unless they are accepted: then each is recorded as lost, so that the audit says so.
        """
        for partition, first in oldest.items():
            start = self.next[partition]
            if start >= first:
                continue
            if not accept:
                raise DataError(
                    f"{self.topic} partition {partition}: events {start} to {first - 1} left the bus before "
                    "they were ingested; raise bus.retention_hours, and go on without them by "
                    "`recsys events ingest --accept-loss`"
                )
            self.add(_lost(partition, start, first))

    def skip_to(self, partition: int, end: int) -> None:
        """Says that no event stands between the last one added and `end`."""
        self.next[partition] = max(self.next[partition], end)

    def commit(self) -> Committed | None:
        """Writes what was added; None if nothing was. Raises UnavailableError, also if replaced."""
        moved = {p: (self.committed[p], end) for p, end in self.next.items() if end > self.committed[p]}
        if not moved:
            return None
        batches, self._batches = self._batches, []
        events = pa.concat_tables([batch.events for batch in batches])
        reason = pa.chunked_array([batch.reason for batch in batches], pa.string())
        reason = self._without_duplicates(events, reason)
        stored, rejected = split(events, reason)
        taken = [int(batch.append_ms[0]) for batch in batches if len(batch.events)]
        read = [batch.read_ms - int(batch.append_ms[0]) for batch in batches if len(batch.events)]
        oldest_ms, read_lag_ms = min(taken, default=_now_ms()), max(read, default=0)
        appended = self.store.append(
            stored,
            rejected=slim(rejected),
            topic=self.topic,
            offsets=moved,
            metadata={"read_lag_ms": str(read_lag_ms), "oldest_ms": str(oldest_ms)},
        )
        self.committed = dict(self.next)
        reasons = Counter(rejected["reason"].to_pylist())
        if erased := len(stored) - appended.stored:
            reasons[ERASED] += erased
        counts = IngestCounts(
            read=len(events),
            stored=appended.stored,
            duplicate=reasons.pop(DUPLICATE, 0),
            rejected=dict(reasons.most_common()),
        )
        return Committed(
            counts=counts,
            offsets=dict(self.committed),
            read_lag_ms=read_lag_ms,
            commit_lag_ms=_now_ms() - oldest_ms,
        )

    def _without_duplicates(self, events: pa.Table, reason: pa.ChunkedArray) -> pa.ChunkedArray:
        valid = reason.is_null().to_numpy()
        hashes = identities(events)
        partition = events["partition"].to_numpy()
        append_ms = events["appended_at"].cast(pa.int64()).to_numpy() // 1000
        duplicate = np.zeros(len(events), bool)
        for number in np.unique(partition):
            rows = np.flatnonzero(valid & (partition == number))
            duplicate[rows] = ~self._seen[int(number)].new(hashes[rows], append_ms[rows])
        return pc.if_else(pa.array(duplicate), DUPLICATE, reason)

    def _remember(self, horizon_ms: int) -> None:
        """What the store took within the horizon before its last events, partition by partition."""
        if not horizon_ms or self.store.version() < 0:
            return
        places = pl.DataFrame(self.store.read(columns=["partition", "offset", "appended_at"]))
        held = pl.DataFrame(
            {"partition": list(self.committed), "end": list(self.committed.values())},
            schema={"partition": pl.Int32, "end": pl.Int64},
        )
        last = (
            places.join(held, on="partition")
            .filter(pl.col("offset") < pl.col("end"))
            .group_by("partition")
            .agg(pl.col("appended_at").max())
        )
        if not len(last):
            return
        since = min(last["appended_at"].to_list()) - timedelta(milliseconds=horizon_ms)
        ids = self.store.read(
            columns=["partition", "offset", "appended_at", "user_id", "event_id"],
            since=since,
        )
        hashes, partition, offset = identities(ids), ids["partition"].to_numpy(), ids["offset"].to_numpy()
        append_ms = ids["appended_at"].cast(pa.int64()).to_numpy() // 1000
        for number, end in self.committed.items():
            rows = (partition == number) & (offset < end)
            self._seen[number].note(hashes[rows], append_ms[rows])


def _lost(partition: int, start: int, end: int) -> Batch:
    """A batch of events of which nothing is known but that they were there."""
    count, now = end - start, _now_ms()
    known = {
        "partition": pa.array(np.full(count, partition, np.int32)),
        "offset": pa.array(np.arange(start, end)),
        "appended_at": pa.array(np.full(count, now * 1000)).cast(TIMESTAMP),
    }
    columns = [known.get(field.name, pa.nulls(count, field.type)) for field in STORED_SCHEMA]
    events = pa.Table.from_arrays(columns, schema=STORED_SCHEMA)
    return Batch(partition, start, end, events, pa.array([LOST] * count, pa.string()), now)


def _now_ms() -> int:
    return int(1000 * time.time())


def slim(rejected: pa.Table) -> pa.Table:
    """Of a duplicate, no more than its id and place; of an erased user's event, no more than its place."""
    kept = {DUPLICATE: {"event_id"}, ERASED: set[str]()}
    places = {"reason", *(field.name for field in PROVENANCE)}
    columns = []
    for field in REJECTED_SCHEMA:
        column = rejected[field.name]
        if field.name not in places:
            emptied = [reason for reason, names in kept.items() if field.name not in names]
            empty = pc.is_in(rejected["reason"], value_set=pa.array(emptied))
            column = _emptied(column, empty)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=REJECTED_SCHEMA)


def _emptied(column: pa.ChunkedArray, empty: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pc.any(empty).as_py():
        return column
    rows = pc.if_else(empty, None, pa.array(np.arange(len(column))))
    return column.take(rows)  # a null row number takes a null; `if_else` can't do maps
