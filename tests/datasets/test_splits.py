"""Splits lose and double nothing, and each does what its name says."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.content import tokens_of
from recsys.datasets.splits import (
    core,
    fold_splits,
    leave_last_out,
    part_counts,
    possible_splits,
    random_split,
    temporal_split,
)
from recsys.errors import DataError
from recsys.interactions import Interactions, Timing, interactions_from_pairs
from recsys.types import DAY

USERS, ITEMS = 6, 8


def log_of(rows, timing=Timing.CLOCK) -> Interactions:
    """Of (user, item, time) rows; an event's value is its place in the list."""
    user, item, time = np.array(rows, np.int64).reshape(-1, 3).T
    value = np.arange(len(user), dtype=np.float32)
    return interactions_from_pairs(
        user, item, users=USERS, items=ITEMS, time=time, value=value, timing=timing
    )


def logs(timing=Timing.CLOCK, smallest=1):
    row = st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(0, 9))
    return st.lists(row, min_size=smallest, max_size=60).map(lambda rows: log_of(rows, timing))


def pairs(log) -> set:
    return set(zip(log.histories.request.tolist(), log.histories.item.tolist(), strict=True))


def targets(judged) -> list:
    user = np.repeat(judged.queries.user, judged.target_counts)
    return list(zip(user.tolist(), judged.target.tolist(), strict=True))


def masks(judged) -> set:
    user = np.repeat(judged.queries.user, np.diff(judged.masked_offsets))
    return set(zip(user.tolist(), judged.masked.tolist(), strict=True))


def recboles_counts(n: int) -> list[int]:
    """Training, validation and test, by the text of RecBole's `_calcu_split_ids`."""
    ratios = [0.8, 0.1, 0.1]
    counts = [int(ratio * n) for ratio in ratios]
    counts[0] = n - sum(counts[1:])
    for i in range(1, len(ratios)):
        if counts[0] <= 1:
            break
        if 0 < ratios[-i] * n < 1:
            counts[-i] += 1
            counts[0] -= 1
    return counts


def test_the_counts_of_a_random_split_are_recboles():
    n = np.arange(1, 800)
    validation, test = part_counts(n)
    found = np.column_stack([n - validation - test, validation, test])
    assert found.tolist() == [recboles_counts(int(x)) for x in n]


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(0, 3))
def test_a_random_split_loses_and_doubles_no_pair(log, seed):
    problem = random_split(log, seed=seed)
    trained, tested, hidden = pairs(problem.train), targets(problem.test), masks(problem.test)
    # The validation part is what is hidden at test time and was not trained on.
    parts = [trained, hidden - trained, tested]
    assert sum(map(len, parts)) == len(pairs(log))
    assert set().union(*parts) == pairs(log)
    asked = set(problem.test.queries.user.tolist())
    assert hidden & trained == {pair for pair in trained if pair[0] in asked}
    for user in range(USERS):
        counts = [sum(p[0] == user for p in part) for part in parts]
        if sum(counts):
            assert counts == recboles_counts(sum(counts))


def test_a_random_split_follows_its_seed():
    log = log_of([(u, i, 0) for u in range(USERS) for i in range(ITEMS)])
    same = [targets(random_split(log, seed=1).test) for _ in range(2)]
    assert same[0] == same[1] != targets(random_split(log, seed=2).test)


@settings(max_examples=40, deadline=None)
@given(logs(), st.integers(2, 5), st.integers(0, 3))
def test_each_pair_is_tested_in_one_fold(log, folds, seed):
    if folds > len(pairs(log)):
        with pytest.raises(DataError, match="folds of"):
            fold_splits(log, folds=folds, seed=seed)
        return
    problems = fold_splits(log, folds=folds, seed=seed)
    tested = [pair for problem in problems for pair in targets(problem.test)]
    assert sorted(tested) == sorted(pairs(log))
    sizes = [len(problem.test.target) for problem in problems]
    assert max(sizes) - min(sizes) <= 1
    for problem in problems:
        assert pairs(problem.train) == pairs(log) - set(targets(problem.test))


@settings(max_examples=40, deadline=None)
@given(logs(Timing.SEQUENCE))
def test_the_last_event_of_a_sequence_is_left_out(log):
    problem = leave_last_out(log)
    counts = log.histories.counts
    assert problem.test.queries.user.tolist() == np.flatnonzero(counts >= 2).tolist()
    assert problem.train.histories.counts.tolist() == [c - (c >= 2) for c in counts]
    last = log.histories.item[log.histories.offsets[1:][counts >= 2] - 1]
    assert problem.test.target.tolist() == last.tolist()


