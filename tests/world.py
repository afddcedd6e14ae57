"""A small world for tests: users who buy mostly within their taste, and a release made of it.

Everything is made by the real code, in this process: no Ray, no server. Users 0 .. U - 1 have a taste
each (one of the categories); items have one category; some are restricted, so that rules remove.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from recsys.experiments.assignment import Arm, Experiment, Experiments, Layer
from recsys.features.text import hash_tokens
from recsys.index.building import build_index
from recsys.index.settings import IndexSettings
from recsys.index.shard import LocalShard, exact_shard
from recsys.index.vectors import VectorArray
from recsys.interactions import Interactions
from recsys.models.ranker import Ranker, RankerSettings
from recsys.models.two_tower.settings import TwoTowerSettings, TwoTowerTraining
from recsys.pipeline.diversity import DiversitySettings
from recsys.pipeline.items import LiveItems
from recsys.pipeline.offline import PointInTimeUsers, label_candidates, relevant_items
from recsys.pipeline.recommender import Recommender
from recsys.pipeline.rules import Rule
from recsys.pipeline.wiring import Parts, PipelineSettings, recommender
from recsys.releases.parts import encode, index_parts
from recsys.training.ranker import RankingRows, rows_to_keep, train_ranker
from recsys.training.snapshot import TableSettings, fit_snapshot
from recsys.training.two_tower import train_two_tower
from recsys.types import DAY, Histories, offsets_of

USERS, ITEMS, CATEGORIES, DAYS = 120, 150, 6, 120
SHARDS = 2
START = 1_300_000_000 // DAY * DAY
NOW = START + (DAYS - 28) * DAY  # the release's moment; four weeks follow it
EARLIER = NOW - 28 * DAY  # the ranker's training slice begins
WORDS = ("mug", "lamp", "card", "bag", "clock", "candle")


@dataclass(frozen=True)
class World:
    interactions: Interactions  # of all days
    parts: Parts
    recommender: Recommender  # of the release, users as of NOW


def interactions(seed: int = 0, items: int = ITEMS) -> Interactions:
    rng = np.random.default_rng(seed)
    taste = rng.integers(0, CATEGORIES, USERS)
    popularity = rng.zipf(1.4, items).clip(max=50).astype(float)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Histories.COLUMNS}
    counts = []
    for user in range(USERS):
        chance = popularity * np.where(np.arange(items) % CATEGORIES == taste[user], 12.0, 1.0)
        orders = np.sort(rng.integers(0, DAYS * DAY, rng.integers(2, 9))) + START
        lines = rng.integers(1, 7, len(orders))
        counts.append(lines.sum())
        item = np.concatenate([rng.choice(items, n, False, chance / chance.sum()) for n in lines])
        columns["item"].append(item.astype(np.int32))
        columns["time"].append(np.repeat(orders, lines))
        columns["quantity"].append(rng.integers(1, 5, len(item)).astype(np.float32))
        columns["value"].append((1 + item % 7).astype(np.float32) * columns["quantity"][-1])
        columns["order"].append(np.repeat(user * 1000 + np.arange(len(orders)), lines))
    histories = Histories(offsets_of(np.array(counts)), *(np.concatenate(c) for c in columns.values()))
    user_ids = np.array([f"u{user:03d}" for user in range(USERS)], object)
    return Interactions(user_ids, histories, items)


def item_frame(items: int = ITEMS) -> pl.DataFrame:
    """The item contract; every 10th item is for adults, every 15th unavailable, every 13th blocked in FR."""
    row = np.arange(items)
    return pl.DataFrame(
        {
            "item_id": [f"i{r}" for r in row],
            "title": [f"{WORDS[r % CATEGORIES]} number {r}" if r % 29 else "" for r in row],
            "category": [WORDS[r % CATEGORIES] for r in row],
            "price": 1.0 + row % 7,
            "available": row % 15 != 0,
            "min_age": [18 if r % 10 == 0 else None for r in row],
            "countries_allowed": pl.Series([None] * items, dtype=pl.List(pl.String)),
            "countries_blocked": pl.Series([["FR"] if r % 13 == 0 else None for r in row]),
            "published_at": pl.Series([None] * items, dtype=pl.Int64),
            "expires_at": pl.Series([None] * items, dtype=pl.Int64),
        }
    )


RULES = (
    Rule("an item without a title can't be shown", "title IS NULL OR title = ''"),
    Rule("no clocks in Spain", "category = 'clock' AND country = 'ES'"),
)
EXPERIMENTS = Experiments(
    {
        "diversity": Layer(
            {
                "weight": Experiment(
                    1.0,
                    {
                        "control": Arm(0.5),
                        "diverse": Arm(0.5, {"diversity.relevance_weight": 0.5}),
                    },
                )
            }
        )
    }
)


@cache
def world(seed: int = 0) -> World:
    log = interactions(seed)
    items = item_frame()
    category = (np.arange(ITEMS) % CATEGORIES).astype(np.int32)
    training = TwoTowerTraining(model=TwoTowerSettings(), batch=64, steps=15, steps_more=5)
    towers = train_two_tower(
        log,
        tokens=hash_tokens(items["title"].to_list()),
        category=category,
        cutoffs=[EARLIER, NOW],
        sizes=[ITEMS, ITEMS],
        settings=training,
        seed=seed,
    )
    earlier, served = (
        fit_snapshot(log, tower=tower, category=category, settings=TableSettings()) for tower in towers
    )
    settings = PipelineSettings(diversity=DiversitySettings(relevance_weight=0.8, pool=60))
    parts = Parts(items, served, {}, RULES, EXPERIMENTS, settings)
    past = recommender(
        replace(parts, snapshot=earlier), users=PointInTimeUsers(log, EARLIER), shards=shards(earlier.vectors)
    )
    rankers = {}
    for name, scene in settings.scenes.items():
        blocks = label_candidates(
            past,
            relevant_items(log, start=EARLIER, end=NOW, items=ITEMS, new_only=scene.hide_consumed),
            scene=name,
            now=EARLIER,
            item_features=earlier.item_features,
            category=category,
            keep=lambda offsets, label: rows_to_keep(offsets, label, negatives=50, seed=seed),
        )
        rows = RankingRows.concatenate([RankingRows(b.offsets, b.features, b.label) for b in blocks])
        rankers[name] = Ranker(train_ranker(rows, settings=RankerSettings(rounds=15), seed=seed))
    parts = replace(parts, rankers=rankers)
    return World(
        log,
        parts,
        recommender(parts, users=PointInTimeUsers(log, NOW), shards=shards(served.vectors)),
    )


def live(frame: pl.DataFrame) -> LiveItems:
    """Items without vectors and categories."""
    none = np.zeros((len(frame), 1), np.float32), np.full(len(frame), -1, np.int32)
    return LiveItems(frame, vectors=none[0], category=none[1])


def shards(vectors: np.ndarray) -> list[LocalShard]:
    return [exact_shard(vectors, number, SHARDS) for number in range(SHARDS)]


def release_parts(parts: Parts, folder: Path, *, shards: int = SHARDS) -> dict[str, bytes | Path]:
    """All that a release of `parts` holds; its index is built in `folder`."""
    build_index(VectorArray(parts.snapshot.vectors), folder, settings=IndexSettings(shards=shards))
    return {**encode(parts), **index_parts(folder, of=parts.snapshot.vectors)}
