"""Compaction, vacuum and archive of an event store, each safe beside a running ingestion.

Old events move to the cold table a period at a time: appended there, then taken from the hot table by a
commit that names the cold version which has them. Until then readers see the cold table without them, so
a move that was cut off has not happened; the next one winds it back first. Events that come late for a
moved period stay hot until the next archive. Vacuum takes what was replaced, and what no commit ever
named once it is a day old: no writer takes that long from its file to its commit.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction

from recsys.errors import DataError
from recsys.events.delta import (
    ARCHIVED,
    PERIODS,
    WRITER,
    WRITER_PROPERTIES,
    ConflictError,
    StoreTable,
    partition_column,
    retried,
    storage_errors,
)
from recsys.events.store import EventStore

TARGET_BYTES = 128 << 20
_ORPHAN_HOURS = 24


@dataclass(frozen=True, slots=True)
class Compacted:
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int


def compact(store: EventStore, *, target_bytes: int = TARGET_BYTES) -> Compacted:
    """Makes few large files of many small ones, in each partition of each table."""
    sizes: list[list[int]] = [[], []]
    for table in (store.events, store.rejected, store.cold):
        opened = table.open()
        if opened is None:
            continue
        sizes[0] += [file["size_bytes"] for file in table.files(opened)]
        if table is store.cold:
            opened = change_cold(store, lambda cold: _compact(store.cold, cold, target_bytes)) or opened
        else:
            opened = retried(functools.partial(_compact, table, None, target_bytes))
        sizes[1] += [file["size_bytes"] for file in table.files(opened)]
    return Compacted(len(sizes[0]), len(sizes[1]), sum(sizes[0]), sum(sizes[1]))


def vacuum(store: EventStore, *, keep_hours: int = 168) -> int:
    """Deletes files that were replaced more than `keep_hours` ago and old log entries; returns how many.

    A version older than that can no longer be read; a read that runs now may fail if `keep_hours` is 0.
    """
    deleted = set[str]()

    def clean(table: StoreTable, opened: DeltaTable) -> DeltaTable:
        with storage_errors(f"vacuum {table.uri}"):
            for hours, orphans in ((keep_hours, False), (max(keep_hours, _ORPHAN_HOURS), True)):
                files = opened.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=orphans)
                deleted.update(files)
            opened.update_incremental()
            opened.create_checkpoint()
            opened.cleanup_metadata()
        return opened

    for table in (store.events, store.rejected, store.erasures):
        if (opened := table.open()) is not None:
            clean(table, opened)
    change_cold(store, lambda cold: clean(store.cold, cold))
    return len(deleted)


def archive(store: EventStore, *, before: date) -> int:
    """Moves the events of the periods that ended before that day to the cold table; returns how many."""
    hot, _ = retried(lambda: settled(store))
    by = partition_column(hot)
    if by is None:
        raise DataError(f"{store.events.uri} is not partitioned by month or day; ingest into a new store")
    boundary = before.strftime(PERIODS[by])
    periods = sorted({file["partition"][by] for file in store.events.files(hot)})
    moving = [period for period in periods if period < boundary]
    return sum(retried(functools.partial(_move, store, by, period)) for period in moving)


def settled(store: EventStore) -> tuple[DeltaTable, DeltaTable | None]:
    """The hot table, and the cold one without what a move that was cut off left in it, if there is one."""
    hot, cold = store.events.open(), store.cold.open()
    if hot is None:
        raise DataError(f"no events in {store.uri}: run `recsys ingest` first, or correct workdir")
    archived = hot.transaction_version(ARCHIVED)
    if cold is None or cold.version() == archived:
        return hot, cold
    with storage_errors(f"restore {store.cold.uri}"):
        if archived is None:  # the very first move was cut off
            cold = store.cold.exchange(cold, removed=store.cold.files(cold))
        else:
            cold.restore(archived, commit_properties=CommitProperties(max_commit_retries=0))
            cold = store.cold.open()
            assert cold is not None
    # Named before anything else is done: a move that was slow and not cut off fails by this.
    return store.events.exchange(hot, transactions=[_naming(cold)]), cold


def change_cold(store: EventStore, change: Callable[[DeltaTable], DeltaTable]) -> DeltaTable | None:
    """Changes the cold table, if there is one, and has the hot one name the version that came of it."""

    def attempt() -> DeltaTable | None:
        if store.cold.open() is None:
            return None
        hot, cold = settled(store)
        assert cold is not None
        claimed = cold.transaction_version(WRITER)
        cold = change(cold)
        if cold.transaction_version(WRITER) != claimed:
            raise ConflictError(f"an archive appended to {store.cold.uri} meanwhile; run one at a time")
        store.events.exchange(hot, transactions=[_naming(cold)])
        return cold

    return retried(attempt)


def _naming(cold: DeltaTable) -> Transaction:
    return Transaction(ARCHIVED, cold.version())


def _move(store: EventStore, by: str, period: str) -> int:
    hot, cold = settled(store)
    files = [file for file in store.events.files(hot) if file["partition"][by] == period]
    if not files:
        return 0
    rows = store.events.read(hot, where=ds.field(by) == period)
    cold = store.cold.append(cold, rows, by=by, metadata={"period": period})
    store.events.exchange(hot, removed=files, transactions=[_naming(cold)])
    return len(rows)


def _compact(table: StoreTable, opened: DeltaTable | None, target_bytes: int) -> DeltaTable:
    opened = opened or table.open()
    assert opened is not None
    with storage_errors(f"compact {table.uri}"):
        opened.optimize.compact(target_size=target_bytes, writer_properties=WRITER_PROPERTIES)
    return opened
