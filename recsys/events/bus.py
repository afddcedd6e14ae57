"""The bus: a partitioned log with explicit offsets, and no more.

All events of one user are in one partition, in order. Whoever keeps results keeps the offsets too:
there are no consumer groups. Bodies are bytes here; `wire` says what they mean. `kafka_bus` and
`redis_bus` implement it, `open_bus` picks one by the url.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from recsys.errors import DataError, SettingsError, UnavailableError


@dataclass(frozen=True, slots=True)
class BusSettings:
    url: str | None = None  # redis://..., or kafka://host:port,host:port; null = the online store's server
    topic: str = "events"
    partitions: int = 4  # of a topic that is made; a topic that is there must have as many
    replication: int = 1  # Kafka: copies of a topic that is made; all but one must have an event
    retention_hours: float = 168.0  # of a topic that is made; .inf = for ever
    schemas: str | None = None  # further writers' schemas: a folder of *.avsc, or a schema registry's url
    # kafka-python's own: security_protocol, ...; not shown, since passwords are among them
    kafka: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if min(self.partitions, self.replication) < 1:
            raise ValueError("partitions and replication must be 1 or more")
        if not self.retention_hours > 0:
            raise ValueError(f"retention_hours must be above 0, got {self.retention_hours}")

    def of_changelog(self, log: str) -> "BusSettings":
        """The topic of that catalog changelog: one partition, kept for ever."""
        return replace(self, topic=f"{self.topic}-catalog-{log}", partitions=1, retention_hours=math.inf)


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of one partition, as they stand on the bus."""

    partition: int
    offsets: np.ndarray  # int64 [N], rising
    append_time_ms: np.ndarray  # int64 [N] epoch milliseconds at which the bus took each
    bodies: list[bytes]  # N
    end: int  # the offset to go on from: last + 1, or more where Kafka keeps a transaction's marker

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Published:
    """Where each published event stands."""

    partition: np.ndarray  # int32 [N]
    offset: np.ndarray  # int64 [N]


class Bus(Protocol):
    """What every bus can do. Errors: UnavailableError if its server does not answer."""

    topic: str
    partitions: int

    def publish(self, events: pa.Table) -> Published:
        """Appends events (EVENT_SCHEMA, ids given) and returns when the bus has acknowledged them.

        Raises DataError for an event without event or user id. After an UnavailableError some may have
        been taken: publish again, duplicates are dropped by event id.
        """

    def append(self, bodies: Sequence[bytes], *, partition: int) -> np.ndarray:
        """Appends bodies that are no events to a partition, in their order; their offsets int64 [N], when the
        bus has acknowledged them. Raises as `publish`."""

    def read(self, partition: int, *, start: int, limit: int) -> Records:
        """At most `limit` records from offset `start` on, without waiting for more; none at the end.

        Fewer than `limit` does not mean the end: go on from the answer's `end`. Raises UnavailableError
        if `start` was trimmed, or lies beyond the end of a bus that somebody emptied.
        """

    def tail(
        self, partitions: Sequence[int], *, offsets: Mapping[int, int], block_ms: int = 500, limit: int = 1000
    ) -> list[Records]:
        """What follows `offsets` (absent: 0), by partition; waits up to `block_ms` for a first record.

        At most `limit` records of each partition. A partition in which nothing but markers followed has an
        answer without records, for its `end`. Raises as `read`.
        """

    def begin_offsets(self) -> dict[int, int]:
        """For each partition the oldest offset that is still held."""

    def end_offsets(self) -> dict[int, int]:
        """For each partition the offset that the next event will get."""

    def offsets_at(self, time_ms: int) -> dict[int, int]:
        """For each partition the first offset appended at or after `time_ms`; its end if there is none."""

    def note_positions(self, reader: str, offsets: Mapping[int, int]) -> None:
        """Publishes how far `reader` has come, for tools that show lag; nothing is read from it here."""

    def close(self) -> None:
        """Gives connections back; what was published stays."""


def tell_position(bus: Bus, reader: str, offsets: Mapping[int, int]) -> None:
    """`bus.note_positions`, of which a failure is no matter: only tools look, and the next one tells."""
    with suppress(UnavailableError):
        bus.note_positions(reader, offsets)


def ids_given(events: pa.Table) -> None:
    """Raises DataError for an event without event or user id."""
    for name in ("event_id", "user_id"):
        if events[name].null_count:
            raise DataError(f"an event without {name} can't be published; validate events first")


def check_held(bus: Bus, starts: Mapping[int, int], *, where: str) -> None:
    """Raises UnavailableError for a partition that does not hold, or end with, the offset in `starts`."""
    begins, ends = bus.begin_offsets(), bus.end_offsets()
    for partition, start in starts.items():
        begin, end = begins[partition], ends[partition]
        if not begin <= start <= end:
            remedy = (
                f"what was trimmed is lost; read from {begin}, and raise bus.retention_hours"
                if start < begin
                else "somebody emptied it; restore it, or publish to a new topic and ingest into a new "
                "store.uri"
            )
            raise UnavailableError(
                f"partition {partition} of {bus.topic!r} at {where} holds offsets {begin} to {end}, "
                f"not {start}: {remedy}"
            )


def open_bus(settings: BusSettings) -> Bus:
    """The bus at `settings.url`; its topic is made if absent. Raises SettingsError, UnavailableError."""
    url = settings.url or ""
    if url.startswith("kafka://"):
        from recsys.events.kafka_bus import KafkaBus  # each only where it is used: imports cost time

        return KafkaBus(settings)
    if url.startswith(("redis://", "rediss://", "unix://")):
        from recsys.events.redis_bus import RedisStreamsBus

        return RedisStreamsBus(settings)
    raise SettingsError(f"bus.url = {settings.url!r}: give redis://host:port/0 or kafka://host:port")
