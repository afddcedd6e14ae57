"""Business rules: each reason, what is not known, and every way in which a rule can be wrong."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.errors import RuleError, SettingsError
from recsys.pipeline.offline import batch_of
from recsys.pipeline.rules import Rule, Rules, ages
from recsys.types import Candidates, Removal, RequestBatch, offsets_of
from tests.world import live

NOW = 1_300_000_000  # 2011-03-13
COLUMNS = {
    "item_id": pl.String,
    "title": pl.String,
    "category": pl.String,
    "price": pl.Float64,
    "available": pl.Boolean,
    "min_age": pl.Int32,
    "countries_allowed": pl.List(pl.String),
    "countries_blocked": pl.List(pl.String),
    "published_at": pl.Int64,
    "expires_at": pl.Int64,
}


def items(*records: dict) -> pl.DataFrame:
    """Items of the contract; what a record does not say is null."""
    return pl.DataFrame([{c: record.get(c) for c in COLUMNS} for record in records], schema=COLUMNS)


def request(**columns) -> RequestBatch:
    """One request: country, birth_year, exclude, hidden, scene."""
    batch = batch_of(["u"], scene=columns.pop("scene", "home"), now=columns.pop("now", NOW), n=5)
    lists = {name: (value,) for name, value in columns.items() if name != "birth_year"}
    if "birth_year" in columns:
        lists["birth_year"] = np.array([columns["birth_year"]], np.int32)
    if "hidden" in columns:
        lists["hidden"] = (np.array(columns["hidden"], np.int32),)
    return replace(batch, **lists)


def every_item(count: int, requests: int = 1) -> Candidates:
    size = count * requests
    return Candidates(
        offsets_of(np.full(requests, count)),
        np.tile(np.arange(count), requests).astype(np.int32),
        score=np.zeros(size, np.float32),
        source=np.ones(size, np.uint32),
        removed_by=np.zeros(size, np.uint8),
    )


def removed(frame: pl.DataFrame, batch: RequestBatch, *rules: str) -> list[int]:
    """The reason for each item of `frame`, for one request."""
    stage = Rules(live(frame), [Rule(f"rule {number}", sql) for number, sql in enumerate(rules)])
    return stage(batch, every_item(len(frame), len(batch))).removed_by.tolist()


# Built in


def test_available_unless_it_says_otherwise():
    frame = items({"available": True}, {"available": False}, {})
    assert removed(frame, request()) == [0, Removal.UNAVAILABLE, 0]


def test_published_and_expired_at_the_moment_of_the_request():
    frame = items(
        {"published_at": NOW},  # from this second on
        {"published_at": NOW + 1},
        {"expires_at": NOW},  # no longer from this second on
        {"expires_at": NOW + 1},
        {"published_at": NOW - 9, "expires_at": NOW + 9},
        {},
    )
    assert removed(frame, request()) == [0, Removal.EXPIRED, Removal.EXPIRED, 0, 0, 0]
    assert removed(frame, request(now=NOW + 1)) == [0, 0, Removal.EXPIRED, Removal.EXPIRED, 0, 0]


@pytest.mark.parametrize(
    ("birth_year", "reason"),
    [
        (0, Removal.AGE),  # not known
        (1994, Removal.AGE),  # 17 in 2011
        (1993, Removal.AGE),  # 18 some day in 2011: perhaps not yet
        (1992, 0),
        (1900, 0),
    ],
)
def test_min_age_is_for_those_who_have_surely_reached_it(birth_year, reason):
    frame = items({"min_age": 18}, {"min_age": 0}, {})
    for_all = removed(frame, request(birth_year=birth_year))
    assert for_all[0] == reason
    assert for_all[2] == 0
    assert np.isnan(ages(request(birth_year=0))).all()


def test_min_age_with_no_user_at_all():
    assert removed(items({"min_age": 18}, {}), request()) == [Removal.AGE, 0]


def test_countries_allowed_and_blocked_and_not_known():
    frame = items(
        {"countries_allowed": ["ES", "FR"]},
        {"countries_blocked": ["FR"]},
        {"countries_allowed": ["FR"], "countries_blocked": ["FR"]},
        {"countries_allowed": [], "countries_blocked": []},  # empty = all, none
        {},
    )
    gone = Removal.COUNTRY
    assert removed(frame, request(country="ES")) == [0, 0, gone, 0, 0]
    assert removed(frame, request(country="FR")) == [0, gone, gone, 0, 0]
    assert removed(frame, request(country="DE")) == [gone, 0, gone, 0, 0]
    assert removed(frame, request(country=None)) == [gone, gone, gone, 0, 0]
    assert removed(frame, replace(request(), country=())) == [gone, gone, gone, 0, 0]


def test_what_the_request_names_and_what_the_scene_hides():
    frame = items({}, {}, {}, {"available": False})
    batch = request(exclude=(1, 77), hidden=[2, 3])
    assert removed(frame, batch) == [0, Removal.EXCLUDED, Removal.CONSUMED, Removal.CONSUMED]


def test_an_earlier_reason_stands():
    frame = items({"available": False}, {})
    before = replace(every_item(2), removed_by=np.array([Removal.BELOW_CUT, Removal.BELOW_CUT], np.uint8))
    assert Rules(live(frame))(request(), before).removed_by.tolist() == [Removal.BELOW_CUT] * 2


def test_each_request_is_judged_by_its_own_columns():
    frame = items({"countries_blocked": ["FR"]}, {"min_age": 18}, {"category": "clock"})
    batch = replace(
        batch_of(["a", "b", "c"], scene="home", now=NOW, n=5),
        country=("FR", None, "ES"),
        birth_year=np.array([1950, 0, 1950], np.int32),
        exclude=((), (), (0,)),
    )
    assert removed(frame, batch, "country = 'ES' AND category = 'clock'") == [
        *(Removal.COUNTRY, 0, 0),
        *(Removal.COUNTRY, Removal.AGE, 0),
        *(Removal.EXCLUDED, 0, Removal.RULE),
    ]


def test_no_candidates_at_all():
    stage = Rules(live(items({})), [Rule("x", "age > 3"), Rule("always", "TRUE")])
    assert len(stage(request(), every_item(0))) == 0


# The rules file


def test_an_expression_over_items_is_evaluated_once():
    frame = items(
        {"title": ""}, {"title": None}, {"title": "mug", "price": 3.0}, {"title": "gold", "price": 900}
    )
    stage = Rules(live(frame), [Rule("untitled", "title IS NULL OR title = ''"), Rule("dear", "price > 100")])
    expected = [Removal.RULE, Removal.RULE, 0, Removal.RULE]
    assert stage._judged.static.all().tolist() == expected
    assert stage._dynamic == []
    assert stage(request(), every_item(4)).removed_by.tolist() == expected


def test_null_is_not_removed():
    frame = items({"price": None}, {"price": 5.0})
    assert removed(frame, request(), "price > 1") == [0, Removal.RULE]
    assert removed(frame, request(country=None), "country = 'ES'") == [0, 0]
    assert removed(frame, request(), "age < 18") == [0, 0]  # not known: min_age is what protects


@pytest.mark.parametrize(
    ("rule", "batch", "expected"),
    [
        ("country = 'ES'", {"country": "ES"}, True),
        ("country = 'ES'", {"country": "FR"}, False),
        ("scene = 'discover' AND category = 'mug'", {"scene": "discover"}, True),
        ("scene = 'discover' AND category = 'mug'", {"scene": "home"}, False),
        ("age < 18 AND price > 2", {"birth_year": 2000}, True),
        ("age < 18 AND price > 2", {"birth_year": 1950}, False),
    ],
)
def test_expressions_of_the_request(rule, batch, expected):
    frame = items({"category": "mug", "price": 3.0})
    assert removed(frame, request(**batch), rule) == [Removal.RULE if expected else 0]


def test_a_constant_rule_closes_the_shop():
    assert removed(items({}, {}), request(), "TRUE") == [Removal.RULE] * 2
    assert removed(items({}, {}), request(), "FALSE") == [0, 0]


@pytest.mark.parametrize("sql", ["price >", "SELECT", "", "price ==== 3", "nonsense(price)"])
def test_what_is_not_sql_is_refused_by_name(sql):
    with pytest.raises(SettingsError, match="rule 'cheap'"):
        Rules(live(items({})), [Rule("cheap", sql)])


def test_an_unknown_column_is_refused_and_the_known_ones_are_named():
    with pytest.raises(SettingsError, match=r"rule 'cheap' names prize: columns are .*price"):
        Rules(live(items({})), [Rule("cheap", "prize < 3")])


def test_a_rule_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(RuleError, match="rule 'price' gives Float64"):
        Rules(live(items({"price": 1.0})), [Rule("price", "price + 1")])
    stage = Rules(live(items({"price": 1.0})), [Rule("age", "age + price")])
    with pytest.raises(RuleError, match="rule 'age' gives"):
        stage(request(), every_item(1))


def test_a_rule_that_fails_on_an_item_is_refused_before_anything_is_served():
    with pytest.raises(RuleError, match="rule 'number' failed"):
        Rules(live(items({"title": "mug"})), [Rule("number", "CAST(title AS INT) > 3")])


def test_a_rule_that_fails_on_a_request_raises():
    stage = Rules(live(items({"title": "mug"})), [Rule("number", "CAST(country AS INT) > 3")])
    assert stage(request(country="5"), every_item(1)).removed_by.tolist() == [Removal.RULE]
    with pytest.raises(RuleError, match="rule 'number' failed"):
        stage(request(country="ES"), every_item(1))


def test_an_item_that_nobody_described_here_is_not_waved_through():
    """An index shard may have read further in the changelog than the stage that judges."""
    stage = Rules(live(items({}, {"available": False})))
    removed_by = stage(request(exclude=(3,)), every_item(4)).removed_by
    assert removed_by.tolist() == [0, Removal.UNAVAILABLE, Removal.UNKNOWN, Removal.UNKNOWN]
    assert Rules(live(items()))(request(), every_item(1)).removed_by.tolist() == [Removal.UNKNOWN]


def test_what_the_catalog_says_counts_from_then_on():
    known = live(items({"price": 1.0}, {"price": 1.0}, {"price": 1.0}))
    stage = Rules(known, [Rule("dear", "price > 5"), Rule("here", "country = 'ES' AND price > 3")])

    def judged(count: int, country: str = "FR") -> list[int]:
        return stage(request(country=country), every_item(count)).removed_by.tolist()

    assert judged(5) == [0, 0, 0, Removal.UNKNOWN, Removal.UNKNOWN]
    new = items({"price": 9.0}, {"countries_blocked": ["FR"]}, {"price": 4.0})
    known.upsert([1, 2, 4], new)
    assert judged(5) == [0, Removal.RULE, Removal.COUNTRY, Removal.UNKNOWN, 0]
    assert judged(5, "ES") == [0, Removal.RULE, 0, Removal.UNKNOWN, Removal.RULE]
    known.delete([0, 1])
    known.upsert([2], items({"min_age": 18}))
    assert judged(5) == [Removal.DELETED, Removal.DELETED, Removal.AGE, Removal.UNKNOWN, 0]
    known.upsert([1, 3], items({}, {"available": False}))  # deleted and added again
    assert judged(5) == [Removal.DELETED, 0, Removal.AGE, Removal.UNAVAILABLE, 0]


def test_an_item_on_which_a_rule_fails_is_removed_and_no_other():
    known = live(items({"title": "4"}))
    stage = Rules(known, [Rule("number", "CAST(title AS INT) > 3")])
    known.upsert([1], items({"title": "mug"}))
    known.upsert([2], items({"title": "2"}))
    known.upsert([3, 4], items({"title": "5"}, {"title": "1"}))
    expected = [Removal.RULE, Removal.RULE, 0, Removal.RULE, 0]
    assert stage(request(), every_item(5)).removed_by.tolist() == expected


def test_a_country_that_some_visitors_lack():
    """None beside a text made an object array, which polars can't cast to a text: the batch crashed with
    an error of polars, and only batches of mixed visitors did."""
    frame = items({"category": "clock"})
    batch = replace(batch_of(["a", "b"], scene="home", now=NOW, n=5), country=(None, "ES"))
    assert removed(frame, batch, "country = 'ES'") == [0, Removal.RULE]
