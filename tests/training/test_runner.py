"""Real Ray Train runs on a local Ray of two CPUs; few runs, since each takes seconds to start."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import ray.exceptions
import xgboost
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from recsys.errors import DataError, RecsysError, UnavailableError
from recsys.features.text import hash_tokens
from recsys.interactions import Interactions
from recsys.models.two_tower.module import TwoTowerSettings
from recsys.training import runner
from recsys.training.distributed import _two_tower_loop, train_two_tower_parallel
from recsys.training.ranker import RankingRows
from recsys.training.two_tower import TwoTowerTraining, train_two_tower
from recsys.types import DAY, Histories, offsets_of

pytestmark = pytest.mark.usefixtures("workers_get_this_module_by_value")


def die_once(marker: str) -> None:
    """kill -9 of this worker, the first time that anybody comes here."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def sums_across_ranks(data: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    import torch
    from torch import distributed

    for number in range(len(done), 3):
        if number == 2 and distributed.get_rank() == 1:
            time.sleep(0.5)  # else the controller may not have seen the second snapshot yet
            die_once(data["marker"])
        total = torch.tensor([float(distributed.get_rank() + 1)])
        distributed.all_reduce(total)
        yield {
            "number": np.int64(number),
            "total": total.numpy() + data["numbers"][number],
            "began_with": np.int64(len(done)),
            "threads": np.int64(torch.get_num_threads()),
        }


def test_a_killed_worker_costs_the_work_since_the_last_snapshot(ray_cluster: None, tmp_path: Path) -> None:
    data = {"numbers": np.array([10.0, 20.0, 30.0], np.float32), "marker": str(tmp_path / "died")}
    snapshots = runner.train_data_parallel(
        sums_across_ranks, data=data, workers=2, storage=str(tmp_path / "store"), name="sums"
    )
    assert (tmp_path / "died").exists()
    assert [int(s["number"]) for s in snapshots] == [0, 1, 2]
    assert [float(s["total"][0]) for s in snapshots] == [13, 23, 33]
    assert [int(s["began_with"]) for s in snapshots] == [0, 0, 2]  # resumed, not repeated
    assert {int(s["threads"]) for s in snapshots} == {1}
    assert list((tmp_path / "store").iterdir()) == []
    assert not [key for key in os.environ if key.startswith("RAY_TRAIN_")]


def raises(data: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    raise data["error"]
    yield {}


def test_an_error_of_the_loop_is_one_line(ray_cluster: None, tmp_path: Path) -> None:
    data = {"error": ZeroDivisionError("by zero\nand more")}
    expected = r"^training 'theirs' failed on worker 0: ZeroDivisionError: by zero$"
    with pytest.raises(RecsysError, match=expected):
        runner.train_data_parallel(
            raises, data=data, workers=1, storage=str(tmp_path), name="theirs", retries=0
        )


def test_the_first_cause_is_named() -> None:
    """The rank that lost its peer fails too, and often first: it isn't the one to name."""
    peer = UserExceptionWithTraceback(RuntimeError("Connection reset by peer"), "traceback")
    ours = UserExceptionWithTraceback(DataError("no orders; load some"), "traceback")
    gone = WorkerHealthCheckFailedError("rank 1", ray.exceptions.OutOfMemoryError("out of memory"))

    def translated(failures: dict[int, Exception]) -> RecsysError:
        return runner._in_our_words(WorkerGroupError("failed", failures), name="tower", workers=2)

    assert type(translated({0: peer, 1: ours})) is DataError
    assert str(translated({0: peer, 1: ours})) == "no orders; load some"
    assert type(translated({0: peer, 1: gone})) is UnavailableError
    assert str(translated({0: peer, 1: gone})).startswith("training 'tower' lost worker 1 of 2 too often: ")


def test_more_workers_than_cpus_is_refused_at_once(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="needs 64 CPUs, Ray has 4; set fewer workers"):
        runner.train_data_parallel(raises, data={}, workers=64, storage=str(tmp_path), name="many")


@pytest.mark.parametrize(
    ("resources", "workers", "expected"),
    [({"CPU": 8}, 1, False), ({"CPU": 8, "GPU": 1.0}, 2, False), ({"CPU": 8, "GPU": 2.0}, 2, True)],
)
def test_workers_get_a_gpu_each_or_none_gets_one(
    resources: dict[str, float], workers: int, expected: bool
) -> None:
    assert runner.gpu_for_each(resources, workers=workers) is expected


def two_tower_arguments() -> dict[str, Any]:
    """Thirty users who buy one of twelve items a day for twenty days."""
    rng = np.random.default_rng(0)
    users, days, items = 30, 20, 12
    count = users * days
    histories = Histories(
        offsets_of(np.full(users, days)),
        rng.integers(0, items, count).astype(np.int32),
        np.tile(np.arange(days) * DAY + 1_300_000_000, users),
        np.ones(count, np.float32),
        np.ones(count, np.float32),
        np.arange(count),
    )
    return {
        "interactions": Interactions(np.arange(users).astype(str).astype(object), histories, items),
        "tokens": hash_tokens([f"thing {i % 3}" for i in range(items)], buckets=64),
        "category": (np.arange(items) % 3).astype(np.int32),
        "cutoffs": [1_300_000_000 + 10 * DAY, 1_300_000_000 + 20 * DAY],
        "sizes": [items, items],
        "settings": TwoTowerTraining(
            model=TwoTowerSettings(dimensions=8, token_buckets=64), batch=16, steps=5, steps_more=3
        ),
        "seed": 1,
    }


def test_the_two_tower_on_ray_is_the_two_tower(ray_cluster: None, tmp_path: Path) -> None:
    arguments = two_tower_arguments()
    log = arguments.pop("interactions")
    alone = list(train_two_tower(log, **arguments))
    on_ray = train_two_tower_parallel(log, workers=1, storage=str(tmp_path), name="tower", **arguments)
    assert [s.cutoff for s in on_ray] == arguments["cutoffs"]
    for ours, theirs in zip(on_ray, alone, strict=True):
        np.testing.assert_allclose(ours.item_vectors, theirs.item_vectors, atol=1e-5)
        assert ours.encoder.keys() == theirs.encoder.keys()
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-4)


