"""From the bus to the online store: what a user does now is in the store before their next request.

The offset that a partition was applied to lives in the same Redis transaction as the users it changed:
a restart applies nothing twice and loses nothing. A history holds the events of `event_types` (what
counts as consumed), sorted by time; a late event finds its place. A record that is no valid event, an
event sent again within the horizon, and what a user did until they were erased, only move the offset on;
which were sent again is found anew at a start, by reading back. No Ray here: an actor calls `follow`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError, UnavailableError
from recsys.events.batch import Batch, judge
from recsys.events.bus import Bus, Records, check_held, tell_position
from recsys.events.duplicates import SeenEvents, identities
from recsys.events.interactions import history_columns, history_order
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder
from recsys.features.online import OnlineStore, OnlineUsers
from recsys.types import Histories, offsets_of

READ_BACK = 100_000  # records of a partition that are read back at a start, at most
READER = "features"  # the name under which positions are noted on the bus
NOTE_S = 1.0
_LIMIT = 1000  # records of a partition that one transaction applies

RowsOf = Callable[[pa.Array], np.ndarray]  # item ids [N] -> rows int32 [N], -1 = unknown


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the records; the seven counts of events add up to their number."""

    events: int = 0  # now in a history
    repeated: int = 0  # had been applied before
    rejected: int = 0  # no event, or one that is not valid
    duplicate: int = 0  # of a user and event id that was there within the horizon
    other_types: int = 0  # no part of a history
    unknown_items: int = 0  # items without a row
    erased: int = 0  # of a user who was erased when or after it happened or was taken
    users: int = 0  # users written


