"""The nearest items by looking at all of them: what recall is measured against.

A stream of blocks, so that no more than one stands in memory, on a CPU by FAISS's own matrix product or
on a GPU by torch's. Equal scores are ordered by item row.
"""

from collections.abc import Iterable

import faiss
import numpy as np

from recsys.index.vectors import Block


def exact_neighbors(
    blocks: Iterable[Block], queries: np.ndarray, *, k: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of float32 [B, D] queries by inner product: item rows int32 [B, k] and scores float32
    [B, k], best first; -1 and -inf where there are fewer."""
    search = _by_torch if device == "cuda" else _by_faiss
    rows = np.full((len(queries), k), -1, np.int32)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for own, vectors in blocks:
        if len(own) and len(queries):
            score, position = search(queries, vectors, min(k, len(own)))
            rows = np.concatenate([rows, own[position]], axis=1)
            scores = np.concatenate([scores, score], axis=1)
            rows, scores = best_of(rows, scores, k=k)
    return rows, scores


def best_of(rows: np.ndarray, scores: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line of rows and scores [B, S], best first, ties to the lower row; -1 last."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _by_faiss(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found: tuple[np.ndarray, np.ndarray] = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return found


def _by_torch(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    asked, items = (torch.from_numpy(a).to("cuda") for a in (queries, vectors))
    best = torch.topk(asked @ items.T, k, dim=1)
    return best.values.cpu().numpy(), best.indices.cpu().numpy()
