"""Tuning: the cheapest setting of an index that finds enough of what exact search finds.

Decides on one half of held-out queries and reports the other half, which the choice never saw. A setting
suffices where its recall less one standard error does. All shards get the same setting: they are alike,
since items go to shards by a hash. Time is that of a single query on one thread.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from recsys.errors import RecallError
from recsys.index.dials import Dials, Setting, told

TIMED_QUERIES = 100
SATURATED = 0.999  # of what a shard holds; to look further shows nothing
STEP = 0.0005  # a rung that finds less than that more, though it looks at a fifth more, ends its ladder
SLACK = 64  # ties at the last place that are known as such


@dataclass(frozen=True, slots=True)
class Probe:
    """What one shard found with one setting."""

    setting: Setting
    found: np.ndarray  # int32 [Q]: of the nearest items of each query
    ms: float  # a query


@dataclass(frozen=True, slots=True)
class Point:
    """All shards together, with one setting."""

    setting: Setting
    recall: float  # of the queries by which the setting is chosen
    error: float  # its standard error
    held_out: float  # recall of the other queries
    ms: float  # a query and shard


def nearest_with_ties(rows: np.ndarray, scores: np.ndarray, *, at: int) -> np.ndarray:
    """Of exact neighbors [Q, at + SLACK] those that are as near as the one at place `at`; -1 for others."""
    last = scores[:, min(at, scores.shape[1]) - 1]
    return np.where(scores >= last[:, None], rows, -1)


def probe(
    index: faiss.Index, rows: np.ndarray, *, queries: np.ndarray, nearest: np.ndarray, at: int
) -> list[Probe]:
    """Every setting that is worth a look, on one shard. `rows` int32 [n] of its positions; `nearest` int32
    [Q, ...] item rows of all shards, -1 = none."""
    dials, probes = Dials.of(index), []
    width = max(int(rows.max(initial=-1)), int(nearest.max(initial=-1))) + 3
    query = np.arange(len(queries))[:, None] * width
    wanted = np.sort((query + nearest + 1)[nearest >= 0])  # each (query, row) as one number
    held = np.isin(wanted % width - 1, rows).sum()
    for ladder in dials.ladders(at):
        before = -1.0
        for setting in ladder:
            dials.turn(setting)
            positions = index.search(queries, min(at, max(index.ntotal, 1)))[1]
            pairs = query + np.append(rows, width - 2)[positions] + 1  # -1, which is none, reads the last
            place = np.searchsorted(wanted, pairs)
            found = (np.append(wanted, -1)[place] == pairs).sum(1)
            probes.append(Probe(setting, found, _ms(index, queries, at)))
            share = found.sum() / max(held, 1)
            if share >= SATURATED or share - before < STEP:
                break
            before = share
    return probes


def points(shards: Sequence[Sequence[Probe]], *, nearest: np.ndarray, at: int) -> list[Point]:
    """The shards' probes put together. Where a shard stopped looking, what it found last stands for more."""
    wanted = np.minimum((nearest >= 0).sum(1), at)
    half = max(len(nearest) // 2, 1)  # of a single query both are it
    settings = {tuple(sorted(p.setting.items())): p.setting for shard in shards for p in shard}
    if len(settings) > 1:
        settings.pop((), None)  # that of shards that are exact, whatever the others are turned to
    found_points = []
    for setting in settings.values():
        each = [_as_thorough(shard, setting) for shard in shards]
        got = np.minimum(sum(p.found for p in each), wanted)
        recall = np.where(wanted, got / np.maximum(wanted, 1), 1.0)
        chosen_by, others = recall[:half], recall[half:] if len(recall) > 1 else recall
        error = float(chosen_by.std() / np.sqrt(len(chosen_by))) if len(chosen_by) else 0.0
        ms = float(np.mean([p.ms for p in each]))
        found_points.append(Point(setting, _mean(chosen_by), error, _mean(others), ms))
    return found_points


def choose(found: Sequence[Point], *, recall: float, what: str) -> Point:
    """The fastest point that suffices. Raises RecallError with the best that was found."""
    enough: dict[float | None, Point] = {}  # of each ladder the first: times are noisy, their order is not
    for point in found:
        if point.recall - point.error >= recall:
            enough.setdefault(_others(point.setting), point)
    if enough:
        return min(enough.values(), key=lambda point: point.ms)
    best = max(found, key=lambda point: point.recall - point.error)
    raise RecallError(
        f"{what} reaches a recall of {best.recall:.4f} less an error of {best.error:.4f} at the best "
        f"({told(best.setting)}; {best.ms:.2f} ms a query), not {recall:g}: lower index.recall, or set "
        "index.factory to a type that keeps more of a vector (IVF,SQfp16 or Flat)"
    )


def _mean(recall: np.ndarray) -> float:
    """Of nothing asked, all was found."""
    return float(recall.mean()) if len(recall) else 1.0


def _ms(index: faiss.Index, queries: np.ndarray, at: int) -> float:
    few = queries[:TIMED_QUERIES]
    start = time.perf_counter()
    for query in range(len(few)):
        index.search(few[query : query + 1], at)
    return (time.perf_counter() - start) * 1e3 / max(len(few), 1)


def _as_thorough(shard: Sequence[Probe], setting: Setting) -> Probe:
    """The shard's probe of this setting, or the most thorough one of its ladder, if that ended earlier."""
    same = [p for p in shard if _others(p.setting) == _others(setting)]
    return next((p for p in same if p.setting == setting), (same or shard)[-1])


def _others(setting: Mapping[str, float]) -> float | None:
    """What all settings of a ladder have in common."""
    return setting.get("k_factor")
