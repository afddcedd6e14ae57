import uuid

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from recsys.errors import DataError
from recsys.events.audit import audit
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.committer import Committer, IngestionSettings
from recsys.events.store import EventStore
from tests.events_on_bus import body, ingest, new_committer


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
    found = audit(store, bus)
    assert (found.adds_up, sum(line.lost for line in found.partitions)) == (False, 5)
    committer = Committer(store, topic=bus.topic, begin=bus.begin_offsets(), settings=settings)
    with pytest.raises(DataError, match=r"events 10 to 14 left the bus .* --accept-loss"):
        committer.check_held(bus.begin_offsets(), bus.end_offsets())
    committer.check_held(bus.begin_offsets(), bus.end_offsets(), accept_loss=True)
    ingest(store, bus)
    found = audit(store, bus)
    assert found.adds_up
    assert (counts(found)["stored"], found.reasons) == (15, {"lost": 5})


def test_a_bus_that_was_emptied_is_noticed(tmp_path, bus, redis_client):
    store = EventStore(tmp_path)
    bus.publish(decode_events([body(n) for n in range(10)]))
    ingest(store, bus)
    redis_client.flushall()
    bus.publish(decode_events([body(n) for n in range(3)]))
    committer = new_committer(store, bus)
    with pytest.raises(DataError, match="it lost its events; ingest its new ones into another store"):
        committer.check_held(bus.begin_offsets(), bus.end_offsets())


def test_rows_that_are_missing_at_the_beginning_are_found(tmp_path, bus):
    """The first offset is recorded with the first commit: the rows can't tell where they began."""
    bus.publish(decode_events([body(n, user_id="u") for n in range(10)]))
    store = EventStore(tmp_path)
    ingest(store, bus)
    DeltaTable(tmp_path / "events").delete("offset < 4")
    found = audit(store, bus)
    assert (found.adds_up, counts(found)["missing"], counts(found)["stored"]) == (False, 4, 6)
