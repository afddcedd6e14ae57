"""Offline evaluation of the pipeline that is served: the real request path, replayed at a moment.

Temporal split, full catalog, no sampled negatives. One replay gives every line of the report, since
a candidate keeps its sources, each source's score and why it was removed: each source alone, the
union with and without it, the fused order, the ranker's order ("pipeline") and the slate after
diversity ("pipeline after diversity"). Intervals are bootstraps over users.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.metrics import (
    bootstrap_interval,
    category_diversity_at,
    coverage_at,
    coverage_interval,
    hits,
    ndcg_at,
    recall_at,
)
from recsys.pipeline.offline import replay
from recsys.pipeline.recommender import POSITION, Recommender
from recsys.pipeline.retrieval import FUSED
from recsys.types import Candidates, Removal, Sources, offsets_of

DEPTH = 100
AFTER_RULES = (Removal.ALIVE, Removal.BELOW_CUT, Removal.DIVERSITY, Removal.BELOW_SLATE)
PIPELINE, DIVERSIFIED, RETRIEVAL, UNION = "pipeline", "pipeline after diversity", "retrieval order", "union"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One scene. `lines`: name -> metric -> value, and "metric_interval" -> [low, high]."""

    lines: dict[str, dict[str, Any]]
    users: int
    slates: dict[str, list[int]]  # user id -> item rows after diversity
    ndcg: dict[str, np.ndarray]  # line -> NDCG@10 of each user, for paired tests


def evaluate(
    recommender: Recommender,
    relevant: Mapping[str, np.ndarray],  # user id -> distinct item rows
    *,
    scene: str,
    now: int,
    category: np.ndarray,
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """The report of `scene` at `now` over all items [V] of `category`; without any line for no users."""
    users = list(relevant)
    if not users:
        return Evaluation({}, 0, {}, {})
    rankings: dict[str, list[np.ndarray]] = {}
    union: dict[str, list[np.ndarray]] = {}
    for answer in replay(recommender, users, scene=scene, now=now, n=DEPTH, progress=progress):
        for name, ranking in _rankings(answer.candidates).items():
            rankings.setdefault(name, []).append(ranking)
        block = [relevant[user] for user in answer.batch.user_ids]
        for name, recall in _union_recall(answer.candidates, block).items():
            union.setdefault(name, []).append(recall)
    counts = np.array([len(relevant[user]) for user in users])
    wanted = np.concatenate([relevant[user] for user in users])
    lines: dict[str, dict[str, Any]] = {}
    ndcg: dict[str, np.ndarray] = {}
    for name, blocks in rankings.items():
        ranked = np.concatenate(blocks)
        if (ranked < 0).all():
            continue  # a source that may propose nothing: one's own items where the scene hides them
        hit = hits(ranked, offsets_of(counts), wanted)
        ndcg[name] = ndcg_at(hit, counts, 10)
        lines[name] = _summary(
            {
                "recall@20": recall_at(hit, counts, 20),
                "recall@100": recall_at(hit, counts, 100),
                "ndcg@10": ndcg[name],
                "category_diversity@20": category_diversity_at(ranked, category, 20),
            },
            rng,
        )
        lines[name] |= {
            "coverage@20": coverage_at(ranked, len(category), 20),
            "coverage@20_interval": coverage_interval(ranked, len(category), 20, rng=rng),
        }
    for name, blocks in union.items():
        lines[name] = _summary({"recall": np.concatenate(blocks)}, rng)
    slates = np.concatenate(rankings[DIVERSIFIED])
    return Evaluation(
        lines, len(users), {u: row[row >= 0].tolist() for u, row in zip(users, slates, strict=True)}, ndcg
    )


def _rankings(candidates: Candidates) -> dict[str, np.ndarray]:
    """Each line's ranking, int32 [B, DEPTH], -1 padded."""
    lines = {
        source.label: _top(candidates, candidates.scores[source.label], (candidates.source & source) > 0)
        for source in Sources
        if source.label in candidates.scores
    }
    proposed = candidates.source != Sources.BACKFILL
    passed = np.isin(candidates.removed_by, AFTER_RULES) & proposed
    lines[RETRIEVAL] = _top(candidates, candidates.scores[FUSED], proposed)
    lines[PIPELINE] = _top(candidates, candidates.score, passed)
    place = candidates.scores[POSITION]
    lines[DIVERSIFIED] = _top(candidates, -place, ~np.isnan(place))
    return lines


def _top(candidates: Candidates, score: np.ndarray, among: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(among)
    request = candidates.request[rows]
    order = rows[np.lexsort((candidates.item[rows], -score[rows], request))]
    request = candidates.request[order]
    rank = np.arange(len(order)) - np.searchsorted(request, request)
    ranked = np.full((len(candidates.counts), DEPTH), -1, np.int32)
    inside = rank < DEPTH
    ranked[request[inside], rank[inside]] = candidates.item[order[inside]]
    return ranked


def _union_recall(candidates: Candidates, relevant: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Recall [B] of all that was proposed, and of what is left without each source."""
    proposed = candidates.source & ~np.uint32(Sources.BACKFILL)
    recalled = {UNION: proposed}
    for source in Sources:
        if source != Sources.BACKFILL and (proposed & source).any():
            recalled[f"union without {source.label}"] = proposed & ~np.uint32(source)
    found = np.concatenate(
        [
            np.isin(candidates.item[candidates.offsets[r] : candidates.offsets[r + 1]], rows)
            for r, rows in enumerate(relevant)
        ]
    )
    counts = np.array([len(rows) for rows in relevant])
    return {
        name: np.bincount(candidates.request, found & (bits > 0), len(counts)) / counts
        for name, bits in recalled.items()
    }


def _summary(metrics: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for name, values in metrics.items():
        line[name] = float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        line[f"{name}_interval"] = list(bootstrap_interval(values, rng=rng))
    return line
