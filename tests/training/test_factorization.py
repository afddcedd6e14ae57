"""iALS over Ray actors: the same as in one process, also when an actor is killed on the way."""

import os
import signal

import numpy as np
import psutil
import pytest
import ray

from recsys.errors import DataError, UnavailableError
from recsys.models.factors.ials import Ials
from recsys.training import factorization
from recsys.training.factorization import fit_ials
from tests.contracts.retrieval_model import ALL, log_of, pairs, queries_of

SETTINGS = Ials(factors=8, regularization=0.01, epochs=4)


class Busy:
    def ready(self) -> None: ...


def kill_one_actor() -> None:
    """kill -9 of a worker that holds a block, of our Ray and no other."""
    ours = psutil.Process().children(recursive=True)
    named = [p for p in ours if "_Block" in p.name() or "_Block" in " ".join(p.cmdline())]
    assert named, "no actor is running"
    os.kill(named[0].pid, signal.SIGKILL)


def test_blocks_give_what_one_process_gives_and_survive_a_kill(ray_cluster: None) -> None:
    log = log_of(*pairs())
    alone = SETTINGS.fit(log, seed=3)
    killed = []

    def progress(share: float, doing: str) -> None:
        if share >= 0.5 and not killed:
            killed.append(doing)
            kill_one_actor()

    spread = fit_ials(SETTINGS, log, seed=3, workers=2, progress=progress)
    assert killed == ["epoch 3 of 4"]
    queries = queries_of(log, ALL)
    np.testing.assert_allclose(spread.score(queries), alone.score(queries), atol=1e-4)


def test_more_workers_than_rows_are_no_error(ray_cluster: None) -> None:
    log = log_of(np.array([1, 2]), np.array([5, 5]))
    queries = queries_of(log, ALL[:3])
    spread = fit_ials(SETTINGS, log, seed=0, workers=3)
    np.testing.assert_allclose(spread.score(queries), SETTINGS.fit(log, seed=0).score(queries), atol=1e-4)


def test_workers_without_a_free_cpu_are_told_of(ray_cluster: None, monkeypatch) -> None:
    monkeypatch.setattr(factorization, "PLACE_SECONDS", 2.0)
    busy = ray.remote(num_cpus=1)(Busy)
    held = [busy.remote() for _ in range(3)]
    ray.get([actor.ready.remote() for actor in held])
    try:
        with pytest.raises(UnavailableError, match="no free CPU within 2 s"):
            fit_ials(SETTINGS, log_of(*pairs()), seed=0, workers=4)
    finally:
        for actor in held:
            ray.kill(actor)


def test_what_cannot_work_is_said_before_it_is_tried(ray_cluster: None) -> None:
    with pytest.raises(UnavailableError, match="999 workers"):
        fit_ials(SETTINGS, log_of(*pairs()), seed=0, workers=999)
    with pytest.raises(DataError):
        fit_ials(SETTINGS, log_of(np.zeros(0, int), np.zeros(0, int)), seed=0, workers=2)
