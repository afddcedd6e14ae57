"""Bounded ingestion with Ray Data, replay, and the continuous kind with actors that are killed."""

import hashlib
import os
import signal
import threading
import time
import uuid

import pytest
from kafka import KafkaProducer

from recsys.errors import DataError
from recsys.events import ingestion
from recsys.events.audit import audit
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.committer import IngestCounts, IngestionSettings
from recsys.events.following import Following, follow
from recsys.events.ingestion import ingest_bus
from recsys.events.schema import EVENT_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import encode


@pytest.fixture
def settings(redis_url) -> BusSettings:
    return BusSettings(url=redis_url, topic=f"t{uuid.uuid4().hex[:8]}", partitions=3)


@pytest.fixture
def bus(settings):
    opened = open_bus(settings)
    yield opened
    opened.close()


def events(first: int, count: int, **changes):
    return decode_events(
        [
            {"event_id": f"e{n}", "user_id": f"u{n % 11}", "item_id": "i", "event_type": "click"}
            | {"timestamp": "2026-01-01T00:00:00Z", "attributes": {"n": str(n)}}
            | changes
            for n in range(first, first + count)
        ]
    )


def ingest(bus, settings, store, **changes) -> IngestCounts:
    given = {"settings": IngestionSettings(commit_events=1000), "validation": ValidationSettings()} | changes
    return ingest_bus(bus, bus_settings=settings, store=store, **given)


def table_hash(store: EventStore) -> str:
    """Of all that is stored, in the order of the ids."""
    rows = store.read(columns=EVENT_SCHEMA.names).sort_by("event_id").to_pylist()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def test_what_the_bus_holds_is_stored_and_goes_on_from_there(
    ray_cluster, tmp_path, settings, bus, monkeypatch
):
    monkeypatch.setattr(ingestion, "RANGE", 300)  # many tasks for each partition: their order must not matter
    store, seen = EventStore(tmp_path), []
    bus.publish(events(0, 3000))
    bus.publish(events(0, 100))
    bus.publish(events(5000, 5, event_type="nonsense"))
    counts = ingest(bus, settings, store, progress=lambda done, total: seen.append((done, total)))
    assert counts == IngestCounts(3105, 3000, 100, {"unknown_type": 5})
    assert seen[-1] == (3105, 3105)
    assert store.version() >= 2  # several commits, so that memory does not grow with the range
    bus.publish(events(3000, 10))
    assert ingest(bus, settings, store) == IngestCounts(10, 10, 0, {})
    assert ingest(bus, settings, store) == IngestCounts(0, 0, 0, {})
    found = audit(store, bus)
    assert found.adds_up
    assert (sum(p.stored for p in found.partitions), found.reasons) == (3010, {"unknown_type": 5})


def test_a_replay_by_time_gives_an_equal_table(ray_cluster, tmp_path, settings, bus):
    bus.publish(events(0, 40))
    time.sleep(0.05)
    middle = int(time.time() * 1000)
    time.sleep(0.05)
    bus.publish(events(20, 80))  # 20 of them a second time
    store, again, later = (EventStore(tmp_path / name) for name in ("first", "again", "later"))
    ingest(bus, settings, store)
    ingest(bus, settings, again, begin=bus.offsets_at(0))
    assert table_hash(again) == table_hash(store)
    counts = ingest(bus, settings, later, begin=bus.offsets_at(middle))
    assert counts == IngestCounts(80, 80, 0, {})
    assert audit(later, bus).adds_up
    until = EventStore(tmp_path / "until")
    assert ingest(bus, settings, until, end=bus.offsets_at(middle)) == IngestCounts(40, 40, 0, {})
    with pytest.raises(DataError, match="replay into another store"):
        ingest(bus, settings, store, begin=bus.offsets_at(0))


