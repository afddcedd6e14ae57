"""One shard of the index in replicas of its own; a deployment for each shard of the release."""

import numpy as np
from ray import serve

from recsys.index.manifest import MANIFEST, shard_files
from recsys.releases.manifest import open_release
from recsys.releases.parts import INDEX, load_shard


@serve.deployment
class IndexShard:
    def __init__(self, release: str, number: int) -> None:
        """`release`: path of the manifest; `number`: of the shard."""
        own = (INDEX + MANIFEST, *(INDEX + name for name in shard_files(number)))
        self.shard = load_shard(open_release(release, only=own), number).shard

    async def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.shard.search(queries, k)
