"""What is drawn as an example: orders by what came before, and sets with some of them left out."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.interactions import Interactions, interactions_from_pairs
from recsys.training.examples import LeftOut, NextOrders, Together, orders_of, spread
from recsys.types import DAY, Histories, offsets_of


def small_log() -> Interactions:
    """User a: an order of items 3 (two lines) and 4, then one of 3 and 5; user b: an order of 3 between."""
    histories = Histories(
        np.array([0, 5, 6], np.int32),
        np.array([3, 3, 4, 3, 5, 3], np.int32),
        np.array([10, 10, 10, 30, 30, 20], np.int64) * DAY,
        np.ones(6, np.float32),
        np.ones(6, np.float32),
        np.array([1, 1, 1, 2, 2, 9], np.int64),
    )
    return Interactions(np.array(["a", "b"], object), histories, 6)


def next_orders(log: Interactions, **changes) -> NextOrders:
    given = {
        "half_life_days": 10.0,
        "repeat_share": 0.5,
        "targets": 2,
        "max_history": 2,
        "hide_history": True,
    } | changes
    return NextOrders.until(31 * DAY, interactions=log, orders=orders_of(log), **given)


def test_orders_are_by_time_and_know_what_is_new():
    weight = np.array([1, 2, 1, 1, 1, 1], np.float32)
    found = orders_of(replace(small_log(), weight=weight))
    assert found.user.tolist() == [0, 1, 0]
    assert (found.time // DAY).tolist() == [10, 20, 30]
    assert found.offsets.tolist() == [0, 2, 3, 5]
    assert found.line_item.tolist() == [3, 4, 3, 3, 5]
    assert found.line_new.tolist() == [True, True, True, False, True]
    assert found.line_weight.tolist() == [2, 1, 1, 1, 1]


def test_an_order_is_predicted_from_what_came_strictly_before():
    drawn = next_orders(small_log()).draw(np.array([2, 0]), np.random.default_rng(0))
    assert drawn.user.tolist() == [0, 0]
    assert drawn.histories.counts.tolist() == [2, 0]
    assert drawn.histories.item.tolist() == [3, 4]  # the newest two of three
    assert set(drawn.target[drawn.owner == 0]) <= {3, 5}
    assert sorted(drawn.target[drawn.owner == 1]) == [3, 4]
    hidden = {(int(o), int(i)) for o, i in zip(drawn.hidden_owner, drawn.hidden)}
    assert hidden == {(0, 3), (0, 4), (0, 5), (1, 3), (1, 4)}
    shown = next_orders(small_log(), hide_history=False).draw(np.array([2, 0]), np.random.default_rng(0))
    assert {(int(o), int(i)) for o, i in zip(shown.hidden_owner, shown.hidden)} == hidden - {(0, 4)}


def test_chance_halves_with_age_and_later_orders_have_none():
    log = small_log()
    chance = next_orders(log).chance
    assert chance[2] / chance[1] == pytest.approx(1.5 * 2)  # ten days newer; 1.5 targets instead of 1
    earlier = NextOrders.until(
        15 * DAY,
        interactions=log,
        orders=orders_of(log),
        half_life_days=10.0,
        repeat_share=0.5,
        targets=2,
        max_history=2,
        hide_history=True,
    )
    assert (earlier.chance > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("kind", ["next", "left out", "both"])
def test_items_are_drawn_as_often_as_is_expected(kind):
    rng = np.random.default_rng(0)
    log = small_log()
    following = next_orders(log)
    left_out = LeftOut.of(log, share=0.5, max_history=10)
    examples = {"next": following, "left out": left_out, "both": Together((following, left_out))}[kind]
    drawn = examples.draw(spread(examples.chance, 20_000, rng), rng)
    found = np.bincount(drawn.target, minlength=6) / len(drawn.target)
    if kind == "both":  # each kind's share of examples is even, not that of targets
        assert (found > 0).tolist() == (examples.expected(6) > 0).tolist()
    else:
        np.testing.assert_allclose(found, examples.expected(6), atol=0.015)


def test_both_kinds_together_are_each_of_them():
    log = small_log()
    following, left_out = next_orders(log), LeftOut.of(log, share=0.5, max_history=10)
    drawn = Together((following, left_out)).draw(np.array([4, 2]), np.random.default_rng(0))
    assert drawn.user.tolist() == [0, 1]  # order 2, of user 0; left out 4 - 3, of user 1
    assert drawn.example.tolist() == [2, 4]
    assert drawn.histories.counts.tolist() == [2, 0]
    assert drawn.target[drawn.owner == 1].tolist() == [3]


def test_what_is_left_out_is_in_no_history():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 30, 600), rng.integers(0, 50, 600)  # pairs stand twice
    log = interactions_from_pairs(user, item, users=30, items=50)
    drawn = LeftOut.of(log, share=0.3, max_history=1000).draw(np.arange(30), rng)
    targets = set(zip(drawn.owner.tolist(), drawn.target.tolist()))
    seen = set(zip(drawn.histories.request.tolist(), drawn.histories.item.tolist()))
    assert not targets & seen
    assert targets | seen <= set(zip(user.tolist(), item.tolist()))
    assert len(np.unique(drawn.owner)) == 30  # each has a target
    assert 0.2 < len(drawn.target) / 600 < 0.4
    assert {(int(o), int(i)) for o, i in zip(drawn.hidden_owner, drawn.hidden)} >= targets | seen


def test_an_only_event_is_a_target_without_a_history():
    log = interactions_from_pairs(np.array([1]), np.array([4]), users=3, items=5)
    examples = LeftOut.of(log, share=0.3, max_history=10)
    assert examples.chance.tolist() == [0, 1, 0]
    drawn = examples.draw(np.array([1]), np.random.default_rng(0))
    assert drawn.target.tolist() == [4]
    assert len(drawn.histories.item) == 0


def test_spread_draws_each_as_often_as_expected_give_or_take_one():
    chance = np.array([0.0, 1.0, 2.0, 0.5, 0.0])
    picked = np.bincount(spread(chance, 700, np.random.default_rng(0)), minlength=5)
    assert (np.abs(picked - 700 * chance / 3.5) <= 1).all()
    every = spread(np.ones(40), 40, np.random.default_rng(0))
    assert sorted(every) == list(range(40))
    assert every.tolist() != list(range(40))


def test_long_histories_are_cut():
    counts = offsets_of(np.array([500]))
    log = interactions_from_pairs(np.zeros(500, int), np.arange(500), users=1, items=500)
    assert counts[-1] == len(log)
    drawn = LeftOut.of(log, share=0.2, max_history=50).draw(np.array([0]), np.random.default_rng(0))
    assert 20 <= len(drawn.histories.item) <= 60
