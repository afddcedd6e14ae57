import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake

from recsys.errors import DataError, UnavailableError
from recsys.events import maintenance
from recsys.events.codec import decode_events
from recsys.events.delta import ARCHIVED, StoreTable
from recsys.events.maintenance import archive, compact, vacuum
from recsys.events.schema import EVENT_SCHEMA, STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore


def rows(offsets, *, month="2026-01", user="u"):
    bodies = [
        {
            "event_id": f"e{offset}",
            "user_id": user,
            "item_id": "i",
            "event_type": "view",
            "timestamp": f"{month}-10T00:00:00Z",
        }
        for offset in offsets
    ]
    events = decode_events(bodies)
    provenance = [
        pa.array([0] * len(bodies), pa.int32()),
        pa.array(list(offsets), pa.int64()),
        pa.array([1_790_000_000_000_000] * len(bodies), pa.int64()).cast(TIMESTAMP),
    ]
    return pa.Table.from_arrays([*events.columns, *provenance], schema=STORED_SCHEMA)


def refused(offsets):
    events = rows(offsets)
    return events.append_column("reason", pa.array(["duplicate"] * len(events), pa.string()))


def offsets_of(store):
    return sorted(store.read(columns=["offset"])["offset"].to_pylist())


class Writer(threading.Thread):
    """Commits five records at a time, two of them late for January and one rejected, until told to end."""

    def __init__(self, store):
        super().__init__()
        self.store, self.ended, self.error = store, threading.Event(), None

    def run(self):
        try:
            while not self.ended.is_set():
                start = self.store.committed("events", 1).get(0, 0)
                batch = pa.concat_tables(
                    [rows(range(start, start + 2)), rows(range(start + 2, start + 4), month="2026-03")]
                )
                self.store.append(batch, rejected=refused([start + 4]), offsets={0: (start, start + 5)})
        except BaseException as error:
            self.error = error

    def __enter__(self):
        self.start()
        while self.store.committed("events", 1).get(0, 0) < 50:
            assert self.error is None, self.error
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        assert self.error is None, self.error
        end = self.store.committed("events", 1)[0]
        rejected = self.store.read_rejected(columns=["offset"])["offset"].to_pylist()
        assert sorted(offsets_of(self.store) + rejected) == list(range(end))
        assert self.store.count() == end * 4 // 5


def wait_for_commits(store, count):
    end = store.committed("events", 1)[0] + 5 * count
    while store.committed("events", 1)[0] < end:
        time.sleep(0.01)


def test_compaction_and_vacuum_beside_a_writer_lose_and_double_nothing(tmp_path):
    store = EventStore(tmp_path)
    with Writer(EventStore(tmp_path)):
        for _ in range(6):
            figures = compact(store)
            assert figures.files_after < figures.files_before
            assert vacuum(store, keep_hours=0) > 0
            wait_for_commits(store, 2)


def test_compaction_meets_other_commits_and_tries_again(tmp_path, monkeypatch):
    store = EventStore(tmp_path)
    for offset in range(3):
        store.append(rows([offset]), rejected=refused([10 + offset]))
    done = []
    compacting = maintenance._compact

    def interrupted(part, table, target_bytes):
        if not done and part is store.rejected:
            done.append(part)
            table = part.open()
            store.rejected.rewrite(table, lambda rows: rows.slice(0, 0), where=pc.scalar(True))
        return compacting(part, table, target_bytes)

    monkeypatch.setattr(maintenance, "_compact", interrupted)
    assert compact(store).files_after == 1
    assert (offsets_of(store), len(store.read_rejected())) == ([0, 1, 2], 0)


def test_a_rewrite_does_not_pass_a_compaction(tmp_path):
    """Else what it was to take away would come back."""
    store = EventStore(tmp_path)
    for offset in range(3):
        store.append(rows([offset]), rejected=refused([10 + offset]))
    table = store.rejected.open()
    store.rejected.open().optimize.compact()
    with pytest.raises(UnavailableError, match="was compacted"):
        store.rejected.rewrite(table, lambda rows: rows.slice(0, 0), where=pc.scalar(True))
    assert len(store.read_rejected()) == 3


def test_vacuum_leaves_what_is_about_to_be_committed(tmp_path):
    store = EventStore(tmp_path)
    store.append(rows([0]))
    folder = tmp_path / "events" / "month=2026-01"
    written, crashed = folder / "part-written.parquet", folder / "part-crashed.parquet"
    for file in (written, crashed):
        file.write_bytes(b"x")
    long_ago = time.time() - 25 * 3600
    os.utime(crashed, (long_ago, long_ago))
    assert vacuum(store, keep_hours=0) == 1
    assert (written.exists(), crashed.exists(), offsets_of(store)) == (True, False, [0])


def archivable(tmp_path, **options):
    store = EventStore(tmp_path / "hot", **options)
    store.append(rows([0, 1]), offsets={0: (0, 2)})
    store.append(rows([2], month="2026-02"), offsets={0: (2, 3)})
    store.append(rows([3, 4], month="2026-03"), offsets={0: (3, 5)})
    return store


