"""Streaming updates on a real bus and store: what they lead to equals the log of all events."""

import threading
import time

import numpy as np
import pytest

from recsys.errors import DataError, UnavailableError
from recsys.events.batch import Batch, judge
from recsys.events.bus import Bus, BusSettings, Records, open_bus
from recsys.events.codec import decode_events
from recsys.events.duplicates import SeenEvents
from recsys.events.interactions import interactions_of
from recsys.events.redis_server import connect, start_redis
from recsys.events.validation import DEFAULT_SETTINGS
from recsys.events.wire import Decoder, encode
from recsys.features.online import OnlineStore
from recsys.features.streaming import Applied, apply_events, follow
from recsys.types import Histories
from tests.kafka_server import need_kafka, new_kafka

COUNTED = ("purchase", "rating")


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


@pytest.fixture
def bus_of(redis_url, redis_client):
    """A bus with as many partitions, on an empty Redis."""
    return lambda partitions: open_bus(BusSettings(redis_url, partitions=partitions))


def judged(records: Records, start: int) -> Batch:
    return judge(records, start=start, topic="events", decoder=Decoder(), validation=DEFAULT_SETTINGS)


def read(bus: Bus, partition: int, *, start: int, limit: int) -> Batch:
    return judged(bus.read(partition, start=start, limit=limit), start)


def batch_of(events, *, append_ms: int = 1_790_000_000_000) -> Batch:
    count = len(events)
    records = Records(0, np.arange(count), np.full(count, append_ms), encode(events), count)
    return judged(records, 0)


def apply(store: OnlineStore, batch: Batch, seen: SeenEvents | None = None) -> Applied:
    seen = SeenEvents(horizon_ms=3_600_000) if seen is None else seen
    return apply_events(store, batch, topic="events", rows_of=rows_of, seen=seen, event_types=COUNTED)


def follow_on(bus: Bus, store: OnlineStore, **changed) -> None:
    """`follow` from the store's offsets until the store has caught up."""
    arguments = {
        "partitions": range(bus.partitions),
        "rows_of": rows_of,
        "stop": lambda: caught_up(bus, store),
        "event_types": COUNTED,
        "decoder": Decoder(),
        "validation": DEFAULT_SETTINGS,
        "horizon_s": 3600.0,
        "block_ms": 20,
    }
    follow(bus, store, **arguments | changed)


def caught_up(bus: Bus, store: OnlineStore) -> bool:
    return all(store.applied_offset("events", p) >= end for p, end in bus.end_offsets().items())


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


def test_streamed_histories_equal_the_log(bus_of, redis_client):
    events = decode_events(bodies(np.random.default_rng(3), 400))
    bus, store = bus_of(2), OnlineStore(redis_client, namespace="r")
    bus.publish(events)
    totals = np.zeros(4, int)
    for partition, end in bus.end_offsets().items():
        seen = SeenEvents(horizon_ms=3_600_000)
        for start in range(0, end, 17):
            batch = read(bus, partition, start=start, limit=17)
            a = apply(store, batch, seen)
            totals += (a.events, a.repeated, a.other_types, a.unknown_items)
            assert apply(store, batch, seen) == Applied(repeated=len(batch.offsets))
        assert store.applied_offset("events", partition) == end
    assert totals.sum() == 400
    assert totals[1] == 0
    assert_store_equals_log(store, events)


def test_a_batch_that_overlaps_applies_only_what_is_new(bus_of, redis_client):
    bus, store = bus_of(1), OnlineStore(redis_client, namespace="r")
    events = decode_events(bodies(np.random.default_rng(4), 60))
    bus.publish(events)
    for start, limit in ((0, 30), (10, 40), (0, 60)):
        apply(store, read(bus, 0, start=start, limit=limit))
    assert_store_equals_log(store, events)


def test_a_gap_is_refused(bus_of, redis_client):
    bus, store = bus_of(1), OnlineStore(redis_client, namespace="r")
    bus.publish(decode_events(bodies(np.random.default_rng(5), 10)))
    with pytest.raises(DataError, match="events 0 to 3 were never applied; read from offset 0"):
        apply(store, read(bus, 0, start=4, limit=5))
    assert store.applied_offset("events", 0) == 0
    store.start_at("events", {0: 4})
    apply(store, read(bus, 0, start=4, limit=5))
    assert store.applied_offset("events", 0) == 9


def test_events_that_are_no_part_of_a_history_make_nobody_known(redis_client):
    store = OnlineStore(redis_client, namespace="r")
    events = decode_events(
        [b | {"event_type": "view", "item_id": "i1"} for b in bodies(np.random.default_rng(6), 5)]
    )
    assert apply(store, batch_of(events)) == Applied(other_types=5)
    assert not store.get(events["user_id"].to_pylist(), now=0).known.any()
    assert store.applied_offset("events", 0) == 5
    nothing = np.zeros(0, np.int64)
    assert apply(store, judged(Records(0, nothing, nothing, [], 5), 5)) == Applied()
    # Kafka keeps a transaction's marker where an event could stand.
    assert apply(store, judged(Records(0, nothing, nothing, [], 6), 5)) == Applied()
    assert store.applied_offset("events", 0) == 6


