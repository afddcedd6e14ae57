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
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import Transaction

from recsys.events.delta import ARCHIVED, places, retried
from recsys.events.schema import REJECTED_SCHEMA, TIMESTAMP
from recsys.events.validation import ERASED, MALFORMED
from recsys.hashing import stable_hashes

if TYPE_CHECKING:
    from recsys.events.store import EventStore

ERASED_SCHEMA = pa.schema([("user", pa.int64()), ("erased_at", TIMESTAMP)])

_SALT = "erased-user"


@dataclass(frozen=True, slots=True)
class Erased:
    events: int  # stored events that were deleted, hot and cold
    rejected: int  # rejected events of which no more than their place was left
    files: int  # data files that were deleted


def erased_mask(erased: pa.Table, events: pa.Table) -> np.ndarray:
    """Which events are of a user who was erased when or after they happened or were taken, bool [N].

    `erased` has ERASED_SCHEMA. What a user does after the erasure is welcome again.
    """
    if not len(erased) or not len(events):
        return np.zeros(len(events), bool)
    users = pa.chunked_array([events["user_id"].combine_chunks().dictionary_encode()]).combine_chunks()
    last = erased.group_by("user").aggregate([("erased_at", "max")])
    found = pc.index_in(_hashes(users.dictionary.to_pylist()), last["user"].combine_chunks())
    at = last["erased_at_max"].take(found).take(users.indices)
    within = [pc.fill_null(pc.less_equal(events[name], at), False) for name in ("appended_at", "timestamp")]
    return pc.or_(*within).to_numpy(zero_copy_only=False)


def without_erased(events: pa.Table, rejected: pa.Table, *, erased: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(events, rejected) in which the events of erased users are no more than rejected places."""
    if not len(erased):
        return events, rejected
    gone = pa.array(erased_mask(erased, events))
    cases = pa.concat_tables(
        [_emptied(rejected, erased_mask(erased, rejected)), _slim(events.filter(gone), REJECTED_SCHEMA)]
    )
    return events.filter(pc.invert(gone)), cases


def erase(store: "EventStore", user_ids: Sequence[str], *, now_ms: int) -> Erased:
    """Erases what these users did, and what was taken of them, until now. Safe beside an ingestion."""
    from recsys.events import maintenance  # it needs the store, which needs this module

    at = pa.array([now_ms * 1000] * len(user_ids), pa.int64()).cast(TIMESTAMP)
    erased = pa.table([_hashes(user_ids), at], schema=ERASED_SCHEMA)
    retried(lambda: store.erasures.append(store.erasures.open(), erased))
    for place in (store.events, store.rejected):
        place.fence()
    of_users = ds.field("user_id").isin(list(user_ids))
    events = retried(lambda: _from_events(store, erased, of_users))
    rejected = retried(lambda: _from_rejected(store, erased, user_ids))
    for place in (store.events, store.rejected, store.cold):
        place.forget_statistics()
    return Erased(events, rejected, maintenance.vacuum(store, keep_hours=0))


def _from_events(store: "EventStore", erased: pa.Table, of_users: pc.Expression) -> int:
    from recsys.events.maintenance import settled

    hot, cold = settled(store)
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


def _keep_places(store: "EventStore", gone: pa.Table) -> None:
    """Each place of `gone` among the rejected events, once, however often this is called."""

    def attempt() -> None:
        cases = store.rejected.open()
        assert cases is not None
        where = ds.field("reason") == ERASED
        kept = places(store.rejected.read(cases, columns=["partition", "offset"], where=where))
        if len(new := _slim(gone.filter(pa.array(~np.isin(places(gone), kept))), REJECTED_SCHEMA)):
            store.rejected.append(cases, new)

    retried(attempt)


def _from_rejected(store: "EventStore", erased: pa.Table, user_ids: Sequence[str]) -> int:
    cases = store.rejected.open()
    assert cases is not None
    count = 0

    def changed(rows: pa.Table) -> pa.Table | None:
        nonlocal count
        gone = erased_mask(erased, rows) | _naming(rows, user_ids)
        count += int(gone.sum())
        return _emptied(rows, gone) if gone.any() else None

    concerned = ds.field("user_id").isin(list(user_ids)) | (ds.field("reason") == MALFORMED)
    store.rejected.rewrite(cases, changed, where=concerned)
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


def _emptied(rejected: pa.Table, gone: np.ndarray) -> pa.Table:
    """`rejected` with no more than the place of those that are gone, and none of those of a file."""
    mask = pa.array(gone)
    return pa.concat_tables([rejected.filter(pc.invert(mask)), _slim(rejected.filter(mask), rejected.schema)])


def _slim(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows that have a place on the bus, with nothing but that, in the columns of `schema`."""
    rows = rows.filter(pc.is_valid(rows["offset"]))
    kept = {name: rows[name] for name in ("partition", "offset", "appended_at")}
    kept["reason"] = pa.array([ERASED] * len(rows), pa.string())
    return pa.table([kept.get(f.name, pa.nulls(len(rows), f.type)) for f in schema], schema=schema)


def _hashes(user_ids: Sequence[str | None]) -> pa.Array:
    """What is kept of users, int64 [N]; no user is an empty one, of whom no event is stored."""
    return pa.array(stable_hashes((user or "" for user in user_ids), salt=_SALT).view(np.int64))
