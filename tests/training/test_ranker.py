"""Training of the ranker: which rows are kept, what is refused, alone and in a communicator."""

import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.cross import FEATURES
from recsys.models.ranker import Ranker, RankerSettings, RankingRows
from recsys.training.ranker import rows_to_keep, train_ranker
from recsys.types import offsets_of

SMALL = RankerSettings(rounds=20, max_depth=3, min_child_weight=1)


def rows(seed: int = 0, requests: int = 60) -> RankingRows:
    """Column 0 decides what is bought, up to noise; the rest is noise with holes."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 20, requests)
    features = rng.normal(size=(counts.sum(), len(FEATURES))).astype(np.float32)
    features[rng.random(features.shape) < 0.2] = np.nan
    label = (np.nan_to_num(features[:, 0]) + rng.normal(size=len(features)) * 0.3 > 1).astype(np.float32)
    return RankingRows(offsets_of(counts), features, label)


@given(st.integers(0, 500), st.integers(0, 5))
@settings(deadline=None)
def test_all_positives_and_a_few_negatives_are_kept(seed, negatives):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, 6)
    label = (rng.random(counts.sum()) < 0.3).astype(np.float32)
    offsets = offsets_of(counts)
    kept = rows_to_keep(offsets, label, negatives=negatives, seed=seed)
    assert (np.diff(kept) > 0).all()
    for start, end in itertools.pairwise(offsets):
        positives = int(label[start:end].sum())
        mine = kept[(kept >= start) & (kept < end)]
        if positives == 0:
            assert len(mine) == 0
            continue
        assert label[mine].sum() == positives
        assert len(mine) == positives + min(negatives, end - start - positives)


@pytest.mark.parametrize("objective", ["rank:ndcg", "binary:logistic"])
def test_the_booster_orders_positives_first(objective):
    booster = train_ranker(
        rows(), settings=RankerSettings(objective=objective, rounds=20, max_depth=3), seed=1
    )
    held_out = rows(seed=1)
    scores = Ranker(booster).score(held_out.features)
    positive = held_out.label > 0
    assert (scores[positive][:, None] > scores[~positive]).mean() > 0.8


def test_the_same_seed_gives_the_same_booster():
    first, second = (train_ranker(rows(), settings=SMALL, seed=3) for _ in range(2))
    assert first.save_raw("json") == second.save_raw("json")


def test_nothing_to_order_is_refused():
    one = rows(requests=3)
    for label in (np.zeros(len(one.label)), np.ones(len(one.label))):
        with pytest.raises(ValueError, match="3 requests"):
            train_ranker(
                RankingRows(one.offsets, one.features, label.astype(np.float32)), settings=SMALL, seed=1
            )
    with pytest.raises(ValueError, match="0 requests"):
        train_ranker(one.take(np.zeros(0, int)), settings=SMALL, seed=1)


def test_taking_requests_keeps_their_rows_together():
    every = rows()
    part = every.take(np.array([5, 2]))
    expected = np.r_[every.offsets[5] : every.offsets[6], every.offsets[2] : every.offsets[3]]
    np.testing.assert_array_equal(part.label, every.label[expected])
    joined = RankingRows.concatenate([every.take(np.arange(30)), every.take(np.arange(30, 60))])
    np.testing.assert_array_equal(joined.offsets, every.offsets)
    np.testing.assert_array_equal(joined.features, every.features)


def _worker(rank: int, port: int, folder: str) -> None:
    arguments = {
        "dmlc_communicator": "rabit",
        "dmlc_tracker_uri": "127.0.0.1",
        "dmlc_tracker_port": port,
        "dmlc_task_id": str(rank),
    }
    with xgboost.collective.CommunicatorContext(**arguments):
        mine = rows().take(np.arange(rank, 60, 2))
        train_ranker(mine, settings=SMALL, seed=1).save_model(Path(folder) / f"{rank}.json")


def test_two_workers_build_one_booster(tmp_path):
    tracker = xgboost.tracker.RabitTracker(n_workers=2, host_ip="127.0.0.1")
    tracker.start()
    port = tracker.worker_args()["dmlc_tracker_port"]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    first, second = (xgboost.Booster(model_file=tmp_path / f"{rank}.json") for rank in range(2))
    held_out = rows(seed=1)
    scores = Ranker(first).score(held_out.features)
    np.testing.assert_array_equal(scores, Ranker(second).score(held_out.features))
    positive = held_out.label > 0
    assert (scores[positive][:, None] > scores[~positive]).mean() > 0.8
