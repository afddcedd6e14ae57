"""The changelog's meaning to an index shard: who is searched, and by which vector."""

import logging
from collections.abc import Sequence

import numpy as np

from recsys.catalog.changelog import Change
from recsys.hashing import shard_of_rows
from recsys.index.manifest import MODELS_ONLY
from recsys.index.shard import IndexShard


def apply_changes(
    shard: IndexShard,
    changes: Sequence[tuple[int, Change]],
    *,
    number: int,
    shards: int,
    space: str,
    built_at: int = MODELS_ONLY,
) -> None:
    """Makes `changes` (with their offsets) count for shard `number` of `shards`, as far as they are its own.

    An upsert brings a vector of this `space` (of the model whose vectors the index holds), or leaves the
    item the one that it has; what is not available is as good as deleted until it is. Vectors from before
    offset `built_at` are in the built part. Applying the same changes again, from any earlier place on, ends
    alike.
    """
    for offset, change in changes:
        row = np.array([change.row])
        if shard_of_rows(row, shards)[0] != number:
            continue
        if change.kind == "upsert":
            _put(shard, change, offset, space if offset >= built_at else "")
        if change.kind == "delete" or (change.item or {}).get("available") is False:
            shard.delete(row)


def _put(shard: IndexShard, change: Change, offset: int, space: str) -> None:
    vector = change.vectors.get(space)
    if vector is not None:
        try:
            shard.upsert({change.row: vector})
            return
        except ValueError as error:
            logging.getLogger(__name__).warning("changelog offset %d: %s; the old one stays", offset, error)
    shard.restore(np.array([change.row]))
