"""The catalog and its changelog: rows are given by the log alone, whoever writes to it."""

import math
import uuid
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recsys.catalog.changelog import Change, Claim, Position, encode_change
from recsys.catalog.items import Catalog
from recsys.catalog.schema import ITEM_SCHEMA, conform_items
from recsys.catalog.updating import caught_up, with_items
from recsys.errors import DataError, UnavailableError
from recsys.events.bus import BusSettings, open_bus


def items(*records: dict) -> pa.Table:
    schema = pa.schema([part for part in ITEM_SCHEMA if any(part.name in r for r in records)])
    return conform_items(pa.Table.from_pylist(list(records), schema=schema))


@pytest.fixture
def log(redis_url):
    settings = BusSettings(url=redis_url, topic=uuid.uuid4().hex, partitions=3)
    with closing(open_bus(settings.of_changelog("x"))) as opened:
        assert (opened.partitions, opened.topic) == (1, f"{settings.topic}-catalog-x")
        yield opened


def first() -> Catalog:
    return Catalog.build(items({"item_id": "a", "title": "A"}, {"item_id": "b", "tags": ["x"], "price": 2.0}))


def ended(log) -> int:
    return log.end_offsets()[0]


def test_what_is_new_or_other_is_written_and_nothing_else(log):
    catalog = first()
    same = with_items(catalog, catalog.items, log)
    assert (ended(log), same.position) == (0, catalog.position)
    more = items(
        {"item_id": "c", "attributes": [("color", "red")], "published_at": 5_000_000},
        {"item_id": "b", "tags": ["x"], "price": 3.0, "published_at": 9_000_000},
        {"item_id": "a", "title": "A", "published_at": 9_000_000},  # said once
    )
    grown = with_items(catalog, more, log)
    assert ended(log) == 2
    assert grown.ids.tolist() == ["a", "b", "c"]
    assert grown.price.tolist()[1] == 3.0
    assert grown.items["attributes"].to_pylist()[2] == [("color", "red")]
    assert grown.published_at[2] == 5
    assert (grown.position.offset, grown.position.rows, grown.position.log) == (2, 3, catalog.position.log)
    assert with_items(grown, more, log).items.equals(grown.items)
    assert ended(log) == 2


def test_who_catches_up_has_what_was_written(log, tmp_path):
    catalog = first()
    grown = with_items(catalog, items({"item_id": "c", "title": "C"}, {"item_id": "d", "price": 1.0}), log)
    assert caught_up(catalog, log).items.equals(grown.items)
    grown.save(tmp_path / "catalog.parquet")
    loaded = Catalog.load(tmp_path / "catalog.parquet")
    assert (loaded.position, loaded.items) == (grown.position, grown.items)


def test_rows_that_a_service_gave_are_kept(log):
    """Ingestion is a writer among others."""
    catalog = first()
    claim = Claim("service", 2)
    log.append(
        [
            encode_change(Change("s", 2, claim, "upsert", {"item_id": "s", "title": "of the service"})),
            encode_change(Change("t", 3, claim, "upsert", {"item_id": "t", "price": "dear"})),  # unreadable
            encode_change(Change("a", 0, None, "delete")),
        ],
        partition=0,
    )
    grown = with_items(catalog, items({"item_id": "c"}, {"item_id": "s", "title": "of the file"}), log)
    assert grown.ids.tolist() == ["a", "b", "s", "t", "c"]
    assert grown.titles[2] == "of the file"
    assert grown.available.tolist() == [False, True, True, False, True]
    again = with_items(grown, items({"item_id": "a", "available": True}), log)  # deleted and added again
    assert (again.ids.tolist(), bool(again.available[0])) == (grown.ids.tolist(), True)


def test_deleted_and_added_again_in_one_go(log):
    catalog, claim = first(), Claim("b", 2)
    changes = [
        Change("c", 2, claim, "upsert", {"title": "C"}),
        Change("c", 2, None, "delete"),
        Change("b", 1, None, "delete"),
        Change("b", 1, None, "upsert", {"title": "B"}),
        Change("d", 3, claim, "upsert", {"title": "D"}),
        Change("c", 2, None, "upsert", {"title": "C2"}),
        Change("c", 2, None, "delete"),
    ]
    folded = catalog.fold(changes, Position(9, 4, "b", "log"))
    assert folded.titles == ["A", "B", "C2", "D"]
    assert folded.available.tolist() == [True, True, False, True]
    assert folded.position == Position(9, 4, "b", "log")
    one_by_one = catalog
    for change, rows in zip(changes, (3, 3, 3, 3, 4, 4, 4)):
        one_by_one = one_by_one.fold([change], Position(9, rows, "b", "log"))
    assert one_by_one.items.equals(folded.items)


