import json
import threading
import uuid

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from recsys.events import redis_bus
from recsys.events.audit import audit
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.delta import StoreTable
from recsys.events.maintenance import compact
from recsys.events.retrying import retry_rejected
from recsys.events.schema import STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder, encode, event_schema, frame_of
from tests.events_on_bus import body, ingest

LONG = "i" * 300
FIXED = ValidationSettings(max_id_bytes=400)
TAKEN_US = 1_790_000_000_000_000


@pytest.fixture
def bus(redis_url):
    opened = open_bus(BusSettings(url=redis_url, topic=f"t{uuid.uuid4().hex[:8]}", partitions=2))
    yield opened
    opened.close()


def retry(store, bus=None, *, decoder=None, validation=FIXED):
    topic, partitions = ("events", 1) if bus is None else (bus.topic, bus.partitions)
    return retry_rejected(
        store, topic=topic, partitions=partitions, decoder=decoder or Decoder(), validation=validation
    )


def rows(bodies, *, start=None):
    """STORED_SCHEMA; from a file without `start`."""
    places = [None if start is None else start + n for n in range(len(bodies))]
    provenance = [
        pa.array([None if start is None else 0] * len(bodies), pa.int32()),
        pa.array(places, pa.int64()),
        pa.array([TAKEN_US] * len(bodies), pa.int64()).cast(TIMESTAMP),
    ]
    return pa.Table.from_arrays([*decode_events(bodies).columns, *provenance], schema=STORED_SCHEMA)


def refused(bodies, *, reason="oversized", **given):
    return rows(bodies, **given).append_column("reason", pa.array([reason] * len(bodies), pa.string()))


def offsets_of(table):
    return sorted(table["offset"].to_pylist())


def killed(*_, **__):
    raise KeyboardInterrupt


def test_rejected_events_are_stored_after_a_fix(tmp_path, bus):
    """Each by the append time it had; those that stay invalid stay, duplicates too, and it all adds up."""
    bodies = [body(1), body(2, item_id=LONG), body(2, item_id=LONG), body(3, event_type="nonsense"), body(1)]
    bus.publish(decode_events(bodies))
    store = EventStore(tmp_path)
    ingest(store, bus)
    assert audit(store, bus).reasons == {"oversized": 2, "unknown_type": 1}
    assert retry(store, bus) == {"retried": 3, "stored": 1, "duplicate": 1, "unknown_type": 1}
    found = audit(store, bus)
    assert found.adds_up
    lines = [(line.produced, line.stored, line.duplicate) for line in found.partitions]
    assert [sum(figures) for figures in zip(*lines)] == [5, 2, 2]
    assert found.reasons == {"unknown_type": 1}
    duplicates = [row for row in store.read_rejected().to_pylist() if row["reason"] == "duplicate"]
    assert sorted((row["event_id"], row["item_id"]) for row in duplicates) == [("e1", None), ("e2", None)]
    version = store.version()
    assert retry(store, bus) == {"retried": 1, "stored": 0, "unknown_type": 1}
    assert (audit(store, bus), store.version()) == (found, version)


