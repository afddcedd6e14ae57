"""Known answers on the shipped file, and the published headers and date formats."""

import numpy as np
import pyarrow.compute as pc
import pytest

from recsys.catalog.items import Catalog
from recsys.datasets.online_retail import read_online_retail
from recsys.datasets.sources import read_dataset
from recsys.errors import DataError
from recsys.events.validation import validate

NOW = 1_795_000_000


@pytest.fixture(scope="module")
def retail():
    return read_dataset("online-retail")


def test_known_answers(retail):
    valid, rejected = validate(retail.events, now=NOW)
    reasons = {r["values"]: r["counts"] for r in pc.value_counts(rejected["reason"]).to_pylist()}
    assert (len(retail.events), len(valid)) == (531_282, 397_884)
    assert reasons == {"missing_user": 133_358, "value_not_positive": 40}
    assert pc.count_distinct(retail.events["event_id"]).as_py() == 531_282
    assert pc.sum(valid["value"]).as_py() == pytest.approx(8_911_407.904)
    assert pc.count_distinct(valid["user_id"]).as_py() == 4338
    first = retail.events.slice(0, 1).to_pylist()[0]
    assert (first["user_id"], first["item_id"], first["order_id"], first["quantity"]) == (
        "17850",
        "85123A",
        "536365",
        6,
    )
    assert (first["value"], first["context"]["country"]) == (pytest.approx(15.3), "United Kingdom")
    assert first["timestamp"].isoformat() == "2010-12-01T08:26:00+00:00"


def test_items_are_those_validly_sold(retail):
    valid, _ = validate(retail.events, now=NOW)
    catalog = Catalog.build(retail.items)
    rows = catalog.rows_of(valid["item_id"])
    assert (rows >= 0).all()
    assert len(catalog) == len(np.unique(rows)) == 3665
    first_sale = np.full(len(catalog), np.iinfo(np.int64).max)
    np.minimum.at(first_sale, rows, valid["timestamp"].cast("int64").to_numpy() // 1_000_000)
    assert (catalog.published_at == first_sale).all()
    assert (catalog.price > 0).all()
    assert "" not in catalog.titles


NEW = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
OLD = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"


@pytest.mark.parametrize(
    ("header", "date", "encoding"),
    [
        (NEW, "2011-12-13 08:26:00", "utf-8"),
        (OLD, "12/13/2011 8:26", "latin-1"),
        (OLD, "13/12/2011 08:26", "utf-8"),
    ],
)
def test_published_headers_and_dates(tmp_path, header, date, encoding):
    lines = [
        f"536365, 85123a ,RED £ MUG,6,{date},2.5,17850.0,France",
        f"536365,85123A,RED £ MUG,6,{date},2.5,17850,France",
        f"C536366,M,,-1,{date},0,,",
    ]
    path = tmp_path / "retail.csv"
    path.write_bytes((header + "\n".join(lines)).encode(encoding))
    dataset = read_online_retail(path)
    events = dataset.events.to_pylist()
    assert [e["user_id"] for e in events] == ["17850", "17850", None]
    assert [e["item_id"] for e in events] == ["85123A", "85123A", "M"]
    assert len({e["event_id"] for e in events}) == 3  # the same line twice is two sales
    assert {e["timestamp"].isoformat() for e in events} == {"2011-12-13T08:26:00+00:00"}
    assert [e["order_id"] for e in events] == ["536365", "536365", "C536366"]
    assert dataset.items.select(["item_id", "title", "price"]).to_pylist() == [
        {"item_id": "85123A", "title": "RED £ MUG", "price": 2.5}
    ]


def test_what_lacks_columns_says_which(tmp_path):
    (tmp_path / "other.csv").write_text("InvoiceNo,StockCode,amount\n1,2,3\n")
    with pytest.raises(
        DataError,
        match=r"lacks Description, .*, UnitPrice or Price.*it has InvoiceNo, StockCode, amount",
    ):
        read_online_retail(tmp_path / "other.csv")
    (tmp_path / "bad.csv").write_text(NEW + "1,2,x,many,2011-12-13,1,1,France\n")
    with pytest.raises(DataError, match=r"column Quantity.*many"):
        read_online_retail(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", None, "does not exist"),
        ("a.csv", "", "is empty"),
        ("a.csv", NEW, "no rows"),
        ("a.parquet", "no Parquet", "can't be read as parquet"),
        (".", None, "is a folder"),
        ("a.xlsx", "PK", "ending that recsys does not read"),
    ],
)
def test_unreadable_files_have_a_remedy(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        read_online_retail(tmp_path / name)
    assert "\n" not in str(raised.value)
