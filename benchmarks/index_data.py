"""The vectors that indexes are compared on: factors of real people's check-ins, and two sets of any size.

Queries come in halves: one to tune by, one to judge by. All vectors have 64 dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys.datasets.formats import read_problems
from recsys.index.vectors import BLOCK, Block
from recsys.interactions import Queries
from recsys.models.factors.ials import Ials

D = 64
QUERIES = 2000
RANK, SIGNAL, NOISE = 16, 8.0, 0.3


@dataclass(frozen=True)
class Vectors:
    name: str
    items: np.ndarray  # float32 [V, D]
    queries: np.ndarray  # float32 [QUERIES, D]


def factors(folder: Path) -> Vectors:
    """iALS with 64 factors, fitted on gowalla's training pairs; the queries are its users."""
    if not (folder / "train.txt").is_file():
        raise SystemExit(f"error: no train.txt in {folder}; give --data gowalla's folder")
    (problem,) = read_problems("adjacency", folder)
    log = problem.train
    found = Ials(factors=D, regularization=0.01, epochs=8).fit(log, seed=0).export()
    everybody = Queries(np.arange(log.users), log.histories, np.full(log.users, 2**31))
    users = found.encoder.encode(everybody)
    picked = np.random.default_rng(0).permutation(len(users))[:QUERIES]
    known = ~np.isnan(found.items[:, 0])
    return Vectors("gowalla", found.items[known], np.ascontiguousarray(users[picked]))


@dataclass(frozen=True)
class LikeFactors:
    """Any number of vectors with the spectrum of the factors' directions and with their lengths, which carry
    popularity; nothing in them is clustered. Drawn block by block: it is a `VectorStream`."""

    real: Vectors
    count: int
    dimensions: int = D

    def blocks(self) -> Iterator[Block]:
        lengths = np.linalg.norm(self.real.items, axis=1)
        for start in range(0, self.count, BLOCK):
            random = np.random.default_rng((1, start))
            size = min(BLOCK, self.count - start)
            drawn = _directions(self.real.items, size, random) * random.choice(lengths, size)[:, None]
            yield np.arange(start, start + size, dtype=np.int32), drawn.astype(np.float32)

    @property
    def queries(self) -> np.ndarray:
        return _directions(self.real.queries, QUERIES, np.random.default_rng(2))

    def in_memory(self) -> Vectors:
        return Vectors("drawn", np.concatenate([block for _, block in self.blocks()]), self.queries)


def low_rank(count: int) -> Vectors:
    """Unit vectors of rank 16 plus noise in all 64 dimensions, not clustered: hard for cells and codes."""
    random = np.random.default_rng(3)
    basis = random.standard_normal((RANK, D)) * SIGNAL / np.sqrt(RANK * D)

    def drawn(size: int) -> np.ndarray:
        found = random.standard_normal((size, RANK)) @ basis + NOISE * random.standard_normal((size, D))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    return Vectors("low rank", drawn(count), drawn(QUERIES))


def _directions(like: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Unit vectors with the second moments of the directions of `like`, float32 [count, D]."""
    unit = like / np.maximum(np.linalg.norm(like, axis=1, keepdims=True), 1e-12)
    root = np.linalg.cholesky(unit.T @ unit / len(unit) + 1e-9 * np.eye(D))
    drawn = random.standard_normal((count, D), dtype=np.float32) @ root.T.astype(np.float32)
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
