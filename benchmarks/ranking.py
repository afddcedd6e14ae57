"""Full ranking and metrics beside `ranx`, on the same scores and threads; a part of benchmarks/training.py.

Decides what is compared. ranx ranks what it is handed as dictionaries, which no machine holds for all
scores of all users; so the best route to it that we know is timed: training items masked and the best 20
cut by torch.topk, then ranx on arrays. What it takes when it ranks all scores itself is told from a few
users. The making of the scores is in no time; it stands in a row of its own.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import ranx
import torch

from recsys.datasets.problem import Judged, Problem
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import Queries
from recsys.models.factors.ials import Ials

METRICS = {"recall": "recall", "ndcg": "ndcg", "mrr": "mrr", "hr": "hit_rate", "precision": "precision"}
K = 20
USERS_AT_ONCE = 3000  # whose scores are held
FEW = 200  # users whose scores ranx ranks itself


@dataclass
class Ready:
    """Scores that are there already, in the order of the queries."""

    scores: np.ndarray
    given: int = 0

    def score(self, queries: Queries) -> np.ndarray:
        self.given += len(queries)
        return self.scores[self.given - len(queries) : self.given]


class Clock(dict[str, float]):
    @contextmanager
    def of(self, what: str):
        start = time.perf_counter()
        yield
        self[what] = self.get(what, 0.0) + time.perf_counter() - start


def wanted_arrays(judged: Judged) -> np.ndarray:
    """What ranx calls qrels: item and relevance, float64 [B, most targets, 2]; padded by items of -2."""
    counts = judged.target_counts
    wanted = np.full((len(judged), counts.max(), 2), -2.0)
    owner = np.repeat(np.arange(len(judged)), counts)
    place = np.arange(len(owner)) - np.repeat(judged.target_offsets[:-1], counts)
    wanted[owner, place, 0], wanted[owner, place, 1] = judged.target, 1
    return wanted


def by_ranx_arrays(items: np.ndarray, scores: np.ndarray, judged: Judged) -> dict[str, float]:
    """Metrics of the best items [B, K] with their scores, best first; without Python's dictionaries."""
    run = np.stack([items, scores], axis=2).astype(np.float64)
    return ranx.evaluate(wanted_arrays(judged), run, [f"{name}@{K}" for name in METRICS.values()])


def by_ranx_dictionaries(items: np.ndarray, scores: np.ndarray, judged: Judged) -> dict[str, float]:
    """The same as ranx's manual has it: a dictionary of each query. It ranks the items itself."""
    names = [f"{b:06d}" for b in range(len(judged))]
    wanted = {
        name: {str(i): 1 for i in judged.target[start:end].tolist()}
        for name, start, end in zip(names, judged.target_offsets[:-1], judged.target_offsets[1:])
    }
    best = zip(names, items.tolist(), scores.tolist())
    run = {name: dict(zip(map(str, row), values)) for name, row, values in best}
    return ranx.evaluate(ranx.Qrels(wanted), ranx.Run(run), [f"{name}@{K}" for name in METRICS.values()])


def compare_ranking(
    problem: Problem, add: Callable[[str, float, str], None], ratios: dict[str, float]
) -> None:
    """Adds a row for each, and the ratios. Raises AssertionError where the metrics differ."""
    judged, items = problem.test, problem.train.items
    fitted = Ials(factors=64, regularization=0.01, epochs=2).fit(problem.train, seed=0)
    first = judged.take(np.arange(20))
    some = fitted.score(first.queries)[:, :K]
    by_ranx_arrays(np.argsort(-some, axis=1), -np.sort(-some, axis=1), first)  # compiles
    by_ranx_dictionaries(np.argsort(-some, axis=1), -np.sort(-some, axis=1), first)
    clock = Clock()
    ranked, best, best_scores = [], [], []
    for start in range(0, len(judged), USERS_AT_ONCE):
        part = judged.take(np.arange(start, min(start + USERS_AT_ONCE, len(judged))))
        with clock.of("scores"):
            scores = fitted.score(part.queries)
        copy = scores.copy()
        with clock.of("ours"):
            ranked.append(rank_all(Ready(scores), part, items=items, depth=K))
        with clock.of("topk"):
            request = np.repeat(np.arange(len(part)), np.diff(part.masked_offsets))
            copy[request, part.masked] = -np.inf
            values, places = torch.topk(torch.from_numpy(copy), K, dim=1)
        best.append(places.numpy()), best_scores.append(values.numpy())
        if start == 0:
            few = part.take(np.arange(min(FEW, len(part))))
            every = np.broadcast_to(np.arange(items), copy[: len(few)].shape)
            with clock.of("dense"):
                by_ranx_dictionaries(every, copy[: len(few)], few)
    with clock.of("our metrics"):
        found = measure(np.concatenate(ranked), judged, metrics=tuple(METRICS), at=(K,))
        ours = {METRICS[name.partition("@")[0]] + f"@{K}": float(np.nanmean(v)) for name, v in found.items()}
    cut = np.concatenate(best), np.concatenate(best_scores)
    with clock.of("ranx arrays"):
        theirs = by_ranx_arrays(*cut, judged)
    with clock.of("ranx dictionaries"):
        again = by_ranx_dictionaries(*cut, judged)
    places = np.broadcast_to(np.arange(K, 0, -1), cut[0].shape)
    same = by_ranx_arrays(np.concatenate(ranked), places, judged)  # of our ranking
    for name, value in ours.items():
        assert abs(value - same[name]) < 1e-9, (name, value, same[name])
        for found_there in (theirs, again):  # of torch's, which breaks ties its own way
            assert abs(value - found_there[name]) < 1e-3, (name, value, found_there[name])
    size = f"{len(judged):,} users x {items:,} items"
    clock["dense"] *= len(judged) / min(FEW, len(judged))
    whole, best_of_them = clock["ours"] + clock["our metrics"], clock["topk"] + clock["ranx arrays"]
    add(f"{size}: ours, ranking and five metrics", whole, f"of it the metrics {clock['our metrics']:.2f} s")
    add(
        "the same by torch.topk and ranx on arrays",
        best_of_them,
        f"of it ranx {clock['ranx arrays']:.2f} s; on one ranking the same metrics, "
        + ", ".join(f"{n} {v:.4f}" for n, v in ours.items()),
    )
    add("the same by torch.topk and ranx on dictionaries", clock["topk"] + clock["ranx dictionaries"], "")
    add("ranx on all scores, as dictionaries", clock["dense"], f"told from {FEW} users")
    add("making the scores, for all of these", clock["scores"], "64 factors, with the users' fold-in")
    ratios["evaluation_vs_ranx"] = best_of_them / whole
    ratios["evaluation_vs_ranx_dictionaries"] = (clock["topk"] + clock["ranx dictionaries"]) / whole
    ratios["evaluation_vs_ranx_alone"] = clock["dense"] / whole
    ratios["metrics_vs_ranx"] = clock["ranx arrays"] / clock["our metrics"]
