"""From batches of the bus to commits of the event store: each event once, and its offset with it.

It decides what is a duplicate, gathers batches, and writes them with the offsets that they end at; the
store takes out the events of erased users. It holds nothing that can't be made anew: after any error, or
in another process, a new committer begins at the offsets of the store, reads again what was not
committed and decides alike. The store refuses the commit of a committer that was replaced.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError
from recsys.events.batch import Batch, append_ms
from recsys.events.duplicates import SeenEvents, identities
from recsys.events.rejected import without_content
from recsys.events.schema import REJECTED_SCHEMA, STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore
from recsys.events.validation import DUPLICATE, ERASED, LOST, split

READER = "ingestion"  # the name under which the bus is told how far the store has come


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
        held = store.committed(topic, len(begin))
        self.committed = dict(begin) | held
        self._begun = set(held)
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

    def check_held(
        self, oldest: Mapping[int, int], ends: Mapping[int, int], *, accept_loss: bool = False
    ) -> None:
        """Whether the bus, which holds [oldest, end) of each partition, holds what comes next.

        Raises DataError if it lost events. Those that were dropped before they were ingested can be
        accepted: then each is recorded as lost, so that the audit says so.
        """
        for partition, start in self.next.items():
            if start > ends[partition]:
                raise DataError(
                    f"{self.topic} partition {partition} was ingested up to {start}, but the bus ends at "
                    f"{ends[partition]}: it lost its events; ingest its new ones into another store.uri"
                )
            if start < oldest[partition] and not accept_loss:
                raise DataError(
                    f"{self.topic} partition {partition}: events {start} to {oldest[partition] - 1} left the "
                    "bus before they were ingested; raise bus.retention_hours, and go on without them by "
                    "`recsys events ingest --accept-loss`"
                )
            for first in range(start, oldest[partition], self.settings.commit_events):
                end = min(first + self.settings.commit_events, oldest[partition])
                self.add(_lost(partition, first, end))
                self.commit()

    def skip_to(self, partition: int, end: int) -> None:
        """Says that no event stands between the last one added and `end`."""
        self.next[partition] = max(self.next[partition], end)

    def commit(self) -> Committed | None:
        """Writes what was added; None if nothing was. Raises UnavailableError, also if replaced."""
        moved = {p: (self.committed[p], end) for p, end in self.next.items() if end > self.committed[p]}
        if not moved:
            return None
        batches, self._batches = self._batches, []
        # None if nothing but markers of transactions was read.
        events = pa.concat_tables([STORED_SCHEMA.empty_table(), *(batch.events for batch in batches)])
        reason = pa.chunked_array([batch.reason for batch in batches], pa.string())
        reason = self._without_duplicates(events, reason)
        stored, rejected = split(events, reason)
        again = pc.equal(rejected["reason"], DUPLICATE)
        rejected = pa.concat_tables(
            [
                rejected.filter(pc.invert(again)).cast(REJECTED_SCHEMA),
                without_content(rejected.filter(again), reason=DUPLICATE),
            ]
        )
        taken = [int(batch.append_ms[0]) for batch in batches if len(batch.events)]
        read = [batch.read_ms - int(batch.append_ms[0]) for batch in batches if len(batch.events)]
        oldest_ms, read_lag_ms = min(taken, default=_now_ms()), max(read, default=0)
        appended = self.store.append(
            stored,
            rejected=rejected,
            topic=self.topic,
            offsets=moved,
            marks=self._marks(batches, moved),
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

    def _marks(self, batches: Sequence[Batch], moved: Mapping[int, tuple[int, int]]) -> dict[str, int]:
        """Where a partition was begun, and when the bus took the last event of each."""
        marks = {begun(self.topic, p): start for p, (start, _) in moved.items() if p not in self._begun}
        self._begun |= moved.keys()
        for batch in batches:
            if len(batch.events):
                # The median, so that a producer's clock that runs ahead makes a restart forget nothing.
                marks[_taken(self.topic, batch.partition)] = int(np.median(batch.append_ms))
        return marks

    def _without_duplicates(self, events: pa.Table, reason: pa.ChunkedArray) -> pa.ChunkedArray:
        valid = reason.is_null().to_numpy()
        hashes = identities(events)
        partition = events["partition"].to_numpy()
        taken_ms = append_ms(events)
        duplicate = np.zeros(len(events), bool)
        for number in np.unique(partition):
            rows = np.flatnonzero(valid & (partition == number))
            duplicate[rows] = ~self._seen[int(number)].new(hashes[rows], taken_ms[rows])
        return pc.if_else(pa.array(duplicate), DUPLICATE, reason)

    def _remember(self, horizon_ms: int) -> None:
        """What the store took within the horizon before its last events, partition by partition."""
        if not horizon_ms or self.store.version() < 0:
            return
        last = self.store.marks([_taken(self.topic, p) for p in self.committed])
        if not last:
            return
        since = datetime.fromtimestamp((min(last.values()) - horizon_ms) / 1000, UTC)
        ids = self.store.read(
            columns=["partition", "offset", "appended_at", "user_id", "event_id"],
            since=since,
        )
        hashes, partition, offset = identities(ids), ids["partition"].to_numpy(), ids["offset"].to_numpy()
        taken_ms = append_ms(ids)
        for number, end in self.committed.items():
            rows = (partition == number) & (offset < end)
            self._seen[number].note(hashes[rows], taken_ms[rows])


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


def begun(topic: str, partition: int) -> str:
    """The mark of the first offset that was ingested."""
    return f"{topic}/{partition}/begin"


def _taken(topic: str, partition: int) -> str:
    """The mark of when the bus took the last event that was ingested, epoch milliseconds."""
    return f"{topic}/{partition}/time"
