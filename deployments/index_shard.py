"""One shard of the index in replicas of its own; a deployment for each shard of the release."""

import numpy as np
from ray import serve

from recsys.releases.manifest import open_release
from recsys.releases.parts import load_shard


@serve.deployment
class IndexShard:
    def __init__(self, release: str, part: str) -> None:
        """`release`: path of the manifest; `part`: such as "index/0.faiss"."""
        self.shard = load_shard(open_release(release), part).shard

    async def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.shard.search(queries, k)
