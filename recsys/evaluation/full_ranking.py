"""Full ranking: every item scored for every query, in blocks, and the best few kept.

Decides ties: among equal scores the order is a seeded shuffle of the items, the same for all models,
so that neither the order in which a file names its items nor the model's favor decides. What is
masked or has no score takes no place. Metrics are `recsys.metrics`'.
"""

from collections.abc import Callable

import numpy as np
import torch

from recsys.datasets.problem import Judged
from recsys.metrics import hits, hr_at, mrr_at, ndcg_at, precision_at, recall_at
from recsys.models.retrieval import Fitted

BLOCK_MB = 256.0  # of scores held at once
METRICS = {"recall": recall_at, "ndcg": ndcg_at, "mrr": mrr_at, "hr": hr_at, "precision": precision_at}


def rank_all(
    fitted: Fitted,
    judged: Judged,
    *,
    items: int,
    depth: int,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """The `depth` best items of each query, best first, int32 [B, depth]; -1 = nothing left to rank."""
    shuffled = np.random.default_rng(seed).permutation(items)
    size = max(1, int(BLOCK_MB * 1e6 / 4 / max(items, 1)))
    ranked = np.full((len(judged), depth), -1, np.int32)
    for start in range(0, len(judged), size):
        block = np.arange(start, min(start + size, len(judged)))
        part = judged.take(block)
        scores = fitted.score(part.queries)
        request = np.repeat(np.arange(len(part)), np.diff(part.masked_offsets))
        scores[request, part.masked] = -np.inf
        ranked[block] = top_k(scores, k=depth, tie_order=shuffled)
        progress((start + len(block)) / len(judged))
    return ranked


def top_k(scores: np.ndarray, *, k: int, tie_order: np.ndarray) -> np.ndarray:
    """The k best columns of each row of float32 [B, V], best first, int32 [B, k]; -1 beyond those with a
    finite score. Equal scores are ordered by `tie_order` int [V], ascending. NaN counts as no score."""
    ranked = np.full((len(scores), k), -1, np.int32)
    k = min(k, scores.shape[1])
    if not k:
        return ranked
    given = torch.from_numpy(scores)
    if torch.isnan(given.sum()):  # of -inf and finite numbers alone the sum is no NaN
        given = torch.nan_to_num(given, nan=-torch.inf, neginf=-torch.inf, posinf=torch.inf)
    values, items = (t.numpy() for t in torch.topk(given, k, dim=1))
    border = values[:, -1:]
    tied = (given >= torch.from_numpy(border)).sum(1).numpy() > k
    tied &= border[:, 0] > -np.inf
    order = np.lexsort((tie_order[items], -values), axis=-1)
    items, values = np.take_along_axis(items, order, 1), np.take_along_axis(values, order, 1)
    ranked[:, :k] = np.where(values > -np.inf, items, -1)
    for row in np.flatnonzero(tied):
        candidates = np.flatnonzero(scores[row] >= border[row, 0])
        best = np.lexsort((tie_order[candidates], -scores[row, candidates]))[:k]
        ranked[row, :k] = candidates[best]
    return ranked


def top_k_slowly(scores: np.ndarray, *, k: int, tie_order: np.ndarray) -> np.ndarray:
    """`top_k` by its definition. For tests."""
    ranked = np.full((len(scores), k), -1, np.int32)
    for row, values in enumerate(scores):
        usable = [i for i in range(len(values)) if values[i] > -np.inf]
        best = sorted(usable, key=lambda i: (-values[i], tie_order[i]))[:k]
        ranked[row, : len(best)] = best
    return ranked


def measure(ranked: np.ndarray, judged: Judged, *, metrics: tuple[str, ...], at: tuple[int, ...]) -> dict:
    """Each metric of each query, name@k -> float64 [B]; NaN for a query without a target."""
    hit = hits(ranked, judged.target_offsets, judged.target)
    counts = judged.target_counts
    return {f"{name}@{k}": METRICS[name](hit, counts, k) for k in at for name in metrics}
