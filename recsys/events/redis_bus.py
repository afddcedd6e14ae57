"""The bus on Redis Streams (6.2 or later).

Offset n of a partition is the entry id `n-1`, given by a Lua script together with the append time, so
offsets are dense and none is lost or used twice. An event's partition is a stable hash of its user id;
the count of partitions is recorded at first use. What is older than the retention is trimmed now and
then, but never what a reader with a noted position has not read. May be shared by threads.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from recsys.errors import SettingsError, UnavailableError
from recsys.events.bus import BusSettings, Published, Records, check_held, ids_given
from recsys.events.redis_server import connect, redis_errors, url_of
from recsys.events.wire import encode
from recsys.hashing import stable_hashes

PARTITION_SALT = "bus-partition"
_CHUNK = 1000  # Lua's stack takes a few thousand values
_TRIM_EVERY_S = 60.0

_APPEND = """
local time = redis.call('TIME')
local appended = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local offset = redis.call('INCRBY', KEYS[2], #ARGV) - #ARGV
for i = 1, #ARGV do
  redis.call('XADD', KEYS[1], string.format('%.0f-1', offset + i - 1), 'e', ARGV[i], 't', appended)
end
return offset
"""


def partition_of(user_ids: Sequence[str], *, partitions: int) -> np.ndarray:
    """Partition of each user, int32 [N]."""
    return (stable_hashes(user_ids, salt=PARTITION_SALT) % np.uint64(partitions)).astype(np.int32)


class RedisStreamsBus:
    """A topic in Redis, made if it is absent."""

    def __init__(self, settings: BusSettings) -> None:
        """Raises SettingsError if the topic has another count of partitions."""
        self.topic = settings.topic
        self.partitions = settings.partitions
        self._redis: Any = connect(settings.url or "")  # its annotations admit answers that never come
        self._append = self._redis.register_script(_APPEND)
        self._retention_ms = settings.retention_hours * 3_600_000
        self._trimmed = -math.inf
        with redis_errors(self._where):
            self._redis.hsetnx(self._topic, "partitions", str(self.partitions))
            recorded = int(self._redis.hget(self._topic, "partitions") or 0)
        if recorded != self.partitions:
            raise SettingsError(
                f"topic {self.topic!r} at {self._where} has {recorded} partitions, not {self.partitions}: "
                f"set bus.partitions to {recorded}, or publish to a new topic and ingest into a new store.uri"
            )

    def publish(self, events: pa.Table) -> Published:
        ids_given(events)
        if time.monotonic() - self._trimmed > _TRIM_EVERY_S:
            self.trim()
        partition = partition_of(events["user_id"].to_pylist(), partitions=self.partitions)
        return Published(partition, self._put(encode(events), partition))

    def append(self, bodies: Sequence[bytes], *, partition: int) -> np.ndarray:
        return self._put(bodies, np.full(len(bodies), partition, np.int32))

    def _put(self, bodies: Sequence[bytes], partition: np.ndarray) -> np.ndarray:
        """The offsets of `bodies` in the partitions [N] that they go to."""
        offset = np.zeros(len(bodies), np.int64)
        chunks = []
        for number in np.unique(partition):
            rows = np.flatnonzero(partition == number)
            chunks += [(int(number), part) for part in np.split(rows, range(_CHUNK, len(rows), _CHUNK))]
        with redis_errors(self._where):
            pipeline = self._redis.pipeline(transaction=False)
            for number, rows in chunks:
                self._append(
                    keys=[self._stream(number), self._next(number)],
                    args=[bodies[row] for row in rows.tolist()],
                    client=pipeline,
                )
            for (_, rows), first in zip(chunks, pipeline.execute(), strict=True):
                offset[rows] = int(first) + np.arange(len(rows))
        return offset

    def read(self, partition: int, *, start: int, limit: int) -> Records:
        with redis_errors(self._where):
            entries = self._redis.xrange(self._stream(partition), min=f"{start}-1", count=limit)
        return self._records(partition, entries or [], start)

    def tail(
        self, partitions: Sequence[int], *, offsets: Mapping[int, int], block_ms: int = 500, limit: int = 1000
    ) -> list[Records]:
        """Waits at most 1 s, since a connection counts as lost after two."""
        starts = {self._stream(p).encode(): (p, offsets.get(p, 0)) for p in sorted(partitions)}
        # Exclusive: offset n is entry n-1, the first one after n-0.
        after: dict[Any, Any] = {stream: f"{start}-0" for stream, (_, start) in starts.items()}
        with redis_errors(self._where):
            answer = dict(self._redis.xread(after, count=limit, block=max(1, min(block_ms, 1000))) or ())
        if not answer:
            check_held(self, dict(starts.values()), where=self._where)
        return [
            self._records(partition, answer[stream], start)
            for stream, (partition, start) in starts.items()
            if stream in answer
        ]

    def begin_offsets(self) -> dict[int, int]:
        with redis_errors(self._where):
            pipeline = self._redis.pipeline(transaction=True)  # an end read later could be beyond a trimming
            for partition in range(self.partitions):
                pipeline.xrange(self._stream(partition), count=1)
                pipeline.get(self._next(partition))
            answers = pipeline.execute()
        return {
            partition: _offset(first[0]) if first else int(end or 0)
            for partition, (first, end) in enumerate(zip(answers[::2], answers[1::2], strict=True))
        }

    def end_offsets(self) -> dict[int, int]:
        with redis_errors(self._where):
            ends = self._redis.mget([self._next(partition) for partition in range(self.partitions)])
        return {partition: int(end or 0) for partition, end in enumerate(ends)}

    def offsets_at(self, time_ms: int) -> dict[int, int]:
        begins, ends = self.begin_offsets(), self.end_offsets()
        return {p: self._first_since(time_ms, p, begins[p], ends[p]) for p in range(self.partitions)}

    def note_positions(self, reader: str, offsets: Mapping[int, int]) -> None:
        """In the hash `recsys:bus:<topic>:positions`, as `<reader>/<partition>`.

        What a reader has not read stays until then: HDEL the fields of one that is gone for good.
        """
        if offsets:
            noted = {f"{reader}/{partition}": offset for partition, offset in offsets.items()}
            with redis_errors(self._where):
                self._redis.hset(f"{self._topic}:positions", mapping=noted)

    def trim(self) -> None:
        """Drops what is older than the retention and read by all readers whose position is noted."""
        with redis_errors(self._where):
            seconds, micros = self._redis.time()
            noted = self._redis.hgetall(f"{self._topic}:positions")
            kept_from = seconds * 1000 + micros // 1000 - self._retention_ms
            keep = self.begin_offsets() if math.isinf(kept_from) else self.offsets_at(int(kept_from))
            for name, offset in noted.items():
                partition = int(name.decode().rpartition("/")[2])
                keep[partition] = min(keep[partition], int(offset))
            pipeline = self._redis.pipeline(transaction=False)
            for partition, offset in keep.items():
                pipeline.xtrim(self._stream(partition), minid=f"{offset}-0", approximate=False)
            pipeline.execute()
        self._trimmed = time.monotonic()

    def close(self) -> None:
        self._redis.close()

    def _first_since(self, time_ms: int, partition: int, low: int, high: int) -> int:
        """By halving: append times rise with offsets, unless the server's clock was put back."""
        while low < high:
            middle = (low + high) // 2
            with redis_errors(self._where):
                found = self._redis.xrange(self._stream(partition), min=f"{middle}-1", count=1)
            if found and int(found[0][1][b"t"]) < time_ms:
                low = middle + 1
            else:
                high = middle
        return low

    def _records(self, partition: int, entries: Sequence[Any], start: int) -> Records:
        offsets = np.array([_offset(entry) for entry in entries], np.int64)
        if len(offsets) == 0 or offsets[0] != start:
            check_held(self, {partition: start}, where=self._where)
        if len(offsets) and offsets[-1] - start != len(offsets) - 1:
            raise UnavailableError(
                f"{self._stream(partition)} at {self._where} lacks offsets after {start}: "
                "something else trims or writes it; give recsys a Redis of its own"
            )
        try:
            times = np.array([int(fields[b"t"]) for _, fields in entries], np.int64)
            bodies = [fields[b"e"] for _, fields in entries]
        except KeyError as error:
            raise UnavailableError(
                f"{self._stream(partition)} at {self._where} has an entry without {error} after {start}: "
                "recsys did not write it; give recsys a Redis of its own"
            ) from error
        return Records(partition, offsets, times, bodies, start + len(offsets))

    @property
    def _where(self) -> str:
        return url_of(self._redis)

    @property
    def _topic(self) -> str:
        return f"recsys:bus:{self.topic}"

    def _stream(self, partition: int) -> str:
        return f"recsys:bus:{{{self.topic}:{partition}}}"

    def _next(self, partition: int) -> str:
        return self._stream(partition) + ":next"


def _offset(entry: Any) -> int:
    return int(entry[0].split(b"-")[0])
