"""Popularity: one order counts once, age halves, what is hidden is not proposed."""

import numpy as np

from recsys.interactions import Interactions
from recsys.models.popularity import PopularitySettings, popularity, propose_popular
from recsys.types import DAY, Histories

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
