"""All retrieval models as of one moment, fitted on what came before it.

The two-tower comes in trained (it needs the distributed loop), and so does the blend of a single stage;
the tables and columns are fitted here, in seconds. One function serves the release and the ranker's
training slices alike, so the slices are replayed with models made exactly as the served ones.
"""

from dataclasses import dataclass, field

import numpy as np

from recsys.features.views import item_features
from recsys.interactions import Interactions
from recsys.models.blend import FittedBlend
from recsys.models.item_to_item.baskets import BasketSettings, baskets
from recsys.models.item_to_item.ease import EaseSettings, ease
from recsys.models.popularity import PopularitySettings, popularity
from recsys.models.snapshot import PipelineModels, Snapshot
from recsys.models.spectral import item_factors
from recsys.models.two_tower.settings import TowerSnapshot
from recsys.models.two_tower.user_encoder import UserEncoder

DIMENSIONS = 64  # of the vectors of a single stage


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
        models=PipelineModels(
            UserEncoder.from_arrays(tower.encoder),
            ease=ease(past, settings=settings.ease),
            basket=baskets(past, settings=settings.basket),
        ),
        vectors=tower.item_vectors,
        popularity=popularity(past, now=tower.cutoff, settings=settings.popularity),
        item_features=item_features(past, now=tower.cutoff),
        category=category[:items],
    )


def single_stage(
    models: FittedBlend,
    past: Interactions,
    *,
    as_of: int,
    category: np.ndarray,
    settings: TableSettings,
    seed: int,
) -> Snapshot:
    """`models`, fitted on `past`, which ends before `as_of`, as a snapshot over its items.

    Which items are alike is told by who took them (`spectral`), whatever the models are: tables have no
    vectors, popularity's are all parallel, and others hold biases. `category` int32 of all items.
    """
    vectors = item_factors(past, dimensions=DIMENSIONS, seed=seed)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Snapshot(
        as_of=as_of,
        models=models,
        vectors=np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0),
        popularity=popularity(past, now=as_of, settings=settings.popularity),
        item_features=item_features(past, now=as_of),
        category=category[: past.items],
    )
