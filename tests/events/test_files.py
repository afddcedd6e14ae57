import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.datasets.sources import read_dataset
from recsys.errors import DataError
from recsys.events.codec import decode_events
from recsys.events.committer import IngestCounts
from recsys.events.files import ingest_events, ingest_files
from recsys.events.store import EventStore

NOW = 1_795_000_000
LINE = {"user_id": "u", "item_id": "i", "event_type": "click", "timestamp": "2026-01-01T00:00:00Z"}


def test_the_retail_file_twice(ray_cluster, tmp_path):
    """531,282 lines: 5,231 identical ones are no duplicates, but the file a second time is nothing else."""
    events = read_dataset("online-retail").events
    store = EventStore(tmp_path / "store")
    seen = []
    rejected = {"missing_user": 133_358, "value_not_positive": 40}
    counts = ingest_events(events, store=store, workdir=tmp_path, now=NOW, progress=seen.append)
    assert counts == IngestCounts(531_282, 397_884, 0, rejected)
    assert (len(seen) >= 2, seen[-1]) == (True, 531_282)
    assert ingest_events(events, store=store, workdir=tmp_path, now=NOW) == IngestCounts(
        531_282, 0, 397_884, rejected
    )
    assert (store.count(), len(store.read_rejected(columns=["reason"]))) == (397_884, 133_398)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    revenue = store.duckdb().sql("select sum(value), count(distinct user_id) from events").fetchall()[0]
    assert revenue == (pytest.approx(8_911_407.904), 4338)


def test_json_lines_with_broken_ones(ray_cluster, tmp_path):
    lines = [
        json.dumps(LINE),
        json.dumps(LINE),
        "broken",
        json.dumps({"user_id": 7}),
        json.dumps(LINE | {"item_id": ""}),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    store = EventStore(tmp_path / "store")
    counts = ingest_files([tmp_path / "a.jsonl"], store=store, now=NOW)
    assert counts == IngestCounts(5, 2, 0, {"malformed": 2, "missing_item": 1})
    assert ingest_files([tmp_path / "a.jsonl"], store=store, now=NOW).duplicate == 2
    malformed = [dict(a) for a in store.read_rejected()["attributes"].to_pylist() if a]
    assert {base64.b64decode(m["body"]) for m in malformed} == {b"broken", b'{"user_id": 7}'}


def test_csv_keeps_ids_and_duplicates_within_the_input_count(ray_cluster, tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(
            "event_id,user_id,item_id,event_type,timestamp\n1,007,i,click,2026-01-01\n2,,i,click,2026-01-01\n"
        )
    store = EventStore(tmp_path / "store")
    counts = ingest_files([tmp_path / "a.csv", tmp_path / "b.csv"], store=store, now=NOW)
    assert counts == IngestCounts(4, 1, 1, {"missing_user": 2})
    assert store.read(columns=["user_id"]).to_pylist() == [{"user_id": "007"}]


def test_now_is_the_time_of_ingestion(ray_cluster, tmp_path):
    pq.write_table(decode_events([LINE | {"event_id": "e"}]), tmp_path / "a.parquet")
    counts = ingest_files([tmp_path / "a.parquet"], store=EventStore(tmp_path / "store"), now=1_600_000_000)
    assert counts == IngestCounts(1, 0, 0, {"future_timestamp": 1})


def test_an_empty_table_is_nothing(ray_cluster, tmp_path):
    store = EventStore(tmp_path / "store")
    assert ingest_events(decode_events([]), store=store, workdir=tmp_path, now=NOW) == IngestCounts(
        0, 0, 0, {}
    )
    assert store.version() == -1


def test_what_can_not_be_read_is_one_line_with_a_remedy(ray_cluster, tmp_path):
    store = EventStore(tmp_path / "store")
    (tmp_path / "a.csv").write_text("user_id,price\n1,2\n")
    (tmp_path / "a.parquet").write_text("not Parquet")
    (tmp_path / "empty.csv").write_text("")
    for names, message in [
        (["a.csv"], "unknown column 'price'"),
        (["a.parquet"], "check its format"),
        (["empty.csv"], "no file with events"),
        (["absent.csv"], "no file with events"),
        (["a.csv", "a.parquet"], "several formats"),
    ]:
        with pytest.raises(DataError, match=message) as raised:
            ingest_files([tmp_path / n for n in names], store=store, now=NOW)
        assert "\n" not in str(raised.value)


def test_counts_must_add_up():
    with pytest.raises(DataError, match="add up"):
        IngestCounts(read=3, stored=1, duplicate=0, rejected={"missing_user": 1})


def test_events_of_a_table_are_the_schema(ray_cluster, tmp_path):
    """Ray Data must carry structs, maps and nulls through its blocks unharmed."""
    body = LINE | {
        "event_id": "e",
        "context": {"position": 2},
        "attributes": {"k": "v"},
        "value": 1.5,
        "quantity": 3,
    }
    events = decode_events([body, LINE | {"event_id": "f"}])
    store = EventStore(tmp_path / "store")
    ingest_events(events, store=store, workdir=tmp_path, now=NOW)
    assert store.read().sort_by("event_id").equals(pa.table(events))
