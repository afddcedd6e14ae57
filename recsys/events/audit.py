"""Reconciliation: whether every event of the bus stands in the store, once, and how far behind it is.

Produced, stored, duplicate and rejected are each counted where they are: offsets of the bus, rows of
the tables. Stronger than the sum: the offsets of all rows together must be the whole range that was
ingested, each once. An offset without a row is asked of the bus: Kafka keeps markers of transactions
there, which are no events.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys.events.bus import Bus
from recsys.events.committer import begun
from recsys.events.store import EventStore
from recsys.events.validation import DUPLICATE


@dataclass(frozen=True, slots=True)
class PartitionAudit:
    partition: int
    produced: int  # events of the bus up to what is committed
    stored: int
    duplicate: int
    rejected: int
    missing: int  # offsets that stand in no table
    doubled: int  # rows beyond the first of an offset
    begin: int  # the first offset that was ingested
    committed: int  # the offset after the last one
    lost: int  # that left the bus and were neither ingested nor accepted as lost
    lag_messages: int  # on the bus and not committed
    lag_s: float  # since the bus took the oldest of them

    @property
    def adds_up(self) -> bool:
        whole = self.produced == self.stored + self.duplicate + self.rejected
        return whole and not (self.missing or self.doubled or self.lost)


@dataclass(frozen=True, slots=True)
class Audit:
    topic: str
    partitions: tuple[PartitionAudit, ...]
    reasons: dict[str, int]  # why events were rejected
    last_commit: Mapping[str, str]  # of the last commit: time, read_lag_ms, commit_lag_ms; empty if none

    @property
    def adds_up(self) -> bool:
        return all(line.adds_up for line in self.partitions)


def audit(store: EventStore, bus: Bus) -> Audit:
    """Compares the store with the bus. Raises UnavailableError."""
    committed, ends, oldest = (
        store.committed(bus.topic, bus.partitions),
        bus.end_offsets(),
        bus.begin_offsets(),
    )
    began = store.marks([begun(bus.topic, p) for p in range(bus.partitions)])
    rows = _rows(store)
    lines = []
    for partition in range(bus.partitions):
        own = rows.filter(pl.col("partition") == partition)
        end = committed.get(partition, oldest[partition])
        begin = began.get(begun(bus.topic, partition), end)
        lines.append(
            _line(
                bus,
                partition,
                own,
                begin=begin,
                committed=end,
                oldest=oldest[partition],
                end=ends[partition],
            )
        )
    reasons = (
        rows.filter(pl.col("reason").is_not_null() & (pl.col("reason") != DUPLICATE))["reason"]
        .value_counts(sort=True)
        .rows()
    )
    return Audit(bus.topic, tuple(lines), dict(reasons), store.last_commit())


def _rows(store: EventStore) -> pl.DataFrame:
    """Place and reason of every row that came from the bus; a reason of null is a stored event."""
    places = ["partition", "offset"]
    stored = pl.DataFrame(store.read(columns=places)) if store.version() >= 0 else pl.DataFrame()
    rejected = pl.DataFrame(store.read_rejected(columns=[*places, "reason"]))
    return pl.concat([stored, rejected], how="diagonal").filter(pl.col("offset").is_not_null())


def _line(
    bus: Bus, partition: int, rows: pl.DataFrame, *, begin: int, committed: int, oldest: int, end: int
) -> PartitionAudit:
    held = np.zeros(committed - begin, bool)
    offsets = rows["offset"].to_numpy()
    within = (offsets >= begin) & (
        offsets < committed
    )  # rows of a commit that a crash cut in two are written again, and skipped
    held[offsets[within] - begin] = True
    absent = np.flatnonzero(~held) + begin
    missing = _on_the_bus(bus, partition, absent, oldest=oldest)
    rejected = rows.filter(pl.col("reason").is_not_null() & pl.Series(within))
    duplicate = int((rejected["reason"] == DUPLICATE).sum())
    lost = max(0, oldest - committed)
    waiting = bus.read(partition, start=committed + lost, limit=1).append_time_ms
    return PartitionAudit(
        partition=partition,
        produced=len(held) - (len(absent) - missing),
        stored=int(within.sum()) - len(rejected),
        duplicate=duplicate,
        rejected=len(rejected) - duplicate,
        missing=missing,
        doubled=int(within.sum()) - int(held.sum()),
        begin=begin,
        committed=committed,
        lost=lost,
        lag_messages=end - committed - lost,
        lag_s=max(0.0, time.time() - int(waiting[0]) / 1000) if len(waiting) else 0.0,
    )


def _on_the_bus(bus: Bus, partition: int, absent: np.ndarray, *, oldest: int) -> int:
    """How many of these offsets hold an event, or may have: what the bus no longer holds counts."""
    missing = int((absent < oldest).sum())
    absent = absent[absent >= oldest]
    while len(absent):
        found = bus.read(partition, start=int(absent[0]), limit=10_000)
        missing += int(np.isin(absent, found.offsets).sum())
        absent = absent[absent >= max(found.end, int(absent[0]) + 1)]
    return missing
