"""One shard of an index: FAISS under item rows, inner product, one thread.

FAISS marks a missing neighbor with -1 and a score of -inf or less; so do we, and nothing else. Ties
come out in FAISS's order here and are broken by item row where shards are merged. A replica answers
one batch at a time, so FAISS must not start a thread for each core in every replica.
"""

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from recsys.errors import ReleaseError
from recsys.hashing import shard_of_rows


@dataclass(frozen=True, slots=True)
class IndexSettings:
    factory: str = "Flat"  # FAISS factory string; exact search is the fastest choice below some 50,000 items
    shards: int = 2


def build_shards(vectors: np.ndarray, *, settings: IndexSettings) -> list[bytes]:
    """Serialized FAISS indexes of `vectors` float32 [V, D] by item row, one for each shard.

    Items go to shards by the hash of their row: a lost shard costs every query the same small share.
    """
    shard = shard_of_rows(np.arange(len(vectors)), settings.shards)
    built = []
    for number in range(settings.shards):
        rows = np.flatnonzero(shard == number).astype(np.int64)
        index = faiss.index_factory(vectors.shape[1], f"IDMap,{settings.factory}", faiss.METRIC_INNER_PRODUCT)
        part = np.ascontiguousarray(vectors[rows], np.float32)
        if not index.is_trained:
            index.train(part)
        index.add_with_ids(part, rows)
        built.append(faiss.serialize_index(index).tobytes())
    return built


class IndexShard:
    """A loaded shard."""

    def __init__(self, index: faiss.Index):
        faiss.omp_set_num_threads(1)
        self.index = index

    @classmethod
    def from_bytes(cls, content: bytes) -> "IndexShard":
        return cls(faiss.deserialize_index(np.frombuffer(content, np.uint8)))

    @classmethod
    def load(cls, path: Path) -> "IndexShard":
        """Raises ReleaseError if the file is no FAISS index."""
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise ReleaseError(f"{path} is no FAISS index: build the release anew") from error

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of float32 [B, D] queries: item rows int32 [B, k] and scores float32 [B, k],
        best first; -1 and -inf where the shard has fewer. Raises ValueError for another dimension."""
        if queries.shape[1] != self.index.d:
            raise ValueError(f"queries have {queries.shape[1]} dimensions, the index {self.index.d}")
        k = min(k, max(len(self), 1))
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), k)
        return rows.astype(np.int32), np.where(rows >= 0, scores, -np.inf).astype(np.float32)


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A shard in this process, behind the signature of one that is elsewhere."""

    name: str
    shard: IndexShard

    async def __call__(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self.shard.search(queries, k)


def build_local_shards(vectors: np.ndarray, *, settings: IndexSettings) -> list[LocalShard]:
    """The shards of `vectors`, in this process."""
    built = build_shards(vectors, settings=settings)
    return [LocalShard(str(n), IndexShard.from_bytes(content)) for n, content in enumerate(built)]
