"""Rejected events judged again, after a validator, a setting or a schema was corrected.

Each is judged by the append time that it had. Those that are valid now move to the table of events,
with their place on the bus, so the audit still adds up. Only what both tables hold is judged: the commit
that a crash cut in two is made again by the ingestion. Events first, rejected after: a run that was
killed between the two is finished by the next one, which finds them stored already. Safe beside an
ingestion: events are appended as decided from one version, else decided anew; of the rejected ones only
those that were judged are touched.
"""

import base64
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from recsys.events.delta import places, retried
from recsys.events.duplicates import identities
from recsys.events.erased import erased_mask
from recsys.events.erasure import erased_places
from recsys.events.rejected import without_content
from recsys.events.schema import EVENT_SCHEMA, PROVENANCE, REJECTED_SCHEMA, STORED_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import DUPLICATE, ERASED, LOST, MALFORMED, ValidationSettings, reasons
from recsys.events.wire import Decoder

_FINAL = [DUPLICATE, ERASED, LOST]


def retry_rejected(
    store: EventStore, *, topic: str, partitions: int, decoder: Decoder, validation: ValidationSettings
) -> dict[str, int]:
    """Counts: `retried`, `stored`, and the reasons of those that are not. Raises UnavailableError."""
    rows = _committed(store.read_rejected(), store.committed(topic, partitions))
    malformed = pc.equal(rows["reason"], MALFORMED)
    broken, others = rows.filter(malformed), rows.filter(pc.invert(malformed))
    keys = np.concatenate([_keys(broken), _keys(others)])
    rows = pa.concat_tables([_decoded(broken, decoder), _with_reason(others, None)])
    rows = _with_reason(rows, pc.coalesce(rows["reason"], _judged(rows, validation)))
    stored, there, reason = _store_valid(store, rows)
    fates = {kind: keys[~there & (reason == kind)] for kind in (DUPLICATE, ERASED)}
    retried(lambda: _settle(store, moved=keys[there], fates=fates))
    stay = Counter(reason[~there].tolist())
    return {"retried": len(rows), "stored": stored} | dict(stay.most_common())


def _committed(rows: pa.Table, ends: Mapping[int, int]) -> pa.Table:
    """The rows to judge again that both tables hold, and those of files."""
    rows = rows.filter(pc.invert(pc.is_in(rows["reason"], value_set=pa.array(_FINAL))))
    partition = pc.index_in(rows["partition"], pa.array(list(ends), pa.int32()))
    end = pa.array(list(ends.values()), pa.int64()).take(partition.combine_chunks())
    held = pc.fill_null(pc.less(rows["offset"], end), False)
    return rows.filter(pc.or_(held, pc.is_null(rows["offset"])))


def _decoded(broken: pa.Table, decoder: Decoder) -> pa.Table:
    """Malformed rows as the events that they are, as far as they can be read now: their reason is null."""
    bodies = [base64.b64decode(dict(a or ()).get("body", "")) for a in broken["attributes"].to_pylist()]
    events, errors = decoder(bodies)
    ids = pc.coalesce(events["event_id"], broken["event_id"])
    reason = pa.array([None if error is None else MALFORMED for error in errors], pa.string())
    provenance = [broken[field.name] for field in PROVENANCE]
    return pa.Table.from_arrays([ids, *events.columns[1:], *provenance, reason], schema=REJECTED_SCHEMA)


def _judged(rows: pa.Table, validation: ValidationSettings) -> pa.Array:
    taken = pc.fill_null(rows["appended_at"].cast(pa.int64()), int(1e6 * time.time()))  # of an old table
    return reasons(rows.select(EVENT_SCHEMA.names), now=taken.to_numpy() // 1_000_000, settings=validation)


def _store_valid(store: EventStore, rows: pa.Table) -> tuple[int, np.ndarray, np.ndarray]:
    """Stores the valid rows that are no duplicates.

    Returns how many, which rows are among the events now (a killed run may have moved some), bool [N], and
    why the others are not, object [N].
    """
    place, identity = places(rows), identities(rows)
    there, known = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    seen: DeltaTable | None = None

    def attempt() -> tuple[int, np.ndarray, np.ndarray]:
        nonlocal seen
        hot = store.events.open()
        # Read after the table was opened: an erasure that it lacks will make the append conflict.
        reason = pc.if_else(pa.array(erased_mask(store.erased(), rows)), ERASED, rows["reason"])
        valid = reason.is_null().to_numpy()
        if hot is not None:
            # A second time no more than what came since: the whole would take longer than a commit lasts.
            columns = ["partition", "offset", "user_id", "event_id"]
            held, seen = store.read_added(hot, after=seen, columns=columns), hot
            there[:] |= np.isin(place, places(held)) & (place >= 0)
            known[:] |= np.isin(identity, identities(held))
        new = np.flatnonzero(valid & ~there & ~known)
        new = new[np.unique(identity[new], return_index=True)[1]]
        if len(new):
            store.events.append(hot, rows.take(new).select(STORED_SCHEMA.names))
        moved = there.copy()
        moved[new] = True
        return len(new), moved, pc.fill_null(reason, DUPLICATE).to_numpy()

    return retried(attempt)


def _settle(store: EventStore, *, moved: np.ndarray, fates: Mapping[str, np.ndarray]) -> None:
    """Takes away the rejected rows with the keys `moved`, and the content of those with these `fates`."""
    table = store.rejected.open()
    if table is None:
        return
    kept = erased_places(store, table)

    def changed(rows: pa.Table) -> pa.Table | None:
        keys = _keys(rows)
        # What was moved by a run that was killed, and then erased, has left its place here already.
        again = np.isin(places(rows), kept) & pc.not_equal(rows["reason"], ERASED).to_numpy()
        gone = np.isin(keys, moved) | again
        emptied = {reason: np.isin(keys, of) & ~gone for reason, of in fates.items()}
        touched = np.logical_or.reduce([gone, *emptied.values()])
        if not touched.any():
            return None
        parts = [without_content(rows.filter(pa.array(at)), reason=reason) for reason, at in emptied.items()]
        return pa.concat_tables([rows.filter(pa.array(~touched)), *parts], promote_options="default")

    store.rejected.rewrite(table, changed, where=~ds.field("reason").isin(_FINAL))


def _keys(rows: pa.Table) -> np.ndarray:
    """What tells rejected rows apart, uint64 [N]: all that they say, as those of a file have no place."""
    return pl.DataFrame(rows.select(REJECTED_SCHEMA.names)).hash_rows(seed=0).to_numpy()


def _with_reason(rows: pa.Table, reason: pa.ChunkedArray | pa.Array | None) -> pa.Table:
    reason = pa.nulls(len(rows), pa.string()) if reason is None else reason
    return rows.set_column(rows.schema.get_field_index("reason"), REJECTED_SCHEMA.field("reason"), reason)
