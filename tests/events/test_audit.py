import uuid

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from recsys.errors import DataError
from recsys.events.audit import audit
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.committer import Committer, IngestionSettings
from recsys.events.retrying import retry_rejected
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder, encode
from tests.events_on_bus import body, ingest


@pytest.fixture
def bus(redis_url):
    opened = open_bus(BusSettings(url=redis_url, topic=f"t{uuid.uuid4().hex[:8]}", partitions=2))
    yield opened
    opened.close()


def counts(found) -> dict[str, int]:
    names = ("produced", "stored", "duplicate", "rejected", "missing", "doubled", "lag_messages")
    return {name: sum(getattr(line, name) for line in found.partitions) for name in names}


def test_an_empty_store_is_behind_and_adds_up(tmp_path, bus):
    store = EventStore(tmp_path)
    assert audit(store, bus).adds_up
    bus.publish(decode_events([body(n) for n in range(10)]))
    found = audit(store, bus)
    assert found.adds_up
    assert (counts(found)["lag_messages"], found.last_commit) == (10, {})
    assert max(line.lag_s for line in found.partitions) > 0


def test_a_row_that_is_missing_or_twice_is_found(tmp_path, bus):
    bus.publish(decode_events([body(n) for n in range(20)]))
    store = EventStore(tmp_path)
    ingest(store, bus)
    assert audit(store, bus).adds_up
    table = DeltaTable(tmp_path / "events")
    rows = pa.table(table.to_pyarrow_table())
    table.delete("event_id = 'e3'")
    found = audit(store, bus)
    assert not found.adds_up
    assert (counts(found)["missing"], counts(found)["stored"]) == (1, 19)
    twice = rows.filter(pa.compute.is_in(rows["event_id"], value_set=pa.array(["e3", "e4"])))
    from deltalake import write_deltalake

    write_deltalake(tmp_path / "events", twice, mode="append")
    found = audit(store, bus)
    assert not found.adds_up
    assert (counts(found)["missing"], counts(found)["doubled"]) == (0, 1)


def test_what_left_the_bus_before_it_was_ingested_is_said_and_recorded(tmp_path, bus, redis_client):
    store = EventStore(tmp_path)
    bus.publish(decode_events([body(n, user_id="u") for n in range(10)]))
    ingest(store, bus)
    bus.publish(decode_events([body(n, user_id="u") for n in range(10, 20)]))
    partition = max(bus.end_offsets(), key=lambda p: bus.end_offsets()[p])
    redis_client.xtrim(f"recsys:bus:{{{bus.topic}:{partition}}}", minid="15-0", approximate=False)
    settings = IngestionSettings()
    committer = Committer(store, topic=bus.topic, begin=bus.begin_offsets(), settings=settings)
    with pytest.raises(DataError, match=r"events 10 to 14 left the bus .* --accept-loss"):
        committer.check_lost(bus.begin_offsets())
    committer.check_lost(bus.begin_offsets(), accept=True)
    committer.commit()
    ingest(store, bus)
    found = audit(store, bus)
    assert found.adds_up
    assert (counts(found)["stored"], found.reasons) == (15, {"lost": 5})


def test_rejected_events_are_stored_after_a_fix(tmp_path, bus):
    """Each by the append time it had; those that stay invalid stay, duplicates too, and it all adds up."""
    long = "i" * 300
    bodies = [body(1), body(2, item_id=long), body(2, item_id=long), body(3, event_type="nonsense"), body(1)]
    bus.publish(decode_events(bodies))
    store = EventStore(tmp_path)
    ingest(store, bus)
    assert audit(store, bus).reasons == {"oversized": 2, "unknown_type": 1}
    done = retry_rejected(store, decoder=Decoder(), validation=ValidationSettings(max_id_bytes=400))
    assert done == {"retried": 3, "stored": 1, "duplicate": 1, "unknown_type": 1}
    found = audit(store, bus)
    assert found.adds_up
    assert counts(found) | {"produced": 5} == counts(found)
    assert (counts(found)["stored"], counts(found)["duplicate"], found.reasons) == (2, 2, {"unknown_type": 1})
    again = retry_rejected(store, decoder=Decoder(), validation=ValidationSettings(max_id_bytes=400))
    assert again == {"retried": 1, "stored": 0, "unknown_type": 1}
    assert audit(store, bus) == found


def test_a_retry_that_was_killed_is_finished_by_the_next(tmp_path, bus, monkeypatch):
    bus.publish(decode_events([body(n, item_id="i" * 300) for n in range(5)]))
    store = EventStore(tmp_path)
    ingest(store, bus)
    fixed = ValidationSettings(max_id_bytes=400)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(
            store, "replace_rejected", lambda rows, at_version: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            retry_rejected(store, decoder=Decoder(), validation=fixed)
    assert not audit(store, bus).adds_up  # the five stand in both tables
    assert retry_rejected(store, decoder=Decoder(), validation=fixed) == {"retried": 5, "stored": 0}
    assert audit(store, bus).adds_up
    assert store.count() == 5


def test_a_malformed_record_is_read_once_its_schema_is_known(tmp_path, bus, monkeypatch):
    import json

    from recsys.events import redis_bus
    from recsys.events.wire import event_schema

    newer = event_schema() | {
        "fields": [
            *event_schema()["fields"],
            {"name": "channel", "type": ["null", "string"], "default": None},
        ]
    }
    with monkeypatch.context() as patch:
        patch.setattr(redis_bus, "encode", lambda events: encode(events, schema=newer))
        bus.publish(decode_events([body(1), body(2)]))
    store = EventStore(tmp_path / "store")
    ingest(store, bus)
    assert audit(store, bus).reasons == {"malformed": 2}
    validation = ValidationSettings()
    assert retry_rejected(store, decoder=Decoder(), validation=validation) == {
        "retried": 2, "stored": 0, "malformed": 2,
    }  # fmt: skip
    (tmp_path / "newer.avsc").write_text(json.dumps(newer))
    done = retry_rejected(store, decoder=Decoder(str(tmp_path)), validation=validation)
    assert done == {"retried": 2, "stored": 2}
    assert sorted(store.read(columns=["event_id"])["event_id"].to_pylist()) == ["e1", "e2"]
    assert audit(store, bus).adds_up
