"""The wiring of the request path: which source, which stage, in which order. The only place.

`Parts` is all that a release holds, in memory; `recommender` puts the steps together from it: of two
stages, or of a blend of models whose merge is the order. A deployment replaces single steps by handles
to elsewhere (`dataclasses.replace`), and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import polars as pl

from recsys.errors import ReleaseError
from recsys.experiments.assignment import Experiments
from recsys.features.cross import FEATURES
from recsys.index.shard import LocalShard, unfiltered
from recsys.models.blend import DEPTH, FittedBlend
from recsys.models.ranker import Ranker
from recsys.models.snapshot import PipelineModels, Snapshot
from recsys.models.sparse_scores import HistoryWeights, decay_weights, even_weights, last_order_weights
from recsys.pipeline.backfill import Backfill
from recsys.pipeline.diversity import MMR, DiversitySettings
from recsys.pipeline.hydration import Hydration, UserStore
from recsys.pipeline.items import LiveItems
from recsys.pipeline.ranking import Ranking, keep_order
from recsys.pipeline.recommender import Recommender
from recsys.pipeline.retrieval import Fusion, Retrieval, RetrievalSettings
from recsys.pipeline.rules import Rule, Rules
from recsys.pipeline.scenes import PerSettings, Scene
from recsys.pipeline.scopes import Scopes
from recsys.pipeline.seams import Source
from recsys.pipeline.sources import (
    HistorySource,
    ModelSource,
    Observe,
    PopularitySource,
    Shard,
    TableSource,
    TwoTowerSource,
    unobserved,
)
from recsys.types import Histories, RequestBatch


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    scenes: Mapping[str, Scene] = field(
        default_factory=lambda: {
            "home": Scene(hide_consumed=False, ranker="home"),
            "discover": Scene(hide_consumed=True, ranker="discover"),
        }
    )
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    diversity: DiversitySettings = field(default_factory=DiversitySettings)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a release is made of. Row r of `items` is item row r of everything; its models know V rows, later
    ones are given and no more."""

    items: pl.DataFrame  # the item contract, and `category` (its primary one), by row [>= V]
    snapshot: Snapshot
    rankers: Mapping[str, Ranker]
    rules: tuple[Rule, ...]
    experiments: Experiments
    settings: PipelineSettings

    def __post_init__(self) -> None:
        if len(self.items) < len(self.snapshot):
            raise ReleaseError(f"the release has {len(self.items)} items, its models {len(self.snapshot)}")
        for name, ranker in self.rankers.items():
            # The same number of columns in another order would score garbage, silently.
            if ranker.booster.feature_names != list(FEATURES):
                raise ReleaseError(f"ranker {name!r} was trained on other columns: train it again")
        for name, scene in self.settings.scenes.items():
            if self.rankers and scene.ranker not in self.rankers:
                raise ReleaseError(
                    f"scene {name!r} wants ranker {scene.ranker!r}: there are {', '.join(self.rankers)}"
                )


def live_items(parts: Parts) -> LiveItems:
    """The items of the release, to be changed as the catalog changes."""
    return LiveItems(parts.items, vectors=parts.snapshot.vectors, category=parts.snapshot.category)


def retrieval(
    snapshot: Snapshot,
    items: LiveItems,
    shards: Sequence[Shard],
    settings: RetrievalSettings,
    observe: Observe = unobserved,
) -> Retrieval:
    models = snapshot.models
    if isinstance(models, FittedBlend):
        # As deep as the weights were chosen by. No deadline: they compute, and nothing else would answer.
        lists = [ModelSource(name, fitted, len(snapshot), DEPTH) for name, fitted in models.parts.items()]
        return Retrieval(lists, Fusion(dict(zip(models.parts, models.weights.tolist())), models.constant))
    own = sources(snapshot, models, items, shards, settings, observe)
    return Retrieval(own, Fusion(settings.weights), settings.deadline_ms)


def sources(
    snapshot: Snapshot,
    models: PipelineModels,
    items: LiveItems,
    shards: Sequence[Shard],
    settings: RetrievalSettings,
    observe: Observe,
) -> list[Source]:
    k = settings.candidates
    return [
        TwoTowerSource(models.encoder, items.vectors, shards, k["two_tower"], observe=observe),
        TableSource("ease", models.ease, _even, k["ease"]),
        TableSource("ease_decayed", models.ease, partial(_decayed, settings.history), k["ease_decayed"]),
        TableSource("basket", models.basket, _newest_order, k["basket"]),
        HistorySource(len(snapshot), settings.history.history_half_life_days, k["history"]),
        PopularitySource(snapshot.popularity, k["popularity"]),
    ]


def recommender(
    parts: Parts,
    *,
    users: UserStore,
    shards: Sequence[Shard],
    items: LiveItems | None = None,
    observe: Observe = unobserved,
) -> Recommender:
    """The request path of `parts`, all in this process but for `users` and `shards`. `items`: those of
    `parts`, where somebody keeps them up to date; `observe` is told what the index answered."""
    items = items or live_items(parts)
    shards = within_scopes(items, shards)
    rules = Rules(items, parts.rules)
    return Recommender(
        experiments=parts.experiments,
        hydration=Hydration(users, parts.settings.scenes, parts.snapshot.category),
        retrieval=retrieval(parts.snapshot, items, shards, parts.settings.retrieval, observe),
        ranking=PerSettings(partial(_ranker_of, parts), partial(_ranking_of, parts))
        if parts.rankers
        else keep_order,
        rules=rules,
        diversity=PerSettings(partial(_diversity_of, parts), partial(MMR, items=items)),
        backfill=Backfill(_most_popular_first(parts.snapshot.popularity), rules),
    )


def within_scopes(items: LiveItems, shards: Sequence[Shard]) -> list[Shard]:
    """The same shards; those that are in this process, and look at all items, look at those of a request's
    scope alone, as others do that keep the items themselves."""
    scopes = Scopes(items)
    return [
        replace(shard, filter_of=scopes)
        if isinstance(shard, LocalShard) and shard.filter_of is unfiltered
        else shard
        for shard in shards
    ]


def _even(histories: Histories, now: np.ndarray) -> np.ndarray:
    return even_weights(histories)


def _decayed(weights: HistoryWeights, histories: Histories, now: np.ndarray) -> np.ndarray:
    return decay_weights(histories, now=now, half_life_days=weights.ease_decayed_half_life_days)


def _newest_order(histories: Histories, now: np.ndarray) -> np.ndarray:
    return last_order_weights(histories)


def _ranker_of(parts: Parts, batch: RequestBatch, request: int) -> str:
    return parts.settings.scenes[batch.scene[request]].ranker


def _ranking_of(parts: Parts, ranker: str) -> Ranking:
    return Ranking(parts.rankers[ranker], parts.snapshot.item_features, parts.snapshot.category)


def _diversity_of(parts: Parts, batch: RequestBatch, request: int) -> DiversitySettings:
    arms = {layer: of[request] for layer, of in batch.arms.items()}
    return replace(parts.settings.diversity, **parts.experiments.overrides(arms, "diversity"))


def _most_popular_first(popularity: np.ndarray) -> np.ndarray:
    return np.lexsort((np.arange(len(popularity)), -popularity)).astype(np.int32)
