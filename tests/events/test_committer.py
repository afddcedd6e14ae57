"""Exactly once, whatever dies where: failpoints around each read, write and commit, run in process."""

import itertools
import uuid

import pyarrow as pa
import pytest

from recsys.errors import DataError, UnavailableError
from recsys.events import delta
from recsys.events.audit import audit
from recsys.events.batch import judge
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.schema import STORED_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import DUPLICATE, ValidationSettings
from recsys.events.wire import Decoder
from tests.events_on_bus import body, new_committer, read_into, some_bodies


class Killed(BaseException):
    """What a kill -9 is to the code that it hits: nobody catches it."""


@pytest.fixture
def bus(redis_url):
    opened = open_bus(BusSettings(url=redis_url, topic=f"t{uuid.uuid4().hex[:8]}", partitions=2))
    yield opened
    opened.close()


def assert_whole(store: EventStore, bus, bodies: list[dict]) -> None:
    found = audit(store, bus)
    assert found.adds_up, found
    valid = [b["event_id"] for b in bodies if b["event_type"] == "click"]
    stored = store.read(columns=["event_id"])["event_id"].to_pylist()
    assert sorted(stored) == sorted(set(valid))
    assert sum(line.duplicate for line in found.partitions) == len(valid) - len(set(valid))
    assert sum(line.produced for line in found.partitions) == len(bodies)
    assert sum(line.lag_messages for line in found.partitions) == 0


def test_killed_at_every_point_each_event_is_there_once(tmp_path, bus, monkeypatch):
    bodies = some_bodies(60)
    bus.publish(decode_events(bodies))
    left = [10**9]

    def failing(function):
        def step(*arguments, **named):
            for moment in ("before", "after"):
                left[0] -= 1
                if not left[0]:
                    raise Killed(moment)
                if moment == "before":
                    result = function(*arguments, **named)
            return result

        return step

    monkeypatch.setattr(delta, "write_deltalake", failing(delta.write_deltalake))
    for method in ("read", "note_positions", "end_offsets"):
        monkeypatch.setattr(bus, method, failing(getattr(bus, method)))
    died = 0
    for point in itertools.count(1):
        store = EventStore(tmp_path / str(point))
        left[0] = point
        try:
            read_into(new_committer(store, bus), bus)
        except Killed:
            died += 1
        else:
            break
        left[0] = 10**9
        read_into(new_committer(store, bus), bus, limit=33)  # cut into other batches than before
        assert_whole(store, bus, bodies)
    assert died > 20


@pytest.mark.parametrize("paused", ["rejected", "events", "before"])
def test_a_committer_that_was_replaced_can_not_commit(tmp_path, bus, monkeypatch, paused):
    """Paused anywhere, replaced, resumed: what it had in hand is refused, and nothing is there twice."""
    bodies = some_bodies(40)
    bus.publish(decode_events(bodies[:20]))
    store = EventStore(tmp_path)
    stale = new_committer(store, bus)
    read_into(stale, bus)
    bus.publish(decode_events(bodies[20:]))
    read_into(stale, bus, commits=False)
    write, replaced = delta.write_deltalake, []

    def write_after_the_other(table, *arguments, **named):
        if not replaced and str(getattr(table, "table_uri", table)).rstrip("/").endswith(paused):
            replaced.append(True)
            read_into(new_committer(EventStore(tmp_path), bus), bus)
        return write(table, *arguments, **named)

    if paused == "before":
        read_into(new_committer(EventStore(tmp_path), bus), bus)
    else:
        monkeypatch.setattr(delta, "write_deltalake", write_after_the_other)
    with pytest.raises(UnavailableError, match="another"):
        stale.commit()
    assert_whole(store, bus, bodies)


def test_a_batch_must_follow_the_one_before(tmp_path, bus):
    bus.publish(decode_events([body(n, user_id="u") for n in range(10)]))
    partition = max(bus.end_offsets(), key=lambda p: bus.end_offsets()[p])
    committer = new_committer(EventStore(tmp_path), bus)
    records = bus.read(partition, start=4, limit=2)
    late = judge(records, start=4, topic=bus.topic, decoder=Decoder(), validation=ValidationSettings())
    with pytest.raises(DataError, match="begins at offset 4, expected 0"):
        committer.add(late)


def test_an_event_of_long_ago_is_new_again(tmp_path, bus):
    """Ids are remembered for the horizon only, by the time at which the bus took the events."""
    bus.publish(decode_events([body(1), body(1), body(1, user_id="u2")]))
    store = EventStore(tmp_path)
    committer = new_committer(store, bus, duplicate_horizon_s=3600)
    read_into(committer, bus)
    assert store.count() == 2  # the same id of another user is another event
    rejected = store.read_rejected().to_pylist()
    assert [(r["reason"], r["event_id"], r["user_id"]) for r in rejected] == [(DUPLICATE, "e1", None)]
    bus.publish(decode_events([body(1)]))
    committer = new_committer(store, bus, duplicate_horizon_s=0)
    read_into(committer, bus)
    assert store.count() == 3
    assert audit(store, bus).adds_up


def test_nothing_is_committed_twice_or_for_nothing(tmp_path, bus):
    store = EventStore(tmp_path)
    committer = new_committer(store, bus)
    assert committer.commit() is None
    bus.publish(decode_events([body(1)]))
    read_into(committer, bus)
    assert committer.commit() is None
    assert (store.version(), store.count()) == (0, 1)


def test_rows_carry_where_they_stood(tmp_path, bus):
    published = bus.publish(decode_events([body(n) for n in range(8)]))
    store = EventStore(tmp_path)
    read_into(new_committer(store, bus), bus)
    rows = store.read(columns=STORED_SCHEMA.names).sort_by("event_id")
    assert rows["partition"].to_pylist() == published.partition.tolist()
    assert rows["offset"].to_pylist() == published.offset.tolist()
    assert rows.schema.equals(STORED_SCHEMA)
    assert rows["appended_at"].null_count == 0


def test_an_event_without_id_is_named_by_its_place(tmp_path, bus, redis_client):
    events = decode_events([body(n, event_id="x") for n in range(3)])
    bus.publish(events)
    records = bus.read(int(bus.publish(events).partition[0]), start=0, limit=1)
    nameless = type(records)(records.partition, records.offsets, records.append_time_ms, [b"{}"], records.end)
    batch = judge(nameless, start=0, topic="t", decoder=Decoder(), validation=ValidationSettings())
    assert batch.events["event_id"].to_pylist() == [f"t-{records.partition}-0"]
    assert isinstance(batch.reason, pa.Array)
    assert batch.reason.to_pylist() == ["missing_user"]
