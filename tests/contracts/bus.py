"""What every bus must hold. A test class inherits it and has a fixture `settings` of an empty topic."""

import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.schema import EVENT_SCHEMA
from recsys.events.wire import Decoder, encode


def some_events(count: int, *, users: int = 7, first: int = 0) -> pa.Table:
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
            for n in range(first, first + count)
        ]
    )


def read_all(bus: Bus, partition: int, *, limit: int = 400) -> tuple[list[int], list[bytes]]:
    """Offsets and bodies from the oldest to the end, read as a reader does."""
    start, offsets, bodies = bus.begin_offsets()[partition], [], []
    while start < bus.end_offsets()[partition]:
        records = bus.read(partition, start=start, limit=limit)
        assert len(records) <= limit
        assert records.end > start
        start = records.end
        offsets += records.offsets.tolist()
        bodies += records.bodies
    return offsets, bodies


class BusContract:
    @pytest.fixture
    def bus(self, settings: BusSettings):
        bus = open_bus(settings)
        yield bus
        bus.close()

    def test_offsets_are_dense_and_what_is_read_is_what_was_published(self, bus):
        events = some_events(2500)
        before = time.time()
        published = bus.publish(events)
        assert (published.partition.dtype, published.offset.dtype) == (np.int32, np.int64)
        assert sum(bus.end_offsets().values()) == 2500
        for partition in range(bus.partitions):
            offsets, bodies = read_all(bus, partition)
            mine = published.partition == partition
            assert offsets == published.offset[mine].tolist() == list(range(mine.sum()))
            assert bodies == encode(events.filter(pa.array(mine)))
            times = bus.read(partition, start=0, limit=10).append_time_ms / 1000
            assert (np.abs(times - before) < 30).all()

    def test_a_user_stays_in_one_partition_in_order(self, bus):
        published = [bus.publish(some_events(50, users=5, first=50 * n)) for n in range(4)]
        partition = np.concatenate([p.partition for p in published])
        offset = np.concatenate([p.offset for p in published])
        for user in range(5):
            of_user = np.arange(200) % 5 == user
            assert len(set(partition[of_user])) == 1
            assert (np.diff(offset[of_user]) > 0).all()

    def test_read_takes_what_it_is_asked_for(self, bus):
        partition = int(bus.publish(some_events(20, users=1)).partition[0])
        records = bus.read(partition, start=5, limit=3)
        assert (records.partition, records.offsets.tolist(), records.end) == (partition, [5, 6, 7], 8)
        assert bus.read(partition, start=2, limit=1).offsets.tolist() == [2]  # back again
        at_end = bus.read(partition, start=20, limit=5)
        assert (len(at_end), at_end.end) == (0, 20)

    def test_bodies_that_are_no_events_stand_in_the_partition_that_is_named(self, bus):
        last = bus.partitions - 1
        for first in (0, 2000):
            bodies = [b"%d" % n for n in range(first, first + 2000)]
            assert bus.append(bodies, partition=last).tolist() == list(range(first, first + 2000))
        offsets, bodies = read_all(bus, last)
        assert offsets == list(range(4000))
        assert bodies == [b"%d" % n for n in range(4000)]
        assert bus.append([], partition=last).tolist() == []

    def test_concurrent_publishers_lose_nothing(self, bus, settings):
        def publish(number: int, own: Bus) -> None:
            for n in range(20):
                own.publish(some_events(10, first=1000 * number + 10 * n))

        other = open_bus(settings)
        threads = [
            threading.Thread(target=publish, args=(number, (bus, other)[number % 2])) for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.close()
        bodies = []
        for partition, end in bus.end_offsets().items():
            offsets, found = read_all(bus, partition)
            assert offsets == list(range(end))
            bodies += found
        ids = Decoder()(bodies)[0]["event_id"].to_pylist()
        assert sorted(ids) == sorted(f"e{1000 * t + n}" for t in range(4) for n in range(200))

    def test_a_tail_waits_for_what_follows(self, bus, settings):
        partitions = range(bus.partitions)
        assert bus.tail(partitions, offsets={}, block_ms=20) == []
        bus.publish(some_events(30))
        offsets = {0: 2}
        got = []
        while sum(map(len, got)) < 28:
            got += bus.tail(partitions, offsets=offsets, block_ms=500)
            offsets |= {records.partition: records.end for records in got}
        assert offsets == bus.end_offsets()
        assert next(int(r.offsets[0]) for r in got if r.partition == 0) == 2
        other = open_bus(settings)
        late = threading.Timer(0.3, lambda: other.publish(some_events(1)))
        late.start()
        deadline = time.monotonic() + 20
        got = []
        while not got and time.monotonic() < deadline:
            got = bus.tail(partitions, offsets=offsets, block_ms=1000)
        late.join()
        other.close()
        assert [len(records) for records in got] == [1]

    def test_a_tail_keeps_to_its_limit(self, bus):
        bus.publish(some_events(100))
        for records in bus.tail(range(bus.partitions), offsets={}, block_ms=500, limit=7):
            assert 0 < len(records) <= 7

    def test_a_reader_may_be_there_before_the_events(self, settings):
        reader, writer = open_bus(settings), open_bus(settings)
        assert set(reader.begin_offsets().values()) == set(reader.end_offsets().values()) == {0}
        assert len(reader.read(0, start=0, limit=10)) == 0
        writer.publish(some_events(50))
        for partition, end in writer.end_offsets().items():
            assert len(read_all(reader, partition)[0]) == end
        reader.close()
        writer.close()

    def test_offsets_by_time(self, bus):
        bus.publish(some_events(40))
        first = bus.end_offsets()
        time.sleep(0.02)
        between = int(time.time() * 1000)
        time.sleep(0.02)
        bus.publish(some_events(40))
        assert bus.offsets_at(0) == dict.fromkeys(first, 0)
        assert bus.offsets_at(between) == first
        assert bus.offsets_at(between + 3_600_000) == bus.end_offsets()

    def test_another_count_of_partitions_is_refused(self, bus, settings):
        with pytest.raises(
            SettingsError, match=r"has 3 partitions, not 8: set bus\.partitions to 3, .* a new store"
        ):
            open_bus(replace(settings, partitions=8))

    def test_an_event_without_ids_is_refused(self, bus):
        for given in ({"event_id": "e"}, {"user_id": "u"}):
            with pytest.raises(DataError, match="without"):
                bus.publish(decode_events([given]))
        assert sum(bus.end_offsets().values()) == 0

    def test_nothing_is_published_from_nothing(self, bus):
        published = bus.publish(EVENT_SCHEMA.empty_table())
        assert len(published.partition) == len(published.offset) == 0
        assert sum(bus.end_offsets().values()) == 0

    def test_any_user_id_will_do(self, bus):
        users = ["naïve", "名前", "👩‍👩‍👧", " ", "", "a\x00b"]
        events = decode_events([{"event_id": user, "user_id": user} for user in users])
        published = bus.publish(events)
        for row, (partition, offset) in enumerate(zip(published.partition, published.offset)):
            records = bus.read(int(partition), start=int(offset), limit=1)
            assert Decoder()(records.bodies)[0].equals(events.slice(row, 1))

    def test_an_offset_beyond_the_end_is_refused(self, bus):
        """A bus that was emptied ends before a reader's offset; it must not wait there for ever."""
        bus.publish(some_events(50))
        end = bus.end_offsets()[0]
        with pytest.raises(
            UnavailableError, match=rf"partition 0 .* holds offsets 0 to {end}, not {end + 5}"
        ):
            bus.read(0, start=end + 5, limit=1)
        with pytest.raises(
            UnavailableError, match=r"somebody emptied it.* a new topic and ingest into a new store\.uri"
        ):
            bus.tail([0], offsets={0: end + 5}, block_ms=1000)
        assert len(bus.read(0, start=0, limit=1)) == 1

    def trim(self, bus: Bus, settings: BusSettings, *, below: int) -> None:
        """Takes all that is below an offset from partition 0, as retention does."""
        raise NotImplementedError

    def test_what_was_trimmed_is_missed_aloud(self, bus, settings):
        bus.publish(some_events(60))
        end = bus.end_offsets()[0]
        bus.tail([0], offsets={}, block_ms=500, limit=1)  # a reader that has begun is told as well
        self.trim(bus, settings, below=4)
        assert (bus.begin_offsets()[0], bus.end_offsets()[0]) == (4, end)
        with pytest.raises(UnavailableError, match=r"not 2: what was trimmed is lost; read from 4"):
            bus.read(0, start=2, limit=10)
        with pytest.raises(UnavailableError, match=r"not 3: what was trimmed"):
            bus.tail([0], offsets={0: 3}, block_ms=500)
        assert bus.read(0, start=4, limit=1).offsets.tolist() == [4]
        self.trim(bus, settings, below=end)
        assert bus.begin_offsets()[0] == bus.end_offsets()[0] == end
        with pytest.raises(UnavailableError, match="what was trimmed"):
            bus.read(0, start=4, limit=1)
        with pytest.raises(UnavailableError, match="what was trimmed"):
            bus.tail([0], offsets={0: 4}, block_ms=500)
        assert len(bus.read(0, start=end, limit=1)) == 0
        published = bus.publish(some_events(60))
        assert published.offset[published.partition == 0].min() == end

    def noted(self, settings: BusSettings, reader: str) -> dict[int, int]:
        """The positions of a reader, as the server's own tools show them."""
        raise NotImplementedError

    def test_positions_are_there_for_other_tools(self, bus, settings):
        bus.publish(some_events(50))
        bus.note_positions("store", {0: 3, 1: 1})
        bus.note_positions("store", {0: 5})
        bus.note_positions("features", {0: 1})
        bus.note_positions("store", {})
        assert self.noted(settings, "store") == {0: 5, 1: 1}
        assert self.noted(settings, "features") == {0: 1}
