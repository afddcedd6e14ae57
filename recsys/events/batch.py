"""A batch: consecutive records of one partition, decoded and judged; what every reader of the bus handles.

Validity is judged by the append time of the bus, so that a replay decides alike. An event whose id is
absent or blank gets one made of where it stands on the bus. Whether an event is a duplicate is not
decided here.
"""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.events.bus import Records
from recsys.events.schema import EVENT_SCHEMA, STORED_SCHEMA, TIMESTAMP
from recsys.events.validation import MALFORMED, ValidationSettings, reasons
from recsys.events.wire import Decoder


@dataclass(frozen=True, slots=True)
class Batch:
    partition: int
    start: int  # the offset that was read from
    end: int  # the offset to go on from
    events: pa.Table  # STORED_SCHEMA [N]
    reason: pa.Array  # string [N]; null = valid
    read_ms: int  # epoch milliseconds at which it was read

    @property
    def append_ms(self) -> np.ndarray:
        """int64 [N]"""
        return append_ms(self.events)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [N]"""
        return self.events["offset"].to_numpy()


def append_ms(events: pa.Table) -> np.ndarray:
    """Epoch milliseconds at which the bus took each event (STORED_SCHEMA, from the bus), int64 [N]."""
    return events["appended_at"].cast(pa.int64()).to_numpy() // 1000


def judge(
    records: Records, *, start: int, topic: str, decoder: Decoder, validation: ValidationSettings
) -> Batch:
    """The batch of `records`, which were read from `start` on."""
    read_ms = int(time.time() * 1000)
    events, broken = decoder(records.bodies)
    reason = reasons(events, now=records.append_time_ms // 1000, settings=validation)
    if any(broken):
        malformed = [None if error is None else MALFORMED for error in broken]
        reason = pc.coalesce(pa.array(malformed, pa.string()), reason)
    provenance = [
        pa.array(np.full(len(records), records.partition, np.int32)),
        pa.array(records.offsets),
        pa.array(records.append_time_ms * 1000).cast(TIMESTAMP),
    ]
    columns = [_with_ids(events["event_id"], topic, records), *events.columns[1:], *provenance]
    stored = pa.Table.from_arrays(columns, schema=STORED_SCHEMA)
    return Batch(records.partition, start, records.end, stored, reason, read_ms)


def _with_ids(ids: pa.ChunkedArray, topic: str, records: Records) -> pa.ChunkedArray | pa.Array:
    absent = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(ids), ""), True)
    if not pc.any(absent).as_py():
        return ids
    made = pa.array([f"{topic}-{records.partition}-{offset}" for offset in records.offsets], pa.string())
    return pc.if_else(absent, made, ids).cast(EVENT_SCHEMA.field("event_id").type)
