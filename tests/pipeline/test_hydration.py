"""Hydration: what the online store knows reaches the batch; what it can't say is admitted or refused."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from recsys.errors import RequestError, UnavailableError
from recsys.features.views import USER_FEATURES, user_features
from recsys.pipeline.hydration import Hydration
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.scenes import Scene
from recsys.types import DAY, RequestBatch
from tests.world import NOW, world

SCENES = {"home": Scene(), "discover": Scene(hide_consumed=True)}
IDS = ["u003", "nobody", "u001", "u003"]


class DeadStore:
    def users(self, user_ids):
        raise UnavailableError("gone")


def hydrate(batch: RequestBatch, store=None) -> RequestBatch:
    store = store or PointInTimeUsers(world().interactions, NOW)
    return asyncio.run(Hydration(store, SCENES, world().parts.snapshot.category)(batch))


def test_the_batch_gets_the_histories_in_its_order():
    batch = hydrate(batch_of(IDS, scene="home", now=NOW, n=5))
    past = world().interactions.before(NOW).histories
    assert batch.degraded == ((), ("unknown_user",), (), ())
    for r, code in enumerate([3, None, 1, 3]):
        mine = batch.histories.item[batch.histories.offsets[r] : batch.histories.offsets[r + 1]]
        expected = [] if code is None else past.item[past.offsets[code] : past.offsets[code + 1]]
        np.testing.assert_array_equal(mine, expected)


def test_features_are_those_of_training_at_the_moment_of_the_request():
    later = NOW + 10 * DAY
    batch = hydrate(replace(batch_of(IDS, scene="home", now=NOW, n=5), now=np.full(4, later)))
    expected = user_features(batch.histories, now=np.full(4, later), category=world().parts.snapshot.category)
    np.testing.assert_array_equal(batch.user_features, expected)
    days = USER_FEATURES.index("days_since_last")
    assert batch.user_features[0, days] >= 10  # not as of the last event
    assert np.isnan(batch.user_features[1, days])


def test_a_scene_hides_what_was_consumed_and_every_scene_what_the_request_names():
    batch = batch_of(["u003", "u003", "nobody"], scene="home", now=NOW, n=5)
    batch = replace(batch, scene=("home", "discover", "discover"), exclude=((9, 2, 9), (2,), (5,)))
    hidden = hydrate(batch).hidden
    past = world().interactions.before(NOW).histories
    consumed = past.item[past.offsets[3] : past.offsets[4]]
    assert hidden[0].tolist() == [2, 9]
    assert hidden[1].tolist() == sorted({2, *consumed.tolist()})
    assert hidden[2].tolist() == [5]


def test_without_the_store_an_open_scene_goes_on_empty_and_says_so():
    batch = hydrate(
        replace(batch_of(IDS, scene="home", now=NOW, n=5), exclude=((1,), (), (), ())), DeadStore()
    )
    assert batch.histories.counts.tolist() == [0] * 4
    assert batch.degraded == (("online_store",),) * 4
    assert [rows.tolist() for rows in batch.hidden] == [[1], [], [], []]
    assert batch.birth_year.tolist() == [0] * 4  # nobody's age is known: what is for adults stays away
    assert batch.user_features.shape == (4, len(USER_FEATURES))


def test_without_the_store_a_scene_that_hides_is_refused():
    """Also when it shares a batch with others: the gateway asks those again on their own."""
    for scenes in (("discover",) * 4, ("home", "home", "discover", "home")):
        with pytest.raises(UnavailableError, match="gone"):
            hydrate(replace(batch_of(IDS, scene="home", now=NOW, n=5), scene=scenes), DeadStore())


def test_an_unknown_scene_is_refused_before_the_store_is_asked():
    with pytest.raises(RequestError, match=r"'basket'.*discover, home"):
        hydrate(batch_of(IDS, scene="basket", now=NOW, n=5), DeadStore())


def test_a_bug_in_the_store_is_not_an_outage():
    class Buggy:
        def users(self, user_ids):
            raise KeyError("typo")

    with pytest.raises(KeyError, match="typo"):
        hydrate(batch_of(IDS, scene="home", now=NOW, n=5), Buggy())