def apply_events(
    store: OnlineStore,
    batch: Batch,
    *,
    topic: str,
    rows_of: RowsOf,
    seen: SeenEvents,
    event_types: Sequence[str],
) -> Applied:
    """Appends the events to their users' histories and writes them together with the offset.

    `seen` notes the partition's events; after an error it is worth nothing. Raises DataError if records
    before these were never applied: read from `store.applied_offset`.
    """
    valid = batch.reason.is_null().to_numpy(zero_copy_only=False)
    stored = _noted(seen, batch, valid)
    kinds = pc.is_in(batch.events["event_type"], value_set=pa.array(event_types)).to_numpy()
    counted = stored & kinds
    row = np.full(len(valid), -1, np.int32)
    row[counted] = rows_of(batch.events["item_id"].filter(pa.array(counted)))
    part = counted & (row >= 0)
    events = batch.events.filter(pa.array(part))
    columns = history_columns(events, rows=row[part])
    user_ids, user = np.unique(np.array(events["user_id"].to_pylist(), str), return_inverse=True)
    # Until when an erasure takes the event away, whichever clock ran behind.
    earliest_us = np.minimum(*(events[n].cast(pa.int64()).to_numpy() for n in ("appended_at", "timestamp")))
    # The moment after the newest event, whichever clock ran ahead.
    latest = np.maximum(batch.append_ms[part] // 1000, columns["time"]) + 1
    result: list[Applied] = []

    def update(users: OnlineUsers, offset: int, erased_ms: np.ndarray) -> tuple[OnlineUsers, int] | None:
        """`users` are the users of the events; pure but for the report."""
        result.clear()
        if batch.start > offset:
            raise DataError(
                f"{topic} partition {batch.partition}: events {offset} to {batch.start - 1} "
                f"were never applied; read from offset {offset}"
            )
        new = batch.offsets >= offset
        erased = new[part] & (earliest_us <= 1000 * erased_ms[user])
        taken = new[part] & ~erased
        touched = np.zeros(len(user_ids), bool)
        touched[user[taken]] = True
        result.append(
            Applied(
                events=int(taken.sum()),
                repeated=int((~new).sum()),
                rejected=int((new & ~valid).sum()),
                duplicate=int((new & valid & ~stored).sum()),
                other_types=int((new & stored & ~counted).sum()),
                unknown_items=int((new & counted & ~part).sum()),
                erased=int(erased.sum()),
                users=int(touched.sum()),
            )
        )
        if batch.end <= offset:
            return None
        appended = {name: column[taken] for name, column in columns.items()}
        histories = _newest(_merged(users.histories, user[taken], appended), store.max_history)
        as_of = users.as_of.copy()
        np.maximum.at(as_of, user[taken], latest[taken])
        return replace(users, histories=histories, as_of=as_of, known=touched), batch.end

    store.change(user_ids.tolist(), topic=topic, partition=batch.partition, update=update)
    return result[0]


def follow(
    bus: Bus,
    store: OnlineStore,
    *,
    partitions: Sequence[int],
    rows_of: RowsOf,
    stop: Callable[[], bool],
    event_types: Sequence[str],
    decoder: Decoder,
    validation: ValidationSettings,
    horizon_s: float,
    on_applied: Callable[[Batch, Applied], None] | None = None,
    block_ms: int = 200,
) -> None:
    """Applies what these partitions get until `stop()`; begins where the store's offsets say.

    `horizon_s`: how long an event's id is remembered. One follower for each partition. Raises DataError if
    the bus does not hold what comes next. All errors pass through: whoever restarts it loses nothing.
    """

    def judged(records: Records, start: int) -> Batch:
        return judge(records, start=start, topic=bus.topic, decoder=decoder, validation=validation)

    offsets = {p: store.applied_offset(bus.topic, p) for p in partitions}
    _check_held(bus, offsets)
    seen = {p: _read_back(bus, p, offset, judged, horizon_s) for p, offset in offsets.items()}
    noted, noted_at = dict[int, int](), 0.0
    while not stop():
        for records in bus.tail(partitions, offsets=offsets, block_ms=block_ms, limit=_LIMIT):
            batch = judged(records, offsets[records.partition])
            applied = apply_events(
                store,
                batch,
                topic=bus.topic,
                rows_of=rows_of,
                seen=seen[records.partition],
                event_types=event_types,
            )
            offsets[records.partition] = records.end
            if on_applied:
                on_applied(batch, applied)
        if offsets != noted and time.monotonic() - noted_at >= NOTE_S:
            tell_position(bus, READER, offsets)
            noted, noted_at = dict(offsets), time.monotonic()


def _check_held(bus: Bus, offsets: dict[int, int]) -> None:
    try:
        check_held(bus, offsets, where="the bus")
    except UnavailableError as error:
        if error.__cause__:  # no answer: that is waited for
            raise
        raise DataError(f"{error}; then fill the online store anew: python -m jobs.build_features") from error


def _read_back(
    bus: Bus, partition: int, end: int, judged: Callable[[Records, int], Batch], horizon_s: float
) -> SeenEvents:
    """The events within the horizon before `end`, which is the next to apply; the newest `READ_BACK`."""
    horizon_ms = int(horizon_s * 1000)
    seen = SeenEvents(horizon_ms=horizon_ms)
    following = bus.read(partition, start=end, limit=1)
    moment = int(following.append_time_ms[0]) if len(following) else int(time.time() * 1000)
    since = bus.offsets_at(moment - horizon_ms)[partition]
    start = max(since, end - READ_BACK, bus.begin_offsets()[partition])
    while start < end:
        batch = judged(bus.read(partition, start=start, limit=min(10_000, end - start)), start)
        valid = batch.reason.is_null().to_numpy(zero_copy_only=False)
        _noted(seen, batch, valid & (batch.offsets < end))  # Kafka leaves offsets out
        if batch.end <= start:
            break
        start = batch.end
    return seen


def _noted(seen: SeenEvents, batch: Batch, valid: np.ndarray) -> np.ndarray:
    """Which of the `valid` events are no duplicates, bool [N]; `seen` notes them."""
    stored = valid.copy()
    stored[valid] = seen.new(identities(batch.events.filter(pa.array(valid))), batch.append_ms[valid])
    return stored


def _merged(histories: Histories, user: np.ndarray, appended: dict[str, np.ndarray]) -> Histories:
    """The histories with the appended events [N] of `user` [N], in the order of `history_order`."""
    owner = np.concatenate([histories.request, user])
    columns = {c: np.concatenate([getattr(histories, c), appended[c]]) for c in Histories.COLUMNS}
    order = history_order(owner, columns)
    counts = np.bincount(owner, minlength=len(histories))
    return Histories(offsets_of(counts), *(columns[c][order] for c in Histories.COLUMNS))


def _newest(histories: Histories, limit: int) -> Histories:
    from_end = histories.offsets[1:][histories.request] - np.arange(len(histories.item))
    return histories.where(from_end <= limit)
