"""What the positives of a batch are told from: one pool of negatives for all its examples.

Decides the mixture (targets of the same batch, which come by popularity, and items drawn evenly, as in
Yang et al. 2020, "Mixed negative sampling"), how often each item is to be expected in the pool, which
the softmax corrects for, and which entries are accidental hits: positives of the example in question.
"""

from dataclasses import dataclass

import numpy as np

from recsys.models.two_tower_settings import Negatives
from recsys.training.examples import Drawn


@dataclass(frozen=True, slots=True)
class Pool:
    items: np.ndarray  # int64 [N] distinct item rows, ascending
    log_expected: np.ndarray  # float32 [N] log of the probability to be in the pool
    masked: np.ndarray  # int64 [Z] flat positions of [B, N] that are no negatives


def draw_pool(
    drawn: Drawn,
    *,
    settings: Negatives,
    taught: np.ndarray,
    expected: np.ndarray,
    rng: np.random.Generator,
) -> Pool:
    """A pool for the examples `drawn`. `taught` int [T] are the items that uniform negatives come from,
    `expected` float [V] the share of each item among targets."""
    targets = drawn.target
    if len(targets) > settings.in_batch:
        targets = targets[rng.permutation(len(targets))[: settings.in_batch]]
    even = taught[rng.integers(0, len(taught), settings.uniform)]
    items = np.unique(np.concatenate((targets, even))).astype(np.int64)
    times = len(targets) * expected[items] + settings.uniform / len(taught)
    with np.errstate(divide="ignore"):
        log_expected = np.log(-np.expm1(-np.maximum(times, 1e-12)))
    place = np.searchsorted(items, drawn.hidden)
    place[place == len(items)] = 0
    hit = items[place] == drawn.hidden if len(items) else np.zeros(len(place), bool)
    return Pool(items, log_expected.astype(np.float32), drawn.hidden_owner[hit] * len(items) + place[hit])
