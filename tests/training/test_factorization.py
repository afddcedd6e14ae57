"""iALS over Ray actors: the same as in one process, also when an actor is killed on the way."""

import os
import signal

import numpy as np
import psutil
import pytest

from recsys.errors import DataError, UnavailableError
from recsys.models.ials import Ials
from recsys.training.factorization import fit_ials
from tests.contracts.retrieval_model import ALL, log_of, pairs, queries_of

SETTINGS = Ials(factors=8, regularization=0.01, epochs=4)


def kill_one_actor() -> None:
    """kill -9 of a worker that holds a block."""
    named = [p for p in psutil.process_iter(["cmdline"]) if "_Block" in " ".join(p.info["cmdline"] or [])]
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


def test_what_cannot_work_is_said_before_it_is_tried(ray_cluster: None) -> None:
    with pytest.raises(UnavailableError, match="999 workers"):
        fit_ials(SETTINGS, log_of(*pairs()), seed=0, workers=999)
    with pytest.raises(DataError):
        fit_ials(SETTINGS, log_of(np.zeros(0, int), np.zeros(0, int)), seed=0, workers=2)
