"""A snapshot: fitted on its past alone, the same after it has travelled."""

import numpy as np
import pytest

from recsys.interactions import Interactions, Timing, interactions_from_pairs
from recsys.models.snapshot import Snapshot
from recsys.models.two_tower.settings import TowerSnapshot
from recsys.training.snapshot import TableSettings, fit_snapshot
from recsys.types import DAY

USERS, ITEMS, KNOWN, DIMENSIONS = 8, 6, 4, 2
CUTOFF = 1_300_000_000


@pytest.fixture
def log() -> Interactions:
    """Half of the events lie before the cutoff; two items are sold after it only."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, USERS, 80), rng.integers(0, KNOWN, 80)
    item[40:] = rng.integers(0, ITEMS, 40)
    time = CUTOFF + (np.arange(80) - 40) * DAY // 2
    return interactions_from_pairs(user, item, users=USERS, items=ITEMS, time=time, timing=Timing.CLOCK)


@pytest.fixture
def tower() -> TowerSnapshot:
    rng = np.random.default_rng(1)

    def some(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    none = {name: np.zeros((0, DIMENSIONS), np.float32) for name in ("query_newest", "hour", "weekday")}
    flat = ("feature_mean", "feature_scale", "query", "place")
    none |= {name: np.zeros(0, np.float32) for name in flat}
    given = {
        "history": some(KNOWN, DIMENSIONS),
        "half_lives_days": np.array([30.0], np.float32),
        "weight": some(DIMENSIONS, DIMENSIONS),
        "bias": some(DIMENSIONS),
        "token": some(3, DIMENSIONS),
    }
    return TowerSnapshot(CUTOFF, some(KNOWN, DIMENSIONS), given | none, loss=1.0, resume={})


def same(one: Snapshot, other: Snapshot) -> None:
    for part, arrays in one.arrays().items():
        assert arrays.keys() == other.arrays()[part].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other.arrays()[part][name], err_msg=f"{part} {name}")


def test_a_snapshot_is_the_same_after_it_has_travelled(log, tower):
    made = fit_snapshot(log, tower=tower, category=np.arange(ITEMS, dtype=np.int32), settings=TableSettings())
    back = Snapshot.from_arrays(made.arrays())
    same(made, back)
    assert (back.as_of, len(back)) == (CUTOFF, KNOWN)
    assert back.category.tolist() == [0, 1, 2, 3]
    histories, now = log.before(CUTOFF).histories, np.full(USERS, CUTOFF)
    np.testing.assert_array_equal(
        back.models.encoder.encode(histories, now=now), made.models.encoder.encode(histories, now=now)
    )


def test_a_snapshot_has_seen_its_past_only(log, tower):
    given = {"tower": tower, "category": np.zeros(ITEMS, np.int32), "settings": TableSettings()}
    made = fit_snapshot(log, **given)
    same(made, fit_snapshot(log.before(CUTOFF), **given))
    # Of the twenty days before: each event is an order of its own.
    assert made.popularity.tolist() == np.bincount(log.before(CUTOFF).histories.item)[:KNOWN].tolist()
