"""What the positives of a batch are told from: one pool of negatives for all its examples.

Decides the mixture (targets of the same batch, which come by popularity, and items drawn evenly, as in
Yang et al. 2020, "Mixed negative sampling"), and how often each item is to be expected in the pool, which
the softmax corrects for.
"""

from dataclasses import dataclass

import numpy as np

from recsys.models.two_tower.settings import Negatives


@dataclass(frozen=True, slots=True)
class Pool:
    items: np.ndarray  # int64 [N] distinct item rows, ascending
    log_expected: np.ndarray  # float32 [N] log of the probability to be in the pool

    def places(self, items: np.ndarray) -> np.ndarray:
        """Where each of `items` [Z] stands in the pool, int64; -1 = nowhere."""
        if not len(self.items):
            return np.full(len(items), -1)
        place = np.minimum(np.searchsorted(self.items, items), len(self.items) - 1)
        return np.where(self.items[place] == items, place, -1)

    def masked(self, hidden: np.ndarray, owner: np.ndarray) -> np.ndarray:
        """Flat positions in [B, N] of the pairs of item `hidden` and example `owner` [Z], of those in it."""
        place = self.places(hidden)
        return (owner * len(self.items) + place)[place >= 0]


def draw_pool(
    target: np.ndarray,
    *,
    settings: Negatives,
    taught: np.ndarray,
    expected: np.ndarray,
    rng: np.random.Generator,
) -> Pool:
    """A pool for examples with targets `target` int [P]. `taught` int [T] are the items that uniform
    negatives come from, `expected` float [V] the share of each item among targets."""
    if len(target) > settings.in_batch:
        target = target[rng.permutation(len(target))[: settings.in_batch]]
    even = taught[rng.integers(0, len(taught), settings.uniform)]
    items = np.unique(np.concatenate((target, even))).astype(np.int64)
    times = len(target) * expected[items] + settings.uniform / len(taught)
    with np.errstate(divide="ignore"):
        log_expected = np.log(-np.expm1(-np.maximum(times, 1e-12)))
    return Pool(items, log_expected.astype(np.float32))


def whole_pool(taught: np.ndarray) -> Pool:
    """All `taught` items, ascending: nothing is left to chance."""
    return Pool(taught.astype(np.int64), np.zeros(len(taught), np.float32))
