"""Co-visitation: the contract, the compiled count against its definition, what fades on the query's side."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.interactions import Asked, Queries, Timing, interactions_from_pairs
from recsys.models.item_to_item.covisitation import Covisitation, ordered_pairs_slowly, recency_weights
from recsys.types import DAY
from tests.contracts.retrieval_model import RetrievalModelContract, log_of, pairs


class TestCovisitation(RetrievalModelContract):
    model = Covisitation()


@pytest.mark.parametrize("timing", [Timing.CLOCK, Timing.SEQUENCE])
@pytest.mark.parametrize("model", [Covisitation(), Covisitation(window=2, backward=0, half_life_days=3)])
def test_counts_are_those_of_the_definition(timing, model):
    log = log_of(*pairs(), timing)
    slow = ordered_pairs_slowly(log, model=model)
    row, column, shared = model._ordered_pairs(log)
    fast = np.zeros_like(slow)
    fast[row, column] = shared
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-6)


def test_what_follows_counts_more_than_what_precedes():
    log = interactions_from_pairs(
        np.array([0, 0, 0]), np.array([0, 1, 2]), users=1, items=3, timing=Timing.SEQUENCE
    )
    table = Covisitation(backward=0.5, shrinkage=0, neighbors=3).fit(log, seed=0).export().matrix.toarray()
    np.testing.assert_allclose(table, [[0, 1, 0.5], [0.5, 0, 1], [0.25, 0.5, 0]])


def test_a_set_shares_one_over_its_size():
    log = interactions_from_pairs(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 2]), users=2, items=3)
    table = Covisitation(shrinkage=0, neighbors=3).fit(log, seed=0).export().matrix.toarray()
    together = 1 / 2 + 1 / 3
    np.testing.assert_allclose(table, [[0, together / 2, 1 / 6], [together / 2, 0, 1 / 6], [1 / 3, 1 / 3, 0]])


def test_the_newest_event_counts_most():
    log = interactions_from_pairs(
        np.array([0, 0, 0]),
        np.array([0, 1, 2]),
        users=1,
        items=3,
        time=np.array([0, 10 * DAY, 20 * DAY]),
        timing=Timing.CLOCK,
    ).histories
    np.testing.assert_allclose(
        recency_weights(log, next_older=0.5, half_life_days=10), [0.25 * 0.25, 0.5 * 0.5, 1]
    )
    np.testing.assert_allclose(recency_weights(log, next_older=1, half_life_days=np.inf), [1, 1, 1])


def test_what_is_taken_again_is_scored_and_not_exported():
    log = interactions_from_pairs(
        np.array([0, 0, 0]), np.array([0, 0, 1]), users=1, items=2, timing=Timing.SEQUENCE
    )
    fitted = Covisitation(backward=0, shrinkage=0, next_older=1, again=0).fit(log, seed=0)
    # Of item 0, taken twice: itself once at distance 1, item 1 at distances 1 and 2.
    np.testing.assert_allclose(
        fitted.score(Queries(np.array([-1]), log.histories, np.array([1])))[0], [0.5, 0.75]
    )
    np.testing.assert_allclose(fitted.export().matrix.toarray(), [[0, 0.75], [0, 0]])


def test_each_event_speaks_for_its_own_item_by_how_often_items_are_taken_again():
    log = interactions_from_pairs(
        np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), users=2, items=4, timing=Timing.SEQUENCE
    )
    histories = interactions_from_pairs(
        np.array([0, 0, 0]), np.array([2, 1, 2]), users=1, items=4, timing=Timing.SEQUENCE
    ).histories
    queries = Queries(np.array([-1]), histories, np.array([3]))
    none, some = (Covisitation(again=again).fit(log, seed=0).score(queries)[0, :3] for again in (0.0, 2.0))
    share = 1.5 / 4  # item 0 once in four events: after itself, and before itself by half
    np.testing.assert_allclose(some - none, [0, 2 * share, 4 * share], rtol=1e-5)


def test_where_a_random_part_is_asked_for_a_history_is_a_set():
    clock = replace(log_of(*pairs(), Timing.CLOCK), asked=Asked.MISSING)
    fits = [Covisitation().fit(log, seed=0) for log in (clock, replace(clock, timing=Timing.NONE))]
    for name, array in fits[0].arrays().items():
        np.testing.assert_array_equal(array, fits[1].arrays()[name])


def test_of_a_set_the_neighbors_of_the_largest_weight_are_kept():
    """Those of the largest count were: damping came after the cut."""
    popular = np.stack((np.arange(30), np.full(30, 1)), 1).ravel()
    item = np.concatenate(([0, 1, 0, 1, 0, 2], popular[popular != 0]))
    user = np.concatenate(([0, 0, 1, 1, 2, 2], 3 + np.arange(len(item) - 6) // 2))
    log = interactions_from_pairs(user, item, users=int(user.max()) + 1, items=30)
    few, all_ = (Covisitation(damping=0.8, neighbors=k).fit(log, seed=0).table for k in (1, 29))
    assert few[[0]].toarray().argmax() == all_[[0]].toarray().argmax() == 2


def test_a_wide_window_over_ordered_events_needs_memory():
    n = 10_000
    log = interactions_from_pairs(
        np.arange(n) // 1000, np.arange(n) % 50, users=10, items=50, timing=Timing.SEQUENCE
    )
    small, large = (Covisitation(window=w).estimate(log).memory_mb for w in (1, 200))
    assert large - small > 12e-6 * 2 * 150 * n  # an int, an int and a float for each pair, both ways
