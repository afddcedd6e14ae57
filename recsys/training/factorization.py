"""iALS over the actors of a Ray cluster; this file imports ray.

Decides how the steps of an epoch are spread: each actor owns a block of the users' rows and one of the
items', about as much work each. The side that is held fixed travels through the object store, once for
each node; the driver puts the blocks' vectors together. A block's vectors follow from what it is given,
so a lost actor is started anew by Ray with its rows, and its step is done again. The caller has called
`ray.init`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.exceptions
from scipy import sparse

from recsys.errors import UnavailableError
from recsys.interactions import Interactions
from recsys.models.factors.ials import Half, Ials, IalsFitted, Table
from recsys.models.factors.weighted_ridge import Side, row_work, solve_rows
from recsys.models.retrieval import Progress, silent
from recsys.models.threads import even_cuts

RESTARTS = 3  # of each actor, and of each of its steps
PLACE_SECONDS = 60.0  # that the actors may wait for free CPUs


def fit_ials(
    model: Ials, data: Interactions, *, seed: int, workers: int, progress: Progress = silent
) -> IalsFitted:
    """`model.fit` with each step of an epoch spread over `workers` actors of a CPU each: the same to 1e-4.

    Raises DataError without an event of positive weight, UnavailableError when the cluster has fewer CPUs
    than `workers`, when they are not free within PLACE_SECONDS, or when an actor was lost more than
    RESTARTS times.
    """
    cpus = ray.cluster_resources().get("CPU", 0)
    if workers > cpus:
        raise UnavailableError(f"{workers} workers asked for and the cluster has {cpus:g} CPUs: take fewer")
    spread = _Spread(workers)
    try:
        return model.fit(data, seed=seed, progress=progress, halves=spread)
    except ray.exceptions.RayActorError as error:
        raise UnavailableError(
            f"iALS lost one of {workers} workers more than {RESTARTS} times ({str(error).splitlines()[0]}); "
            "look at the nodes' memory"
        ) from error
    finally:
        spread.stop()


class _Spread:
    """Where the steps of an epoch are done: `Halves` of the newest table that was asked for."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.table: Table | None = None
        self.actors: list[Any] = []
        self.rows: list[Any] = []  # references: a restarted actor asks for its rows again
        self.cuts: tuple[np.ndarray, np.ndarray] = (np.zeros(0), np.zeros(0))

    def __call__(self, table: Table, model: Ials) -> tuple[Half, Half]:
        if table is not self.table:
            self.stop()
            self._place(table, factors=model.factors or 1)
        of_user, of_item = table.penalties(model)
        penalties = of_user.of(table.users.sum(1)), of_item.of(table.items.sum(1))
        return partial(self._solve, which=0, penalty=penalties[0]), partial(
            self._solve, which=1, penalty=penalties[1]
        )

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
        self.actors, self.rows, self.table = [], [], None

    def _place(self, table: Table, *, factors: int) -> None:
        sides = (table.users, table.items)
        self.table = table
        self.cuts = tuple(_cuts(side, self.workers, factors=factors) for side in sides)  # type: ignore[assignment]
        for number in range(self.workers):
            blocks = [side[cuts[number] : cuts[number + 1]] for side, cuts in zip(sides, self.cuts)]
            self.rows.append(ray.put(blocks))
            self.actors.append(_Block.remote(self.rows[-1]))  # type: ignore[attr-defined]
        ready = [actor.ready.remote() for actor in self.actors]
        _, waiting = ray.wait(ready, num_returns=len(ready), timeout=PLACE_SECONDS)
        if waiting:
            raise UnavailableError(
                f"{len(waiting)} of {self.workers} workers found no free CPU within {PLACE_SECONDS:g} s: "
                "take fewer, or wait until other jobs are done"
            )

    def _solve(self, side: Side, *, which: int, penalty: np.ndarray) -> np.ndarray:
        given = ray.put(side)
        bounds = zip(self.cuts[which][:-1], self.cuts[which][1:])
        parts = [
            actor.solve.remote(given, which=which, penalty=penalty[first:last])
            for actor, (first, last) in zip(self.actors, bounds)
        ]
        return np.concatenate(ray.get(parts))


@ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)
class _Block:
    """The rows that one actor owns, of users and of items."""

    def __init__(self, rows: Sequence[sparse.csr_array]) -> None:
        self.rows = rows

    def ready(self) -> None:
        """Answers as soon as the actor has a CPU and its rows."""

    def solve(self, side: Side, *, which: int, penalty: np.ndarray) -> np.ndarray:
        return solve_rows(side, self.rows[which], penalty=penalty)


def _cuts(side: sparse.csr_array, workers: int, *, factors: int) -> np.ndarray:
    """Bounds of one block of rows for each worker; some may be empty, int64 [workers + 1]."""
    cuts = even_cuts(row_work(np.diff(side.indptr), factors), workers)
    return np.concatenate((cuts, np.full(workers + 1 - len(cuts), cuts[-1])))