def test_a_retry_that_was_killed_is_finished_by_the_next(tmp_path, bus, monkeypatch):
    bus.publish(decode_events([body(n, item_id=LONG) for n in range(5)]))
    store = EventStore(tmp_path)
    ingest(store, bus)
    with monkeypatch.context() as patch:
        patch.setattr(StoreTable, "rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            retry(store, bus)
    assert not audit(store, bus).adds_up  # the five stand in both tables
    assert retry(store, bus) == {"retried": 5, "stored": 0}
    assert audit(store, bus).adds_up
    assert store.count() == 5


@pytest.mark.parametrize("earlier", [False, True])
def test_what_a_crash_cut_in_two_is_left_to_the_ingestion(tmp_path, bus, monkeypatch, earlier):
    """Retried, it stood in `events` beyond the offset from which the ingestion goes on: twice, then."""
    store = EventStore(tmp_path)
    if earlier:
        bus.publish(decode_events([body(n, item_id=LONG) for n in range(4)]))
        ingest(store, bus)
    bus.publish(decode_events([body(10 + n, item_id=LONG if n % 2 else "i") for n in range(10)]))
    commit = EventStore._commit

    def crashing(self, table, *arguments, **options):
        return killed() if table is self.events else commit(self, table, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(EventStore, "_commit", crashing)
        with pytest.raises(KeyboardInterrupt):
            ingest(store, bus)
    stored = 4 if earlier else 0
    assert retry(store, bus)["stored"] == stored
    assert store.count() == stored
    ingest(store, bus)
    assert audit(store, bus).adds_up
    assert retry(store, bus) == {"retried": 5, "stored": 5}
    assert audit(store, bus).adds_up
    assert store.count() == stored + 10


def test_a_malformed_record_is_read_once_its_schema_is_known(tmp_path, bus, monkeypatch):
    channel = {"name": "channel", "type": ["null", "string"], "default": None}
    newer = event_schema() | {"fields": [*event_schema()["fields"], channel]}
    frame = frame_of(newer)

    def encode_newer(events):  # the new field comes last, and is null
        return [frame + body[len(frame) :] + b"\x00" for body in encode(events)]

    with monkeypatch.context() as patch:
        patch.setattr(redis_bus, "encode", encode_newer)
        bus.publish(decode_events([body(1), body(2)]))
    store = EventStore(tmp_path / "store")
    ingest(store, bus)
    assert audit(store, bus).reasons == {"malformed": 2}
    assert retry(store, bus) == {"retried": 2, "stored": 0, "malformed": 2}
    (tmp_path / "newer.avsc").write_text(json.dumps(newer))
    assert retry(store, bus, decoder=Decoder(str(tmp_path))) == {"retried": 2, "stored": 2}
    assert sorted(store.read(columns=["event_id"])["event_id"].to_pylist()) == ["e1", "e2"]
    assert audit(store, bus).adds_up


def test_beside_a_writer_and_compaction_nothing_is_lost_or_doubled(tmp_path):
    store, ended, errors = EventStore(tmp_path), threading.Event(), []
    store.append(rows([body(0)], start=0), offsets={0: (0, 1)})

    def writing():
        try:
            writer = EventStore(tmp_path)
            while not ended.is_set():
                start = writer.committed("events", 1)[0]
                bodies = [body(start + n, item_id=LONG) for n in range(2)]
                bodies += [body(start + 2, event_type="nonsense"), body(0, item_id=LONG)]
                writer.append(
                    rows([body(start + 4)], start=start + 4),
                    rejected=refused(bodies, start=start),
                    offsets={0: (start, start + 5)},
                )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=writing)
    thread.start()
    moved = 0
    for _ in range(4):
        end = store.committed("events", 1)[0] + 10
        while store.committed("events", 1)[0] < end and not errors:
            pass
        moved += retry(store)["stored"]
        compact(store)
    ended.set()
    thread.join()
    assert not errors, errors
    assert moved >= 16
    moved += retry(store)["stored"]
    end = store.committed("events", 1)[0]
    stored, rejected = store.read(columns=["offset"]), store.read_rejected()
    assert sorted(offsets_of(stored) + offsets_of(rejected)) == list(range(end))
    batches = (end - 1) // 5
    assert (moved, len(stored)) == (2 * batches, 3 * batches + 1)
    assert rejected["reason"].value_counts().to_pylist() == [
        {"values": reason, "counts": batches} for reason in rejected["reason"].unique().to_pylist()
    ]
    assert set(rejected["reason"].to_pylist()) == {"duplicate", "oversized"}


def test_two_retries_at_once_store_each_event_once(tmp_path, monkeypatch):
    store = EventStore(tmp_path)
    bodies = [body(n, item_id=LONG) for n in range(4)]
    store.append(rows([body(9)], start=4), rejected=refused(bodies, start=0), offsets={0: (0, 5)})
    append, others = StoreTable.append, []

    def interrupted(self, *arguments, **options):
        if not others:
            others.append({})
            others[0] = retry(EventStore(tmp_path))
        return append(self, *arguments, **options)

    monkeypatch.setattr(StoreTable, "append", interrupted)
    assert retry(store) == {"retried": 4, "stored": 0}
    assert others == [{"retried": 4, "stored": 4}]
    assert offsets_of(store.read(columns=["offset"])) == [0, 1, 2, 3, 4]
    assert len(store.read_rejected()) == 0


def test_a_decision_is_made_anew_after_another_commit(tmp_path, monkeypatch):
    """The event that was rejected came again and was stored, between the look and the commit."""
    store = EventStore(tmp_path)
    store.append(rows([]), rejected=refused([body(1, item_id=LONG)], start=0), offsets={0: (0, 1)})
    append, done = StoreTable.append, []

    def interrupted(self, *arguments, **options):
        if not done:
            done.append(True)
            EventStore(tmp_path).append(rows([body(1)], start=1), offsets={0: (1, 2)})
        return append(self, *arguments, **options)

    monkeypatch.setattr(StoreTable, "append", interrupted)
    assert retry(store) == {"retried": 1, "stored": 0, "duplicate": 1}
    assert offsets_of(store.read(columns=["offset"])) == [1]
    assert store.read_rejected(columns=["offset", "reason"]).to_pylist() == [
        {"offset": 0, "reason": "duplicate"}
    ]


def test_rows_leave_though_their_file_was_compacted_meanwhile(tmp_path, monkeypatch):
    store = EventStore(tmp_path)
    for n in range(2):
        refusal = refused([body(n, item_id=LONG)], start=n)
        store.append(rows([]), rejected=refusal, offsets={0: (n, n + 1)})
    rewrite, done = StoreTable.rewrite, []

    def interrupted(self, *arguments, **options):
        if not done:
            done.append(compact(EventStore(tmp_path)))
        return rewrite(self, *arguments, **options)

    monkeypatch.setattr(StoreTable, "rewrite", interrupted)
    assert retry(store) == {"retried": 2, "stored": 2}
    assert (store.count(), len(store.read_rejected())) == (2, 0)


def test_rejected_events_of_a_file_leave_by_what_they_say(tmp_path):
    """They have no place; one that is there already is counted as the duplicate that it is, and goes."""
    store = EventStore(tmp_path)
    bodies = [body(1, item_id=LONG), body(1, item_id=LONG, value=2), body(2), body(3, event_type="nonsense")]
    store.append(rows([body(2)]), rejected=refused(bodies))
    assert retry(store) == {"retried": 4, "stored": 1, "duplicate": 2, "unknown_type": 1}
    assert sorted(store.read()["event_id"].to_pylist()) == ["e1", "e2"]
    assert store.read_rejected()["event_id"].to_pylist() == ["e3"]


def test_rejected_events_of_an_older_table(tmp_path):
    """It knew neither places nor when an event was taken."""
    old = decode_events([body(1, item_id=LONG), body(2, event_type="nonsense")])
    month = pa.array(["2026-01"] * 2)
    rejected = old.append_column("reason", pa.array(["oversized", "unknown_type"]))
    write_deltalake(tmp_path / "events", old.slice(1).append_column("month", month[1:]), partition_by="month")
    write_deltalake(tmp_path / "rejected", rejected.append_column("month", month), partition_by="month")
    store = EventStore(tmp_path)
    assert retry(store) == {"retried": 2, "stored": 1, "unknown_type": 1}
    assert sorted(store.read()["event_id"].to_pylist()) == ["e1", "e2"]
    assert store.read_rejected()["event_id"].to_pylist() == ["e2"]


def test_nothing_to_retry(tmp_path):
    assert retry(EventStore(tmp_path)) == {"retried": 0, "stored": 0}
