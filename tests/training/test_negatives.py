"""The pool: how often an item is in it, and what is no negative."""

import numpy as np

from recsys.models.two_tower.settings import Negatives
from recsys.training.negatives import draw_pool

ITEMS = 30
TAUGHT = np.arange(0, ITEMS, 2)
EXPECTED = np.where(np.arange(ITEMS) % 2 == 0, np.arange(ITEMS), 0) / TAUGHT.sum()


def pools(settings: Negatives, rounds: int = 3000):
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        target = rng.choice(ITEMS, 12, p=EXPECTED)
        yield draw_pool(target, settings=settings, taught=TAUGHT, expected=EXPECTED, rng=rng)


def test_an_item_is_in_the_pool_as_often_as_is_told():
    found, told = np.zeros(ITEMS), np.full(ITEMS, np.nan)
    for pool in pools(Negatives(in_batch=8, uniform=6)):
        found[pool.items] += 1 / 3000
        told[pool.items] = np.exp(pool.log_expected)
    # Draws are told as independent ones; that is a few hundredths off for so small a pool.
    np.testing.assert_allclose(found[TAUGHT], told[TAUGHT], atol=0.04)
    assert np.isnan(told[TAUGHT + 1]).all()


def test_uniform_negatives_are_taught_items():
    for pool in pools(Negatives(in_batch=0, uniform=6), rounds=50):
        assert np.isin(pool.items, TAUGHT).all()
        assert (np.diff(pool.items) > 0).all()


def test_what_is_in_the_pool_is_found_there():
    for pool in pools(Negatives(in_batch=12, uniform=6), rounds=50):
        places = pool.places(np.arange(ITEMS))
        np.testing.assert_array_equal(np.flatnonzero(places >= 0), pool.items)
        np.testing.assert_array_equal(pool.items[places[pool.items]], pool.items)


def test_in_an_empty_pool_is_nothing():
    for pool in pools(Negatives(in_batch=0, uniform=0), rounds=1):
        assert len(pool.items) == 0
        assert (pool.places(np.arange(ITEMS)) == -1).all()


def test_what_an_example_hides_is_masked_for_it_alone():
    for pool in pools(Negatives(in_batch=12, uniform=6), rounds=50):
        owner = np.repeat(np.arange(12), 2)
        hidden = np.tile([4, 20], 12) + owner % 3
        masked = {
            (int(m) // len(pool.items), int(pool.items[m % len(pool.items)]))
            for m in pool.masked(hidden, owner)
        }
        assert masked == {(int(o), int(i)) for o, i in zip(owner, hidden) if i in pool.items}


def test_an_empty_pool_masks_nothing():
    for pool in pools(Negatives(in_batch=0, uniform=0), rounds=1):
        assert len(pool.masked(np.arange(5), np.arange(5))) == 0
