"""A scope leaves what the rules leave, and no less; the index looks for nothing else."""

import asyncio
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.catalog.changelog import Change
from recsys.index.shard import LocalShard
from recsys.pipeline import scopes as module
from recsys.pipeline.rules import Rules
from recsys.pipeline.scopes import Scope, Scopes
from recsys.types import HOUR, Candidates, RequestBatch
from tests.world import NOW, item_frame, live, shards

ITEMS = 60
COUNTRIES = (None, "FR", "ES", "DE")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(module, "OLD_S", 0.0)


def frame() -> pl.DataFrame:
    row = np.arange(ITEMS)
    hour = NOW // HOUR * HOUR
    return item_frame(ITEMS).with_columns(
        pl.Series("countries_allowed", [["DE", "ES"] if r % 7 == 0 else None for r in row]),
        pl.Series("published_at", [hour + 600 * (r - 10) if r % 3 else None for r in row], dtype=pl.Int64),
        pl.Series("expires_at", [hour + 900 * (r - 20) if r % 4 == 1 else None for r in row], dtype=pl.Int64),
    )


def alive(items, country: str | None, now: int) -> np.ndarray:
    """Rows that the rules leave of all."""
    batch = RequestBatch(("",), ("s",), np.array([ITEMS]), np.array([now]), ((),), country=(country,))
    rows = np.arange(ITEMS, dtype=np.int32)
    candidates = Candidates(
        np.array([0, ITEMS], np.int32),
        rows,
        score=np.zeros(ITEMS, np.float32),
        source=np.ones(ITEMS, np.uint32),
        removed_by=np.zeros(ITEMS, np.uint8),
    )
    adult = replace(batch, birth_year=np.array([1900], np.int32))
    return rows[Rules(items)(adult, candidates).alive]


@pytest.mark.parametrize("country", COUNTRIES)
def test_a_scope_leaves_what_the_rules_leave_at_some_moment_of_its_hour(country):
    items = live(frame())
    left = Scopes(items)(Scope(country, NOW // HOUR))
    moments = range(NOW // HOUR * HOUR, NOW // HOUR * HOUR + HOUR, 60)
    expected = set().union(*(alive(items, country, now).tolist() for now in moments))
    assert set(np.flatnonzero(left.allowed)) == expected
    assert 5 < len(expected) < ITEMS - 5


def test_a_category_is_searched_alone():
    items = live(frame())
    of_all = Scopes(items)(Scope("DE", NOW // HOUR)).allowed
    mugs = Scopes(items)(Scope("DE", NOW // HOUR, "mug")).allowed
    named = (items.frame["category"] == "mug").to_numpy()
    assert np.array_equal(mugs, of_all & named)
    assert mugs.any()


def test_nothing_is_filtered_where_nothing_is_barred():
    plain = item_frame(20).with_columns(
        available=True, countries_blocked=pl.Series([None] * 20, dtype=pl.List(pl.String))
    )
    assert Scopes(live(plain))(Scope(None, NOW // HOUR)) is None
    assert Scopes(live(plain[:0]))(Scope(None, NOW // HOUR)) is None


def test_what_changes_counts_from_the_next_moment_on(monkeypatch):
    items = live(item_frame(20))
    scopes, scope = Scopes(items), Scope("FR", NOW // HOUR)
    before = scopes(scope)
    assert scopes(scope) is before  # as long as nothing changes a shard keeps its own form of it
    assert not before.allowed[13]
    record = {"title": "clock", "categories": ["clock"]}
    items.apply(
        [
            Change("i13", 13, None, "upsert", record),
            Change("i1", 1, None, "upsert", {**record, "countries_blocked": ["FR"]}),
            Change("i1", 1, None, "upsert", {**record, "countries_allowed": ["FR"]}),
            Change("new", 24, None, "upsert", record),
            Change("other", 25, None, "upsert", {**record, "available": False}),
        ],
        space="",
    )
    monkeypatch.setattr(module, "OLD_S", 60.0)
    assert scopes(scope) is before
    monkeypatch.setattr(module, "OLD_S", 0.0)
    after = scopes(scope).allowed
    assert after[[13, 1, 24]].all()
    assert not after[[0, 25, 22]].any()
    assert np.array_equal(after[2:13], before.allowed[2:13])


def test_the_scopes_that_were_asked_for_long_ago_are_forgotten():
    scopes = Scopes(live(item_frame(20)))
    for hour in range(200):
        scopes(Scope("FR", hour))
    assert len(scopes._known) == module.FILTERS


def test_what_no_item_names_is_one_scope_and_not_many():
    """Visitors may say any country, and ask for any category."""
    items = live(frame())
    scopes = Scopes(items)
    for number in range(200):
        scopes(Scope(f"country {number}", 0))
        assert not scopes(Scope(None, 0, f"category {number}")).allowed.any()
    assert len(scopes._known) == 2
    hour = NOW // HOUR
    assert np.array_equal(scopes(Scope("PT", hour)).allowed, left_by_definition(items, "PT", hour))
    items.apply([Change("i1", 1, None, "upsert", {"title": "x", "countries_blocked": ["PT"]})], space="")
    assert not scopes(Scope("PT", hour)).allowed[1]


def left_by_definition(items, country: str, hour: int) -> np.ndarray:
    return items.frame.select(Scope(country, hour).holds().alias("holds"))["holds"].to_numpy()


def test_a_change_that_lets_in_and_keeps_out_nothing_makes_no_new_filter():
    """A shard makes its own form of a new one, which takes a while."""
    items = live(frame())
    scopes, scope = Scopes(items), Scope("DE", NOW // HOUR)
    before = scopes(scope)
    title = items.frame["title"][8]
    items.apply([Change("i8", 8, None, "upsert", {"title": f"{title}, now dearer", "price": 9.0})], space="")
    assert scopes(scope) is before
    items.apply([Change("i8", 8, None, "upsert", {"available": False})], space="")
    assert scopes(scope) is not before


def test_requests_of_many_scopes_are_each_answered_in_their_own():
    items = live(frame())
    random = np.random.default_rng(0)
    vectors = random.normal(size=(ITEMS, 8)).astype(np.float32)
    scopes = Scopes(items)
    queries, asked = random.normal(size=(8, 8)).astype(np.float32), [Scope(c, NOW // HOUR) for c in COUNTRIES]
    for own in shards(vectors):
        shard = LocalShard(own.name, own.shard, scopes)
        rows, scores = asyncio.run(shard(queries, 5, asked * 2))
        for place, scope in enumerate(asked * 2):
            alone = shard.shard.search(queries[place : place + 1], 5, only=scopes(scope))
            assert np.array_equal(rows[place], alone[0][0])
            assert np.array_equal(scores[place], alone[1][0])
        assert np.array_equal(asyncio.run(shard(queries, 5))[0], shard.shard.search(queries, 5)[0])
