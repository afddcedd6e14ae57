"""Scenes, and the stage settings that a request gets from its scene and its arms.

An arm overrides settings of a stage. Requests are grouped by the settings they end up with, and a
stage is called once for each distinct set, so a batch that mixes arms still crosses in few calls.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.errors import RequestError
from recsys.types import Candidates, RequestBatch


@dataclass(frozen=True, slots=True)
class Scene:
    """A named place that asks."""

    hide_consumed: bool = False  # nothing that the user already consumed is shown
    ranker: str = "home"  # which of the release's rankers orders it


def check_scenes(batch_scenes: tuple[str, ...], scenes: Mapping[str, Scene]) -> None:
    """Raise RequestError for a scene that isn't configured."""
    for scene in batch_scenes:
        if scene not in scenes:
            raise RequestError(f"unknown scene {scene!r}: configured are {', '.join(sorted(scenes))}")


@dataclass(frozen=True, slots=True)
class PerSettings:
    """A stage that is called once for each distinct settings value of the batch."""

    settings_of: Callable[[RequestBatch, int], Hashable]  # (batch, request) -> settings
    stage_of: Callable[[Any], Callable[[RequestBatch, Candidates], Candidates]]  # settings -> stage

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        groups: dict[Hashable, list[int]] = {}
        for request in range(len(batch)):
            groups.setdefault(self.settings_of(batch, request), []).append(request)
        if len(groups) == 1:
            return self.stage_of(next(iter(groups)))(batch, candidates)
        parts, order = [], []
        for settings, members in groups.items():
            rows = np.array(members)
            parts.append(self.stage_of(settings)(batch.take(rows), candidates.take(rows)))
            order.append(rows)
        return Candidates.concatenate(parts).take(np.argsort(np.concatenate(order)))
