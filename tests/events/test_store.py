import threading
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events import delta
from recsys.events import store as store_module
from recsys.events.codec import decode_events
from recsys.events.maintenance import archive
from recsys.events.schema import EVENT_SCHEMA, REJECTED_SCHEMA, STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore

BODIES = [
    {
        "event_id": "a",
        "user_id": "u",
        "item_id": "i",
        "event_type": "purchase",
        "timestamp": "2026-01-31T23:59:59Z",
        "value": 2,
        "context": {"position": 1},
        "attributes": {"k": "v"},
    },
    {"event_id": "b", "user_id": "v", "item_id": "i", "event_type": "click", "timestamp": "2026-02-01"},
]
REFUSED = {"event_id": "c", "item_id": "i", "event_type": "click"}


def stored(bodies=BODIES, *, partition=0, start=0, offsets=None):
    """STORED_SCHEMA; from a file if `partition` is None."""
    events = decode_events(bodies)
    places = range(start, start + len(bodies)) if offsets is None else offsets
    none = partition is None
    provenance = [
        pa.array([partition] * len(bodies), pa.int32()),
        pa.array([None if none else place for place in places], pa.int64()),
        pa.array([1_790_000_000_000_000] * len(bodies), pa.int64()).cast(TIMESTAMP),
    ]
    return pa.Table.from_arrays([*events.columns, *provenance], schema=STORED_SCHEMA)


def refused(reason="missing_user", **given):
    rows = stored(**{"bodies": [REFUSED], **given})
    return rows.append_column("reason", pa.array([reason] * len(rows), pa.string()))


def numbered(offsets, *, partition=0, user="u", month="2026-01"):
    bodies = [
        {**BODIES[0], "event_id": f"{partition}-{o}", "user_id": user, "timestamp": f"{month}-10T00:00:00Z"}
        for o in offsets
    ]
    return stored(bodies, partition=partition, offsets=offsets)


def offsets_of(table):
    return sorted(table["offset"].to_pylist())


def test_what_was_appended_is_read_by_arrow_and_duckdb(tmp_path):
    store = EventStore(tmp_path / "events")
    appended = store.append(stored(), rejected=refused(start=2))
    assert (appended.stored, store.version(), store.count()) == (2, 0, 2)
    read = store.read()
    assert read.schema.equals(EVENT_SCHEMA)
    assert read.sort_by("event_id").to_pylist() == decode_events(BODIES).to_pylist()
    assert store.read(columns=["user_id", "offset"], months=["2026-02"]).to_pylist() == [
        {"user_id": "v", "offset": 1}
    ]
    assert store.read_rejected().schema.equals(REJECTED_SCHEMA)
    assert store.read_rejected(columns=["event_id", "reason"]).to_pylist() == [
        {"event_id": "c", "reason": "missing_user"}
    ]
    sql = "select context.position, count(*) over () from events where event_id = 'a'"
    assert store.duckdb().sql(sql).fetchall() == [(1, 1)]
    assert store.duckdb().sql('select reason, "offset" from rejected').fetchall() == [("missing_user", 2)]


def test_offsets_move_with_the_events_on_both_tables(tmp_path):
    store = EventStore(tmp_path)
    assert store.committed("events", 2) == {}
    store.append(stored(start=5), rejected=refused(start=7), offsets={0: (5, 8)})  # a first start is as it is
    store.append(numbered([8, 9]), offsets={0: (8, 10), 1: (0, 0)})  # nothing rejected
    assert store.committed("events", 2) == {0: 10}
    assert store.rejected.open().transaction_version("events/0") == 10
    store.append(STORED_SCHEMA.empty_table(), offsets={0: (10, 12)})  # a transaction's markers only
    assert store.committed("events", 2) == {0: 12}
    assert store.committed("other", 1) == {}
    assert len(store.read(version=0)) == 2


def test_a_stale_committer_can_not_commit(tmp_path):
    old, new = EventStore(tmp_path), EventStore(tmp_path)
    old.append(numbered(range(3)), offsets={0: (0, 3)})
    new.append(numbered([3, 4]), offsets={0: (3, 5)})
    for start in (3, 4, 6):
        with pytest.raises(UnavailableError, match=f"partition 0 of 'events' is at 5, not {start}"):
            old.append(numbered([start]), offsets={0: (start, 6)})
    assert offsets_of(new.read(columns=["offset"])) == [0, 1, 2, 3, 4]


