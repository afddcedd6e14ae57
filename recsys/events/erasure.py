"""Erasure of users from an event store, which no later replay of the bus or of a file undoes.

A list of hashed users with the time of their erasure comes first; every append reads it after it opened
its tables, and leaves out what users did, or what was taken of them, until then. Then appends that may
have read the list before are made to fail, so that what is found after that is all there is. Of an event
that goes its place on the bus stays, among the rejected ones, so that an audit still adds up. Last, the
files that held it are deleted. Each step may be repeated: after a crash erase again.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable, Transaction

from recsys.events import maintenance
from recsys.events.delta import ARCHIVED, places, retried
from recsys.events.erased import erased_mask, erased_users
from recsys.events.rejected import without_content
from recsys.events.store import EventStore
from recsys.events.validation import ERASED, MALFORMED


@dataclass(frozen=True, slots=True)
class Erased:
    events: int  # stored events that were deleted, hot and cold
    rejected: int  # rejected events of which no more than their place was left
    files: int  # data files that were deleted


def erase(store: EventStore, user_ids: Sequence[str], *, now_ms: int) -> Erased:
    """Erases what these users did, and what was taken of them, until now. Safe beside an ingestion."""
    erased = erased_users(user_ids, at_ms=now_ms)
    retried(lambda: store.erasures.append(store.erasures.open(), erased))
    for table in (store.events, store.rejected):
        table.fence()
    of_users = ds.field("user_id").isin(list(user_ids))
    events = retried(lambda: _from_events(store, erased, of_users))
    rejected = retried(lambda: _from_rejected(store, erased, user_ids))
    for table in (store.events, store.rejected, store.cold):
        table.forget_statistics()
    return Erased(events, rejected, maintenance.vacuum(store, keep_hours=0))


def erased_places(store: EventStore, rejected: DeltaTable) -> np.ndarray:
    """The places of erased events that this table keeps, int64 [N]."""
    where = (ds.field("reason") == ERASED) & ds.field("offset").is_valid()
    return places(store.rejected.read(rejected, columns=["partition", "offset"], where=where))


def _from_events(store: EventStore, erased: pa.Table, of_users: pc.Expression) -> int:
    hot, cold = maintenance.settled(store)
    parts = [(store.events, hot)] + ([(store.cold, cold)] if cold is not None else [])
    columns = ["user_id", "timestamp", "partition", "offset", "appended_at"]
    found = pa.concat_tables(part.read(table, columns=columns, where=of_users) for part, table in parts)
    gone = found.filter(pa.array(erased_mask(erased, found)))
    if not len(gone):
        return 0
    _keep_places(store, gone)

    def kept(rows: pa.Table) -> pa.Table | None:
        mask = erased_mask(erased, rows)
        return rows.filter(pa.array(~mask)) if mask.any() else None

    pointing = []
    if cold is not None and (changed := store.cold.rewrite(cold, kept, where=of_users)) is not None:
        pointing = [Transaction(ARCHIVED, changed.version())]
    store.events.rewrite(hot, kept, where=of_users, transactions=pointing)
    return len(gone)


def _keep_places(store: EventStore, gone: pa.Table) -> None:
    """Each place of `gone` among the rejected events, once, however often this is called."""

    def attempt() -> None:
        rejected = store.rejected.open()
        assert rejected is not None
        new = gone.filter(pa.array(~np.isin(places(gone), erased_places(store, rejected))))
        if len(rows := without_content(new, reason=ERASED)):
            store.rejected.append(rejected, rows)

    retried(attempt)


def _from_rejected(store: EventStore, erased: pa.Table, user_ids: Sequence[str]) -> int:
    rejected = store.rejected.open()
    assert rejected is not None
    kept = erased_places(store, rejected)
    count = 0

    def changed(rows: pa.Table) -> pa.Table | None:
        nonlocal count
        gone = erased_mask(erased, rows) | _naming(rows, user_ids)
        if not gone.any():
            return None
        count += int(gone.sum())
        # A retry that was cut off had stored it too, and that place is kept already.
        once = rows.filter(pa.array(gone & ~np.isin(places(rows), kept)))
        parts = [rows.filter(pa.array(~gone)), without_content(once, reason=ERASED)]
        return pa.concat_tables(parts, promote_options="default")

    concerned = ds.field("user_id").isin(list(user_ids)) | (ds.field("reason") == MALFORMED)
    store.rejected.rewrite(rejected, changed, where=concerned)
    return count


def _naming(rows: pa.Table, user_ids: Sequence[str]) -> np.ndarray:
    """Which malformed records name one of the users in what is kept of their body, bool [N]."""
    # A name stands by itself, or behind the byte by which Avro gives its length.
    ids = [user.encode() for user in user_ids]
    alone = [
        rb"(?:(?<![0-9A-Za-z])|(?<=" + re.escape(bytes([2 * len(i) % 256])) + rb"))" + re.escape(i)
        for i in ids
    ]
    names = re.compile(rb"(?:" + rb"|".join(alone) + rb")(?![0-9A-Za-z])")
    found = np.zeros(len(rows), bool)
    for row in np.flatnonzero(pc.equal(rows["reason"], MALFORMED).to_numpy()) if ids else ():
        kept = dict(rows["attributes"][int(row)].as_py() or ())
        found[row] = bool(names.search(base64.b64decode(kept.get("body", ""))))
    return found
