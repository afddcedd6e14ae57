"""Hydration: the one place where the request path reads the online store, one MGET for the batch.

User features are computed here, from the history and the request's clock, by the same function as
in training: a vector stored at the last event would call every user "active 0 days ago". Without the
store a scene that hides what was consumed can't be answered (fail closed); other scenes go on with
an empty history and say so.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from recsys.errors import UnavailableError
from recsys.features.views import user_features
from recsys.pipeline.scenes import Scene, check_scenes
from recsys.types import Histories, RequestBatch


@dataclass(frozen=True, slots=True)
class Users:
    """What the online store knows of B users."""

    histories: Histories
    known: np.ndarray  # bool [B]
    birth_year: np.ndarray  # int32 [B], 0 = not known


class UserStore(Protocol):
    def users(self, user_ids: tuple[str, ...]) -> Users:
        """Raises UnavailableError."""


@dataclass(frozen=True, slots=True)
class Hydration:
    store: UserStore
    scenes: Mapping[str, Scene]
    category: np.ndarray  # int32 [V], of the user's top category

    async def __call__(self, batch: RequestBatch) -> RequestBatch:
        """Fills `histories`, `user_features`, `birth_year`, `hidden` and `degraded`."""
        check_scenes(batch.scene, self.scenes)
        try:
            users = await asyncio.to_thread(self.store.users, batch.user_ids)
            degraded = tuple(() if known else ("unknown_user",) for known in users.known)
        except UnavailableError:
            if any(self.scenes[scene].hide_consumed for scene in batch.scene):
                raise
            nobody = np.zeros(len(batch), np.int32)
            users = Users(Histories.empty(len(batch)), nobody.astype(bool), nobody)
            degraded = (("online_store",),) * len(batch)
        histories = users.histories
        return replace(
            batch,
            histories=histories,
            user_features=user_features(histories, now=batch.now, category=self.category),
            birth_year=users.birth_year,
            hidden=tuple(
                _hidden(histories, r, self.scenes[batch.scene[r]].hide_consumed, batch.exclude[r])
                for r in range(len(batch))
            ),
            degraded=degraded,
        )


def _hidden(histories: Histories, request: int, hide_consumed: bool, exclude: tuple[int, ...]) -> np.ndarray:
    """Rows that must not be shown to this request, int32, sorted, each once."""
    own = histories.item[histories.offsets[request] : histories.offsets[request + 1]]
    return np.union1d(own if hide_consumed else own[:0], exclude).astype(np.int32)