def test_after_a_crash_between_the_two_commits_what_is_held_is_left_out_row_by_row(tmp_path, monkeypatch):
    """The batch after a restart may end elsewhere, and may decide otherwise: each row is kept once."""
    store = EventStore(tmp_path)
    store.append(numbered([0]), offsets={0: (0, 1)})
    commit = EventStore._commit

    def crashing(self, table, *arguments, **options):
        if table is self.events:
            raise KeyboardInterrupt
        return commit(self, table, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(EventStore, "_commit", crashing)
        with pytest.raises(KeyboardInterrupt):
            store.append(numbered([1, 3]), rejected=refused("duplicate", start=2), offsets={0: (1, 4)})
    assert store.committed("events", 1) == {0: 1}  # what only one table holds is not committed
    # Shorter, and row 2 would now be stored while row 1 would be rejected.
    store.append(numbered([2]), rejected=refused("duplicate", start=1), offsets={0: (1, 3)})
    assert store.committed("events", 1) == {0: 3}
    store.append(numbered([3]), rejected=refused(start=4), offsets={0: (3, 5)})
    assert offsets_of(store.read(columns=["offset"])) == [0, 3]
    assert offsets_of(store.read_rejected()) == [1, 2, 4]


def test_an_absent_store_says_what_to_do(tmp_path):
    store = EventStore(tmp_path / "nothing")
    assert (store.count(), store.version(), len(store.read_rejected())) == (0, -1, 0)
    assert (store.committed("events", 2), store.marks(["a"])) == ({}, {})
    assert len(store.erased()) == 0
    with pytest.raises(DataError, match="run `recsys ingest` first"):
        store.read()
    with pytest.raises(DataError, match="run `recsys ingest` first"):
        store.duckdb()
    store.append(stored())
    with pytest.raises(UnavailableError, match="version 7"):
        store.read(version=7)


def test_a_second_writer_conflicts(tmp_path, monkeypatch):
    """Delta lets two plain appends pass each other: two ingestions of one file would both be stored."""
    store = EventStore(tmp_path)
    store.append(stored(partition=None))
    stale = store.events.open()
    store.append(stored(partition=None))
    with pytest.raises(UnavailableError, match=r"version 1 is not 0"):
        store.append(stored(partition=None), at_version=0)
    monkeypatch.setattr(store.events, "open", lambda version=None: stale)
    with pytest.raises(UnavailableError, match="another writer committed"):
        store.append(stored(partition=None))
    assert EventStore(tmp_path).count() == 4


def test_two_first_writers_conflict(tmp_path, monkeypatch):
    store = EventStore(tmp_path)
    store.append(stored())
    monkeypatch.setattr(store.events, "open", lambda version=None: None)
    with pytest.raises(UnavailableError, match="another writer committed"):
        store.append(stored())
    assert EventStore(tmp_path).count() == 2


def test_committers_at_once_lose_and_double_nothing(tmp_path):
    """Two that both think they are the one: each batch is taken from one of them."""
    refusals = []

    def committing(number):
        store = EventStore(tmp_path)
        for _ in range(40):
            start = store.committed("events", 1).get(0, 0)
            batch = numbered(range(start, start + 2 + number))
            kept = refused("duplicate", start=start + 2 + number)
            try:
                store.append(batch, rejected=kept, offsets={0: (start, start + 3 + number)})
            except UnavailableError as error:
                refusals.append(str(error))

    threads = [threading.Thread(target=committing, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = EventStore(tmp_path)
    end = store.committed("events", 1)[0]
    rejected = [o for o in offsets_of(store.read_rejected()) if o < end]
    assert sorted(offsets_of(store.read(columns=["offset"])) + rejected) == list(range(end))
    assert all("another committer" in refusal for refusal in refusals)


def test_other_commits_in_between_are_no_conflict_for_a_committer(tmp_path, monkeypatch):
    """An erasure, or rejected events that are tried again: the commit is made again on top."""
    store = EventStore(tmp_path)
    store.append(numbered([0]), rejected=refused(start=1), offsets={0: (0, 2)})
    commit, done = EventStore._commit, []

    def interrupted(self, table, *arguments, **options):
        if not done:
            done.append(self.rejected.fence())
            self.rejected.rewrite(done[0], lambda rows: rows.slice(0, 0), where=pc.scalar(True))
        return commit(self, table, *arguments, **options)

    monkeypatch.setattr(EventStore, "_commit", interrupted)
    store.append(numbered([2]), rejected=refused(start=3), offsets={0: (2, 4)})
    assert offsets_of(store.read(columns=["offset"])) == [0, 2]
    assert offsets_of(store.read_rejected()) == [3]
    assert store.committed("events", 1) == {0: 4}


def test_marks_move_with_the_events_and_only_grow(tmp_path):
    store = EventStore(tmp_path)
    begin, time = "events/0/begin", "events/0/time"
    store.append(numbered([0]), offsets={0: (0, 1)}, marks={begin: 0, time: 7})
    assert store.marks([begin, time, "events/1/time"]) == {begin: 0, time: 7}
    store.append(numbered([1]), rejected=refused(start=2), offsets={0: (1, 3)}, marks={time: 9})
    store.append(numbered([3]), offsets={0: (3, 4)}, marks={time: 8})
    assert store.marks([begin, time]) == {begin: 0, time: 9}
    assert store.rejected.open().transaction_version(time) == 9
    assert store.committed("events", 1) == {0: 4}


def test_a_store_takes_one_topic(tmp_path):
    """Rows are told apart by partition and offset: those of two topics would be the same."""
    store = EventStore(tmp_path)
    store.append(stored(partition=None))
    store.append(numbered([0]), offsets={0: (0, 1)})  # files are no topic
    with pytest.raises(SettingsError, match=r"another topic than 'other' \(partition 0\).*store\.uri"):
        store.append(numbered([0]), offsets={0: (0, 1)}, topic="other")
    store.append(STORED_SCHEMA.empty_table(), rejected=refused(partition=1, start=0), offsets={1: (0, 1)})
    with pytest.raises(SettingsError, match="partition 1"):
        store.append(numbered([0], partition=1), offsets={1: (0, 1)}, topic="other")
    assert store.committed("other", 2) == {}
    assert (store.count(), len(store.read_rejected())) == (3, 1)


def test_what_was_added_after_a_version_is_read_alone(tmp_path):
    store = EventStore(tmp_path)
    store.append(numbered([0, 1]), offsets={0: (0, 2)})
    store.append(numbered([2]), offsets={0: (2, 3)})
    archive(store, before=date(2026, 2, 1))

    def added(version, after):
        opened = [None if v is None else store.events.open(v) for v in (version, after)]
        return offsets_of(store.read_added(opened[0], after=opened[1], columns=["offset"]))

    assert (added(1, None), added(1, 0), added(1, 1)) == ([0, 1, 2], [2], [])
    now = store.version()
    assert (added(now, 1), added(now, now)) == ([0, 1, 2], [])  # archived: at another place


@pytest.mark.parametrize("micros", [-(2**62), -1, 0, 2**62, None])
def test_times_beyond_all_bounds_are_kept_as_rejected(tmp_path, micros):
    rows = refused()
    time = pa.array([micros], pa.int64()).cast(TIMESTAMP)
    store = EventStore(tmp_path)
    index = REJECTED_SCHEMA.get_field_index("timestamp")
    store.append(stored(), rejected=rows.set_column(index, REJECTED_SCHEMA.field(index), time))
    assert store.read_rejected()["timestamp"].cast(pa.int64()).to_pylist() == [micros]
    assert store.rejected.open().partitions() == [{"month": "2026-09"}]


def test_a_table_by_day_stays_by_day_and_is_read_by_month(tmp_path):
    EventStore(tmp_path, partition_by="day").append(stored())
    store = EventStore(tmp_path)
    store.append(stored())
    assert sorted(p["day"] for p in store.events.open().partitions()) == ["2026-01-31", "2026-02-01"]
    assert set(store.read(months=["2026-02"])["event_id"].to_pylist()) == {"b"}
    assert store.read().schema.equals(EVENT_SCHEMA)


def test_tables_made_before_a_column_was_added_are_read_and_appended_to(tmp_path):
    """As work directories were made before events kept their place on the bus."""
    events = decode_events(BODIES)
    month = pa.array(["2026-01", "2026-02"])
    rejected = events.append_column("reason", pa.array(["missing_item"] * 2))
    write_deltalake(tmp_path / "events", events.append_column("month", month), partition_by=["month"])
    write_deltalake(tmp_path / "rejected", rejected.append_column("month", month), partition_by=["month"])
    store = EventStore(tmp_path, partition_by="day")
    assert store.read().sort_by("event_id").to_pylist() == events.to_pylist()
    assert store.read(columns=["offset"])["offset"].null_count == 2
    assert store.read_rejected().schema.equals(REJECTED_SCHEMA)
    assert store.duckdb().sql('select count(*), count("offset") from events').fetchall() == [(2, 0)]
    store.append(numbered([0]), rejected=refused(start=1), offsets={0: (0, 2)})
    assert sorted(store.read(columns=["offset"])["offset"].to_pylist(), key=str) == [0, None, None]
    assert store.read(months=["2026-02"], columns=["event_id"]).to_pylist() == [{"event_id": "b"}]
    assert len(store.read(version=0)) == 2
    assert len(store.read_rejected()) == 3


def test_a_new_optional_column_and_its_older_reader_and_writer(tmp_path, monkeypatch):
    old = EventStore(tmp_path)
    old.append(numbered([0]), offsets={0: (0, 1)})
    more = pa.schema([*STORED_SCHEMA, ("referrer", pa.string())])
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "STORED_SCHEMA", more)
        new = EventStore(tmp_path)
    new.append(numbered([1]).append_column("referrer", pa.array(["mail"])), offsets={0: (1, 2)})
    assert new.read(columns=["offset", "referrer"]).sort_by("offset")["referrer"].to_pylist() == [
        None,
        "mail",
    ]
    assert offsets_of(old.read(columns=["offset"])) == [0, 1]
    old.append(numbered([2]), offsets={0: (2, 3)})
    assert new.read(columns=["offset", "referrer"]).sort_by("offset")["referrer"].to_pylist() == [
        None,
        "mail",
        None,
    ]
    assert "referrer" not in old.read().column_names


def test_offsets_outlive_checkpoints(tmp_path):
    """Delta writes a checkpoint every so many commits; a table opened from it knows the offsets too."""
    store = EventStore(tmp_path)
    store.append(numbered([0]), offsets={0: (0, 1)})
    for offset in range(1, 4):
        store.append(numbered([offset]), offsets={0: (offset, offset + 1)})
    table = store.events.open()
    table.create_checkpoint()
    for entry in (tmp_path / "events" / "_delta_log").glob("*.json"):
        entry.unlink()
    assert EventStore(tmp_path).committed("events", 1) == {0: 4}


def test_ids_stand_in_no_statistics(tmp_path):
    store = EventStore(tmp_path)
    store.append(numbered([0], user="somebody"), offsets={0: (0, 1)})
    log = "".join(entry.read_text() for entry in (tmp_path / "events" / "_delta_log").glob("*.json"))
    assert "somebody" not in log
    statistics = store.events.open().get_add_actions(flatten=True)
    names = {name for name in pa.table(statistics).column_names if name.startswith("min.")}
    assert names == {"min.partition", "min.offset", "min.appended_at", "min.timestamp"}


def test_storage_errors_are_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnavailableError, match=r"can't (open|write) .*; check") as caught:
        EventStore(tmp_path / "file").append(stored())
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(UnavailableError, match=r"can't .*No space left.*; check"),
        delta.storage_errors("write x"),
    ):
        raise OSError(28, "No space left on device")


def test_places_are_one_number():
    rows = pa.concat_tables([numbered([7], partition=3), stored(BODIES[:1], partition=None)])
    assert delta.places(rows).tolist() == [(3 << 48) + 7, -1]
    assert delta.places(rows.slice(0, 0)).dtype == np.int64
