"""A fit of the loop's models on Ray Train: the same as alone, also when a worker is killed on the way."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import distributed

from recsys.interactions import Interactions
from recsys.models.two_tower.fitted import FittedTwoTower
from recsys.training.distributed import _epochs, fit_parallel
from recsys.training.driver import fingerprint
from recsys.training.loop import best_of, restore
from recsys.training.two_tower_model import TwoTowerModel
from tests.contracts.retrieval_model import log_of, pairs

MODEL = TwoTowerModel(
    dimensions=16, uniform=64, batch=32, passes=20, epochs=3, token_buckets=8, attribute_buckets=8
)


pytestmark = pytest.mark.usefixtures("workers_get_this_module_by_value", "one_thread")


class Task:
    """The model's, but rank 1 is killed (kill -9) at the start of its second epoch, once."""

    def __init__(self, task: Any, died: Path):
        self.task, self.died = task, died

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def begin(self, epoch: int, rng: np.random.Generator) -> int:
        if epoch == 1 and distributed.get_rank() == 1 and not self.died.exists():
            time.sleep(0.5)  # else the controller may not have seen the first checkpoint yet
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (self.died.parent / f"epochs-{distributed.get_rank()}").open("a") as file:
            file.write(f"{epoch}")
        return self.task.begin(epoch, rng)


class Mortal:
    def __init__(self, model: TwoTowerModel, died: Path):
        self.model, self.died = model, died

    def task(self, data: Interactions, **given: Any) -> Any:
        return Task(self.model.task(data, **given), self.died)

    def finish(self, task: Any) -> FittedTwoTower:
        return self.model.finish(task.task)


def assert_alike(one: FittedTwoTower, other: FittedTwoTower) -> None:
    theirs = other.arrays()
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, theirs[name], atol=1e-6, err_msg=name)


def test_one_worker_gives_what_the_model_gives(ray_cluster: None, tmp_path: Path) -> None:
    log = log_of(*pairs())
    start = MODEL.fit(log, seed=1).arrays()
    given = {"workers": 1, "storage": str(tmp_path), "name": "warm"}
    assert_alike(fit_parallel(MODEL, log, seed=2, start=start, **given), MODEL.fit(log, seed=2, start=start))


def test_what_is_restored_needs_no_start_of_its_own() -> None:
    """The driver computed the singular vectors once more, only to overwrite them."""
    data = {"model": MODEL, "interactions": log_of(*pairs()), "seed": 2, "start": None}
    checkpoints = list(_epochs(data, ()))
    task = MODEL.task(data["interactions"], seed=2, blank=True)
    restore(task.module, best_of(checkpoints[-1]))
    assert_alike(MODEL.finish(task), MODEL.fit(data["interactions"], seed=2))
    (last,) = _epochs(data, checkpoints[:2])
    for name, array in checkpoints[-1].items():
        np.testing.assert_array_equal(last[name], array, err_msg=name)


def test_only_the_same_arguments_go_on_where_a_lost_driver_was() -> None:
    """A run is found again by its name, and that was the model's alone: the fit of a new log could have
    been the old one's."""
    log = log_of(*pairs())
    given = {"model": MODEL, "interactions": log, "seed": 2, "start": None}
    others = [
        {"model": replace(MODEL, learning_rate=0.1)},
        {"interactions": log.where(np.arange(len(log)) > 0)},
        {"interactions": replace(log, weight=np.ones(len(log), np.float32))},
        {"interactions": replace(log, user_ids=np.roll(log.user_ids, 1))},
        {"interactions": replace(log, user_tokens=None)},
        {"seed": 3},
        {"start": {"items": np.zeros(3)}},
        {"start": {"items": np.zeros((3, 1))}},
    ]
    digests = [fingerprint(given | other) for other in [{}, *others]]
    assert len(set(digests)) == len(digests)
    assert fingerprint(given | {"interactions": log_of(*pairs())}) == digests[0]


def test_a_fit_whose_worker_is_killed_ends_as_one_that_was_not(ray_cluster: None, tmp_path: Path) -> None:
    log = log_of(*pairs())
    given = {"seed": 2, "workers": 2, "storage": str(tmp_path / "store")}
    whole = fit_parallel(MODEL, log, name="whole", **given)
    mortal = fit_parallel(Mortal(MODEL, tmp_path / "died"), log, name="mortal", **given)
    assert (tmp_path / "died").exists()
    assert (tmp_path / "epochs-1").read_text() == "012"  # none twice: it went on from the checkpoint
    assert_alike(mortal, whole)