@pytest.mark.parametrize("partition_by", ["month", "day"])
def test_hot_and_cold_are_read_as_one(tmp_path, partition_by):
    store = archivable(tmp_path, partition_by=partition_by, cold_uri=f"{tmp_path}/elsewhere")
    before = store.read().sort_by("event_id")
    assert archive(store, before=date(2026, 3, 10)) == 3
    assert archive(store, before=date(2026, 3, 10)) == 0
    assert (store.events.open().count(), store.cold.open().count(), store.count()) == (2, 3, 5)
    assert store.read().sort_by("event_id").equals(before)
    assert store.read(months=["2026-02"], columns=["offset"]).to_pylist() == [{"offset": 2}]
    assert store.duckdb().sql('select sum("offset"), count(distinct event_id) from events').fetchall() == [
        (10, 5)
    ]
    assert offsets_of(EventStore(store.uri, cold_uri=f"{tmp_path}/elsewhere")) == [0, 1, 2, 3, 4]
    with pytest.raises(UnavailableError, match=r"were archived, but .*/hot/cold holds none"):
        EventStore(store.uri).read()


def test_a_version_is_a_whole_and_late_events_stay_hot_until_the_next_archive(tmp_path):
    store = archivable(tmp_path)
    archive(store, before=date(2026, 2, 1))
    archived = store.version()
    store.append(rows([5], month="2026-01"), offsets={0: (5, 6)})  # late
    assert len(store.read(months=["2026-01"])) == 3
    assert archive(store, before=date(2026, 3, 1)) == 2
    assert [len(store.read(version=v)) for v in (0, 1, 2, archived, archived + 1, store.version())] == [
        2, 3, 5, 5, 6, 6,
    ]  # fmt: skip
    assert offsets_of(store) == [0, 1, 2, 3, 4, 5]
    assert store.cold.open().history()[0]["period"] == "2026-02"


@pytest.mark.parametrize("cut", ["exchange", "append"])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_archive_that_was_killed_is_repeated(tmp_path, monkeypatch, cut, earlier):
    """Killed before the cold commit, or between it and the hot one; the first time, or a later one."""
    store = archivable(tmp_path)
    if earlier:
        archive(store, before=date(2026, 2, 1))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreTable, cut, killed)
        with pytest.raises(KeyboardInterrupt):
            archive(store, before=date(2026, 3, 1))
    assert offsets_of(store) == [0, 1, 2, 3, 4]
    assert store.count() == 5
    store.append(rows([5], month="2026-01"), offsets={0: (5, 6)})
    compact(store)
    vacuum(store, keep_hours=0)
    assert offsets_of(store) == [0, 1, 2, 3, 4, 5]
    assert archive(store, before=date(2026, 3, 1)) == (2 if earlier else 4)
    assert (offsets_of(store), store.cold.open().count()) == ([0, 1, 2, 3, 4, 5], 4)


def test_archiving_beside_a_writer_of_late_events_and_compaction(tmp_path):
    store = EventStore(tmp_path)
    with Writer(EventStore(tmp_path)):
        moved = 0
        for _ in range(4):
            moved += archive(store, before=date(2026, 3, 1))
            compact(store)
            wait_for_commits(store, 2)
        vacuum(store, keep_hours=0)
        assert moved >= 20


def test_two_archives_at_once_move_each_event_once(tmp_path):
    store = EventStore(tmp_path)
    for number in range(12):
        store.append(rows([number], month=f"2025-{number + 1:02}"), offsets={0: (number, number + 1)})
    with ThreadPoolExecutor() as pool:
        moves = [pool.submit(archive, EventStore(tmp_path), before=date(2025, 12, 1)) for _ in range(2)]
    assert sum(move.result() for move in moves) == 11
    assert offsets_of(store) == list(range(12))
    assert store.cold.open(store.events.open().transaction_version(ARCHIVED)).count() == 11


def test_tables_of_an_older_version_are_maintained(tmp_path):
    events = decode_events([{"event_id": "a", "user_id": "u", "timestamp": "2026-01-01"}])
    for _ in range(2):
        write_deltalake(
            tmp_path / "events",
            events.append_column("month", pa.array(["2026-01"])),
            partition_by=["month"],
            mode="append",
        )
    store = EventStore(tmp_path, partition_by="day")
    assert compact(store).files_after == 1
    assert vacuum(store, keep_hours=0) == 2
    assert archive(store, before=date(2026, 2, 1)) == 2
    assert store.read().schema.equals(EVENT_SCHEMA)
    assert store.duckdb().sql("select count(*) from events").fetchall() == [(2,)]


def test_an_empty_store_is_nothing_to_maintain(tmp_path):
    store = EventStore(tmp_path)
    assert (compact(store).files_before, vacuum(store)) == (0, 0)
    with pytest.raises(DataError, match="run `recsys ingest` first"):
        archive(store, before=date(2026, 1, 1))
