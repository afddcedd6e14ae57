"""The request path over the past: the same recommender, its users as they were at a moment.

Evaluation replays it against what happened next, and the ranker learns from the same candidates that
it will be asked to order. Requests go through in blocks, which bounds memory and changes no score.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.features.cross import cross_features
from recsys.features.histories import histories_at
from recsys.interactions import Interactions
from recsys.models.ranker import RankingRows
from recsys.pipeline.hydration import Users
from recsys.pipeline.recommender import Recommender
from recsys.pipeline.trace import Answer, Trace
from recsys.types import Candidates, Histories, RequestBatch, offsets_of

BLOCK = 128  # requests that cross the path together


@dataclass(frozen=True, slots=True)
class PointInTimeUsers:
    """The online store as it would have been at `now`, from the interaction log."""

    interactions: Interactions
    now: int

    def users(self, user_ids: Sequence[str]) -> Users:
        if not len(self.interactions.user_ids):
            nobody = np.zeros(len(user_ids), np.int32)
            return Users(Histories.empty(len(user_ids)), nobody.astype(bool), nobody)
        codes = _codes(self.interactions, user_ids)
        known = codes >= 0
        histories = histories_at(
            self.interactions, users=np.where(known, codes, 0), now=np.full(len(codes), self.now)
        )
        if not known.all():
            histories = histories.where(known[histories.request])
        return Users(histories, known & (histories.counts > 0), np.zeros(len(codes), np.int32))


def batch_of(user_ids: Sequence[str], *, scene: str, now: int, n: int) -> RequestBatch:
    """Bare requests of these users, as the gateway would make them."""
    size = len(user_ids)
    return RequestBatch(
        user_ids=tuple(user_ids),
        scene=(scene,) * size,
        n=np.full(size, n, np.int32),
        now=np.full(size, now, np.int64),
        exclude=((),) * size,
        country=(None,) * size,
    )


def replay(
    recommender: Recommender,
    user_ids: Sequence[str],
    *,
    scene: str,
    now: int,
    n: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Answer]:
    """The answers to `user_ids` at `now`, a block at a time, in order."""
    for start in range(0, len(user_ids), BLOCK):
        batch = batch_of(user_ids[start : start + BLOCK], scene=scene, now=now, n=n)
        yield asyncio.run(recommender.recommend(batch))
        progress(min(start + BLOCK, len(user_ids)))


def label_candidates(
    recommender: Recommender,
    relevant: dict[str, np.ndarray],  # user id -> item rows consumed in the window
    *,
    scene: str,
    now: int,
    item_features: np.ndarray,
    category: np.ndarray,
    keep: Callable[[np.ndarray, np.ndarray], np.ndarray],  # (offsets, label) -> rows to keep
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[RankingRows]:
    """What retrieval proposes to these users at `now`, less what the rules remove, labeled with what
    they consumed next; a block at a time. Features are of all candidates of the request, as in serving."""
    user_ids = list(relevant)
    for start in range(0, len(user_ids), BLOCK):
        block = user_ids[start : start + BLOCK]
        batch = batch_of(block, scene=scene, now=now, n=1)
        batch, candidates = asyncio.run(_candidates(recommender, batch))
        features = cross_features(batch, candidates, item_features=item_features, category=category)
        label = np.concatenate(
            [
                np.isin(candidates.item[candidates.offsets[r] : candidates.offsets[r + 1]], relevant[user])
                for r, user in enumerate(block)
            ]
        ).astype(np.float32)
        alive = np.flatnonzero(candidates.alive)
        counts = np.bincount(candidates.request[alive], minlength=len(block))
        kept = keep(offsets_of(counts), label[alive])
        rows = alive[kept]
        counts = np.bincount(candidates.request[rows], minlength=len(block))
        yield RankingRows(offsets_of(counts), features[rows], label[rows])
        progress(min(start + BLOCK, len(user_ids)))


async def _candidates(recommender: Recommender, batch: RequestBatch) -> tuple[RequestBatch, Candidates]:
    batch = await recommender.hydration(batch)
    candidates = await recommender.retrieval(batch)
    return batch, await Trace().step("rules", recommender.rules, batch, candidates)


def relevant_items(
    interactions: Interactions, *, start: int, end: int, items: int, new_only: bool
) -> dict[str, np.ndarray]:
    """Distinct item rows below `items` that each user with a history consumed in [start, end).

    `new_only`: without those that the user had consumed before. Users with nothing relevant, or
    nothing before `start`, are left out.
    """
    log = interactions.histories
    relevant = {}
    for code, user in enumerate(interactions.user_ids):
        mine = slice(log.offsets[code], log.offsets[code + 1])
        item, time = log.item[mine], log.time[mine]
        past = item[time < start]
        wanted = np.unique(item[(time >= start) & (time < end) & (item < items)])
        if new_only:
            wanted = wanted[~np.isin(wanted, past)]
        if len(past) and len(wanted):
            relevant[str(user)] = wanted
    return relevant


def _codes(interactions: Interactions, user_ids: Sequence[str]) -> np.ndarray:
    """Position of each user in the log, -1 = not there. The log is sorted by user id."""
    ids = interactions.user_ids
    wanted = np.asarray(user_ids, object)
    found = np.searchsorted(ids, wanted)
    inside = np.minimum(found, max(len(ids) - 1, 0))
    hit = (ids[inside] == wanted) if len(ids) else np.zeros(len(wanted), bool)
    return np.where(hit, inside, -1)
