"""Backfill: a slate is never short while items exist.

Diversity has already placed every ranked candidate that the slate had room for; what is missing
comes from popularity, best first, and passes the same rules as everything else. A backfilled item
has no ranker score: NaN.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.pipeline.recommender import POSITION
from recsys.pipeline.rules import Rules
from recsys.types import Candidates, Removal, RequestBatch, Sources, offsets_of

NAME = Sources.BACKFILL.label


@dataclass(frozen=True, slots=True)
class Backfill:
    popular: np.ndarray  # int32 [V] all item rows, most popular first
    rules: Rules
    spare: int = 50  # popular items tried beyond what is missing, since rules may remove some

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        spare = self.spare
        while (missing := _missing(batch, candidates)).any():
            added = self._next_popular(batch, candidates, np.where(missing > 0, missing + spare, 0))
            if not len(added):
                break
            candidates = _placed(batch, candidates, self.rules(batch, added))
            spare *= 4  # rules may have removed all that was tried: look further down
        return candidates

    def _next_popular(self, batch: RequestBatch, candidates: Candidates, wanted: np.ndarray) -> Candidates:
        """The `wanted` [B] most popular items that each request has not met yet."""
        rows = []
        for r in range(len(batch)):
            if not wanted[r]:
                rows.append(self.popular[:0])
                continue
            met = candidates.item[candidates.offsets[r] : candidates.offsets[r + 1]]
            known = np.union1d(met, batch.hidden[r]) if batch.hidden else met
            rows.append(self.popular[~np.isin(self.popular, known)][: wanted[r]])
        counts = np.array([len(r) for r in rows])
        item = np.concatenate(rows).astype(np.int32)
        nothing = np.full(len(item), np.nan, np.float32)
        return Candidates(
            offsets_of(counts),
            item,
            score=nothing,
            source=np.full(len(item), Sources.BACKFILL, np.uint32),
            removed_by=np.zeros(len(item), np.uint8),
            scores=dict.fromkeys(candidates.scores, nothing),
            proposed={NAME: counts.astype(np.int32)},
        )


def _missing(batch: RequestBatch, candidates: Candidates) -> np.ndarray:
    """Empty places of each slate, int64 [B]."""
    shown = candidates.request[~np.isnan(candidates.scores[POSITION])]
    return np.maximum(batch.n - np.bincount(shown, minlength=len(batch)), 0)


def _placed(batch: RequestBatch, candidates: Candidates, added: Candidates) -> Candidates:
    """`candidates` and `added`; what the rules left of `added` takes the next places, in its order."""
    request = added.request
    alive = np.flatnonzero(added.alive)
    first = np.searchsorted(request[alive], request[alive])
    missing = _missing(batch, candidates)
    place = (batch.n - missing)[request[alive]] + np.arange(len(alive)) - first
    fits = place < batch.n[request[alive]]
    position = np.full(len(added), np.nan, np.float32)
    position[alive[fits]] = place[fits]
    removed_by = added.removed_by.copy()
    removed_by[alive[~fits]] = Removal.BELOW_SLATE
    added = replace(added, removed_by=removed_by, scores={**added.scores, POSITION: position})

    both = Candidates.concatenate([candidates, added])
    pairs = np.arange(len(batch))[:, None] + np.array([0, len(batch)])  # r of the one, r of the other
    joined = both.take(pairs.ravel())
    before = candidates.proposed.get(NAME, 0)
    return replace(
        joined.rows(np.arange(len(joined)), candidates.counts + added.counts),
        proposed={**candidates.proposed, NAME: before + added.proposed[NAME]},
        degraded=candidates.degraded,
    )