def test_when_an_item_was_published_is_said_once_however_changes_are_folded():
    catalog, claim = first(), Claim("b", 2)
    late = "2030-01-01T00:00:00+00:00"
    changes = [
        Change("c", 2, claim, "upsert", {"published_at": late}),
        Change("c", 2, None, "upsert", {"published_at": None, "title": "C"}),
        Change("a", 0, None, "upsert", {"published_at": None}),
        Change("a", 0, None, "upsert", {"published_at": late}),
        Change("a", 0, None, "upsert", {"published_at": "2031-01-01T00:00:00+00:00"}),
    ]
    together = catalog.fold(changes, Position(5, 3, "b", "log"))
    apart = catalog
    for change in changes:
        apart = apart.fold([change], Position(5, 3, "b", "log"))
    assert apart.items.equals(together.items)
    always = np.iinfo(np.int64).min  # counts: V(t) of earlier moments would lose all that follow
    assert together.published_at[[0, 2]].tolist() == [always, 1893456000]
    assert together.titles[2] == "C"


def test_a_change_of_a_row_that_the_item_has_not_is_passed_over():
    """A foreign writer's: it must not stop all that is ingested."""
    catalog = first()
    wrong = [
        Change("a", 1, None, "upsert", {"title": "X"}),
        Change("b", 0, None, "delete"),
        Change("nobody", 1, None, "delete"),
        Change("b", 1, None, "upsert", {"title": "B"}),
    ]
    folded = catalog.fold(wrong, Position(4, 2, "", "log"))
    assert (folded.ids.tolist(), folded.titles) == (["a", "b"], ["A", "B"])
    assert folded.available.tolist() == [True, True]


def test_a_file_takes_nothing_back_that_it_does_not_speak_of(log):
    """A data set is read again, while the shop has deleted one item and described another."""
    catalog = first()
    changes = [
        Change("a", 0, None, "delete"),
        Change("b", 1, None, "upsert", {"title": "B", "categories": ["mugs"], "price": 9.0}),
    ]
    log.append([encode_change(change) for change in changes], partition=0)
    again = with_items(catalog, items({"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}), log)
    assert ended(log) == 2
    assert again.available.tolist() == [False, True]
    assert (again.primary_categories[1], again.price[1]) == ("mugs", 9.0)
    more = with_items(again, items({"item_id": "b", "price": 8.0}, {"item_id": "a", "available": True}), log)
    assert (more.titles, more.price[1], more.primary_categories[1]) == (["A", "B"], 8.0, "mugs")
    assert more.available.tolist() == [True, True]


def test_a_log_of_another_catalog_is_refused():
    with pytest.raises(DataError, match="goes on from another catalog"):
        first().fold([Change("c", 7, Claim("b", 7), "upsert", {})], Position(1, 8, "b", "other"))


def test_each_first_build_has_a_log_of_its_own():
    one, other = first(), Catalog.build(items({"item_id": "a"}, {"item_id": "c"}))
    assert one.position.log != other.position.log
    assert (one.position.rows, one.position.offset) == (2, 0)
    assert Catalog.build(one.items).position == one.position
    assert one.with_categories([["x"], []]).position == one.position


def test_a_log_that_was_lost_is_told_with_the_remedy(log):
    catalog = with_items(first(), items({"item_id": "c"}), log)
    lost = replace(catalog, position=replace(catalog.position, offset=5))
    with pytest.raises(UnavailableError, match=r"ends at 1, but 5 records .* --new-changelog"):
        caught_up(lost, log)
    anew = catalog.at(Position.first(catalog.ids))
    assert (anew.position.offset, anew.position.rows) == (0, 3)
    assert anew.position.log != first().position.log


def test_a_changelog_is_kept_for_ever():
    settings = BusSettings(url="redis://x", retention_hours=1.0).of_changelog("abc")
    assert math.isinf(settings.retention_hours)
