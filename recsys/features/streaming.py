"""From the bus to the online store: what a user does now is in the store before their next request.

The offset that a partition was applied to lives in the same Redis transaction as the users it changed:
a restart applies nothing twice and loses nothing. A history holds the events of `event_types` (what
counts as consumed), sorted by time; a late event finds its place. No Ray here: an actor calls `follow`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.errors import DataError, UnavailableError
from recsys.events.bus import Bus, Records
from recsys.events.interactions import history_columns, history_order
from recsys.features.online import OnlineStore, OnlineUsers
from recsys.types import Histories, offsets_of

EVENT_TYPES = ("purchase", "rating")

RowsOf = Callable[[pa.Array], np.ndarray]  # item ids [N] -> rows int32 [N], -1 = unknown


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the records; the four counts of events add up to their number."""

    events: int  # now in a history
    repeated: int  # had been applied before
    other_types: int  # no part of a history
    unknown_items: int  # items without a row
    users: int  # users written


def apply_events(
    store: OnlineStore,
    records: Records,
    *,
    topic: str,
    rows_of: RowsOf,
    event_types: Sequence[str] = EVENT_TYPES,
) -> Applied:
    """Appends the records to their users' histories and writes them together with the offset.

    Raises DataError if records before these were never applied: read from `store.applied_offset`.
    """
    if not len(records):
        return Applied(0, 0, 0, 0, 0)
    events = records.events
    counted = pc.fill_null(pc.is_in(events["event_type"], value_set=pa.array(event_types)), False)
    counted = counted.to_numpy().astype(bool)
    rows = np.asarray(rows_of(events["item_id"]), np.int32)
    columns = history_columns(events, rows=rows)
    user_ids, user = np.unique(
        np.array(events["user_id"].to_pylist(), object).astype(str), return_inverse=True
    )
    result: list[Applied] = []

    def update(users: OnlineUsers, offset: int) -> tuple[OnlineUsers, int] | None:
        """`users` are all users of the records; pure but for the report."""
        result.clear()
        new = records.offsets >= offset
        if records.offsets[0] > offset:
            raise DataError(
                f"{topic} partition {records.partition}: events {offset} to {records.offsets[0] - 1} "
                f"were never applied; read from offset {offset}"
            )
        taken = new & counted & (rows >= 0)
        touched = np.zeros(len(user_ids), bool)
        touched[user[taken]] = True
        result.append(
            Applied(
                events=int(taken.sum()),
                repeated=int((~new).sum()),
                other_types=int((new & ~counted).sum()),
                unknown_items=int((new & counted & (rows < 0)).sum()),
                users=int(touched.sum()),
            )
        )
        if not new.any():
            return None
        appended = {name: column[taken] for name, column in columns.items()}
        histories = _newest(_merged(users.histories, user[taken], appended), store.max_history)
        as_of = users.as_of.copy()
        # The moment after the newest event, whichever clock ran ahead.
        latest = np.maximum(records.append_time_ms[taken] // 1000, columns["time"][taken]) + 1
        np.maximum.at(as_of, user[taken], latest)
        changed = replace(users, histories=histories, as_of=as_of, known=touched)
        return changed, int(records.offsets[-1]) + 1

    store.change(user_ids.tolist(), topic=topic, partition=records.partition, update=update)
    return result[0]


def follow(
    bus: Bus,
    store: OnlineStore,
    *,
    partitions: Sequence[int],
    rows_of: RowsOf,
    stop: Callable[[], bool],
    event_types: Sequence[str] = EVENT_TYPES,
    on_applied: Callable[[Records, Applied], None] | None = None,
    block_ms: int = 200,
) -> None:
    """Applies what these partitions get until `stop()`; begins where the store's offsets say.

    One follower for each partition. Errors pass through: whoever restarts it loses nothing.
    """
    offsets = {p: store.applied_offset(bus.topic, p) for p in partitions}
    while not stop():
        tail = bus.tail(partitions, offsets=offsets, block_ms=block_ms, limit=1000)
        if not tail and (lost := [p for p, end in bus.end_offsets().items() if end < offsets.get(p, 0)]):
            raise UnavailableError(
                f"{bus.topic} partitions {lost} end before what was applied: the bus lost its events; "
                "begin again from the store's offsets"
            )
        for records in tail:
            applied = apply_events(
                store,
                records,
                topic=bus.topic,
                rows_of=rows_of,
                event_types=event_types,
            )
            offsets[records.partition] = int(records.offsets[-1]) + 1
            if on_applied:
                on_applied(records, applied)


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
