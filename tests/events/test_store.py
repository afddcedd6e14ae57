import pyarrow as pa
import pytest

from recsys.errors import DataError, UnavailableError
from recsys.events.codec import decode_events
from recsys.events.schema import EVENT_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore
from recsys.events.validation import validate

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
    {"event_id": "c", "item_id": "i", "event_type": "click"},
]


def test_what_was_appended_is_read_by_arrow_and_duckdb(tmp_path):
    store = EventStore(tmp_path / "events")
    valid, rejected = validate(decode_events(BODIES), now=2_000_000_000)
    appended = store.append(valid, rejected=rejected)
    assert (appended.stored, appended.rejected, appended.version, store.count()) == (2, 1, 0, 2)
    read = store.read()
    assert read.schema.equals(EVENT_SCHEMA)
    assert read.sort_by("event_id").to_pylist() == valid.sort_by("event_id").to_pylist()
    assert store.read(columns=["user_id"], months=["2026-02"]).to_pylist() == [{"user_id": "v"}]
    assert store.read_rejected(columns=["event_id", "reason"]).to_pylist() == [
        {"event_id": "c", "reason": "missing_user"}
    ]
    sql = "select context.position, count(*) over () from events where event_id = 'a'"
    assert store.duckdb().sql(sql).fetchall() == [(1, 1)]


def test_offsets_are_committed_with_the_events_and_held_ones_are_skipped(tmp_path):
    store = EventStore(tmp_path)
    valid, rejected = validate(decode_events(BODIES), now=2_000_000_000)
    assert store.transaction("events-0") is None
    store.append(valid, rejected=rejected, transactions={"events-0": 3})
    again = store.append(valid, rejected=rejected, transactions={"events-0": 3})
    assert (again.stored, again.rejected, store.count(), store.transaction("events-0")) == (0, 0, 2, 3)
    store.append(valid, transactions={"events-0": 5})  # nothing rejected: the offset moves on both tables
    assert (store.count(), store.transaction("events-0")) == (4, 5)
    assert len(store.read(version=0)) == 2


def test_an_absent_store_says_what_to_do(tmp_path):
    store = EventStore(tmp_path / "nothing")
    assert (store.count(), store.version(), len(store.read_rejected())) == (0, -1, 0)
    with pytest.raises(DataError, match="run `recsys ingest` first"):
        store.read()
    with pytest.raises(DataError, match="run `recsys ingest` first"):
        store.duckdb()
    store.append(*validate(decode_events(BODIES[:2]), now=2_000_000_000)[:1])
    with pytest.raises(UnavailableError, match="version 7"):
        store.read(version=7)


def test_a_second_writer_conflicts(tmp_path, monkeypatch):
    """Delta lets two plain appends pass each other: two ingestions of one file would both be stored."""
    valid, _ = validate(decode_events(BODIES), now=2_000_000_000)
    store = EventStore(tmp_path)
    store.append(valid)
    stale = store._open("events")
    store.append(valid)
    with pytest.raises(UnavailableError, match=r"version 1 is not 0"):
        store.append(valid, at_version=0)
    monkeypatch.setattr(store, "_open", lambda name, version=None: stale if name == "events" else None)
    with pytest.raises(UnavailableError, match="another writer committed"):
        store.append(valid)
    assert EventStore(tmp_path).count() == 4


@pytest.mark.parametrize("micros", [-(2**62), -1, 0, 2**62, None])
def test_times_beyond_all_bounds_are_kept_as_rejected(tmp_path, micros):
    events = decode_events([BODIES[1]])
    index = EVENT_SCHEMA.get_field_index("timestamp")
    events = events.set_column(
        index, EVENT_SCHEMA.field(index), pa.array([micros], pa.int64()).cast(TIMESTAMP)
    )
    valid, rejected = validate(events, now=2_000_000_000)
    store = EventStore(tmp_path)
    store.append(valid, rejected=rejected)
    read = store.read_rejected()
    assert read["timestamp"].cast(pa.int64()).to_pylist() == [micros]
    assert read["reason"].to_pylist()[0] in ("bad_timestamp", "future_timestamp")
