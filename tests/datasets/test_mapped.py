import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.datasets.mapped import ColumnMap, read_items, read_mapped
from recsys.errors import DataError

CSV = """who,what,at,paid,name,kind
007,i1,2026-01-02T00:00:00Z,1.5,Mug,mugs|gifts
007,i1,2026-01-02T00:00:00Z,1.5,Mug,mugs|gifts
8,i2,2026-01-01,,,
"""
MAP = "user=who,item=what,time=at,type==purchase,value=paid,title=name,category=kind"


def test_one_s_own_csv(tmp_path):
    (tmp_path / "log.csv").write_text(CSV)
    dataset = read_mapped(tmp_path / "log.csv", column_map=MAP)
    events = dataset.events.to_pylist()
    assert [(e["user_id"], e["item_id"], e["event_type"], e["value"]) for e in events] == [
        ("007", "i1", "purchase", 1.5),
        ("007", "i1", "purchase", 1.5),
        ("8", "i2", "purchase", None),
    ]
    assert len({e["event_id"] for e in events}) == 3
    items = dataset.items.to_pylist()
    assert [(i["item_id"], i["title"], i["categories"]) for i in items] == [
        ("i1", "Mug", ["mugs", "gifts"]),
        ("i2", None, None),
    ]
    assert items[1]["published_at"].isoformat() == "2026-01-01T00:00:00+00:00"


def test_parquet_and_json_lines_say_the_same(tmp_path):
    rows = [{"who": 7, "what": 1, "at": 1_700_000_000_000, "what_kind": "click"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"who": 7, "what": 1, "at": 1700000000000, "what_kind": "click"}\n')
    column_map = "user=who,item=what,time=at,type=what_kind"
    one, two = (read_mapped(tmp_path / n, column_map=column_map).events for n in ("a.parquet", "a.jsonl"))
    assert one.equals(two)
    assert one.to_pylist()[0]["timestamp"].timestamp() == 1_700_000_000


def test_a_catalog_of_items_without_events(tmp_path):
    (tmp_path / "items.csv").write_text(
        "sku,name,cost,added\na,Mug,2.5,2026-01-01\nb,,,\na,Big mug,,\n,ghost,1,\n"
    )
    items = read_items(
        tmp_path / "items.csv", column_map="item=sku,title=name,price=cost,published=added"
    ).to_pylist()
    assert [(i["item_id"], i["title"], i["price"]) for i in items] == [
        ("a", "Big mug", 2.5),
        ("b", None, None),
    ]
    assert items[1]["published_at"] is None


@pytest.mark.parametrize(
    ("column_map", "message"),
    [
        ("user=nobody,item=what,time=at,type==click", "no column 'nobody'.*it has who, what, at"),
        ("user=who,item=what,time=at", "map lacks type"),
        ("user=who,item=what,time=name,type==click", "column 'name'.*is no time"),
        ("user=who,item=what,time=at,type==click,value=name", "column 'name'.*map: value"),
        ("who=user", "unknown name 'who'"),
        ("user", "is not name=column"),
        ("user==", "is not name=column"),
        ("user=who,user=what", "stands twice"),
    ],
)
def test_errors_name_the_column(tmp_path, column_map, message):
    (tmp_path / "log.csv").write_text(CSV)
    with pytest.raises(DataError, match=message):
        read_mapped(tmp_path / "log.csv", column_map=column_map)


def test_literals_and_columns():
    parsed = ColumnMap.parse(" user=a b , type==add_to_cart")
    assert (dict(parsed.columns), dict(parsed.literals)) == ({"user": "a b"}, {"type": "add_to_cart"})


def test_a_column_name_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("u,u,i,t\n1,2,3,2024-01-01\n")
    with pytest.raises(DataError, match="column 'u' twice"):
        read_mapped(tmp_path / "twice.csv", column_map="user=u,item=i,time=t,type==view")


def test_an_epoch_beyond_the_calendar_is_no_time(tmp_path):
    """It overflowed the date arithmetic of whoever asked for the last day, with a traceback."""
    rows = ["1,a,1700000000000000000", "2,b,1700000000000000001", "3,c,9" + "9" * 25]  # nanoseconds
    (tmp_path / "far.csv").write_text("\n".join(["u,i,t", *rows]))
    events = read_mapped(tmp_path / "far.csv", column_map="user=u,item=i,time=t,type==view").events
    assert events["timestamp"].null_count == 1
