"""Histories as sparse matrices, proposals and look-ups, against their definitions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recsys.models.sparse_scores import (
    decay_weights,
    even_weights,
    history_matrix,
    last_order_weights,
    look_up,
    propose_top,
)
from recsys.types import DAY, Histories, offsets_of

NOW = 1_300_000_000


def histories(*users: list[tuple[int, float, int]]) -> Histories:
    """Each user's events as (item, age in days, order), oldest first."""
    events = [event for user in users for event in user]
    return Histories(
        offsets_of(np.array([len(user) for user in users], int)),
        np.array([item for item, _, _ in events], np.int32),
        np.array([NOW - int(age * DAY) for _, age, _ in events], np.int64),
        np.ones(len(events), np.float32),
        np.ones(len(events), np.float32),
        np.array([order for _, _, order in events], np.int64),
    )


def test_weights_of_age_and_of_the_last_order():
    three = histories([(1, 20, 7), (2, 10, 8), (1, 10, 8)], [], [(4, 0, 9)])
    weights = decay_weights(three, now=np.full(3, NOW), half_life_days=10)
    np.testing.assert_allclose(weights, [0.25, 0.5, 0.5, 1.0])
    np.testing.assert_array_equal(last_order_weights(three), [0, 1, 1, 1])
    np.testing.assert_array_equal(even_weights(three), 1)


def test_no_event_at_all():
    nobody = histories([], [])
    assert last_order_weights(nobody).shape == (0,)
    matrix = history_matrix(nobody, weights=even_weights(nobody), items=5)
    assert matrix.shape == (2, 5)
    assert matrix.nnz == 0
    assert len(propose_top(matrix, k=3).item) == 0
    found = look_up(matrix, offsets=np.array([0, 1, 2]), item=np.array([0, 4]))
    assert np.isnan(found).all()
    assert len(propose_top(matrix[:0], k=3).offsets) == 1


def test_repeats_are_summed_or_the_largest_counts():
    users = histories([(1, 3, 1), (2, 2, 2), (1, 1, 3), (9, 1, 3)])
    weights = np.array([1, 2, 4, 8], np.float32)
    total = history_matrix(users, weights=weights, items=5, repeats="sum")  # row 9 is younger than the model
    largest = history_matrix(users, weights=weights, items=5, repeats="max")
    np.testing.assert_array_equal(total.toarray(), [[0, 5, 2, 0, 0]])
    np.testing.assert_array_equal(largest.toarray(), [[0, 4, 2, 0, 0]])


@st.composite
def scores(draw):
    requests, items = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    values = st.sampled_from([0.0, -1.0, 0.5, 1.0, 2.0])  # few values: many ties
    dense = draw(
        st.lists(st.lists(values, min_size=items, max_size=items), min_size=requests, max_size=requests)
    )
    hidden = draw(st.lists(st.sets(st.integers(0, items + 2)), min_size=requests, max_size=requests))
    return np.array(dense, np.float32), tuple(np.array(sorted(h), np.int32) for h in hidden)


@given(scores(), st.integers(1, 5))
@settings(deadline=None)
def test_proposals_are_the_best_of_what_is_not_hidden(case, k):
    dense, hidden = case
    proposals = propose_top(sparse.csr_array(dense), k=k, hidden=hidden)
    for request, row in enumerate(dense):
        best = sorted(
            (-value, item) for item, value in enumerate(row) if value > 0 and item not in hidden[request]
        )
        mine = slice(proposals.offsets[request], proposals.offsets[request + 1])
        assert [item for _, item in best[:k]] == proposals.item[mine].tolist()
        assert [-value for value, _ in best[:k]] == proposals.score[mine].tolist()


@given(scores())
@settings(deadline=None)
def test_looking_up_every_item_gives_the_matrix_back(case):
    dense, _ = case
    requests, items = dense.shape
    found = look_up(
        sparse.csr_array(dense),
        offsets=np.arange(requests + 1) * items,
        item=np.tile(np.arange(items), requests),
    )
    np.testing.assert_array_equal(found, np.where(dense == 0, np.nan, dense).ravel())


def test_an_item_younger_than_the_model_has_no_score():
    matrix = sparse.csr_array(np.array([[1.0, 0.0]], np.float32))
    np.testing.assert_array_equal(
        look_up(matrix, offsets=np.array([0, 2]), item=np.array([0, 99])), [1, np.nan]
    )
