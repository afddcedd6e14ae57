"""The bus: a partitioned log with explicit offsets, and Redis Streams behind it.

Offsets of a partition are dense: 0, 1, 2, ... An event's partition is a stable hash of its user id, so
one user's events stay in order. Whoever keeps results keeps the offsets too: there are no consumer
groups. In Redis, offset n is the entry id `n-1`, given by a Lua script together with the append time,
so a number is never lost or used twice. The count of partitions is recorded at first use and can't
change: events would move to other partitions. It knows nothing of validity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import redis

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.codec import decode_events, encode_events
from recsys.events.redis_server import redis_errors, url_of
from recsys.hashing import stable_hashes

PARTITION_SALT = "bus-partition"

_APPEND = """
local time = redis.call('TIME')
local appended = time[1] * 1000 + math.floor(time[2] / 1000)
local after = redis.call('INCRBY', KEYS[2], #ARGV)
local offset = after - #ARGV
for i = 1, #ARGV do
  local id = string.format('%.0f-1', offset + i - 1)
  redis.call('XADD', KEYS[1], id, 'e', ARGV[i], 't', string.format('%.0f', appended))
end
return offset
"""


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive events of one partition."""

    partition: int
    offsets: np.ndarray  # int64 [N]
    append_time_ms: np.ndarray  # int64 [N] epoch milliseconds at which the bus took the event
    events: pa.Table  # EVENT_SCHEMA, N rows

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

    def publish(self, events: pa.Table) -> Published: ...

    def read(self, partition: int, *, start: int, limit: int) -> Records: ...

    def tail(
        self, partitions: Sequence[int], *, offsets: Mapping[int, int], block_ms: int, limit: int
    ) -> list[Records]: ...

    def end_offsets(self) -> dict[int, int]: ...


def partition_of(user_ids: Sequence[str], *, partitions: int) -> np.ndarray:
    """Partition of each user, int32 [N]."""
    return (stable_hashes(user_ids, salt=PARTITION_SALT) % np.uint64(partitions)).astype(np.int32)


class RedisStreamsBus:
    """A topic in Redis Streams (6.2 or later); nothing is trimmed."""

    def __init__(self, client: redis.Redis, *, topic: str = "events", partitions: int = 4) -> None:
        """Raises SettingsError if the topic has another count of partitions."""
        self.topic = topic
        self.partitions = partitions
        self._redis = client
        self._append = client.register_script(_APPEND)
        with redis_errors(url_of(client)):
            client.hsetnx(f"recsys:bus:{topic}", "partitions", str(partitions))
            recorded = int(client.hget(f"recsys:bus:{topic}", "partitions") or 0)
        if recorded != partitions:
            raise SettingsError(
                f"topic {topic!r} at {url_of(client)} has {recorded} partitions, not {partitions}: "
                f"set bus.partitions to {recorded}, or publish to a new topic"
            )

    def publish(self, events: pa.Table) -> Published:
        """Appends the events of each partition in order; every event needs its event and user id.

        Raises DataError for an event without them. After an UnavailableError some partitions may have
        taken theirs: publish again, duplicates are dropped by event id.
        """
        for name in ("event_id", "user_id"):
            if events[name].null_count:
                raise DataError(f"an event without {name} can't be published; validate events first")
        partition = partition_of(events["user_id"].to_pylist(), partitions=self.partitions)
        bodies = encode_events(events)
        offset = np.zeros(len(events), np.int64)
        with redis_errors(url_of(self._redis)):
            for number in np.unique(partition):
                rows = np.flatnonzero(partition == number)
                for part in np.array_split(rows, -(-len(rows) // 1000)):  # Lua's stack takes a few thousand
                    keys = [self._stream(number), self._stream(number) + ":next"]
                    first = self._append(keys=keys, args=[bodies[row] for row in part])
                    offset[part] = int(first) + np.arange(len(part))
        return Published(partition, offset)

    def read(self, partition: int, *, start: int, limit: int) -> Records:
        """At most `limit` events from offset `start` on; none if the partition ends there."""
        with redis_errors(url_of(self._redis)):
            entries = self._redis.xrange(self._stream(partition), min=f"{start}-1", count=limit)
        return self._records(partition, entries or [])

    def tail(
        self, partitions: Sequence[int], *, offsets: Mapping[int, int], block_ms: int = 500, limit: int = 1000
    ) -> list[Records]:
        """What follows `offsets` (absent: 0), waiting up to `block_ms` (at most 1 s) for a first event."""
        # Exclusive: offset n is entry n-1, the first one after n-0.
        streams: dict[Any, Any] = {self._stream(p): f"{offsets.get(p, 0)}-0" for p in partitions}
        by_stream = {self._stream(p).encode(): p for p in partitions}
        with redis_errors(url_of(self._redis)):
            answer = self._redis.xread(streams, count=limit, block=max(1, min(block_ms, 1000)))
        found = answer.items() if isinstance(answer, dict) else answer or ()
        records = [self._records(by_stream[_bytes(name)], entries) for name, entries in found]
        return sorted((r for r in records if len(r)), key=lambda r: r.partition)

    def end_offsets(self) -> dict[int, int]:
        """For each partition the offset that the next event will get."""
        keys = [self._stream(p) + ":next" for p in range(self.partitions)]
        with redis_errors(url_of(self._redis)):
            return {p: int(end or 0) for p, end in enumerate(self._redis.mget(keys))}

    def _stream(self, partition: int) -> str:
        return f"recsys:bus:{{{self.topic}:{partition}}}"

    def _records(self, partition: int, entries: Sequence[Any]) -> Records:
        offsets = np.array([int(_bytes(name).split(b"-")[0]) for name, _ in entries], np.int64)
        if len(offsets) and offsets[-1] - offsets[0] != len(offsets) - 1:
            raise UnavailableError(
                f"{self._stream(partition)} at {url_of(self._redis)} lacks offsets after {offsets[0]}: "
                "something else trims or writes it; give recsys a Redis of its own"
            )
        try:
            events = decode_events([fields[b"e"] for _, fields in entries])
        except (DataError, KeyError) as error:
            raise DataError(
                f"{self._stream(partition)} from offset {offsets[0]}: {error}; it was not written by recsys"
            ) from error
        times = np.array([int(fields[b"t"]) for _, fields in entries], np.int64)
        return Records(partition, offsets, times, events)


def _bytes(name: bytes | str) -> bytes:
    return name if isinstance(name, bytes) else name.encode()
