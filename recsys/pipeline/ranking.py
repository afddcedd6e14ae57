"""Ranking: the cross features of all candidates in one array, scored by the scene's ranker.

The fused retrieval score stays as a named score; removed candidates are scored too, so that "why
not" can name the score an item would have had. A single stage has no ranker: the fused order stands.
"""

from dataclasses import dataclass, replace

import numpy as np

from recsys.features.cross import cross_features
from recsys.models.ranker import Ranker
from recsys.types import Candidates, RequestBatch


@dataclass(frozen=True, slots=True)
class Ranking:
    ranker: Ranker
    item_features: np.ndarray  # float32 [V, F]
    category: np.ndarray  # int32 [V]

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        features = cross_features(batch, candidates, item_features=self.item_features, category=self.category)
        return replace(candidates, score=self.ranker.score(features))


def keep_order(batch: RequestBatch, candidates: Candidates) -> Candidates:
    """The ranking of a release without rankers."""
    return candidates
