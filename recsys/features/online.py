"""The online store: a user's history as one packed struct under one Redis key.

Features are not stored: `views.user_features` computes them from the history at the moment of the
request, since a vector of the last event would call everybody "active 0 days ago". Item rows are the
catalog's, the same for every release, so releases share the store and a rollback forgets nothing.

A batch of users is one MGET, joined and viewed as arrays: no loop over users or fields parses anything.
A value older than its time to live is missing, not stale, by the `now` of the request. Only the newest
`max_history` events are kept, the same cut as in training. `put` overwrites: fill a namespace before
its followers start; while they run, each partition has exactly one writer, and `change` lets it
write users and its offset in one transaction that is tried again if anyone else touched them. Who was
erased, and when, is kept as a hash of the user, so that a follower that lags does not bring them back.

Struct, little endian: header (32 bytes) | time, order int64 [n] | item int32, quantity, value float32 [n].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import redis

from recsys.errors import DataError
from recsys.events.redis_server import redis_errors, url_of
from recsys.features.histories import MAX_HISTORY
from recsys.hashing import stable_hash
from recsys.types import Histories, offsets_of, ragged_index

VERSION = 1
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("unused", "<u2"),
        ("events", "<u4"),
        ("birth_year", "<i4"),
        ("unused2", "<i4"),
        ("as_of", "<i8"),
        ("unused3", "<i8"),
    ]
)
_WORDS = HEADER.itemsize // 4  # the struct is read as 4-byte words
_LAYOUT = (
    ("time", 2, "<i8"),
    ("order", 2, "<i8"),
    ("item", 1, "<i4"),
    ("quantity", 1, "<f4"),
    ("value", 1, "<f4"),
)
_CHUNK = 1000  # users of one pipeline
_ERASED_SALT = "online-erased"


@dataclass(frozen=True, slots=True)
class OnlineUsers:
    """B users as the store knows them; an unknown user has no events and as_of 0."""

    histories: Histories
    birth_year: np.ndarray  # int32 [B], 0 = not known
    as_of: np.ndarray  # int64 [B] epoch seconds of the last update
    known: np.ndarray  # bool [B]


Update = Callable[[OnlineUsers, int, np.ndarray], tuple[OnlineUsers, int] | None]


class OnlineStore:
    """Users of one namespace in Redis."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str = "main",
        time_to_live: int = 0,
        max_history: int = MAX_HISTORY,
    ) -> None:
        """`time_to_live`: seconds, 0 = for ever."""
        self.time_to_live = time_to_live
        self.max_history = max_history
        self._redis = client
        self._prefix = f"recsys:{namespace}"

    def get(self, user_ids: Sequence[str], *, now: int) -> OnlineUsers:
        """The users in order, by one MGET. Raises UnavailableError; DataError for a foreign struct."""
        if not len(user_ids):
            return self._unpack([], now)
        with redis_errors(url_of(self._redis)):
            return self._unpack(self._redis.mget(self._keys(user_ids)), now)

    def put(
        self,
        user_ids: Sequence[str],
        *,
        histories: Histories,
        as_of: int | np.ndarray,
        birth_year: np.ndarray | None = None,
    ) -> None:
        """Writes B users. A failure midway leaves some written: put them again."""
        packed = self._pack(histories, as_of, birth_year)
        keys = self._keys(user_ids)
        with redis_errors(url_of(self._redis)):
            for start in range(0, len(keys), _CHUNK):
                pipeline = self._redis.pipeline(transaction=False)
                for key, value in zip(
                    keys[start : start + _CHUNK], packed[start : start + _CHUNK], strict=True
                ):
                    self._set(pipeline, key, value)
                pipeline.execute()

    def forget(self, user_ids: Sequence[str], *, at_ms: int) -> int:
        """Deletes these users, and notes when (epoch milliseconds); how many of them were known."""
        if not user_ids:
            return 0
        with redis_errors(url_of(self._redis)), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(*self._keys(user_ids))
            pipeline.hset(self._erased_key, mapping=dict.fromkeys(_erased_fields(user_ids), at_ms))
            return int(pipeline.execute()[0])

    def applied_offset(self, topic: str, partition: int) -> int:
        """The offset after the last event of the partition that this namespace holds; 0 = none."""
        with redis_errors(url_of(self._redis)):
            return int(self._redis.get(self._offset_key(topic, partition)) or 0)

    def is_filled(self, topic: str) -> bool:
        """Whether users were `put` and the topic's first offset was set: the store can be followed."""
        with redis_errors(url_of(self._redis)):
            return bool(self._redis.exists(self._offset_key(topic, 0)))

    def start_at(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Says that what was `put` already holds everything before these offsets (a new namespace)."""
        with redis_errors(url_of(self._redis)):
            self._redis.mset({self._offset_key(topic, p): offset for p, offset in offsets.items()})

    def change(self, user_ids: Sequence[str], *, topic: str, partition: int, update: Update) -> int:
        """Reads users and the partition's offset, and writes both in one transaction.

        `update` gets the users, the offset and when each user was erased (epoch milliseconds, int64 [B];
        0 = never). It may return None to write nothing, else the users (those with `known` are written)
        and the new offset. It must be pure: it runs again if another client changed a user or the offset,
        or erased somebody, meanwhile. It sees users past their time to live too, until Redis forgets them
        at twice that age, or an idle user's history would be lost. Returns the offset that holds afterwards.
        """
        keys, offset_key = self._keys(user_ids), self._offset_key(topic, partition)
        fields = _erased_fields(user_ids)
        with redis_errors(url_of(self._redis)), self._redis.pipeline() as pipeline:
            while True:
                try:
                    pipeline.watch(offset_key, self._erased_key, *keys)
                    offset, *blobs = pipeline.mget([offset_key, *keys])
                    times: Any = pipeline.hmget(self._erased_key, fields) if fields else []
                    erased_ms = np.array([int(ms or 0) for ms in times], np.int64)
                    changed = update(self._unpack(blobs, None), int(offset or 0), erased_ms)
                    if changed is None:
                        pipeline.unwatch()
                        return int(offset or 0)
                    users, new_offset = changed
                    packed = self._pack(users.histories, users.as_of, users.birth_year)
                    pipeline.multi()
                    for row in np.flatnonzero(users.known):
                        self._set(pipeline, keys[row], packed[row])
                    pipeline.set(offset_key, new_offset)
                    pipeline.execute()
                    return new_offset
                except redis.WatchError:
                    continue

    def _keys(self, user_ids: Sequence[str]) -> list[str]:
        return [f"{self._prefix}:user:{user}" for user in user_ids]

    @property
    def _erased_key(self) -> str:
        return f"{self._prefix}:erased"

    def _offset_key(self, topic: str, partition: int) -> str:
        return f"{self._prefix}:offset:{topic}:{partition}"

    def _set(self, pipeline: redis.client.Pipeline, key: str, value: bytes) -> None:
        # Redis forgets a value later than `get` does, by its own clock: that only frees memory.
        pipeline.set(key, value, ex=2 * self.time_to_live or None)

    def _pack(
        self,
        histories: Histories,
        as_of: int | np.ndarray,
        birth_year: np.ndarray | None,
    ) -> list[bytes]:
        """One struct for each user."""
        counts = np.minimum(histories.counts, self.max_history)
        ends = histories.offsets[1:]
        header = np.zeros(len(histories), HEADER)
        header["version"], header["events"] = VERSION, counts
        header["as_of"] = as_of
        header["birth_year"] = 0 if birth_year is None else birth_year
        columns = [getattr(histories, name).astype(kind, copy=False) for name, _, kind in _LAYOUT]
        packed = []
        for u in range(len(histories)):
            newest = slice(ends[u] - counts[u], ends[u])
            packed.append(b"".join([header[u].tobytes(), *(c[newest].tobytes() for c in columns)]))
        return packed

    def _foreign(self) -> DataError:
        return DataError(
            f"{self._prefix} in {url_of(self._redis)} holds users of another format; materialize it again"
        )

    def _unpack(self, blobs: Sequence[Any], now: int | None) -> OnlineUsers:
        """Views of the joined structs; `now` None = no time to live."""
        users = len(blobs)
        sizes = np.array([len(blob) if blob is not None else 0 for blob in blobs], np.int64)
        given = np.array([blob is not None for blob in blobs], bool)
        if ((sizes % 4 != 0) | (given & (sizes < HEADER.itemsize))).any():
            raise self._foreign()
        lengths = sizes // 4
        words = np.frombuffer(b"".join(blob for blob in blobs if blob is not None), "<i4")
        starts = np.cumsum(lengths) - lengths
        present = np.flatnonzero(lengths)
        heads = words[(starts[present, None] + np.arange(_WORDS)).ravel()].view(HEADER)
        expected = _WORDS + 7 * heads["events"].astype(np.int64)
        if ((heads["version"] != VERSION) | (expected != lengths[present])).any():
            raise self._foreign()
        if now is not None and self.time_to_live:
            fresh = heads["as_of"] + self.time_to_live > now
            present, heads = present[fresh], heads[fresh]
        counts = np.zeros(users, np.int64)
        counts[present] = heads["events"]
        place = starts + _WORDS  # word at which the next column of each user begins
        columns = {}
        for name, width, kind in _LAYOUT:
            columns[name] = words[ragged_index(place, counts * width)].view(kind)
            place = place + counts * width
        birth_year, as_of = np.zeros(users, np.int32), np.zeros(users, np.int64)
        birth_year[present], as_of[present] = heads["birth_year"], heads["as_of"]
        known = np.zeros(users, bool)
        known[present] = True
        histories = Histories(offsets_of(counts), *(columns[c] for c in Histories.COLUMNS))
        return OnlineUsers(histories, birth_year, as_of, known)


def _erased_fields(user_ids: Sequence[str]) -> list[str]:
    return [str(stable_hash(user, salt=_ERASED_SALT)) for user in user_ids]
