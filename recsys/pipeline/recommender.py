"""The request path, in order. It knows the seams and no algorithm, no placement and no server.

Failure policy: a ranker that can't be reached leaves retrieval order, and the answer says so;
diversity likewise leaves the ranked order; rules and hydration raise, since without them the slate
might show what it must not. A programmer's error always raises.
"""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from recsys.errors import UnavailableError
from recsys.pipeline.seams import Hydrator, RequestStep, Stage
from recsys.pipeline.trace import Answer, Trace
from recsys.types import Candidates, Removal, RequestBatch, Slate, SlateItem, Sources, rank_by_score

# Named score: 0-based place in the slate; NaN = not in it.
POSITION = "position"


@dataclass(frozen=True, slots=True)
class Recommender:
    experiments: RequestStep
    hydration: Hydrator
    retrieval: Callable[[RequestBatch], Awaitable[Candidates]]
    ranking: Stage
    rules: Stage
    diversity: Stage
    backfill: Stage
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex

    async def recommend(self, batch: RequestBatch) -> Answer:
        """The slates of B requests. Raises RuleError and UnavailableError (see the policy above)."""
        trace = Trace()
        batch = await trace.step("experiments", self.experiments, batch)
        batch = await trace.step("hydration", self.hydration, batch)
        candidates = await trace.step("retrieval", self.retrieval, batch)
        try:
            candidates = await trace.step("ranking", self.ranking, batch, candidates)
        except UnavailableError:
            candidates = candidates.admit("ranking")
        candidates = await trace.step("rules", self.rules, batch, candidates)
        try:
            candidates = await trace.step("diversity", self.diversity, batch, candidates)
        except UnavailableError:
            candidates = in_score_order(batch, candidates).admit("diversity")
        candidates = await trace.step("backfill", self.backfill, batch, candidates)
        return Answer(self._slates(batch, candidates), batch, candidates, trace)

    def _slates(self, batch: RequestBatch, candidates: Candidates) -> tuple[Slate, ...]:
        place = candidates.scores[POSITION]
        order = np.lexsort((place, candidates.request))
        chosen = order[~np.isnan(place[order])]
        starts = np.searchsorted(candidates.request[chosen], np.arange(len(batch) + 1))
        # What was not ranked must not pass as ranked: its fused score only ordered it.
        unranked = ["ranking" in admitted for admitted in candidates.degraded] or [False] * len(batch)
        score = np.where(np.array(unranked)[candidates.request], np.nan, candidates.score)
        items = [
            SlateItem(int(candidates.item[c]), float(score[c]), Sources(int(candidates.source[c])))
            for c in chosen
        ]
        return tuple(
            Slate(
                slate_id=self.new_id(),
                user_id=batch.user_ids[r],
                scene=batch.scene[r],
                items=tuple(items[starts[r] : starts[r + 1]]),
                arms={layer: arms[r] for layer, arms in batch.arms.items()},
                degraded=(batch.degraded[r] if batch.degraded else ())
                + (candidates.degraded[r] if candidates.degraded else ()),
            )
            for r in range(len(batch))
        )


def in_score_order(batch: RequestBatch, candidates: Candidates) -> Candidates:
    """The n best of each request by score alone: the slate without diversity."""
    rank = rank_by_score(candidates)
    shown = candidates.alive & (rank < batch.n[candidates.request])
    position = np.where(shown, rank, np.nan).astype(np.float32)
    removed_by = np.where(candidates.alive & ~shown, Removal.BELOW_SLATE, candidates.removed_by)
    return replace(
        candidates,
        removed_by=removed_by.astype(np.uint8),
        scores={**candidates.scores, POSITION: position},
    )
