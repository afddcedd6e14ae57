"""What an index is built by, and what it must reach."""

from dataclasses import dataclass
from typing import Literal

from recsys.errors import SettingsError


@dataclass(frozen=True, slots=True)
class IndexSettings:
    factory: str = "auto"  # FAISS's name of a shard's type; auto = the fastest that memory_mb allows
    shards: int = 2
    recall: float = 0.98  # that a build must reach: the share of the `at` nearest items that it finds
    at: int = 200
    queries: int = 2000  # held-out ones by which it is tuned and judged, one half each
    memory_mb: float | None = None  # that one shard may take; null = no bound
    device: Literal["cpu", "cuda"] = "cpu"  # that finds the exact neighbors of a build

    def __post_init__(self) -> None:
        if min(self.shards, self.at, self.queries) < 1:
            raise SettingsError("index.shards, index.at and index.queries must be 1 or more")
        if not 0 < self.recall <= 1:
            raise SettingsError(f"index.recall = {self.recall}: must be above 0 and at most 1")
        if self.memory_mb is not None and not self.memory_mb > 0:
            raise SettingsError(f"index.memory_mb = {self.memory_mb}: must be above 0, or null")
