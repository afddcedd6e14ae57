"""What is asked: targets, masks and the moment of the question; and the slice cut for choosing."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.datasets.problem import hold_out, hold_out_orders, hold_out_sessions, judge_users
from recsys.interactions import Timing, interactions_from_pairs
from recsys.types import DAY


def a_log(timing=Timing.CLOCK):
    """User 0: items 0 1 2; user 1: item 0; user 2: nothing."""
    return interactions_from_pairs(
        np.array([0, 0, 1, 0]),
        np.array([0, 1, 0, 2]),
        users=3,
        items=5,
        time=np.array([10, 20, 40, 30]),
        value=np.array([1.0, 2, 3, 4]),
        timing=timing,
    )


def lists(offsets, values):
    return [part.tolist() for part in np.split(values, offsets[1:-1])]


def test_a_user_is_asked_for_all_targets_and_the_history_is_masked():
    test = judge_users(a_log(), user=np.array([2, 0, 0]), item=np.array([1, 4, 3]))
    assert test.queries.user.tolist() == [0, 2]  # user 1 wants nothing, so is not asked
    assert lists(test.target_offsets, test.target) == [[3, 4], [1]]
    assert lists(test.masked_offsets, test.masked) == [[0, 1, 2], []]
    assert lists(test.queries.histories.offsets, test.queries.histories.item) == [[0, 1, 2], []]
    assert np.isnan(test.value).all()


def test_what_is_also_masked_is_that_of_the_users_asked():
    also = (np.array([0, 1]), np.array([4, 4]))
    test = judge_users(a_log(), user=np.array([0]), item=np.array([3]), also_masked=also)
    assert lists(test.masked_offsets, test.masked) == [[0, 1, 2, 4]]
    test = judge_users(replace(a_log(), repeats=True), user=np.array([0]), item=np.array([3]))
    assert test.masked.tolist() == []


def test_a_pair_given_twice_is_one_target_with_its_last_value():
    test = judge_users(
        a_log(), user=np.array([0, 0, 0]), item=np.array([3, 4, 3]), value=np.array([1.0, 2, 5])
    )
    assert (test.target.tolist(), test.value.tolist()) == ([3, 4], [5.0, 2.0])


@pytest.mark.parametrize(
    ("timing", "known", "stranger"),
    [(Timing.CLOCK, 31, 41), (Timing.SEQUENCE, 2 * DAY + 1, 0), (Timing.NONE, 1, 0)],
)
def test_the_question_comes_after_the_history_or_after_everything(timing, known, stranger):
    test = judge_users(a_log(timing), user=np.array([0, 2]), item=np.array([3, 1]))
    assert test.queries.now.tolist() == [known, stranger]


def test_queries_are_taken_with_their_targets_and_masks():
    test = judge_users(a_log(), user=np.array([2, 0, 0, 1]), item=np.array([1, 4, 3, 2]))
    part = test.take(np.array([2, 0]))
    assert part.queries.user.tolist() == [2, 0]
    assert lists(part.target_offsets, part.target) == [[1], [3, 4]]
    assert lists(part.masked_offsets, part.masked) == [[], [0, 1, 2]]
    nobody = test.take(np.array([], np.int64))
    assert (len(nobody), len(nobody.target)) == (0, 0)


@pytest.mark.parametrize("newest", [True, False])
def test_one_event_is_held_out_of_each_user_who_has_two(newest):
    rest, judged = hold_out(a_log(), users=10, seed=0, newest=newest)
    assert judged.queries.user.tolist() == [0]
    assert len(rest) == 3
    assert sorted([*rest.histories.take(np.array([0])).item, *judged.target]) == [0, 1, 2]
    if newest:
        assert (judged.target.tolist(), judged.value.tolist()) == ([2], [4.0])
    assert judged.masked.tolist() == rest.histories.take(np.array([0])).item.tolist()


def test_nobody_is_held_out_where_nobody_has_two():
    log = interactions_from_pairs(np.array([0]), np.array([0]), users=1, items=1)
    rest, judged = hold_out(log, users=10, seed=0, newest=True)
    assert (len(rest), len(judged)) == (1, 0)


@pytest.mark.parametrize("newest", [True, False])
def test_the_rest_of_a_history_is_ranked_after_a_newest_event_where_repeats_are(newest):
    rest, judged = hold_out(replace(a_log(), repeats=True), users=1, seed=0, newest=newest)
    assert rest.repeats
    assert judged.queries.histories.counts.sum() > 0
    assert len(judged.masked) == (0 if newest else judged.queries.histories.counts.sum())


def test_a_newest_order_is_held_out_whole():
    user, item, time = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 2, 0, 1, 3, 3, 4]), np.arange(8)
    log = interactions_from_pairs(user, item, users=4, items=5, time=time, timing=Timing.CLOCK)
    log = replace(log, histories=replace(log.histories, order=np.array([7, 8, 8, 9, 9, 1, 2, 2])))
    rest, judged = hold_out_orders(log, users=9, seed=0)
    assert judged.queries.user.tolist() == [0, 2]  # who has one order keeps it
    assert rest.histories.item.tolist() == [0, 0, 1, 3]
    assert judged.target.tolist() == [1, 2, 4]  # 3 was taken before
    _, judged = hold_out_orders(replace(log, repeats=True), users=9, seed=0)
    assert judged.target.tolist() == [1, 2, 3, 4]
    assert judged.masked.tolist() == []


def test_the_last_sessions_are_held_out_whole_and_asked_at_each_step():
    user = np.append(np.repeat(np.arange(18), 2), [18, 18, 18, 19])
    item = np.append(np.tile([0, 1], 18), [3, 3, 0, 4])
    log = interactions_from_pairs(user, item, users=20, items=5, timing=Timing.SEQUENCE)
    rest, judged = hold_out_sessions(log, questions=2)
    assert rest.histories.item.tolist() == [*([0, 1] * 18), 4]  # the last one has one event, and stays
    assert judged.queries.user.tolist() == [-1, -1]
    assert lists(judged.queries.histories.offsets, judged.queries.histories.item) == [[3], [3, 3]]
    assert judged.target.tolist() == [3, 0]
    assert len(judged.masked) == 0
    assert len(hold_out_sessions(log, questions=1)[1]) == 0  # the last one asks two
    assert hold_out_sessions(log, questions=99)[1].target.tolist() == [1, 3, 0]  # a tenth of the sessions
