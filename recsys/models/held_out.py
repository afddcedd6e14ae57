"""Questions about what was held out of a training log, and how well a model answers them.

Decides what a model may be chosen by, or choose its own settings by: a slice of its training log, asked as
the test will ask or one event of each user, and answered as the judge and the request path answer, over all
items that are not masked. The judge's targets never come here.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from recsys.datasets.problem import Judged, hold_out, hold_out_orders, hold_out_sessions, without_rows
from recsys.interactions import Asked, Interactions, Queries, Timing
from recsys.metrics import hits, ndcg_at
from recsys.models.blend import FittedBlend
from recsys.models.spectral import item_factors
from recsys.models.top_k import top_k
from recsys.types import ragged_index

USERS = 2000
LEAST, SHARE = 50, 50  # of what is never trained on: fewer events say too little; at most one event in 50
AT = 10  # the cutoff of `ndcg_of`
DEPTH = 20  # that of `held_out_ndcg`
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
    """What is left of `data`, and what at most `most` users, or as many questions in sessions, ask, as the
    test will; of a random part what is known of it is never ranked."""
    if data.asked is Asked.SESSION:
        return hold_out_sessions(data, questions=most)
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
    if not len(chosen):
        return without_rows(data, chosen)
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
    place = ragged_index(np.zeros_like(counts), counts)
    row = np.sort(event[order[place < np.ceil(ALIKE_SHARE * counts)[owner]]])
    return without_rows(data, row)


class Scores(Protocol):
    """What gives scores, as a `Fitted` does."""

    def score(self, queries: Queries) -> np.ndarray: ...


def score_blocks(
    model: Scores, judged: Judged, *, items: int
) -> Iterator[tuple[np.ndarray, Judged, np.ndarray]]:
    """Rows of `judged`, these questions, and their scores float32 [b, V], -inf for what is masked."""
    size = max(1, BLOCK // max(items, 1))
    for start in range(0, len(judged), size):
        rows = np.arange(start, min(start + size, len(judged)))
        part = judged.take(rows)
        yield rows, part, _masked_scores(model, part)


def _masked_scores(model: Scores, part: Judged) -> np.ndarray:
    """The parts of a blend are masked before they are ranked: what is not asked for takes no place."""
    if isinstance(model, FittedBlend):
        return model.fused(_masked_scores(each, part) for each in model.parts.values())
    scores = model.score(part.queries)
    scores[np.repeat(np.arange(len(part)), np.diff(part.masked_offsets)), part.masked] = -np.inf
    return scores


def lists_of(model: Scores, judged: Judged, *, items: int, depth: int) -> np.ndarray:
    """The `depth` best items of each question, int32 [B, depth], the best first; -1 = none left."""
    found = np.full((len(judged), depth), -1, np.int32)
    for rows, _, scores in score_blocks(model, judged, items=items):
        found[rows] = top_k(scores, k=depth, tie_order=np.arange(items))
    return found


def ndcg_of(lists: np.ndarray, judged: Judged) -> float:
    """Mean NDCG@AT of lists int32 [B, AT or more]; 0 without a question."""
    hit = hits(lists[:, :AT], judged.target_offsets, judged.target)
    return float(ndcg_at(hit, judged.target_counts, AT).mean()) if len(judged) else 0.0


def held_out_ndcg(model: Scores, judged: Judged, *, items: int) -> float:
    """Mean NDCG@20 of one target each, by the number of items that score higher; 0 without a question."""
    gains = np.zeros(len(judged))
    for rows, part, scores in score_blocks(model, judged, items=items):
        own = scores[np.arange(len(rows)), part.target]
        better = (scores > own[:, None]).sum(1) + ((scores == own[:, None]).sum(1) - 1) / 2  # ties: halfway
        found = (own > -np.inf) & (better < DEPTH)
        gains[rows] = np.where(found, 1 / np.log2(2 + better), 0)
    return float(gains.mean()) if len(gains) else 0.0
