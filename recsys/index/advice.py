"""How many shards an index should have: by the memory of a replica, and by what one query may take.

Decides that a shard is split for two reasons only. More shards than that cost every query a call more and
find nothing sooner, since the slowest of them is waited for.
"""

from dataclasses import dataclass
from math import ceil

from recsys.errors import SettingsError
from recsys.index.factory import ShardType, chosen

ITEMS_A_SHARD = 5_000_000  # some 2 to 4 milliseconds a query, as `benchmarks.index_growth` has it
BESIDE = 1.25  # rows, filters, fresh segment and FAISS's own, over the vectors


@dataclass(frozen=True, slots=True)
class Advice:
    shards: int
    kind: ShardType
    shard_mb: float
    why: str


def advise(items: int, *, dimensions: int, memory_mb: float) -> Advice:
    """For a catalog of `items` vectors and replicas that may take `memory_mb` each. Raises SettingsError."""
    if min(items, dimensions) < 1 or not memory_mb > 0:
        raise SettingsError("items, dimensions and memory_mb must be above 0")
    for_time = ceil(items / ITEMS_A_SHARD)
    kind = chosen(ceil(items / for_time), dimensions=dimensions)
    total = kind.bytes_per_vector(dimensions) * BESIDE * items / 1e6
    for_memory = ceil(total / memory_mb)
    shards = max(for_time, for_memory)
    kind = chosen(ceil(items / shards), dimensions=dimensions)
    size = kind.bytes_per_vector(dimensions) * BESIDE * items / shards / 1e6
    why = f"{total:,.0f} MB in replicas of {memory_mb:,.0f} MB" if for_memory > for_time else ""
    if not why:
        why = "one replica holds all" if shards == 1 else f"at most {ITEMS_A_SHARD:,} items in a shard"
    return Advice(shards, kind, size, why)
