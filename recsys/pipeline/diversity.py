"""Diversity: maximal marginal relevance over the ranked pool (Carbonell and Goldstein, 1998).

Each place takes the candidate with the largest
`relevance_weight * relevance - (1 - relevance_weight) * (largest similarity to what stands above)`.
Relevance is the rank-independent score scaled to 0..1 within the request's pool; similarity is the
inner product of unit item vectors. No two of one category stand in the first `distinct_top` places
while the pool offers another category. Candidates that the ranker could not score come last.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.pipeline.items import LiveItems
from recsys.pipeline.recommender import POSITION
from recsys.types import Candidates, Removal, RequestBatch, rank_by_score


@dataclass(frozen=True, slots=True)
class DiversitySettings:
    relevance_weight: float = 0.9  # 1 = no diversity
    pool: int = 200  # ranked candidates that are looked at
    distinct_top: int = 3  # first places without two of one category

    def __post_init__(self) -> None:
        if not 0 <= self.relevance_weight <= 1:
            raise ValueError(f"relevance_weight must be in 0..1, got {self.relevance_weight}")


@dataclass(frozen=True, slots=True)
class MMR:
    """The diversity stage, by the vectors (of unit norm) and categories of `items`."""

    settings: DiversitySettings
    items: LiveItems

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        settings = self.settings
        rank = rank_by_score(candidates)
        pool_size = np.maximum(batch.n, settings.pool)[candidates.request]
        pooled = candidates.alive & (rank < pool_size)
        width = int(rank[pooled].max(initial=-1)) + 1

        # [B, P] rows of the pool, best first; -1 = no candidate
        pool = np.full((len(batch), width), -1, np.int64)
        pool[candidates.request[pooled], rank[pooled]] = np.flatnonzero(pooled)
        position = np.full(len(candidates), np.nan, np.float32)
        if width:
            chosen = select(
                relevance=_scaled(np.where(pool >= 0, candidates.score[pool], np.nan)),
                present=pool >= 0,
                vectors=self.items.vectors[candidates.item[pool]],
                category=self.items.category[candidates.item[pool]],
                n=batch.n,
                settings=settings,
            )
            request, place = np.nonzero(chosen >= 0)
            position[pool[request, chosen[request, place]]] = place

        shown = ~np.isnan(position)
        reason = np.select(
            [~candidates.alive | shown, ~pooled, rank < batch.n[candidates.request]],
            [candidates.removed_by, Removal.BELOW_CUT, Removal.DIVERSITY],
            Removal.BELOW_SLATE,
        )
        return replace(
            candidates,
            removed_by=reason.astype(np.uint8),
            scores={**candidates.scores, POSITION: position},
        )


def _scaled(score: np.ndarray) -> np.ndarray:
    """Scores [B, P] scaled to 0..1 in each row; all equal = 1; NaN (not scored) = -1, below all."""
    known = ~np.isnan(score)
    low = np.where(known, score, np.inf).min(1, keepdims=True)
    high = np.where(known, score, -np.inf).max(1, keepdims=True)
    spread = np.where(high > low, high - low, 1)
    scaled = np.where(high > low, (np.where(known, score, 0) - low) / spread, 1.0)
    return np.where(known, scaled, -1.0).astype(np.float32)


def select(
    *,
    relevance: np.ndarray,  # float32 [B, P]
    present: np.ndarray,  # bool [B, P]
    vectors: np.ndarray,  # float32 [B, P, D], unit norm
    category: np.ndarray,  # int32 [B, P], -1 unknown
    n: np.ndarray,  # int32 [B]
    settings: DiversitySettings,
) -> np.ndarray:
    """Greedy MMR for a batch: pool places int64 [B, min(max n, P)] in slate order, -1 = none left.

    Ties go to the candidate that was ranked higher. `select_slow` is the reference.
    """
    requests, width = relevance.shape
    weight = np.float32(settings.relevance_weight)
    steps = min(int(n.max(initial=0)), width)
    chosen = np.full((requests, steps), -1, np.int64)
    nearest = np.full((requests, width), -np.inf, np.float32)  # largest similarity to the chosen
    free = present.copy()
    taken = np.zeros((requests, width), bool)  # category already stands in the slate
    row = np.arange(requests)
    for step in range(steps):
        penalty = (1 - weight) * nearest if step else np.float32(0)
        value = np.where(free, weight * relevance - penalty, -np.inf)
        if 0 < step < settings.distinct_top:
            other = np.where(taken, -np.inf, value)
            value = np.where(np.isfinite(other).any(1, keepdims=True), other, value)
        best = value.argmax(1)
        going = np.isfinite(value[row, best]) & (step < n)
        chosen[going, step] = best[going]
        free[row, best] &= ~going
        if step + 1 == steps:
            break
        picked = vectors[row, best]
        np.maximum(nearest, np.matmul(vectors, picked[:, :, None])[:, :, 0], out=nearest)
        own = category[row, best][:, None]
        taken |= (category == own) & (own >= 0)
    return chosen


def select_slow(
    *,
    relevance: np.ndarray,  # float32 [P]
    vectors: np.ndarray,  # float32 [P, D]
    category: np.ndarray,  # int32 [P]
    n: int,
    settings: DiversitySettings,
) -> list[int]:
    """The definition for one request, all P present: pool places in slate order."""
    weight = np.float32(settings.relevance_weight)
    slate: list[int] = []
    while len(slate) < min(n, len(relevance)):
        rest = [i for i in range(len(relevance)) if i not in slate]
        if 0 < len(slate) < settings.distinct_top:
            seen = {category[i] for i in slate if category[i] >= 0}
            rest = [i for i in rest if category[i] not in seen] or rest
        similarity = {i: max((vectors[i] @ vectors[j] for j in slate), default=np.float32(0)) for i in rest}
        slate.append(max(rest, key=lambda i: (weight * relevance[i] - (1 - weight) * similarity[i], -i)))
    return slate
