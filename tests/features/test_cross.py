"""The ranker's input: columns by definition, ranks within the request, NaN for what is not known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.cross import FEATURES, SCORES, cross_features, rank_within
from recsys.features.views import ITEM_FEATURES, USER_FEATURES, item_features, user_features
from recsys.interactions import Interactions
from recsys.types import DAY, Candidates, Histories, RequestBatch, offsets_of

NOW, ITEMS = 1_300_000_000, 9
CATEGORY = np.array([0, 0, 1, 1, 2, 2, -1, -1, 0], np.int32)


def world(seed: int = 0) -> tuple[RequestBatch, Candidates, np.ndarray]:
    """Three users, the last without a history, and some candidates of each; item 8 was never sold."""
    rng = np.random.default_rng(seed)
    counts = np.array([9, 5, 0])
    events = int(counts.sum())
    day = np.concatenate([np.sort(rng.integers(1, 90, n))[::-1] for n in counts])
    histories = Histories(
        offsets_of(counts),
        rng.integers(0, ITEMS - 1, events).astype(np.int32),
        (NOW - day * DAY).astype(np.int64),
        rng.integers(1, 5, events).astype(np.float32),
        (rng.random(events) * 20).astype(np.float32),
        np.repeat(np.arange(3), counts) * 1000 + day,  # the events of a day are one order
    )
    now = np.full(3, NOW)
    batch = RequestBatch(
        user_ids=("a", "b", "c"),
        scene=("home",) * 3,
        n=np.full(3, 5, np.int32),
        now=now,
        exclude=((),) * 3,
        histories=histories,
        user_features=user_features(histories, now=now, category=CATEGORY),
    )
    lists = [rng.permutation(ITEMS)[:n] for n in (9, 4, 6)]
    size = sum(map(len, lists))
    candidates = Candidates(
        offsets_of(np.array([len(one) for one in lists])),
        np.concatenate(lists).astype(np.int32),
        np.full(size, np.nan, np.float32),
        np.ones(size, np.uint32),
        np.zeros(size, np.uint8),
        {
            name: np.where(rng.random(size) < 0.3, np.nan, rng.integers(0, 4, size)).astype(np.float32)
            for name in SCORES
        },
    )
    log = Interactions(np.array(["a", "b", "c"], object), histories, ITEMS)
    return batch, candidates, item_features(log, now=NOW)


def column(table: np.ndarray, name: str) -> np.ndarray:
    return table[:, FEATURES.index(name)]


@pytest.mark.parametrize("seed", range(5))
def test_pair_columns_by_definition(seed):
    batch, candidates, items = world(seed)
    table = cross_features(batch, candidates, item_features=items, category=CATEGORY)
    log = batch.histories
    for row, (request, item) in enumerate(zip(candidates.request, candidates.item, strict=True)):
        events = range(log.offsets[request], log.offsets[request + 1])
        mine = [e for e in events if log.item[e] == item]
        days = sorted({(NOW - log.time[e]) / DAY for e in mine})  # one for each order
        assert column(table, "pair_orders")[row] == len(days)
        assert column(table, "pair_season")[row] == pytest.approx(sum(2 ** (-d / 90) for d in days), rel=1e-5)
        lines = sum(CATEGORY[log.item[e]] == CATEGORY[item] for e in events)
        if CATEGORY[item] < 0:
            assert np.isnan(column(table, "category_lines")[row])
        else:
            assert column(table, "category_lines")[row] == lines
        if not mine:
            assert np.isnan(column(table, "pair_days_since_last")[row])
            assert np.isnan(column(table, "pair_quantity")[row])
            continue
        assert column(table, "pair_days_since_last")[row] == pytest.approx(days[0])
        assert column(table, "pair_days_since_first")[row] == pytest.approx(days[-1])
        gap = (days[-1] - days[0]) / (len(days) - 1) if len(days) > 1 else np.nan
        assert column(table, "pair_gap")[row] == pytest.approx(gap, nan_ok=True)
        orders = {int(log.order[e]) for e in events}
        later = {int(log.order[e]) for e in events if (NOW - log.time[e]) / DAY < days[0]}
        assert column(table, "pair_orders_since")[row] == len(later)
        since_first = {o for o in orders if o % 1000 <= days[-1]}
        assert column(table, "pair_share_of_orders")[row] == pytest.approx(len(days) / len(since_first))
        quantity = np.mean([np.log1p(log.quantity[e]) for e in mine])
        assert column(table, "pair_quantity")[row] == pytest.approx(quantity, rel=1e-5)


def test_views_and_scores_are_passed_on():
    batch, candidates, items = world()
    table = cross_features(batch, candidates, item_features=items, category=CATEGORY)
    assert table.shape == (len(candidates), len(FEATURES))
    assert table.dtype == np.float32
    np.testing.assert_array_equal(
        column(table, "item_price"), items[candidates.item, ITEM_FEATURES.index("price")]
    )
    np.testing.assert_array_equal(
        column(table, "user_orders"), batch.user_features[candidates.request, USER_FEATURES.index("orders")]
    )
    np.testing.assert_array_equal(column(table, "ease"), candidates.scores["ease"])


def test_no_row_depends_on_batch_mates():
    batch, candidates, items = world()
    together = cross_features(batch, candidates, item_features=items, category=CATEGORY)
    for order in (np.array([2, 0, 1]), np.array([1]), np.array([2])):
        apart = cross_features(
            batch.take(order), candidates.take(order), item_features=items, category=CATEGORY
        )
        expected = np.concatenate([together[candidates.request == request] for request in order])
        np.testing.assert_array_equal(apart, expected)


def test_missing_scores_new_items_and_no_candidates():
    batch, candidates, items = world()
    del candidates.scores["basket"]
    new = Candidates(
        candidates.offsets,
        np.where(candidates.item == 3, 500, candidates.item).astype(np.int32),
        candidates.score,
        candidates.source,
        candidates.removed_by,
        candidates.scores,
    )
    table = cross_features(batch, new, item_features=items, category=CATEGORY)
    assert np.isnan(column(table, "basket")).all()
    assert np.isnan(column(table, "basket_rank")).all()
    assert np.isnan(column(table, "item_orders")[new.item == 500]).all()
    assert np.isnan(column(table, "category_lines")[new.item == 500]).all()
    none = new.rows(np.zeros(0, int), np.zeros(3, int))
    assert cross_features(batch, none, item_features=items, category=CATEGORY).shape == (0, len(FEATURES))


@given(
    st.lists(
        st.lists(st.sampled_from([np.nan, -np.inf, -1.5, -0.0, 0.0, 1e-30, 2.0, 3.0]), max_size=6),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None)
def test_ranks_within_the_request(lists):
    offsets = offsets_of(np.array([len(one) for one in lists]))
    score = np.array([value for one in lists for value in one], np.float32)
    expected = [
        np.nan if np.isnan(value) else sum(other > value for other in one if not np.isnan(other))
        for one in lists
        for value in one
    ]
    np.testing.assert_array_equal(rank_within(offsets, score), np.array(expected, np.float32))
