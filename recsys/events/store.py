"""The event store: Delta tables in one folder or bucket, `events` and `rejected`, and the events' `cold` one.

A commit carries the offsets that it ends at as application transactions, so results and offsets can't
part. `rejected` is committed first, so the events' offsets are those that both hold, and after a crash
between the two only `rejected` can be ahead: what it has already is left out of both. Rows of erased
users become places without content here, the one door that all rows go through. Tables are partitioned
by month, or by day where a day is large: a year of the retail file would be 305 files of a few kB.
The hot table names the version of the cold one that belongs to it, so each version is a whole.
Rows are told apart by partition and offset, so a store takes one topic.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable, Transaction

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.delta import ARCHIVED, ConflictError, StoreTable, partition_column, places, retried
from recsys.events.erased import ERASED_SCHEMA, without_erased
from recsys.events.schema import EVENT_SCHEMA, REJECTED_SCHEMA, STORED_SCHEMA, TIMESTAMP

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, slots=True)
class Appended:
    stored: int  # events written by this call: those of erased users are not


class EventStore:
    """Reads raise DataError with the remedy while nothing was stored yet.

    For S3 give `s3://bucket/folder`; `storage_options` or the environment say AWS_REGION and the keys, and
    for a server of another maker AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true if it has no TLS. Commits are
    safe without a lock table: they are conditional puts, which the server must honor (If-None-Match).
    """

    def __init__(
        self,
        uri: str,
        *,
        storage_options: Mapping[str, str] | None = None,
        partition_by: Literal["month", "day"] = "month",
        cold_uri: str | None = None,
        cold_options: Mapping[str, str] | None = None,
    ) -> None:
        """`partition_by` is for tables that are made; `cold_uri` is the place of the cold table itself."""
        self.uri = str(uri).rstrip("/")
        options = dict(storage_options or {})
        cold_options = options if cold_options is None else cold_options
        table = functools.partial(StoreTable, partition_by=partition_by)
        self.events = table(f"{self.uri}/events", schema=STORED_SCHEMA, options=options, period="timestamp")
        # By the time of taking: a rejected event's own time can be any, and each month would be a file.
        self.rejected = table(
            f"{self.uri}/rejected", schema=REJECTED_SCHEMA, options=options, period="appended_at"
        )
        self.cold = table(
            str(cold_uri or f"{self.uri}/cold"),
            schema=STORED_SCHEMA,
            options=cold_options,
            period="timestamp",
        )
        self.erasures = table(f"{self.uri}/erased", schema=ERASED_SCHEMA, options=options)

    def append(
        self,
        events: pa.Table,
        *,
        rejected: pa.Table | None = None,
        topic: str = "events",
        offsets: Mapping[int, tuple[int, int]] | None = None,
        marks: Mapping[str, int] | None = None,
        at_version: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Appended:
        """One commit to each table that gets something new: rows or offsets.

        `events` has STORED_SCHEMA, `rejected` REJECTED_SCHEMA. `offsets`: partition -> (start, end); the
        rows are all that became of the records [start, end). `marks`: numbers that are committed with them,
        by name; they only grow. `at_version`: the version of the events table that the caller decided from.
        `metadata` is kept with the commit of events. Raises UnavailableError if another writer committed:
        decide again; SettingsError if the store holds another topic.
        """
        rejected = REJECTED_SCHEMA.empty_table() if rejected is None else rejected
        given = (events, rejected, topic, offsets or {}, marks or {}, at_version, metadata)
        attempt = functools.partial(self._append, *given)
        # With offsets it is known what is held, so try again; without, the caller must look.
        return retried(attempt) if offsets else attempt()

    def committed(self, topic: str, partitions: int) -> dict[int, int]:
        """Partition -> offset after the last batch that both tables hold; absent = none yet."""
        held = self.marks([_app_id(topic, p) for p in range(partitions)])
        return {p: held[name] for p in range(partitions) if (name := _app_id(topic, p)) in held}

    def marks(self, names: Sequence[str]) -> dict[str, int]:
        """What was committed last of these; names that never were are absent."""
        table = self.events.open()
        return {name: mark for name in names if (mark := _mark(table, name)) is not None}

    def erased(self) -> pa.Table:
        """The erased users, ERASED_SCHEMA; empty if none ever was."""
        table = self.erasures.open()
        return ERASED_SCHEMA.empty_table() if table is None else self.erasures.read(table)

    def version(self) -> int:
        """Version of the events table, -1 before the first event."""
        return _version(self.events.open())

    def last_commit(self) -> dict[str, str]:
        """When events of the bus were committed last, and how late; empty if none ever were."""
        table = self.events.open()
        for entry in table.history(50) if table is not None else ():
            if "oldest_ms" in entry:
                at = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
                late_ms = entry["timestamp"] - int(entry["oldest_ms"])
                return {"at": at, "read_lag_ms": entry["read_lag_ms"], "commit_lag_ms": str(late_ms)}
        return {}

    def count(self) -> int:
        """Stored events, from the log alone: no data file is read; 0 before the first."""
        hot = self.events.open()
        return 0 if hot is None else sum(table.count() for _, table in self._parts(hot))

    def read(
        self,
        *,
        columns: Sequence[str] | None = None,
        months: Sequence[str] | None = None,
        version: int | None = None,
        since: datetime | None = None,
    ) -> pa.Table:
        """Events (of these months, at this version, taken since) in no particular order, EVENT_SCHEMA.

        `columns` may name any of STORED_SCHEMA.
        """
        wanted = list(columns or EVENT_SCHEMA.names)
        return pa.concat_tables(
            part.read(table, columns=wanted, where=_where(table, months, since))
            for part, table in self._parts(self._existing(version))
        )

    def read_added(self, hot: DeltaTable, *, after: DeltaTable | None, columns: Sequence[str]) -> pa.Table:
        """Events of `hot` in files that `after`, the same table earlier on, had not."""
        known = {} if after is None else dict(self._parts(after))
        return pa.concat_tables(
            part.read(table, columns=columns, after=known.get(part)) for part, table in self._parts(hot)
        )

    def read_rejected(self, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Rejected events with their `reason`, REJECTED_SCHEMA; empty if none ever was."""
        table = self.rejected.open()
        if table is None:
            return REJECTED_SCHEMA.empty_table().select(columns or REJECTED_SCHEMA.names)
        return self.rejected.read(table, columns=columns)

    def duckdb(self) -> "DuckDBPyConnection":
        """A DuckDB connection in which `events` (and `rejected`, if any) can be queried."""
        import duckdb  # for reports and tests only; serving replicas never load it

        connection = duckdb.connect()
        parts = [part.dataset(table) for part, table in self._parts(self._existing())]
        connection.register("events", parts[0] if len(parts) == 1 else ds.dataset(parts))
        if (rejected := self.rejected.open()) is not None:
            connection.register("rejected", self.rejected.dataset(rejected))
        return connection

    def _append(
        self,
        events: pa.Table,
        rejected: pa.Table,
        topic: str,
        offsets: Mapping[int, tuple[int, int]],
        marks: Mapping[str, int],
        at_version: int | None,
        metadata: Mapping[str, str] | None,
    ) -> Appended:
        hot, refused = self.events.open(), self.rejected.open()
        if at_version is not None and at_version != _version(hot):
            raise ConflictError(
                f"another writer committed to {self.events.uri} (version {_version(hot)} is not "
                f"{at_version}); keep one writer and run again"
            )
        for partition, (start, _) in offsets.items():
            held = _offset(hot, topic, partition)
            if held is not None and held != start:
                raise UnavailableError(
                    f"another committer wrote {self.events.uri}: partition {partition} of {topic!r} is at "
                    f"{held}, not {start}; go on from what is committed, and keep one committer"
                )
        self._check_topic(hot, refused, topic, offsets)
        ahead = any((_offset(refused, topic, p) or 0) > start for p, (start, _) in offsets.items())
        if ahead:
            # Whoever is ahead may be alive, and would store what is rejected here: this makes it fail.
            hot, refused = self.events.append(hot, STORED_SCHEMA.empty_table()), self.rejected.open()
            events, rejected = self._without_held(refused, offsets, events, rejected)
        # Read after the tables were opened: an erasure that it lacks will make these commits conflict.
        events, rejected = without_erased(events, rejected, erased=self.erased())
        moved = {_app_id(topic, partition): end for partition, (_, end) in offsets.items() if end} | {**marks}
        self._commit(self.rejected, refused, rejected, moved, anyway=ahead)
        self._commit(self.events, hot, events, moved, metadata=metadata)
        return Appended(len(events))

    def _check_topic(
        self, hot: DeltaTable | None, refused: DeltaTable | None, topic: str, partitions: Iterable[int]
    ) -> None:
        new = [p for p in partitions if _offset(hot, topic, p) is None and _offset(refused, topic, p) is None]
        parts = self._parts(hot) if hot is not None else []
        parts += [(self.rejected, refused)] if refused is not None else []
        if new and any(part.holds(table, ds.field("partition").isin(new)) for part, table in parts):
            raise SettingsError(
                f"{self.uri} holds events of another topic than {topic!r} (partition {new[0]}): a store "
                "takes one topic; set another store.uri, or bus.topic back"
            )

    def _commit(
        self,
        table: StoreTable,
        opened: DeltaTable | None,
        rows: pa.Table,
        marks: Mapping[str, int],
        *,
        anyway: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        moved = [
            Transaction(name, mark)
            for name, mark in marks.items()
            if (held := _mark(opened, name)) is None or held < mark
        ]
        if moved or len(rows) or anyway:
            table.append(opened, rows, transactions=moved, metadata=metadata)

    def _without_held(
        self, refused: DeltaTable | None, offsets: Mapping[int, tuple[int, int]], *tables: pa.Table
    ) -> list[pa.Table]:
        """The tables without the records of these ranges that are held as rejected."""
        ranges = [
            (ds.field("partition") == partition) & (ds.field("offset") >= start) & (ds.field("offset") < end)
            for partition, (start, end) in offsets.items()
        ]
        where = functools.reduce(lambda one, other: one | other, ranges)
        assert refused is not None
        held = places(self.rejected.read(refused, columns=["partition", "offset"], where=where))
        return [rows.filter(pa.array(~np.isin(places(rows), held))) for rows in tables]

    def _parts(self, hot: DeltaTable) -> list[tuple[StoreTable, DeltaTable]]:
        """The hot table, and the cold one as it belongs to it."""
        archived = hot.transaction_version(ARCHIVED)
        if archived is None:
            return [(self.events, hot)]
        cold = self.cold.open(archived)
        if cold is None:
            raise UnavailableError(
                f"events of {self.uri} were archived, but {self.cold.uri} holds none: give that table's place"
            )
        return [(self.events, hot), (self.cold, cold)]

    def _existing(self, version: int | None = None) -> DeltaTable:
        table = self.events.open(version)
        if table is None:
            raise DataError(f"no events in {self.uri}: run `recsys ingest` first, or correct workdir")
        return table


def _app_id(topic: str, partition: int) -> str:
    return f"{topic}/{partition}"


def _offset(table: DeltaTable | None, topic: str, partition: int) -> int | None:
    return _mark(table, _app_id(topic, partition))


def _mark(table: DeltaTable | None, name: str) -> int | None:
    return None if table is None else table.transaction_version(name)


def _version(table: DeltaTable | None) -> int:
    return -1 if table is None else table.version()


def _where(table: DeltaTable, months: Sequence[str] | None, since: datetime | None) -> pc.Expression | None:
    found = []
    if months is not None:
        by = partition_column(table)
        days = [f"{month}-{day:02}" for month in months for day in range(1, 32)]
        found.append(ds.field(by).isin(list(months) if by == "month" else days))
    if since is not None:
        found.append(ds.field("appended_at") >= pa.scalar(since, TIMESTAMP))
    return functools.reduce(lambda one, other: one & other, found) if found else None
