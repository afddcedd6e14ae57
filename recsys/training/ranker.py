"""Training of the ranker: labeled candidates of past slices -> a booster.

Decides which negatives are kept. Rows come in groups, one for each request, all candidates of a
request together. Plain xgboost: inside an initialized xgboost collective communicator each worker
passes its own requests and all get the same booster. Neither Ray nor how the candidates were made is
known here.
"""

from collections.abc import Sequence

import numpy as np
import xgboost

from recsys.features.cross import FEATURES
from recsys.models.ranker import RankerSettings, RankingRows


def rows_to_keep(offsets: np.ndarray, label: np.ndarray, *, negatives: int, seed: int) -> np.ndarray:
    """Rows that training needs, ascending int64: all positives and at most `negatives` random others of
    each request; nothing of a request without a positive (it orders nothing).

    To be applied before the features of the rows are kept: it bounds memory. Ranks in the features
    were taken among all candidates, so the sample shifts no feature.
    """
    counts = np.diff(offsets)
    request = np.repeat(np.arange(len(counts)), counts)
    positive = label > 0
    chance = np.random.default_rng(seed).random(len(label))
    order = np.lexsort((chance, ~positive, request))
    position = np.arange(len(order)) - offsets[request[order]]
    found = np.bincount(request, positive, len(counts)).astype(np.int64)[request[order]]
    return np.sort(order[(found > 0) & (position < found + negatives)])


def train_ranker(
    rows: RankingRows,
    *,
    settings: RankerSettings,
    seed: int,
    threads: int = 1,
    callbacks: Sequence[xgboost.callback.TrainingCallback] = (),
) -> xgboost.Booster:
    """A booster that orders the candidates of a request, positives first.

    Raises ValueError when no request has both a positive and a negative candidate.
    """
    matrix = ranking_matrix(rows, settings=settings, threads=threads)
    return xgboost.train(
        settings.parameters(seed=seed, threads=threads),
        matrix,
        num_boost_round=settings.rounds,
        callbacks=list(callbacks),
    )


def ranking_matrix(rows: RankingRows, *, settings: RankerSettings, threads: int = 1) -> xgboost.DMatrix:
    """The binned training matrix, with one query id for each request."""
    counts = np.diff(rows.offsets)
    positives = (
        np.add.reduceat(np.append(rows.label, 0), rows.offsets[:-1]) * (counts > 0) if len(counts) else counts
    )
    if not np.any((positives > 0) & (positives < counts)):
        raise ValueError(
            f"nothing to learn an order from: none of {len(counts)} requests has a positive and a "
            "negative candidate"
        )
    names = list(FEATURES) if rows.features.shape[1] == len(FEATURES) else None
    return xgboost.QuantileDMatrix(
        rows.features,
        label=rows.label,
        qid=np.repeat(np.arange(len(counts)), counts),
        feature_names=names,
        max_bin=settings.max_bin,
        missing=np.nan,
        nthread=threads,
    )
