"""The pool: how often an item is in it, and what is no negative."""

import numpy as np

from recsys.models.two_tower_settings import Negatives
from recsys.training.examples import Drawn
from recsys.training.negatives import draw_pool
from recsys.types import Histories

ITEMS = 30
TAUGHT = np.arange(0, ITEMS, 2)
EXPECTED = np.where(np.arange(ITEMS) % 2 == 0, np.arange(ITEMS), 0) / TAUGHT.sum()


def examples(targets: np.ndarray) -> Drawn:
    """One example for each target, which hides it and item 4."""
    owner = np.arange(len(targets))
    return Drawn(
        user=owner,
        now=np.zeros(len(owner), np.int64),
        histories=Histories.empty(len(owner)),
        example=owner,
        owner=owner,
        target=targets.astype(np.int32),
        weight=np.ones(len(owner), np.float32),
        hidden_owner=np.concatenate((owner, owner)),
        hidden=np.concatenate((targets, np.full(len(owner), 4))).astype(np.int32),
    )


def pools(settings: Negatives, rounds: int = 3000):
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        drawn = examples(rng.choice(ITEMS, 12, p=EXPECTED))
        yield (
            drawn,
            draw_pool(
                drawn.target,
                hidden=drawn.hidden,
                hidden_owner=drawn.hidden_owner,
                settings=settings,
                taught=TAUGHT,
                expected=EXPECTED,
                rng=rng,
            ),
        )


def test_an_item_is_in_the_pool_as_often_as_is_told():
    found, told = np.zeros(ITEMS), np.full(ITEMS, np.nan)
    for _, pool in pools(Negatives(in_batch=8, uniform=6)):
        found[pool.items] += 1 / 3000
        told[pool.items] = np.exp(pool.log_expected)
    # Draws are told as independent ones; that is a few hundredths off for so small a pool.
    np.testing.assert_allclose(found[TAUGHT], told[TAUGHT], atol=0.04)
    assert np.isnan(told[TAUGHT + 1]).all()


def test_uniform_negatives_are_taught_items():
    for _, pool in pools(Negatives(in_batch=0, uniform=6), rounds=50):
        assert np.isin(pool.items, TAUGHT).all()
        assert (np.diff(pool.items) > 0).all()


def test_what_an_example_hides_is_masked_for_it_alone():
    for drawn, pool in pools(Negatives(in_batch=12, uniform=6), rounds=50):
        masked = {(int(m) // len(pool.items), int(pool.items[m % len(pool.items)])) for m in pool.masked}
        expected = {(int(o), int(i)) for o, i in zip(drawn.hidden_owner, drawn.hidden) if i in pool.items}
        assert masked == expected


def test_an_empty_pool_masks_nothing():
    for _, pool in pools(Negatives(in_batch=0, uniform=0), rounds=1):
        assert len(pool.items) == len(pool.masked) == 0
