"""Backfill: short slates are filled from popularity, under the same rules, and long ones left alone."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from recsys.pipeline.backfill import Backfill
from recsys.pipeline.offline import batch_of
from recsys.pipeline.recommender import POSITION, in_score_order
from recsys.pipeline.rules import Rule, Rules
from recsys.types import Candidates, Removal, RequestBatch, Sources, offsets_of
from tests.world import item_frame, live

V = 40
ITEMS = item_frame(V).with_columns(
    pl.lit(None, pl.Int32).alias("min_age"),
    pl.lit(None, pl.List(pl.String)).alias("countries_blocked"),
    pl.lit(True).alias("available"),
)
POPULAR = np.random.default_rng(1).permutation(V).astype(np.int32)


def backfill(*rules: str, spare: int = 2) -> Backfill:
    made = Rules(live(ITEMS), [Rule(sql, sql) for sql in rules])
    return Backfill(POPULAR, made, spare=spare)


def ask(n: list[int], hidden: list[list[int]] | None = None) -> RequestBatch:
    batch = batch_of(["u"] * len(n), scene="home", now=0, n=1)
    hidden = hidden or [[]] * len(n)
    return replace(batch, n=np.array(n, np.int32), hidden=tuple(np.array(rows, np.int32) for rows in hidden))


def ranked(batch: RequestBatch, lists: list[list[int]], removed: tuple[int, ...] = ()) -> Candidates:
    """Candidates in this order, some removed, and placed."""
    item = np.array([i for items in lists for i in items], np.int32)
    candidates = Candidates(
        offsets_of(np.array([len(items) for items in lists])),
        item,
        score=-np.arange(len(item), dtype=np.float32),
        source=np.full(len(item), Sources.EASE, np.uint32),
        removed_by=np.where(np.isin(item, removed), Removal.RULE, 0).astype(np.uint8),
        scores={"ease": np.ones(len(item), np.float32)},
        proposed={"ease": np.array([len(items) for items in lists], np.int32)},
    )
    return in_score_order(batch, candidates)


def slates(candidates: Candidates) -> list[list[int]]:
    place = candidates.scores[POSITION]
    order = np.lexsort((place, candidates.request))
    order = order[~np.isnan(place[order])]
    return [
        candidates.item[order[candidates.request[order] == r]].tolist() for r in range(len(candidates.counts))
    ]


def test_a_full_slate_is_left_alone():
    batch = ask([2, 2])
    candidates = ranked(batch, [[1, 2, 3], [4, 5]])
    assert backfill()(batch, candidates) is candidates


def test_what_is_missing_comes_from_popularity_best_first_after_what_was_ranked():
    batch = ask([5, 1, 4])
    candidates = backfill()(batch, ranked(batch, [[7, 9], [3], []]))
    popular = [int(i) for i in POPULAR if i not in (7, 9)]
    assert slates(candidates) == [[7, 9, *popular[:3]], [3], POPULAR[:4].tolist()]
    added = candidates.source == Sources.BACKFILL
    assert np.isnan(candidates.score[added]).all()
    assert np.isnan(candidates.scores["ease"][added]).all()
    assert candidates.proposed["backfill"].tolist() == [3 + 2, 0, 4 + 2]  # with the spare ones
    assert candidates.proposed["ease"].tolist() == [2, 1, 0]
    assert (candidates.removed_by[added & np.isnan(candidates.scores[POSITION])] == Removal.BELOW_SLATE).all()


def test_no_item_comes_twice_and_none_that_was_removed_comes_back():
    batch = ask([V])
    removed = (int(POPULAR[0]), int(POPULAR[5]))
    candidates = backfill()(batch, ranked(batch, [[*removed, 3]], removed=removed))
    (slate,) = slates(candidates)
    assert len(slate) == len(set(slate)) == V - 2
    assert not set(slate) & set(removed)
    assert len(np.unique(candidates.item)) == len(candidates)


def test_hidden_items_stay_hidden():
    hidden = POPULAR[:10].tolist()
    batch = ask([5, 5], hidden=[hidden, []])
    assert slates(backfill()(batch, ranked(batch, [[], []]))) == [
        POPULAR[10:15].tolist(),
        POPULAR[:5].tolist(),
    ]


@pytest.mark.parametrize("spare", [0, 1, 50])
def test_rules_that_remove_most_of_the_popular_ones_do_not_leave_it_short(spare):
    """Only lamps may be shown: the look goes further down until the slate is full."""
    batch = ask([5, 6, V])
    candidates = backfill("category <> 'lamp'", spare=spare)(batch, ranked(batch, [[], [1], []]))
    lamps = [int(i) for i in POPULAR if i % 6 == 1]
    assert slates(candidates) == [lamps[:5], [1, *[i for i in lamps if i != 1][:5]], lamps]


def test_nothing_may_be_shown():
    batch = ask([5])
    candidates = backfill("price > 0")(batch, ranked(batch, [[]]))
    assert slates(candidates) == [[]]
    assert len(candidates) == V
    assert candidates.proposed["backfill"].tolist() == [V]
    assert (candidates.removed_by == Removal.RULE).all()


def test_a_request_does_not_depend_on_batch_mates():
    batch = ask([5, 30, 2, 9], hidden=[[1, 2], [], POPULAR[:20].tolist(), []])
    lists = [[3, 4], list(range(10)), [8], []]
    together = slates(backfill("category = 'mug'")(batch, ranked(batch, lists)))
    for r in range(4):
        own = batch.take(np.array([r]))
        assert slates(backfill("category = 'mug'")(own, ranked(own, [lists[r]]))) == [together[r]]
