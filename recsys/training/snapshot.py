"""All retrieval models as of one moment, fitted on what came before it.

The two-tower comes in trained (it needs the distributed loop); the tables and columns are fitted
here, in seconds. One function serves the release and the ranker's training slices alike, so the
slices are replayed with models made exactly as the served ones.
"""

from dataclasses import dataclass, field

import numpy as np

from recsys.features.views import item_features
from recsys.interactions import Interactions
from recsys.models.baskets import BasketSettings, baskets
from recsys.models.ease import EaseSettings, ease
from recsys.models.popularity import PopularitySettings, popularity
from recsys.models.snapshot import Snapshot
from recsys.models.two_tower_settings import TowerSnapshot
from recsys.models.user_encoder import UserEncoder


@dataclass(frozen=True, slots=True)
class TableSettings:
    ease: EaseSettings = field(default_factory=EaseSettings)
    basket: BasketSettings = field(default_factory=BasketSettings)
    popularity: PopularitySettings = field(default_factory=PopularitySettings)


def fit_snapshot(
    interactions: Interactions, *, tower: TowerSnapshot, category: np.ndarray, settings: TableSettings
) -> Snapshot:
    """The models as of `tower.cutoff`, over the items that `tower` has vectors of.

    `category` int32 [V] of all items of the catalog.
    """
    items = len(tower.item_vectors)
    # An item may be bought before the day that its record calls `published_at`.
    past = interactions.before(tower.cutoff).below(items)
    return Snapshot(
        as_of=tower.cutoff,
        encoder=UserEncoder.from_arrays(tower.encoder),
        vectors=tower.item_vectors,
        ease=ease(past, settings=settings.ease),
        basket=baskets(past, settings=settings.basket),
        popularity=popularity(past, now=tower.cutoff, settings=settings.popularity),
        item_features=item_features(past, now=tower.cutoff),
        category=category[:items],
    )
