from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from recsys.catalog.items import Catalog
from recsys.catalog.schema import ITEM_SCHEMA
from recsys.errors import DataError


def items(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ITEM_SCHEMA)


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.build(
        items(
            {"item_id": "c", "published_at": at(20), "price": 3.0},
            {"item_id": "b", "published_at": at(10.5), "categories": ["mugs", "gifts"]},
            {"item_id": "a", "published_at": at(10.5), "categories": []},
            {"item_id": "z", "title": "always there", "available": False},
        )
    )


def test_rows_follow_publication_then_id(catalog):
    assert catalog.ids.tolist() == ["z", "a", "b", "c"]
    assert catalog.rows_of(["c", "nobody", "z", None]).tolist() == [3, -1, 0, -1]
    assert catalog.rows_of(pa.chunked_array([["c", None], ["a", "x"]])).tolist() == [3, -1, 1, -1]
    assert catalog.rows_of([]).dtype == np.int32
    assert [catalog.size_at(t) for t in (0, 10, 11, 20, 21)] == [1, 1, 3, 3, 4]
    assert catalog.primary_categories == ["", "", "mugs", ""]
    assert catalog.titles == ["always there", "", "", ""]
    assert catalog.available.tolist() == [False, True, True, True]
    assert np.array_equal(catalog.price, [np.nan, np.nan, np.nan, 3.0], equal_nan=True)


def test_upsert_keeps_rows_and_appends_new_ones(catalog):
    later = catalog.upsert(
        items(
            {"item_id": "d", "published_at": at(5)}, {"item_id": "c", "title": "new", "published_at": at(1)}
        )
    )
    assert later.ids.tolist() == ["z", "a", "b", "c", "d"]
    assert later.titles[3] == "new"
    assert np.isnan(later.price[3])  # the whole record is replaced
    assert later.published_at[3] == 20  # but not its publication: V(t) must not change
    assert later.size_at(11) == 3  # d was published before, but stands behind c
    assert catalog.titles[3] == ""
    assert len(later.upsert(items())) == 5


def test_save_and_load(catalog, tmp_path):
    path = tmp_path / "folder" / "catalog.parquet"
    catalog.save(path)
    catalog.save(path)
    assert Catalog.load(path).items.equals(catalog.items)
    assert [p.name for p in path.parent.iterdir()] == ["catalog.parquet"]
    with pytest.raises(DataError, match="run `recsys ingest` first"):
        Catalog.load(tmp_path / "absent.parquet")
    (tmp_path / "broken.parquet").write_text("x")
    with pytest.raises(DataError, match="is no catalog"):
        Catalog.load(tmp_path / "broken.parquet")


def test_an_empty_catalog():
    empty = Catalog.build(items())
    assert (len(empty), empty.size_at(5), empty.rows_of(["a"]).tolist(), empty.primary_categories) == (
        0,
        0,
        [-1],
        [],
    )
    assert empty.upsert(items({"item_id": "a"})).ids.tolist() == ["a"]


def test_what_is_no_catalog_is_refused():
    with pytest.raises(DataError, match="twice"):
        Catalog.build(items({"item_id": "a"}, {"item_id": "a"}))
    with pytest.raises(DataError, match="without item_id"):
        Catalog.build(items({"title": "nameless"}))
    with pytest.raises(DataError, match="unknown column 'colour'"):
        Catalog.build(pa.table({"item_id": ["a"], "colour": ["red"]}))
    with pytest.raises(DataError, match="no column 'item_id'"):
        Catalog.build(pa.table({"title": ["a"]}))


def test_with_categories(catalog):
    assert catalog.with_categories([["k"], [], ["m"], ["n"]]).primary_categories == ["k", "", "m", "n"]