def test_a_poisoned_record_moves_the_offset_and_nothing_else(redis_client):
    """One record that is no event stopped the stream for all users, for ever."""
    store = OnlineStore(redis_client, namespace="r")
    events = decode_events(
        [b | {"event_type": "purchase", "item_id": "i1"} for b in bodies(np.random.default_rng(10), 4)]
    )
    good = encode(events)
    invalid = encode(decode_events([{"user_id": "u1", "item_id": "i1", "event_type": "purchase"}]))[0]
    poison = [b"", b"\xff\xfe", b"{}", b"[1", good[0][:-3], good[1] + b"?", invalid]
    mixed = [body for pair in zip(good, poison[:4], strict=True) for body in pair] + poison[4:]
    count = len(mixed)
    records = Records(0, np.arange(count), np.full(count, 1_790_000_000_000), mixed, count)
    applied = apply(store, judged(records, 0))
    assert (applied.events, applied.rejected) == (4, 7)
    assert store.applied_offset("events", 0) == count
    assert_store_equals_log(store, events)


def test_an_event_that_was_sent_again_enters_a_history_once(bus_of, redis_client):
    bus, store = bus_of(1), OnlineStore(redis_client, namespace="r")
    events = decode_events(bodies(np.random.default_rng(11), 40))
    for sent in (events, events.slice(30), events):
        bus.publish(sent)
    seen = SeenEvents(horizon_ms=3_600_000)
    applied = [apply(store, read(bus, 0, start=start, limit=30), seen) for start in (0, 30, 60)]
    assert sum(a.duplicate for a in applied) == 50
    assert_store_equals_log(store, events)
    other = bodies(np.random.default_rng(11), 1)[0] | {"user_id": "another", "event_type": "purchase"}
    bus.publish(decode_events([other]))
    assert apply(store, read(bus, 0, start=90, limit=30), seen).duplicate == 0


@pytest.mark.parametrize(("horizon_s", "times"), [(3600.0, 1), (0.0, 2)])
def test_what_was_sent_again_is_known_after_a_restart(bus_of, redis_client, horizon_s, times):
    bus, store = bus_of(1), OnlineStore(redis_client, namespace="r")
    body = bodies(np.random.default_rng(12), 1)[0] | {"event_type": "purchase", "item_id": "i1"}
    totals: list[Applied] = []
    for _ in range(2):
        bus.publish(decode_events([body]))
        time.sleep(0.01)  # later by the clock of the bus
        follow_on(bus, store, horizon_s=horizon_s, on_applied=lambda batch, applied: totals.append(applied))
    assert [a.duplicate for a in totals] == [0, 2 - times]
    assert store.get([body["user_id"]], now=0).histories.counts.tolist() == [times]


def test_a_follower_that_dies_loses_nothing_and_repeats_nothing(redis_url, bus_of, redis_client):
    bus, store = bus_of(2), OnlineStore(redis_client, namespace="r")
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
                own = OnlineStore(connect(redis_url), namespace="r")
                follow_on(bus_of(2), own, rows_of=dies, stop=stop.is_set)
            except RuntimeError:
                continue

    stop = threading.Event()
    follower = threading.Thread(target=run, args=(stop,))
    follower.start()
    for start in range(0, 300, 20):
        bus.publish(events.slice(start, 20))
        bus.publish(events.slice(start, 7))
    deadline = time.time() + 20
    while not caught_up(bus, store):
        assert time.time() < deadline
        time.sleep(0.02)
    stop.set()
    follower.join()
    assert calls >= 3
    assert_store_equals_log(store, events)


def test_kafka_is_followed_alike(tmp_path, redis_client):
    need_kafka()
    store = OnlineStore(redis_client, namespace="k")
    events = decode_events(bodies(np.random.default_rng(15), 200))
    totals: list[Applied] = []
    with new_kafka(tmp_path) as kafka:
        for sent in (events, events.slice(100), events):  # a follower of its own each time
            bus = open_bus(BusSettings(kafka.url, partitions=2))
            bus.publish(sent)
            follow_on(bus, store, on_applied=lambda batch, applied: totals.append(applied))
            bus.close()
    assert sum(applied.duplicate for applied in totals) == 300
    assert sum(applied.repeated for applied in totals) == 0
    assert_store_equals_log(store, events)


def purchase(user: str, appended_ms: int, *, happened_s: int | None = None) -> dict:
    at = np.datetime64(appended_ms if happened_s is None else 1000 * happened_s, "ms")
    body = {"event_id": f"{user}-{at}", "user_id": user, "item_id": "i1", "event_type": "purchase"}
    return body | {"order_id": str(at), "value": 1.0, "timestamp": f"{at}Z"}


