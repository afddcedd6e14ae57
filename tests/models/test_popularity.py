"""Popularity: the contract, one order counts once, age halves, segments, what is hidden is not proposed."""

from dataclasses import replace

import numpy as np

from recsys.interactions import Interactions, Timing
from recsys.models.popularity import (
    Popularity,
    PopularitySettings,
    popularity,
    propose_popular,
    shrunken_share,
)
from recsys.types import DAY, Histories
from tests.contracts.retrieval_model import (
    ALL,
    RetrievalModelContract,
    log_of,
    pairs,
    queries_of,
    without_content,
)

NOW = 1_300_000_000


def log(events: list[tuple[int, float, int]], items: int = 4) -> Interactions:
    """One user's events as (item, age in days, order), oldest first."""
    histories = Histories(
        np.array([0, len(events)], np.int32),
        np.array([item for item, _, _ in events], np.int32),
        np.array([NOW - int(age * DAY) for _, age, _ in events], np.int64),
        np.ones(len(events), np.float32),
        np.ones(len(events), np.float32),
        np.array([order for _, _, order in events], np.int64),
    )
    return Interactions(np.array(["u"], object), histories, items)


def test_lines_of_one_order_count_once():
    events = [(0, 2, 1), (0, 2, 1), (1, 2, 1), (0, 1, 2)]
    scores = popularity(log(events), now=NOW, settings=PopularitySettings())
    np.testing.assert_array_equal(scores, [2, 1, 0, 0])


def test_age_halves_and_the_window_ends():
    events = [(0, 40, 1), (1, 14, 2), (2, 7, 3), (3, -1, 4)]
    scores = popularity(log(events), now=NOW, settings=PopularitySettings(window_days=28, half_life_days=7))
    np.testing.assert_allclose(scores, [0, 0.25, 0.5, 0])  # item 3 is bought tomorrow


def test_proposals_leave_out_what_is_hidden_and_what_nobody_bought():
    scores = np.array([3, 5, 5, 0], np.float32)
    hidden = (np.array([1]), np.array([], int), np.array([0, 1, 2, 3, 77]))
    found = propose_popular(scores, requests=3, k=2, hidden=hidden)
    np.testing.assert_array_equal(found.offsets, [0, 2, 4, 4])
    np.testing.assert_array_equal(found.item, [2, 0, 1, 2])  # a tie goes to the lower row
    np.testing.assert_array_equal(propose_popular(scores, requests=1, k=9).item, [1, 2, 0])
    assert len(propose_popular(scores, requests=0, k=9).item) == 0


def test_of_the_lines_of_one_order_the_weightiest_counts():
    """The first one counted: a view that weighed nothing hid the purchase that followed it."""
    lines = log([(0, 0, 1), (0, 0, 1), (1, 0, 2), (1, 0, 2)])
    weighted = replace(lines, weight=np.array([0, 1, 3, 1], np.float32))
    for data in (weighted, replace(weighted, timing=Timing.SEQUENCE)):
        share = np.exp(Popularity().fit(data, seed=0).items[:, 0])
        np.testing.assert_allclose(share[:2], [0.25, 0.75], rtol=1e-6)
    scores = popularity(weighted, now=NOW + 1, settings=PopularitySettings())
    np.testing.assert_array_equal(scores, [1, 3, 0, 0])


def test_a_user_of_a_later_log_is_a_stranger():
    data = log_of(*pairs())
    queries = queries_of(data, ALL[:2])
    later = replace(queries, user=np.array([len(ALL), len(ALL) + 7]))
    fitted = Popularity().fit(data, seed=0)
    strangers = fitted.score(replace(queries, user=np.array([-1, -1])))
    np.testing.assert_array_equal(fitted.score(later), strangers)


class TestPopularity(RetrievalModelContract):
    model = Popularity()
    renaming_noise = 0.03  # ties between items taken equally often
    expected_taste = -1.0  # it knows the user's segment at best


def test_age_halves_and_nothing_taken_is_forgotten():
    events = [(0, 5000, 1), (1, 10, 2), (2, 0, 3)]
    fitted = Popularity(half_life_days=10).fit(log(events), seed=0)
    share = np.exp(fitted.items[:, 0])
    np.testing.assert_allclose(share[1] / share[2], 0.5, rtol=1e-5)
    assert 0 < share[0] < 1e-20
    assert np.isnan(share[3])


def test_segments_are_told_apart_and_strangers_are_of_everyone():
    data = log_of(*pairs())
    fitted = Popularity().fit(data, seed=0)
    queries = queries_of(data, ALL)
    known, strangers = fitted.score(queries), fitted.score(queries_of(data, ALL, strangers=True))
    np.testing.assert_array_equal(known[0], known[2])  # of one segment
    even, odd = known[0][:38].reshape(-1, 2).T  # items of the tastes of either segment
    assert even.mean() > odd.mean()
    everyone = Popularity().fit(without_content(data), seed=0).score(queries)
    np.testing.assert_allclose(strangers, everyone, rtol=1e-5)


def test_an_attribute_of_all_or_of_few_users_makes_no_segment():
    data = log_of(*pairs())
    same = replace(data, user_tokens=replace(data.user_tokens, id=np.zeros(60, np.int32)))
    own = replace(data, user_tokens=replace(data.user_tokens, id=np.arange(60, dtype=np.int32)))
    for other in (same, own):
        assert Popularity().fit(other, seed=0).items.shape[1] == 1


def test_a_share_is_shrunken_as_far_as_the_segment_is_like_everyone():
    share = np.array([0.4, 0.3, 0.2, 0.1, 0])
    np.testing.assert_array_equal(shrunken_share(np.array([40, 30, 20, 10, 0]), share), share)
    np.testing.assert_array_equal(shrunken_share(np.zeros(5), share), share)
    own = shrunken_share(np.array([0, 0, 0, 1000, 0]), share)
    assert own[3] > 0.8
    np.testing.assert_allclose(own.sum(), 1)
    assert (own[:4] > 0).all()
