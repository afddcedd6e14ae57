"""The torch trainings that run data parallel: what goes to the workers, and what comes back.

The two-tower's run through time, and the fit of any model that the loop trains. Decides nothing about
Ray, which is `runner`'s matter, nor about training, which is `loop`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from recsys.interactions import Interactions, Tokens
from recsys.models.retrieval import Arrays, Fitted
from recsys.models.two_tower.settings import TowerSnapshot, TwoTowerTraining
from recsys.training.loop import FitTask, best_of, restore, train
from recsys.training.runner import train_data_parallel
from recsys.training.two_tower import train_two_tower


def train_two_tower_parallel(
    interactions: Interactions,
    *,
    tokens: Tokens,
    category: np.ndarray,
    cutoffs: Sequence[int],
    sizes: Sequence[int],
    settings: TwoTowerTraining,
    seed: int,
    workers: int,
    storage: str,
    name: str,
) -> list[TowerSnapshot]:
    """`train_two_tower` on `workers` ranks: each takes its share of every batch."""
    arguments = {
        "interactions": interactions,
        "tokens": tokens,
        "category": category,
        "cutoffs": list(cutoffs),
        "sizes": list(sizes),
        "settings": settings,
        "seed": seed,
    }
    found = train_data_parallel(_two_tower_loop, data=arguments, workers=workers, storage=storage, name=name)
    return [
        TowerSnapshot(
            cutoff=int(arrays["cutoff"]),
            item_vectors=arrays["item_vectors"],
            encoder={k.removeprefix("encoder."): v for k, v in arrays.items() if k.startswith("encoder.")},
            loss=float(arrays["loss"]),
            resume={},
        )
        for arrays in found
    ]


def _two_tower_loop(data: Mapping[str, Any], done: Sequence[Arrays]) -> Iterator[Arrays]:
    rest = dict(data)
    start = done[-1] if done else None
    for snapshot in train_two_tower(rest.pop("interactions"), **rest, start=start):
        encoder = {f"encoder.{k}": np.asarray(v) for k, v in snapshot.encoder.items()}
        yield {
            **snapshot.resume,
            **encoder,
            "cutoff": np.array(snapshot.cutoff),
            "item_vectors": snapshot.item_vectors,
        }


class TorchModel(Protocol):
    """A retrieval model that the loop trains: the two-tower, and sequential models."""

    def task(
        self, data: Interactions, *, seed: int, start: Arrays | None = None, blank: bool = False
    ) -> FitTask:
        """`start` are the arrays of an earlier fit; with `blank` the caller sets the module's parameters."""
        ...

    def finish(self, task: Any) -> Fitted:
        """What the module of `task` has become, as arrays."""
        ...


def fit_parallel(
    model: TorchModel,
    data: Interactions,
    *,
    seed: int,
    workers: int,
    storage: str,
    name: str,
    start: Arrays | None = None,
) -> Fitted:
    """`model.fit` on `workers` ranks, each with its share of every batch; a lost worker costs an epoch."""
    given = {"model": model, "interactions": data, "seed": seed, "start": start}
    found = train_data_parallel(_epochs, data=given, workers=workers, storage=storage, name=name)
    task = model.task(data, seed=seed, blank=True)
    restore(task.module, best_of(found[-1]))
    return model.finish(task)


def _epochs(data: Mapping[str, Any], done: Sequence[Arrays]) -> Iterator[Arrays]:
    model, seed = data["model"], data["seed"]
    task = model.task(data["interactions"], seed=seed, start=data["start"], blank=bool(done))
    yield from train(task, settings=task.loop, seed=seed, start=done[-1] if done else None)
