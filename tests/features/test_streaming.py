"""Streaming updates on a real bus and store: what they lead to equals the log of all events."""

import threading
import time

import numpy as np
import pytest

from recsys.errors import DataError, UnavailableError
from recsys.events.bus import Records, RedisStreamsBus
from recsys.events.codec import decode_events
from recsys.events.interactions import interactions_of
from recsys.events.redis_server import connect
from recsys.features.online import OnlineStore
from recsys.features.streaming import Applied, apply_events, follow
from recsys.types import Histories


def rows_of(ids) -> np.ndarray:
    return np.array([int(i[1:]) if i.startswith("i") else -1 for i in ids.to_pylist()], np.int32)


def bodies(rng: np.random.Generator, count: int) -> list[dict]:
    return [
        {
            "event_id": f"e{n}",
            "user_id": f"u{rng.integers(9)}",
            "item_id": rng.choice(["i1", "i2", "gone"]),
            "event_type": rng.choice(["purchase", "view"]),
            "order_id": f"o{n // 3}",
            "value": float(rng.integers(1, 9)),
            "quantity": int(rng.integers(1, 4)),
            "timestamp": f"2026-01-01T00:{rng.integers(60):02d}:{n % 60:02d}Z",
        }
        for n in range(count)
    ]


def expected(events) -> tuple[list[str], Histories]:
    mask = np.array([e["event_type"] == "purchase" for e in events.to_pylist()])
    log = interactions_of(events.filter(mask), rows=rows_of(events["item_id"])[mask], items=3)
    return log.user_ids.tolist(), log.histories


def assert_store_equals_log(store: OnlineStore, events) -> None:
    user_ids, histories = expected(events)
    users = store.get(user_ids, now=0)
    assert users.known.all()
    assert np.array_equal(users.histories.offsets, histories.offsets)
    for name in Histories.COLUMNS:
        assert np.array_equal(getattr(users.histories, name), getattr(histories, name)), name


def test_streamed_histories_equal_the_log(redis_client):
    events = decode_events(bodies(np.random.default_rng(3), 400))
    bus = RedisStreamsBus(redis_client, partitions=2)
    store = OnlineStore(redis_client, namespace="r")
    bus.publish(events)
    totals = np.zeros(4, int)
    for partition, end in bus.end_offsets().items():
        for start in range(0, end, 17):
            records = bus.read(partition, start=start, limit=17)
            a = apply_events(store, records, topic="events", rows_of=rows_of)
            totals += (a.events, a.repeated, a.other_types, a.unknown_items)
            again = apply_events(store, records, topic="events", rows_of=rows_of)
            assert again == Applied(0, len(records), 0, 0, 0)
        assert store.applied_offset("events", partition) == end
    assert totals.sum() == 400
    assert totals[1] == 0
    assert_store_equals_log(store, events)


def test_a_batch_that_overlaps_applies_only_what_is_new(redis_client):
    bus = RedisStreamsBus(redis_client, partitions=1)
    store = OnlineStore(redis_client, namespace="r")
    events = decode_events(bodies(np.random.default_rng(4), 60))
    bus.publish(events)
    for start, limit in ((0, 30), (10, 40), (0, 60)):
        records = bus.read(0, start=start, limit=limit)
        apply_events(store, records, topic="events", rows_of=rows_of)
    assert_store_equals_log(store, events)


def test_a_gap_is_refused(redis_client):
    bus = RedisStreamsBus(redis_client, partitions=1)
    store = OnlineStore(redis_client, namespace="r")
    bus.publish(decode_events(bodies(np.random.default_rng(5), 10)))
    with pytest.raises(DataError, match="events 0 to 3 were never applied; read from offset 0"):
        apply_events(store, bus.read(0, start=4, limit=5), topic="events", rows_of=rows_of)
    assert store.applied_offset("events", 0) == 0
    store.start_at("events", {0: 4})
    apply_events(store, bus.read(0, start=4, limit=5), topic="events", rows_of=rows_of)
    assert store.applied_offset("events", 0) == 9


def test_events_that_are_no_part_of_a_history_make_nobody_known(redis_client):
    store = OnlineStore(redis_client, namespace="r")
    events = decode_events(
        [b | {"event_type": "view", "item_id": "i1"} for b in bodies(np.random.default_rng(6), 5)]
    )
    records = Records(0, np.arange(5), np.full(5, 1_700_000_000_000), events)
    applied = apply_events(store, records, topic="events", rows_of=rows_of)
    assert applied == Applied(0, 0, 5, 0, 0)
    assert not store.get(events["user_id"].to_pylist(), now=0).known.any()
    assert store.applied_offset("events", 0) == 5
    empty = Records(0, np.zeros(0, np.int64), np.zeros(0, np.int64), decode_events([]))
    assert apply_events(store, empty, topic="t", rows_of=rows_of).events == 0


def test_a_follower_that_dies_loses_nothing_and_repeats_nothing(redis_url, redis_client):
    bus = RedisStreamsBus(redis_client, partitions=2)
    store = OnlineStore(redis_client, namespace="r")
    events = decode_events(bodies(np.random.default_rng(7), 300))
    calls = 0

    def dies(ids):
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise RuntimeError("killed")
        return rows_of(ids)

    def run(stop):
        while not stop.is_set():
            try:
                follow(
                    RedisStreamsBus(connect(redis_url), partitions=2),
                    OnlineStore(connect(redis_url), namespace="r"),
                    partitions=[0, 1],
                    rows_of=dies,
                    stop=stop.is_set,
                    block_ms=20,
                )
            except RuntimeError:
                continue

    stop = threading.Event()
    follower = threading.Thread(target=run, args=(stop,))
    follower.start()
    for start in range(0, 300, 20):
        bus.publish(events.slice(start, 20))
    deadline = time.time() + 10
    while any(store.applied_offset("events", p) < end for p, end in bus.end_offsets().items()):
        assert time.time() < deadline
        time.sleep(0.02)
    stop.set()
    follower.join()
    assert calls >= 3
    assert_store_equals_log(store, events)


def test_as_of_is_the_moment_after_the_newest_event(redis_client):
    """A device's clock may run ahead of the bus: its event still lies before `as_of`."""
    store = OnlineStore(redis_client, namespace="r")
    body = bodies(np.random.default_rng(8), 1)[0] | {"event_type": "purchase", "item_id": "i1"}
    events = decode_events([body | {"user_id": "ahead", "timestamp": "2026-01-01T00:04:00Z"}])
    appended = 1_767_225_600  # 2026-01-01T00:00:00Z
    records = Records(0, np.arange(1), np.full(1, appended * 1000), events)
    apply_events(store, records, topic="events", rows_of=rows_of)
    assert store.get(["ahead"], now=appended).as_of.tolist() == [appended + 241]


def test_a_bus_that_lost_its_events_is_noticed(redis_url, redis_client):
    """Redis was flushed (or failed over to an empty replica) under a follower: it went on waiting for the
    offset that it remembered, and skipped all that came before it, silently."""
    bus = RedisStreamsBus(redis_client, partitions=1)
    store = OnlineStore(redis_client)
    bus.publish(decode_events(bodies(np.random.default_rng(9), 20)))
    flushed = threading.Event()

    def flush(records, applied):
        redis_client.flushall()
        flushed.set()

    with pytest.raises(UnavailableError, match="the bus lost its events"):
        follow(bus, store, partitions=[0], rows_of=rows_of, stop=lambda: False, on_applied=flush, block_ms=20)
    assert flushed.is_set()