def test_a_repeated_last_item_is_a_miss_in_sequences_and_no_question_by_the_clock():
    rows = [(0, 1, 0), (0, 2, 1), (0, 1, 2), (1, 3, 0), (1, 4, 5)]
    published = leave_last_out(log_of(rows, Timing.SEQUENCE)).test
    assert targets(published) == [(0, 1), (1, 4)]
    assert (0, 1) in masks(published)
    ours = leave_last_out(log_of(rows)).test
    assert targets(ours) == [(1, 4)]
    assert ours.queries.now.tolist() == [5]
    repeats = leave_last_out(replace(log_of(rows), repeats=True)).test
    assert (targets(repeats), masks(repeats)) == ([(0, 1), (1, 4)], set())
    assert published.queries.now.tolist() == [DAY + 1, 1]


@settings(max_examples=60, deadline=None)
@given(logs(smallest=2), st.booleans())
def test_a_temporal_split_is_at_one_moment(log, repeats):
    times = log.histories.time
    try:
        problem = temporal_split(replace(log, repeats=repeats))
    except DataError:
        moment = np.sort(times)[int(0.9 * len(times))]
        assert (times >= moment).all()
        return
    moment = int(np.sort(times)[int(0.9 * len(times))])
    assert set(problem.test.queries.now.tolist()) <= {moment}
    assert (problem.train.histories.time < moment).all()
    later = log.where(times >= moment)
    assert len(problem.train) + len(later) == len(log)
    assert set(targets(problem.test)) == (pairs(later) if repeats else pairs(later) - pairs(problem.train))
    assert not masks(problem.test) & set(targets(problem.test))


def test_a_temporal_split_asks_for_users_and_items_that_were_never_seen():
    rows = [(0, i, i) for i in range(8)] + [(1, 0, 8), (5, 7, 9), (5, 0, 9), (1, 0, 9)]
    problem = temporal_split(log_of(rows))
    assert targets(problem.test) == [(5, 0), (5, 7)]
    assert problem.test.queries.histories.counts.tolist() == [0]
    assert problem.train.users == USERS
    assert problem.train.items == ITEMS
    with pytest.raises(DataError, match="choose --split random"):
        temporal_split(log_of([(0, 1, 5), (1, 1, 5)]))


def slow_core(rows, k):
    while True:
        kept = [
            (u, i) for u, i in rows if sum(u == v for v, _ in rows) >= k and sum(i == j for _, j in rows) >= k
        ]
        if kept == rows:
            return rows
        rows = kept


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(1, 4))
def test_a_core_is_what_iterating_leaves(log, k):
    rows = list(zip(log.histories.request.tolist(), log.histories.item.tolist(), strict=True))
    expected = slow_core(rows, k)
    if not expected:
        with pytest.raises(DataError, match="lower --k-core"):
            core(log, k)
        return
    found = core(log, k)
    items = sorted({i for _, i in expected})
    users = found.user_ids[found.histories.request].astype(int).tolist()
    assert list(zip(users, np.array(items)[found.histories.item].tolist(), strict=True)) == expected
    assert (found.items, found.users) == (len(items), len({u for u, _ in expected}))


def test_a_core_keeps_content_and_weights_by_row():
    texts = pa.array([f"i{i}" for i in range(ITEMS)])
    tokens = tokens_of([(np.arange(ITEMS), texts)], things=ITEMS)
    log = log_of([(0, 7, 0), (0, 5, 1), (1, 7, 2), (1, 5, 3), (2, 1, 4)])
    log = replace(log, item_tokens=tokens, weight=np.arange(5, dtype=np.float32))
    found = core(log, 2)
    assert tokens is not None
    assert found.item_tokens is not None
    assert found.item_tokens.id.tolist() == tokens.id[[5, 7]].tolist()
    assert found.weights.tolist() == [0, 1, 2, 3]
    assert found.histories.item.tolist() == [1, 0, 1, 0]


def test_which_splits_make_sense():
    assert possible_splits(Timing.CLOCK, given=False) == ("temporal", "random", "leave-last-out")
    assert possible_splits(Timing.SEQUENCE, given=True) == ("given", "random", "leave-last-out")
    assert possible_splits(Timing.NONE, given=True) == ("given", "random")
