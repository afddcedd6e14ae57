"""Our own events as interactions, from each place where they may stand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.catalog.items import Catalog
from recsys.catalog.schema import ITEM_SCHEMA
from recsys.datasets.content import hashed
from recsys.datasets.event_log import read_event_log
from recsys.datasets.formats import read_problems
from recsys.errors import DataError
from recsys.events.codec import decode_events
from recsys.events.schema import STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore
from recsys.interactions import Timing
from recsys.models.factors.svd import Svd

START = 1_700_000_000


def iso(number):
    return f"{np.datetime64(START + number, 's')}Z"


def event(number, user, item, kind="purchase", **given):
    return {
        "event_id": str(number),
        "user_id": user,
        "item_id": item,
        "event_type": kind,
        "timestamp": iso(number),
        **given,
    }


EVENTS = [
    event(1, "u", "a", value=9.5, quantity=2),
    event(2, "u", "b", "view"),
    event(3, "v", "a", "impression"),
    event(4, "v", "b", "add_to_cart"),
    event(5, "u", "c", "click"),
    event(6, "w", "a", "skip"),
    event(7, "v", "a", "rating", value=3.0),
]


def write_lines(path, events):
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    return path


def work_directory(folder, events=EVENTS, items=()):
    decoded = decode_events(events)
    nulls = [pa.nulls(len(decoded), kind) for kind in (pa.int32(), pa.int64(), TIMESTAMP)]
    table = pa.Table.from_arrays([*decoded.columns, *nulls], schema=STORED_SCHEMA)
    EventStore(folder / "events").append(table)
    known = list(items) or [{"item_id": i} for i in "abcd"]
    Catalog.build(pa.Table.from_pylist(known, schema=ITEM_SCHEMA)).save(folder / "catalog.parquet")
    return folder


def test_what_counts_and_how_much(tmp_path):
    log = read_event_log(write_lines(tmp_path / "log.jsonl", EVENTS))
    assert log.timing is Timing.CLOCK
    assert log.user_ids.tolist() == ["u", "v"]  # w only skipped
    assert log.items == 3
    assert log.histories.counts.tolist() == [3, 2]
    assert log.histories.item.tolist() == [0, 1, 2, 1, 0]
    assert log.weights.tolist() == np.float32([5, 0.3, 1, 3, 1]).tolist()
    assert log.histories.quantity[0] == 2
    np.testing.assert_array_equal(log.histories.value, np.float32([np.nan] * 4 + [3]))
    assert log.histories.time.tolist() == [START + n for n in (1, 2, 5, 4, 7)]
    alike = read_event_log(write_lines(tmp_path / "log.jsonl", EVENTS[:1]))
    assert alike.weight is None


def test_revenue_is_no_rating(tmp_path):
    """SVD learned, and was judged by, what purchases had cost."""
    bought = [event(n, f"u{n % 3}", "abcd"[n % 4], value=10.0 * n) for n in range(1, 20)]
    (problem,) = read_problems("events", write_lines(tmp_path / "log.jsonl", bought), split="random")
    assert np.isnan(problem.train.histories.value).all()
    assert np.isnan(problem.test.value).all()
    with pytest.raises(DataError, match="has a value"):
        Svd().fit(problem.train, seed=0)


def test_every_place_holds_the_same_log(tmp_path):
    folder = work_directory(tmp_path / "work")
    bought = EventStore(folder / "events").read()
    pq.write_table(bought, tmp_path / "log.parquet")
    lines = ["event_id,user_id,item_id,event_type,timestamp,value,quantity"]
    lines += [
        f"{e['event_id']},{e['user_id']},{e['item_id']},{e['event_type']},{e['timestamp']},"
        f"{e.get('value', '')},{e.get('quantity', '')}"
        for e in EVENTS
    ]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    write_lines(tmp_path / "log.jsonl", EVENTS)
    expected = read_event_log(folder)
    assert expected.items == 4  # item d stands in the catalog only
    places = [folder / "events", folder / "events" / "events"]
    for path in (*places, *(tmp_path / f"log.{ending}" for ending in ("parquet", "csv", "jsonl"))):
        log = read_event_log(path)
        assert log.items == 3
        assert log.weights.tolist() == expected.weights.tolist()
        for column in ("offsets", "item", "time", "value", "quantity"):
            np.testing.assert_array_equal(
                getattr(log.histories, column), getattr(expected.histories, column), err_msg=str(path)
            )


def test_content_is_that_of_the_catalog(tmp_path):
    items = [
        {"item_id": "a", "title": "Red Mugs", "categories": ["mug", "gift"], "price": 1.0},
        {"item_id": "b", "tags": ["new"], "attributes": [("size", "XL"), ("x", None)], "price": 5.0},
        {"item_id": "c", "title": ""},
        {"item_id": "d"},
    ]
    folder = work_directory(tmp_path, items=items)
    tokens = read_event_log(folder).item_tokens
    assert tokens is not None
    assert tokens.offsets.tolist() == [0, 6, 9, 9, 9]
    texts = ["red", "mug", "red mug", "category=mug", "category=gift", "price=0"]
    assert tokens.id.tolist() == hashed([*texts, "tag=new", "price=9", "size=XL"]).tolist()


def test_the_usual_split_is_by_time_with_cold_users_and_items(tmp_path):
    events = [event(n, f"u{n % 3}", "ab"[n % 2]) for n in range(18)]
    events += [event(18, "new", "a"), event(19, "u0", "z"), event(20, "u0", "a")]
    path = write_lines(tmp_path / "log.jsonl", events)
    (problem,) = read_problems("events", path)
    train, test = problem.train, problem.test
    assert (len(train), train.users, train.items) == (18, 4, 3)
    assert test.queries.user.tolist() == [0, 1] == [train.user_ids.tolist().index(u) for u in ("new", "u0")]
    assert test.queries.histories.counts.tolist() == [0, 6]
    assert test.target_counts.tolist() == [1, 1]  # u0 had a before
    assert set(test.queries.now.tolist()) == {START + 18}
    (repeats,) = read_problems("events", path, repeats=True)
    assert repeats.test.target_counts.tolist() == [1, 2]
    assert repeats.test.masked.tolist() == []
    assert repeats.train.repeats, "slices ask as the test does"


def test_low_ratings_are_left_out(tmp_path):
    path = write_lines(tmp_path / "log.jsonl", EVENTS)
    assert len(read_event_log(path, min_rating=3.0)) == 5
    assert len(read_event_log(path, min_rating=3.5)) == 4


def test_a_file_is_judged_as_ingestion_judges_it(tmp_path, caplog):
    bad = [event(8, "", "a"), event(9, "u", "a", "bought"), event(10, "u", "a", value=-1.0), EVENTS[0]]
    path = write_lines(tmp_path / "log.jsonl", [*EVENTS, *bad])
    assert len(read_event_log(path)) == 5
    of = len(EVENTS) + len(bad)
    assert f"4 of {of} events are left out: 1 missing_user, 1 unknown_type, 1 " in caplog.text
    with pytest.raises(DataError, match="all 3 events are rejected, 1 as missing_user"):
        read_event_log(write_lines(path, bad[:3]))
    seen_only = [event(1, "u", "a", "impression"), event(2, "u", "a", "skip")]
    with pytest.raises(DataError, match=r"no interaction: of 2 events \(1 impression, 1 skip\)"):
        read_event_log(write_lines(path, seen_only))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.jsonl", '{"user_id": "u"\n', r"log\.jsonl, line 1: "),
        (
            "log.jsonl",
            json.dumps(EVENTS[0]) + '\n\n{"user_id": "u", "user": 3}\n',
            r"log\.jsonl, line 3: .*user",
        ),
        (
            "log.csv",
            "user_id,item_id,event_type,timestamp\nu,a,click,1700000000\nu,a\n",
            r"Row #3: Expected 4",
        ),
        ("log.csv", "user_id,item\nu,a\n", "unknown column 'item'"),
        ("log.csv", "user_id,value\nu,dear\n", "column 'value'.*correct that value"),
        ("log.csv", "", "empty"),
        ("log.parquet", "nonsense", "can't be read as parquet"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_event_log(tmp_path / name)


def test_a_folder_without_events(tmp_path):
    with pytest.raises(DataError, match="holds no events: expected a work directory"):
        read_event_log(tmp_path)
    Catalog.build(pa.table({"item_id": ["other"]})).save(work_directory(tmp_path) / "catalog.parquet")
    with pytest.raises(DataError, match=r"no event is of an item of catalog\.parquet"):
        read_event_log(tmp_path)
