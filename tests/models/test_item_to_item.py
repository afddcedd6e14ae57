"""Item-to-item tables: fast scoring against the slow definition, EASE against its formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.interactions import Interactions
from recsys.models.item_to_item import BasketSettings, EaseSettings, ItemTable, baskets, ease
from recsys.types import Histories, offsets_of


def random_log(seed: int, *, users: int = 30, items: int = 12) -> Interactions:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, users)
    events = int(counts.sum())
    histories = Histories(
        offsets_of(counts),
        rng.integers(0, items - 1, events).astype(np.int32),  # the last item is never bought
        np.arange(events, dtype=np.int64),
        np.ones(events, np.float32),
        np.ones(events, np.float32),
        np.repeat(np.arange(users) * 10, counts) + rng.integers(0, 2, events),
    )
    return Interactions(np.arange(users).astype(object), histories, items)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_fast_scores_equal_slow_ones(seed):
    rng = np.random.default_rng(seed)
    log = random_log(seed)
    table = ItemTable(
        rng.integers(-1, 12, (12, 4)).astype(np.int32), rng.normal(size=(12, 4)).astype(np.float32)
    )
    weights = rng.choice([0, 0.5, 1, 2], len(log)).astype(np.float32)
    fast = table.score(log.histories, weights=weights)
    slow = table.score_slowly(log.histories, weights=weights)
    reached = fast.copy()
    reached.data[:] = 1
    assert ((reached.toarray() > 0) == ~np.isnan(slow)).all()
    np.testing.assert_allclose(fast.toarray(), np.nan_to_num(slow), atol=1e-5)


def test_a_score_does_not_depend_on_batch_mates():
    log = random_log(3)
    table = ease(log, settings=EaseSettings(regularization=2, neighbors=5))
    weights = np.linspace(0.1, 1, len(log)).astype(np.float32)
    together = table.score(log.histories, weights=weights).toarray()
    for user in (0, 7, 29):
        alone = log.histories.take(np.array([user]))
        own = weights[log.histories.offsets[user] : log.histories.offsets[user + 1]]
        np.testing.assert_array_equal(table.score(alone, weights=own).toarray()[0], together[user])


def test_ease_is_the_closed_form():
    log = random_log(1)
    bought = np.zeros((len(log.user_ids), log.items))
    bought[log.histories.request, log.histories.item] = 1
    precision = np.linalg.inv(bought.T @ bought + 3 * np.eye(log.items))
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0)
    table = ease(log, settings=EaseSettings(regularization=3, neighbors=log.items))
    np.testing.assert_allclose(table.matrix.toarray(), expected, atol=1e-5)


def test_truncated_ease_keeps_the_largest_magnitudes():
    log = random_log(1)
    full = ease(log, settings=EaseSettings(regularization=3, neighbors=log.items)).matrix.toarray()
    cut = ease(log, settings=EaseSettings(regularization=3, neighbors=3))
    for item in range(log.items - 1):
        expected = np.sort(np.abs(full[item]))[-3:]
        np.testing.assert_allclose(np.sort(np.abs(cut.weight[item])), expected, atol=1e-5)


def test_basket_weights_by_hand():
    histories = Histories(
        np.array([0, 4, 6], np.int32),
        np.array([0, 1, 0, 0, 0, 2], np.int32),
        np.arange(6, dtype=np.int64),
        np.ones(6, np.float32),
        np.ones(6, np.float32),
        np.array([1, 1, 2, 2, 3, 3], np.int64),  # order 2 holds item 0 on two lines
    )
    log = Interactions(np.array(["a", "b"], object), histories, 4)
    table = baskets(log, settings=BasketSettings(damping=0.5, shrinkage=1, min_orders=1, neighbors=2))
    weights = table.matrix.toarray()
    assert weights[0, 1] == pytest.approx(1 / (3 + 1) / 1)  # 3 orders with item 0, one of them with item 1
    assert weights[1, 0] == pytest.approx(1 / (1 + 1) / np.sqrt(3))
    assert weights[1, 2] == 0
    assert (table.neighbor[3] == -1).all()  # nobody bought it
    strict = baskets(log, settings=BasketSettings(min_orders=2))
    assert strict.matrix.nnz == 0  # no two items share two orders


@pytest.mark.parametrize("make", [ease, baskets])
def test_empty_log_and_one_item(make):
    given = {"settings": EaseSettings() if make is ease else BasketSettings()}
    nobody = Interactions(np.array(["a"], object), Histories.empty(1), 3)
    assert (make(nobody, **given).neighbor == -1).all()
    one = Interactions(
        np.array(["a"], object),
        Histories(
            np.array([0, 1], np.int32),
            np.array([0], np.int32),
            np.array([5], np.int64),
            np.ones(1, np.float32),
            np.ones(1, np.float32),
            np.array([1], np.int64),
        ),
        1,
    )
    table = make(one, **given)
    assert (table.neighbor == -1).all()
    assert table.score(one.histories, weights=np.ones(1, np.float32)).nnz == 0
