"""Rejected events judged again, after a validator, a setting or a schema was corrected.

Each is judged by the append time that it had. Those that are valid now move to the table of events,
with their place on the bus, so the audit still adds up. Events first, rejected after: a run that was
killed between the two is finished by the next one, which finds them stored already.
"""

import base64
import time
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.events.committer import slim
from recsys.events.duplicates import identities
from recsys.events.erasure import erased_mask
from recsys.events.schema import EVENT_SCHEMA, PROVENANCE, REJECTED_SCHEMA, STORED_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import DUPLICATE, ERASED, LOST, MALFORMED, ValidationSettings, reasons
from recsys.events.wire import Decoder


def retry_rejected(store: EventStore, *, decoder: Decoder, validation: ValidationSettings) -> dict[str, int]:
    """Counts: `retried`, `stored`, and the reasons of those that stay. Raises UnavailableError."""
    version = store.rejected_version()
    rejected = store.read_rejected()
    final = pc.is_in(rejected["reason"], value_set=pa.array([DUPLICATE, ERASED, LOST]))
    kept, again = rejected.filter(final), rejected.filter(pc.invert(final))
    again = _decoded(again, decoder)
    taken = pc.fill_null(again["appended_at"].cast(pa.int64()), int(1e6 * time.time()))  # of an old table
    append_s = taken.to_numpy() // 1_000_000
    found = reasons(again.select(EVENT_SCHEMA.names), now=append_s, settings=validation)
    found = pc.coalesce(again["reason"], found)  # still malformed, or what is found now
    found = pc.if_else(pa.array(erased_mask(store.erased(), again)), ERASED, found)
    again = again.set_column(again.schema.get_field_index("reason"), "reason", found)
    valid = again["reason"].is_null().to_numpy()
    events_version = store.version()
    moved, repeated = _held(store, again, valid)
    again = again.set_column(
        again.schema.get_field_index("reason"),
        "reason",
        pc.if_else(pa.array(repeated), DUPLICATE, again["reason"]),
    )
    stays = again["reason"].is_valid()
    new = again.filter(pa.array(valid & ~moved & ~repeated))
    if len(new):
        store.append(new.select(STORED_SCHEMA.names), at_version=events_version)
    rest = pa.concat_tables([kept, slim(again.filter(stays))])
    if len(rest) < len(rejected) or not rest["reason"].equals(rejected["reason"]):
        store.replace_rejected(rest, at_version=version)
    return {"retried": len(again), "stored": len(new)} | dict(
        Counter(again.filter(stays)["reason"].to_pylist()).most_common()
    )


def _decoded(rows: pa.Table, decoder: Decoder) -> pa.Table:
    """Malformed rows that can be read now, as the events that they are; their reason is null."""
    malformed = pc.equal(rows["reason"], MALFORMED)
    broken, others = rows.filter(malformed), rows.filter(pc.invert(malformed))
    bodies = [base64.b64decode(dict(a or ()).get("body", "")) for a in broken["attributes"].to_pylist()]
    events, errors = decoder(bodies)
    ids = pc.coalesce(events["event_id"], broken["event_id"])
    reason = pa.array([None if error is None else MALFORMED for error in errors], pa.string())
    provenance = [broken[field.name] for field in PROVENANCE]
    read = pa.Table.from_arrays([ids, *events.columns[1:], *provenance, reason], schema=REJECTED_SCHEMA)
    others = others.set_column(
        others.schema.get_field_index("reason"), "reason", pa.nulls(len(others), pa.string())
    )
    return pa.concat_tables([read, others.cast(REJECTED_SCHEMA)])


def _held(store: EventStore, events: pa.Table, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which valid events a killed run had moved already, and which are duplicates of others, bool [N]."""
    if store.version() < 0:
        return np.zeros(len(events), bool), _repeated(events, valid)
    stored = store.read(columns=["partition", "offset", "user_id", "event_id"])
    place = pl.DataFrame(stored.select(["partition", "offset"])).hash_rows(seed=0)
    own = pl.DataFrame(events.select(["partition", "offset"]))
    moved = own.hash_rows(seed=0).is_in(place.implode()).to_numpy() & own["offset"].is_not_null().to_numpy()
    same = np.isin(identities(events), identities(stored))
    from_file = own["offset"].is_null().to_numpy()
    moved |= same & from_file  # a file's event has no place but its identity
    return valid & moved, valid & ~moved & (same | _repeated(events, valid))


def _repeated(events: pa.Table, valid: np.ndarray) -> np.ndarray:
    """Valid events whose identity a valid one before them had, bool [N]."""
    hashes = identities(events)
    first = np.zeros(len(events), bool)
    rows = np.flatnonzero(valid)
    first[rows[np.unique(hashes[rows], return_index=True)[1]]] = True
    return valid & ~first
