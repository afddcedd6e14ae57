import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import DataError, SettingsError
from recsys.events.bus import RedisStreamsBus, partition_of
from recsys.events.codec import decode_events
from recsys.events.redis_server import connect, start_redis


def some_events(count: int, users: int = 7) -> pa.Table:
    return decode_events(
        [
            {
                "event_id": f"e{n}",
                "user_id": f"u{n % users}",
                "item_id": "i",
                "event_type": "click",
                "timestamp": "2026-01-01T00:00:00Z",
                "attributes": {"n": str(n)},
            }
            for n in range(count)
        ]
    )


def test_offsets_are_dense_and_what_is_read_is_what_was_published(redis_client):
    bus = RedisStreamsBus(redis_client, topic="events", partitions=3)
    events = some_events(2500)
    before = time.time()
    published = bus.publish(events)
    assert (published.partition == partition_of(events["user_id"].to_pylist(), partitions=3)).all()
    assert sum(bus.end_offsets().values()) == 2500
    for partition, end in bus.end_offsets().items():
        records = bus.read(partition, start=0, limit=10_000)
        assert records.offsets.tolist() == list(range(end))
        assert records.events.equals(events.filter(pa.array(published.partition == partition)))
        assert (np.abs(records.append_time_ms / 1000 - before) < 30).all()
        assert bus.read(partition, start=5, limit=2).offsets.tolist() == [5, 6]
        assert len(bus.read(partition, start=end, limit=5)) == 0


def test_concurrent_publishers_lose_nothing(redis_url, redis_client):
    def publish():
        bus = RedisStreamsBus(connect(redis_url), partitions=2)
        for _ in range(20):
            bus.publish(some_events(10))

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bus = RedisStreamsBus(redis_client, partitions=2)
    for partition, end in bus.end_offsets().items():
        assert bus.read(partition, start=0, limit=10_000).offsets.tolist() == list(range(end))
    assert sum(bus.end_offsets().values()) == 800


def test_a_tail_waits_for_what_follows(redis_url, redis_client):
    bus = RedisStreamsBus(redis_client, partitions=2)
    assert bus.tail([0, 1], offsets={}, block_ms=20) == []
    bus.publish(some_events(20))
    ends = bus.end_offsets()
    got = bus.tail([0, 1], offsets={0: 2}, block_ms=20)
    assert [(r.partition, int(r.offsets[0]), int(r.offsets[-1]) + 1) for r in got] == [
        (0, 2, ends[0]),
        (1, 0, ends[1]),
    ]
    late = threading.Timer(
        0.2, lambda: RedisStreamsBus(connect(redis_url), partitions=2).publish(some_events(1))
    )
    late.start()
    got = bus.tail([0, 1], offsets=ends, block_ms=1000)
    late.join()
    assert sum(len(r) for r in got) == 1


def test_another_count_of_partitions_is_refused(redis_client):
    RedisStreamsBus(redis_client, partitions=4)
    with pytest.raises(SettingsError, match=r"has 4 partitions, not 8: set bus\.partitions to 4"):
        RedisStreamsBus(redis_client, partitions=8)


def test_an_event_without_user_is_refused(redis_client):
    with pytest.raises(DataError, match="user_id"):
        RedisStreamsBus(redis_client).publish(decode_events([{"event_id": "e"}]))


def test_redis_6_gives_the_same_offsets(tmp_path, monkeypatch):
    monkeypatch.setattr("recsys.events.redis_server.shutil.which", lambda name, path=None: None)
    with start_redis(tmp_path) as server:
        bus = RedisStreamsBus(connect(server.url), partitions=1)
        assert bus.publish(some_events(3)).offset.tolist() == [0, 1, 2]
        assert bus.tail([0], offsets={0: 1}, block_ms=10)[0].offsets.tolist() == [1, 2]
