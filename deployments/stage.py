"""One step of the request path in replicas of its own, from experiments to backfill.

A replica opens the whole release and runs its one step, so that every step is built by the same
wiring wherever it is placed. Retrieval is hosted whole, with its index shards as handles, because
what its sources return holds functions that must not cross processes.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.online_users import OnlineUsers
from deployments.remote import RemoteShard, RemoteStep
from recsys.pipeline.items import LiveItems
from recsys.pipeline.recommender import Recommender
from recsys.pipeline.sources import Shard
from recsys.pipeline.wiring import Parts, recommender
from recsys.releases.manifest import Release, open_release
from recsys.releases.parts import load_parts, local_shards

STEPS = ("experiments", "retrieval", "ranking", "rules", "diversity", "backfill")


def shards_of(release: Release, handles: Mapping[str, DeploymentHandle]) -> list[Shard]:
    """The shards of the index: those behind `handles` (name -> handle), or all in this process."""
    if not handles:
        return list(local_shards(release))
    return [RemoteShard(name, handle) for name, handle in handles.items()]


def placed(
    parts: Parts,
    *,
    items: LiveItems,
    users: OnlineUsers,
    shards: list[Shard],
    steps: Mapping[str, DeploymentHandle],
    timeout_s: float,
) -> Recommender:
    """The request path of `parts`, with the steps behind `steps` (name -> handle) elsewhere."""
    local: Any = recommender(parts, users=users, shards=shards, items=items)
    return replace(local, **{name: RemoteStep(handle, timeout_s) for name, handle in steps.items()})


@serve.deployment
class Stage:
    def __init__(self, release: str, step: str, shards: Mapping[str, DeploymentHandle]) -> None:
        """`release`: path of the manifest; `step`: one of STEPS; `shards`: name -> handle, {} = in here."""
        opened = open_release(release)
        path = recommender(
            load_parts(opened),
            users=OnlineUsers(""),  # hydration is never asked here
            shards=shards_of(opened, shards) if step == "retrieval" else [],
        )
        self.step = getattr(path, step)

    async def __call__(self, *arguments: Any) -> Any:
        result = self.step(*arguments)
        return await result if inspect.isawaitable(result) else result