def test_a_lagging_follower_does_not_bring_back_who_was_erased(redis_client):
    """It wrote their history anew from the bus, after both stores had forgotten them."""
    store = OnlineStore(redis_client, namespace="r")
    at = 1_767_225_600_500
    assert store.forget(["gone", "unknown"], at_ms=at) == 0
    appended = [at - 1000, at, at + 1, at + 2000, at + 2001]
    sent = [purchase("gone", ms) for ms in appended]
    sent[3] = purchase("gone", at + 2000, happened_s=1)  # taken after the erasure, but it happened before
    sent[4] = purchase("other", at + 2001, happened_s=1)
    records = Records(0, np.arange(5), np.array(appended), encode(decode_events(sent)), 5)
    batch = judged(records, 0)
    assert apply(store, batch) == Applied(events=2, erased=3, users=2)
    assert store.get(["gone", "other"], now=0).histories.counts.tolist() == [1, 1]
    assert apply(store, batch) == Applied(repeated=5)
    named = b"".join(redis_client.dump(key) for key in redis_client.scan_iter("recsys:r:erased"))
    assert named
    assert b"gone" not in named  # a hash of them stays


def test_an_erasure_between_the_read_and_the_write_is_heeded(redis_url, redis_client):
    """Of a user who has no key yet there is nothing but the note of the erasure to watch."""
    store = OnlineStore(redis_client, namespace="r")
    rival = OnlineStore(connect(redis_url), namespace="r")
    events = decode_events([purchase("gone", 1_767_225_600_000)])
    reads = []

    class Racing(OnlineStore):
        def change(self, user_ids, *, topic, partition, update):
            def raced(*given):
                reads.append(given)
                if len(reads) == 1:
                    rival.forget(["gone"], at_ms=1_790_000_000_001)
                return update(*given)

            return super().change(user_ids, topic=topic, partition=partition, update=raced)

    applied = apply(Racing(redis_client, namespace="r"), batch_of(events))
    assert len(reads) == 2
    assert applied == Applied(erased=1)
    assert not store.get(["gone"], now=0).known.any()
    assert store.applied_offset("events", 0) == 1


def test_as_of_is_the_moment_after_the_newest_event(redis_client):
    """A device's clock may run ahead of the bus: its event still lies before `as_of`."""
    store = OnlineStore(redis_client, namespace="r")
    body = bodies(np.random.default_rng(8), 1)[0] | {"event_type": "purchase", "item_id": "i1"}
    events = decode_events([body | {"user_id": "ahead", "timestamp": "2026-01-01T00:04:00Z"}])
    appended = 1_767_225_600  # 2026-01-01T00:00:00Z
    apply(store, batch_of(events, append_ms=appended * 1000))
    assert store.get(["ahead"], now=appended).as_of.tolist() == [appended + 241]


def test_a_bus_that_lost_its_events_is_noticed(bus_of, redis_client):
    """Redis was flushed (or failed over to an empty replica) under a follower: it went on waiting for the
    offset that it remembered, and skipped all that came before it, silently."""
    bus, store = bus_of(1), OnlineStore(redis_client)
    bus.publish(decode_events(bodies(np.random.default_rng(9), 20)))
    flushed = threading.Event()

    def flush(batch, applied):
        redis_client.flushall()
        flushed.set()

    with pytest.raises(UnavailableError, match="somebody emptied it"):
        follow_on(bus, store, stop=lambda: False, on_applied=flush)
    assert flushed.is_set()


def test_a_start_says_what_the_bus_lacks_and_how_to_go_on(tmp_path, bus_of, redis_client):
    bus, store = bus_of(1), OnlineStore(redis_client)
    events = decode_events(bodies(np.random.default_rng(13), 20))
    bus.publish(events)

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=f"{message}.* python -m jobs.build_features"):
            follow_on(bus, store)

    store.start_at("events", {0: 21})
    refused("holds offsets 0 to 20, not 21: somebody emptied it")
    with start_redis(tmp_path) as server:
        trimmed = open_bus(BusSettings(server.url, partitions=1, retention_hours=1e-9))
        trimmed.publish(events)
        time.sleep(0.01)
        trimmed.publish(events)
        bus = open_bus(BusSettings(server.url, partitions=1, retention_hours=1e-9))
        bus.publish(events)
        begin = bus.begin_offsets()[0]
        assert begin > 2
        store.start_at("events", {0: 2})
        end = bus.end_offsets()[0]
        refused(f"holds offsets {begin} to {end}, not 2: what was trimmed is lost")
    with pytest.raises(UnavailableError, match="does not answer"):  # not a lost event: it is waited for
        follow_on(bus, store)


def test_positions_are_noted_on_the_bus(bus_of, redis_client):
    bus, store = bus_of(2), OnlineStore(redis_client)
    bus.publish(decode_events(bodies(np.random.default_rng(14), 50)))
    noted: list[tuple[str, dict[int, int]]] = []
    bus.note_positions = lambda reader, offsets: noted.append((reader, dict(offsets)))
    loops = iter(range(100))
    follow_on(bus, store, stop=lambda: next(loops) >= 5, block_ms=5)
    assert noted == [("features", bus.end_offsets())]  # once: the second is not over