def test_a_poison_record_stops_nothing(ray_cluster, tmp_path, settings, bus, redis_client):
    """Whatever others put on the topic: it is kept with the error, and what follows is stored."""
    published = bus.publish(events(0, 5))
    stream = next(k for k in redis_client.keys(f"*{settings.topic}*") if redis_client.type(k) == b"stream")
    number = int(published.partition[0])
    assert number >= 0
    entries = redis_client.xlen(stream)
    redis_client.xadd(stream, {"e": b"\xc3\x01garbage", "t": str(int(time.time() * 1000))}, id=f"{entries}-1")
    redis_client.incr(stream.decode() + ":next")
    bus.publish(events(5, 50))
    store = EventStore(tmp_path)
    counts = ingest(bus, settings, store)
    assert (counts.stored, counts.rejected) == (55, {"malformed": 1})
    assert audit(store, bus).adds_up


def test_markers_of_transactions_are_no_events(ray_cluster, tmp_path, kafka_url, monkeypatch):
    """They take offsets: between events, at the end of a range, and for a whole range."""
    monkeypatch.setattr(ingestion, "RANGE", 3)
    settings = BusSettings(url=kafka_url, topic=f"t{uuid.uuid4().hex[:8]}", partitions=2)
    bus, store = open_bus(settings), EventStore(tmp_path)
    servers = kafka_url.removeprefix("kafka://")
    producer = KafkaProducer(bootstrap_servers=servers, transactional_id=settings.topic, acks="all")
    producer.init_transactions()

    def write(first: int, count: int, *, kept: bool) -> None:
        producer.begin_transaction()
        for number, record in enumerate(encode(events(first, count))):
            producer.send(settings.topic, record, partition=number % 2)
        producer.flush()
        producer.commit_transaction() if kept else producer.abort_transaction()

    for number in range(12):
        write(number, 1, kept=True)
    for number in range(12, 20):
        write(number, 1, kept=False)
    write(100, 9, kept=True)
    end = bus.end_offsets()
    assert ingest(bus, settings, store, end={0: 5}) == IngestCounts(7, 7, 0, {})
    assert store.committed(settings.topic, 2)[0] == 5
    assert ingest(bus, settings, store).stored == 14
    write(200, 4, kept=False)
    while bus.end_offsets() == end:  # the server writes the markers a moment after it has agreed
        time.sleep(0.05)
    assert ingest(bus, settings, store) == IngestCounts(0, 0, 0, {})  # nothing but markers: the offset moves
    assert store.committed(settings.topic, 2)[0] > end[0]
    found = audit(store, bus)
    assert found.adds_up, found
    assert sum(p.produced for p in found.partitions) == 21
    producer.close()
    bus.close()


def test_followed_through_the_loss_of_every_actor(ray_cluster, tmp_path, settings, bus):
    following = Following(
        settings, ValidationSettings(), IngestionSettings(commit_s=0.2), {"uri": str(tmp_path / "store")}
    )
    store, stop, statuses, killed = EventStore(tmp_path / "store"), threading.Event(), [], set()
    sent = [0]

    def told(status):
        """While events come, kill each actor once, when it has committed something."""
        statuses.append(status)
        if sent[0] < 4000:
            bus.publish(events(sent[0], 40))
            sent[0] += 40
        elif store.committed(bus.topic, 3) == bus.end_offsets():
            stop.set()
        victims = [pid for pid in status.pids if pid not in killed]
        if victims and len(killed) < 3 and status.commits > 0:
            killed.add(victims[-1])  # a reader, a reader again, at last the committer
            os.kill(victims[-1] if len(killed) < 3 else status.pids[0], signal.SIGKILL)
            killed.update(status.pids)

    threading.Timer(60, stop.set).start()
    follow(following, stop=stop.is_set, report=told)
    found = audit(store, bus)
    assert found.adds_up, found
    assert sum(p.lag_messages for p in found.partitions) == 0
    assert len(killed) >= 3
    ids = store.read(columns=["event_id"])["event_id"].to_pylist()
    assert sorted(ids) == sorted(f"e{n}" for n in range(sent[0]))
    assert found.last_commit.keys() == {"at", "read_lag_ms", "commit_lag_ms"}
