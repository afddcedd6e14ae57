"""Slices of a training log: what is left, and what is asked."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from recsys.datasets.problem import hold_out
from recsys.interactions import Asked, Interactions, Timing, interactions_from_pairs
from recsys.models.held_out import asked_slice, held_out_ndcg, hold_out_alike, lists_of, ndcg_of
from tests.contracts.retrieval_model import GROUPS, USERS, log_of, pairs


def two_tastes() -> Interactions:
    """Everybody takes ten things of one group and ten of another."""
    rng = np.random.default_rng(0)
    lists = []
    for _ in range(80):
        one, other = rng.choice(4, 2, replace=False)
        lists.append(np.concatenate([20 * group + rng.permutation(20)[:10] for group in (one, other)]))
    user = np.repeat(np.arange(80), 20)
    return interactions_from_pairs(user, np.concatenate(lists), users=80, items=80)


def test_what_is_alike_is_held_out_together():
    log = two_tastes()
    rest, judged = hold_out_alike(log, users=60, seed=0)
    assert len(judged) == 60
    assert (judged.target_counts == 4).all()
    assert len(rest) == len(log) - 240
    groups = [len(set(targets // 20)) for targets in np.split(judged.target, judged.target_offsets[1:-1])]
    assert np.mean(np.array(groups) == 1) > 0.9  # of random events .04
    for b, user in enumerate(judged.queries.user):
        own = set(log.histories.take(np.array([user])).item)
        left = set(judged.queries.histories.take(np.array([b])).item)
        targets = set(judged.target[judged.target_offsets[b] : judged.target_offsets[b + 1]])
        assert left | targets == own
        assert not left & targets


def test_who_has_one_event_keeps_it_and_who_has_two_keeps_one():
    user, item = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2])
    rest, judged = hold_out_alike(interactions_from_pairs(user, item, users=3, items=3), users=9, seed=0)
    assert rest.histories.counts.tolist() == [1, 1, 1]
    assert judged.queries.user.tolist() == [1, 2]


@pytest.mark.parametrize("timing", list(Timing))
@pytest.mark.parametrize("asked", list(Asked))
@pytest.mark.parametrize("repeats", [False, True])
def test_a_slice_asks_as_the_test_will(timing, asked, repeats):
    log = replace(log_of(*pairs(), timing), asked=asked, repeats=repeats)
    rest, judged = asked_slice(log, most=30, seed=0)
    users = np.unique(judged.queries.user)
    assert (rest.asked, rest.repeats) == (asked, repeats)
    assert (len(judged.masked) == 0) is (asked is Asked.SESSION or (repeats and asked is not Asked.MISSING))
    if asked is Asked.SESSION:
        assert users.tolist() == [-1]
        gone = USERS - 1 - (rest.histories.counts > 0).sum()
        assert gone > 0
        assert (judged.queries.histories.counts > 0).all()
        assert len(judged) == len(log) - len(rest) - gone <= 30  # all but the first of each
        return
    assert len(users) == len(judged) == 30
    assert len(rest) + len(judged.target) == len(log)
    if asked is Asked.NEXT:
        last = log.histories.item[log.histories.offsets[users + 1] - 1]
        np.testing.assert_array_equal(judged.target, last)
    if asked is Asked.MISSING:
        assert (judged.target_counts == 1).all()


def test_nobody_with_two_events_gives_no_question():
    log = interactions_from_pairs(np.arange(4), np.arange(4) % GROUPS, users=4, items=4)
    for asked in Asked:
        rest, judged = asked_slice(replace(log, asked=asked), most=5, seed=0)
        assert len(judged) == 0
        assert len(rest) == 4


def test_most_sessions_stay_to_be_learned_from():
    """All of a small log's were held out, and nothing taught."""
    log = replace(log_of(*pairs(), Timing.SEQUENCE), asked=Asked.SESSION)
    rest, _ = asked_slice(log, most=20_000, seed=0)
    assert (rest.histories.counts > 0).sum() == USERS - 1 - (USERS - 1) // 10


def test_a_masked_target_is_not_found():
    log = interactions_from_pairs(np.array([0, 0]), np.array([0, 1]), users=1, items=3)
    _, judged = hold_out(log, users=1, seed=0, newest=True)
    masked = replace(judged, masked_offsets=judged.target_offsets, masked=judged.target)
    model = SimpleNamespace(score=lambda queries: np.tile(np.eye(3, dtype=np.float32)[1], (len(queries), 1)))
    for asked, found in ((judged, 1), (masked, 0)):
        assert held_out_ndcg(model, asked, items=3) == found
        assert ndcg_of(lists_of(model, asked, items=3, depth=10), asked) == found
