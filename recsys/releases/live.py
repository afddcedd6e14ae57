"""What a process holds of a release that the catalog changes: its items, and shards of its index.

All changes of the changelog from the release's watermark on reach them here, in one order for every process,
so that all come to the same state. An item that the models have not seen is told by its content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.catalog.changelog import Change, Log, Position
from recsys.catalog.following import Follower
from recsys.hashing import shard_of_rows
from recsys.index.live import apply_changes
from recsys.index.manifest import MODELS_ONLY
from recsys.index.shard import LocalShard
from recsys.pipeline.items import LiveItems
from recsys.pipeline.new_items import with_vectors
from recsys.pipeline.scopes import Scopes
from recsys.pipeline.wiring import Parts, live_items
from recsys.releases.manifest import Release
from recsys.releases.parts import ITEMS, SPACES, index_manifest, load_shard, local_shards, tower_array

SHARD_COLUMNS = (
    "title",
    "category",
    "available",
    "published_at",
    "expires_at",
    "countries_allowed",
    "countries_blocked",
)


class LiveCatalog:
    """One thread may `apply` changes, another one read."""

    def __init__(
        self,
        release: Release,
        items: LiveItems,
        *,
        shards: Sequence[LocalShard] = (),
    ) -> None:
        """`shards`: those that are in this process."""
        self.items, self.scopes = items, Scopes(items)
        self.space = space_of(release)
        self.token = tower_array(release, "token")
        index = index_manifest(release)
        self._of, self._built_at = len(index.shards), index.built_at
        self._alone = not items.vectors.shape[1]  # a shard and no more: others have all vectors
        self.shards = [LocalShard(shard.name, shard.shard, self.scopes) for shard in shards]
        self._put_later(release.manifest.items)

    @classmethod
    def of_path(cls, release: Release, parts: Parts, *, shards: bool) -> "LiveCatalog":
        """For the request path; `shards`: all of them are in this process."""
        return cls(release, live_items(parts), shards=local_shards(release) if shards else ())

    @classmethod
    def of_shard(cls, release: Release, number: int) -> "LiveCatalog":
        """For one shard alone: no more of the items than it takes to tell who may see them."""
        frame = pl.read_parquet(release.path(ITEMS), columns=list(SHARD_COLUMNS))
        nothing = np.zeros((0, 0), np.float32), np.zeros(0, np.int32)
        items = LiveItems(frame, vectors=nothing[0], category=nothing[1])
        return cls(release, items, shards=[load_shard(release, number)])

    def apply(self, changes: Sequence[tuple[int, Change]]) -> None:
        """Changes that hold, with their offsets, in their order."""
        changes = self._with_vectors(changes)
        self.items.apply([change for _, change in changes], space=self.space)
        self._apply_to_shards(changes)

    def has_vector(self, row: int) -> bool:
        """Whether an item has a vector, be it deleted or not; of another shard's, a shard needs none."""
        if self._alone:
            (own,) = self.shards
            return row in own.shard or shard_of_rows(np.array([row]), self._of)[0] != int(own.name)
        return bool(self.items.vectors[np.array([row])].any())

    def _put_later(self, first: int) -> None:
        """Items of the release from row `first` on, which its models have not seen."""
        titles = self.items.frame["title"][first:].to_list()
        later = [Change("", row, None, "upsert", {"title": t}) for row, t in enumerate(titles, first)]
        made = self._with_vectors([(MODELS_ONLY, change) for change in later])
        self.items.put_vectors([change for _, change in made], space=self.space)
        self._apply_to_shards(made)

    def _with_vectors(self, changes: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return with_vectors(changes, space=self.space, token=self.token, has=self.has_vector)

    def _apply_to_shards(self, changes: Sequence[tuple[int, Change]]) -> None:
        for shard in self.shards:
            apply_changes(
                shard.shard,
                changes,
                number=int(shard.name),
                shards=self._of,
                space=self.space,
                built_at=self._built_at,
            )


def space_of(release: Release) -> str:
    """The name of the space in which its vectors are."""
    return next(hash for name, hash in release.manifest.parts.items() if name in SPACES)


def watermark(release: Release) -> Position:
    """Where in the changelog the release was made."""
    known = release.manifest.watermark.get("catalog")
    if known is not None:
        return Position(**known)
    return Position.first(pl.read_parquet(release.path(ITEMS), columns=["item_id"])["item_id"])


@dataclass(frozen=True, slots=True)
class ShardToday:
    fresh: int  # items that came after it was built
    tombstones: int  # items of the built part that were deleted or replaced


@dataclass(frozen=True, slots=True)
class IndexToday:
    rows: int  # items of the catalog
    changes: int  # of the catalog that are not in the built part
    shards: tuple[ShardToday, ...]


def index_today(release: Release, log: Log) -> IndexToday:
    """What a replica that starts now would hold. Raises UnavailableError."""
    shards, start, index = [], watermark(release), index_manifest(release)
    for number in range(len(index.shards)):
        live = LiveCatalog.of_shard(release, number)
        follower = Follower(log, start=start, apply=live.apply)
        follower.catch_up()
        shard = live.shards[0].shard
        shards.append(ShardToday(shard.fresh.alive, shard.tombstones))
    end = follower.position
    return IndexToday(end.rows, end.offset - max(index.built_at, start.offset), tuple(shards))
