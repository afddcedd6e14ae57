"""The figures of a data set."""

from dataclasses import replace

import numpy as np

from recsys.advisor.profile import profile
from recsys.interactions import Asked, Timing, Tokens, interactions_from_pairs


def test_the_figures_are_those_of_the_log():
    user = np.array([0, 0, 0, 1, 2, 2])
    item = np.array([0, 1, 0, 0, 0, 2])
    log = interactions_from_pairs(
        user, item, users=5, items=4, value=np.array([5, 3, 1, np.nan, 2, 2.0]), timing=Timing.SEQUENCE
    )
    log = replace(log, item_tokens=Tokens(np.array([0, 2, 2, 3, 3], np.int32), np.zeros(3, np.int32)))
    found = profile(log)
    assert (found.users, found.items, found.events) == (3, 4, 6)
    assert found.median_history == 2
    assert found.density == 5 / 12
    assert found.explicit == 5 / 6
    assert found.described == 0.5
    assert found.cold_items == 1.0  # the most popular one was taken four times
    assert found.repeats == 1 / 6
    assert found.ordered


def test_what_weighs_nothing_does_not_count():
    log = interactions_from_pairs(np.zeros(4, int), np.arange(4), users=1, items=4)
    weighed = replace(log, weight=np.array([1, 0, 0, 1], np.float32))
    assert profile(weighed).events == 2


def test_a_log_without_events_has_a_profile():
    found = profile(interactions_from_pairs(np.zeros(0, int), np.zeros(0, int), users=0, items=0))
    assert found.events == found.users == found.items == 0
    assert found.density == found.explicit == found.repeats == 0


def test_only_an_order_that_is_asked_for_counts():
    log = interactions_from_pairs(np.zeros(4, int), np.arange(4), users=1, items=4, timing=Timing.SEQUENCE)
    assert profile(log).ordered
    assert not profile(replace(log, asked=Asked.MISSING)).ordered
    assert not profile(replace(log, timing=Timing.NONE)).ordered
