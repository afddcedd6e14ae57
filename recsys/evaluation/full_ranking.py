"""Full ranking: every item scored for every query, in blocks, and the best few kept.

Decides ties: among equal scores the order is a seeded shuffle of the items, the same for all models,
so that neither the order in which a file names its items nor the model's favor decides. What is
masked or has no score takes no place. Metrics are `recsys.metrics`'.
"""

from collections.abc import Callable

import numpy as np

from recsys.datasets.problem import Judged
from recsys.errors import SettingsError
from recsys.metrics import hits, hr_at, mrr_at, ndcg_at, precision_at, recall_at
from recsys.models.held_out import score_blocks
from recsys.models.retrieval import Fitted
from recsys.models.top_k import top_k

# "p" is what session papers call P@k: whether the one item that followed is in the top k.
METRICS = {
    "recall": recall_at,
    "ndcg": ndcg_at,
    "mrr": mrr_at,
    "hr": hr_at,
    "p": hr_at,
    "precision": precision_at,
}


def rank_all(
    fitted: Fitted,
    judged: Judged,
    *,
    items: int,
    depth: int,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> np.ndarray:
    """The `depth` best items of each query, best first, int32 [B, depth]; -1 = nothing left to rank.

    Raises SettingsError for the scores of a fit that diverged; one query tells, since it spoils all.
    """
    shuffled = np.random.default_rng(seed).permutation(items)
    ranked = np.full((len(judged), depth), -1, np.int32)
    first = fitted.score(judged.take(np.arange(min(1, len(judged)))).queries)
    if len(judged) and (np.isnan(first).any() or np.isneginf(first).all()):
        raise SettingsError(
            "the model has no scores: its fit diverged or overflowed; set what was changed nearer to the "
            "defaults, or lower its learning_rate"
        )
    for rows, _, scores in score_blocks(fitted, judged, items=items):
        ranked[rows] = top_k(scores, k=depth, tie_order=shuffled)
        progress((1 + rows[-1]) / len(judged))
    return ranked


def measure(ranked: np.ndarray, judged: Judged, *, metrics: tuple[str, ...], at: tuple[int, ...]) -> dict:
    """Each metric of each query, name@k -> float64 [B]; NaN for a query without a target."""
    hit = hits(ranked, judged.target_offsets, judged.target)
    counts = judged.target_counts
    return {f"{name}@{k}": METRICS[name](hit, counts, k) for k in at for name in metrics}
