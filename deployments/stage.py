"""One step of the request path in replicas of its own, from experiments to backfill.

A replica opens the whole release and runs its one step, so that every step is built by the same
wiring wherever it is placed. Retrieval is hosted whole, with its index shards as handles, because
what its sources return holds functions that must not cross processes.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.catalog_tail import CatalogTail
from deployments.metrics import IndexMetrics
from deployments.online_users import OnlineUsers
from deployments.remote import RemoteShard, RemoteStep
from recsys.events.bus import BusSettings
from recsys.models.sparse_scores import Proposals
from recsys.pipeline.live_recall import LiveRecall
from recsys.pipeline.recommender import Recommender
from recsys.pipeline.sources import Observe, Shard, unobserved
from recsys.pipeline.wiring import Parts, recommender
from recsys.releases.live import LiveCatalog
from recsys.releases.manifest import open_release
from recsys.releases.parts import load_parts
from recsys.types import RequestBatch

STEPS = ("experiments", "retrieval", "ranking", "rules", "diversity", "backfill")


def shards_of(live: LiveCatalog, handles: Mapping[str, DeploymentHandle]) -> Sequence[Shard]:
    """The shards of the index: those behind `handles` (name -> handle), or those in this process."""
    return [RemoteShard(name, handle) for name, handle in handles.items()] or live.shards


def placed(
    parts: Parts,
    *,
    live: LiveCatalog,
    users: OnlineUsers,
    shards: Mapping[str, DeploymentHandle],
    steps: Mapping[str, DeploymentHandle],
    timeout_s: float,
) -> Recommender:
    """The request path of `parts`, with what is behind `shards` and `steps` (name -> handle) elsewhere."""
    observe = unobserved if "retrieval" in steps else watched(parts, live)
    local: Any = recommender(
        parts, users=users, shards=shards_of(live, shards), items=live.items, observe=observe
    )
    return replace(local, **{name: RemoteStep(handle, timeout_s) for name, handle in steps.items()})


def watched(parts: Parts, live: LiveCatalog) -> Observe:
    """Measures what the index finds."""
    metrics, k = IndexMetrics(), parts.settings.retrieval.candidates["two_tower"]
    recall = LiveRecall(live.items, live.scopes, metrics.recall.observe, k=k)

    def observe(batch: RequestBatch, queries: np.ndarray, proposals: Proposals) -> None:
        metrics.record_fill(np.diff(proposals.offsets), k=k)
        recall(batch, queries, proposals)

    return observe


@serve.deployment
class Stage:
    def __init__(
        self, release: str, step: str, shards: Mapping[str, DeploymentHandle], bus: BusSettings
    ) -> None:
        """`release`: path of the manifest; `step`: one of STEPS; `shards`: name -> handle, {} = in here."""
        opened = open_release(release)
        parts = load_parts(opened)
        live = LiveCatalog.of_path(opened, parts, shards=step == "retrieval" and not shards)
        path = placed(
            parts,
            live=live,
            users=OnlineUsers(""),  # hydration is never asked here
            shards=shards,
            steps={},
            timeout_s=0,
        )
        self.tail = CatalogTail(opened, live.apply, bus=bus, what=step, shards=live.shards)
        self.step = getattr(path, step)

    async def __call__(self, *arguments: Any) -> Any:
        result = self.step(*arguments)
        return await result if inspect.isawaitable(result) else result

    def check_health(self) -> None:
        self.tail.check_health()