def test_a_resumed_two_tower_yields_only_what_is_missing() -> None:
    data = two_tower_arguments()
    whole = list(_two_tower_loop(data, ()))
    (rest,) = _two_tower_loop(data, whole[:1])
    np.testing.assert_array_equal(rest["item_vectors"], whole[1]["item_vectors"])
    assert list(_two_tower_loop(data, whole)) == []


def synthetic_rows(requests: int, seed: int) -> RankingRows:
    """Requests of 5 to 40 candidates; the best two by a hidden nonlinear score are relevant."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 41, requests)
    features = rng.normal(size=(counts.sum(), 8)).astype(np.float32)
    score = features[:, 0] + np.abs(features[:, 1]) + 0.5 * features[:, 2] * features[:, 3]
    score = score + rng.normal(scale=0.3, size=len(score))
    offsets = offsets_of(counts)
    request = np.repeat(np.arange(requests), counts)
    order = np.lexsort((-score, request))
    label = np.zeros(len(score), np.float32)
    label[order[np.arange(len(order)) - offsets[request] < 2]] = 1
    return RankingRows(offsets, features, label)


def booster_of(rows: RankingRows, *, marker: str | None = None) -> xgboost.Booster:
    if marker and xgboost.collective.get_rank() == 1:
        die_once(marker)
    matrix = xgboost.QuantileDMatrix(
        rows.features, label=rows.label, qid=np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    )
    settings = {"objective": "rank:ndcg", "eta": 0.2, "max_depth": 4, "nthread": 1, "tree_method": "hist"}
    return xgboost.train(settings, matrix, num_boost_round=30)


def precision_at_2(booster: bytes | xgboost.Booster, rows: RankingRows) -> float:
    model = (
        booster if isinstance(booster, xgboost.Booster) else xgboost.Booster(model_file=bytearray(booster))
    )
    score = model.inplace_predict(rows.features)
    request = np.repeat(np.arange(len(rows)), np.diff(rows.offsets))
    order = np.lexsort((-score, request))
    top = order[np.arange(len(order)) - rows.offsets[request] < 2]
    return float(rows.label[top].mean())


def test_two_workers_rank_as_well_as_one_and_survive_a_kill(ray_cluster: None, tmp_path: Path) -> None:
    rows = {"home": synthetic_rows(100, seed=1), "cart": synthetic_rows(60, seed=1)}
    test = synthetic_rows(600, seed=3)
    boosters = runner.train_xgboost(
        partial(booster_of, marker=str(tmp_path / "died")),
        rows=rows,
        workers=2,
        storage=str(tmp_path / "store"),
        name="rankers",
    )
    assert (tmp_path / "died").exists()
    assert list(boosters) == ["home", "cart"]
    for scene, booster in boosters.items():
        alone = precision_at_2(booster_of(rows[scene]), test)
        half = precision_at_2(booster_of(runner.share_of_requests(rows[scene], rank=0, ranks=2)), test)
        together = precision_at_2(xgboost.Booster(model_file=bytearray(booster)), test)
        assert together > alone - 0.02
        assert half < alone - 0.02  # the comparison can tell: half of the rows is worse


def test_a_share_is_whole_requests_and_all_shares_are_the_rows() -> None:
    rows = synthetic_rows(7, seed=4)
    for ranks in (1, 2, 3, 7):
        shares = [runner.share_of_requests(rows, rank=r, ranks=ranks) for r in range(ranks)]
        joined = RankingRows.concatenate(shares)
        np.testing.assert_array_equal(joined.offsets, rows.offsets)
        np.testing.assert_array_equal(joined.features, rows.features)
        np.testing.assert_array_equal(joined.label, rows.label)
        assert min(len(s) for s in shares) >= 1
        assert all(np.shares_memory(s.features, rows.features) for s in shares)


def test_a_huge_first_request_leaves_every_rank_some() -> None:
    counts = np.array([1000, 1, 1])
    rows = RankingRows(
        offsets_of(counts), np.zeros((counts.sum(), 1), np.float32), np.zeros(counts.sum(), np.float32)
    )
    assert [len(runner.share_of_requests(rows, rank=r, ranks=3)) for r in range(3)] == [1, 1, 1]


def test_no_rows_no_boosters() -> None:
    assert runner.train_xgboost(booster_of, rows={}, workers=2, storage="/nowhere", name="none") == {}
