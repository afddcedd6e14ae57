"""Ranking: the cross features of all candidates in one array, scored by the scene's ranker.

The fused retrieval score stays as a named score; removed candidates are scored too, so that "why
not" can name the score an item would have had. A single stage has no ranker: the fused order stands.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.features.cross import cross_features
from recsys.models.blend import CONSTANT
from recsys.models.ranker import Ranker
from recsys.types import Candidates, RequestBatch, rank_by_score


@dataclass(frozen=True, slots=True)
class Ranking:
    ranker: Ranker
    item_features: np.ndarray  # float32 [V, F]
    category: np.ndarray  # int32 [V]

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        features = cross_features(batch, candidates, item_features=self.item_features, category=self.category)
        return replace(candidates, score=self.ranker.score(features))


def keep_order(batch: RequestBatch, candidates: Candidates) -> Candidates:
    """The ranking of a release without rankers: the fused order, with 1 / (CONSTANT + rank) as the score.

    A blend's own constant may be so small that only its first places differ; diversity, which weighs
    scores against likeness, would then shuffle all others.
    """
    score = 1 / (CONSTANT + 1 + rank_by_score(candidates))
    return replace(candidates, score=score.astype(np.float32))
