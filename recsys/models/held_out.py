"""How well a model finds what was held out of its training log: for choosing epochs and settings.

Decides what a model may choose its own settings by: one event of each of at most 2,000 users, the newest
one of a sequence and else any, and NDCG@20 over all items. The judge's targets never come here.
"""

from collections.abc import Callable

import numpy as np

from recsys.datasets.problem import Judged, hold_out, hold_out_orders, hold_out_sessions, without_rows
from recsys.interactions import Asked, Interactions, Queries, Timing
from recsys.models.spectral import item_factors
from recsys.types import ragged_index

USERS = 2000
LEAST, SHARE = 50, 50  # of what is never trained on: fewer events say too little; at most one event in 50
DEPTH = 20
ALIKE_SHARE, ALIKE_BY = 0.2, 64  # of a history; singular vectors
BLOCK = 1 << 25  # scores held at once


def validation_slice(data: Interactions, *, seed: int) -> tuple[Interactions, Judged]:
    """What is left of `data` to train on, and the queries; none where nobody has two events."""
    return hold_out(data, users=USERS, seed=seed, newest=data.timing is Timing.SEQUENCE)


def spared_slice(data: Interactions, *, seed: int) -> tuple[Interactions, Judged]:
    """`validation_slice` for a model that never trains on the slice."""
    return hold_out(data, users=spared_users(data), seed=seed, newest=data.timing is Timing.SEQUENCE)


def spared_users(data: Interactions) -> int:
    """How many a model can do without that never trains on them: small logs keep nearly all events."""
    users = min(USERS, len(data) // SHARE)
    return users if users >= LEAST else 0


def asked_slice(data: Interactions, *, most: int, seed: int) -> tuple[Interactions, Judged]:
    """What is left of `data`, and the questions of at most `most` users or sessions, as the test will ask."""
    if data.asked is Asked.SESSION:
        sessions = int((data.histories.counts > 0).sum()) // 10  # they are held out whole
        return hold_out_sessions(data, sessions=min(most, sessions))
    if data.asked is Asked.OTHER:
        return hold_out_alike(data, users=most, seed=seed)
    if data.asked is Asked.NEXT:
        return hold_out_orders(data, users=most, seed=seed)
    return hold_out(data, users=most, seed=seed, newest=False)


def hold_out_alike(data: Interactions, *, users: int, seed: int) -> tuple[Interactions, Judged]:
    """A fifth of the events of each of at most `users` users who have two: a random one, and those that are
    most like it.

    Tastes drift, so what is asked for is rarely a fair sample of what somebody took: among gowalla's filters
    and factorizations a random event favors others than the test part does, and this does not. How alike
    items are say the leading singular vectors of the log.
    """
    rng = np.random.default_rng(seed)
    log = data.histories
    chosen = np.sort(rng.permutation(np.flatnonzero(log.counts >= 2))[:users])
    counts = log.counts[chosen].astype(np.int64)
    event = ragged_index(log.offsets[chosen], counts)
    anchor = log.offsets[chosen] + (rng.random(len(chosen)) * counts).astype(np.int64)
    # As many as there are items, and no two of them would be alike.
    factors = item_factors(data, dimensions=min(ALIKE_BY, 1 + data.items // 10), seed=seed)
    factors /= np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-12)
    owner = np.repeat(np.arange(len(chosen)), counts)
    near = np.einsum("nd,nd->n", factors[log.item[event]], factors[log.item[anchor[owner]]])
    near[event == anchor[owner]] = np.inf
    order = np.lexsort((-near, owner))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    row = np.sort(event[order[place < np.ceil(ALIKE_SHARE * counts)[owner]]])
    return without_rows(data, row)


def held_out_ndcg(score: Callable[[Queries], np.ndarray], judged: Judged, *, items: int) -> float:
    """Mean NDCG@20 of one target each, by the number of items that score higher; 0 without a query."""
    gains = np.zeros(len(judged))
    size = max(1, BLOCK // max(items, 1))
    for start in range(0, len(judged), size):
        block = np.arange(start, min(start + size, len(judged)))
        part = judged.take(block)
        scores = score(part.queries)
        own = scores[np.arange(len(block)), part.target]
        scores[np.repeat(np.arange(len(block)), np.diff(part.masked_offsets)), part.masked] = -np.inf
        better = (scores > own[:, None]).sum(1) + ((scores == own[:, None]).sum(1) - 1) / 2  # ties: halfway
        found = (own > -np.inf) & (better < DEPTH)
        gains[block] = np.where(found, 1 / np.log2(2 + np.maximum(better, 0)), 0)
    return float(gains.mean()) if len(gains) else 0.0
