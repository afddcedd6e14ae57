"""One shard of the index in replicas of its own; a deployment for each shard of the release."""

from collections.abc import Sequence

import numpy as np
from ray import serve

from deployments.catalog_tail import CatalogTail
from recsys.events.bus import BusSettings
from recsys.index.manifest import MANIFEST, shard_files
from recsys.pipeline.scopes import Scope
from recsys.releases.live import LiveCatalog
from recsys.releases.manifest import open_release
from recsys.releases.parts import INDEX, ITEMS, TOWER


@serve.deployment
class IndexShard:
    def __init__(self, release: str, number: int, bus: BusSettings) -> None:
        """`release`: path of the manifest; `number`: of the shard."""
        own = (ITEMS, TOWER, INDEX + MANIFEST, *(INDEX + name for name in shard_files(number)))
        opened = open_release(release, only=own)
        live = LiveCatalog.of_shard(opened, number)
        (self.shard,) = live.shards
        self.tail = CatalogTail(opened, live.apply, bus=bus, what=f"shard {number}", shards=live.shards)

    async def __call__(
        self, queries: np.ndarray, k: int, scopes: Sequence[Scope] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        return await self.shard(queries, k, scopes)

    def check_health(self) -> None:
        self.tail.check_health()
