"""The event store: two Delta tables in one folder or bucket, `events` and `rejected`.

A commit carries the offsets that it ends at as application transactions, so results and offsets can't
part: what a table already holds is skipped, for each table on its own. Delta lets two appends pass
each other; here each also claims the next version, so the second one fails. Both tables are
partitioned by month (`YYYY-MM` of the event's time): by day, a year of the retail file would be 305
files of a few kB. It neither validates nor drops duplicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from recsys.errors import DataError, UnavailableError
from recsys.events.schema import EVENT_SCHEMA, REJECTED_SCHEMA

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_WRITER = "recsys-writer"
_MONTH = pa.field("month", pa.string())


@dataclass(frozen=True, slots=True)
class Appended:
    stored: int  # events written by this call
    rejected: int  # rejected events written by this call
    version: int  # of the events table


class EventStore:
    """Reads raise DataError with the remedy while nothing was stored yet."""

    def __init__(self, uri: str, *, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = str(uri).rstrip("/")
        self._options = dict(storage_options or {})

    def append(
        self,
        events: pa.Table,
        *,
        rejected: pa.Table | None = None,
        transactions: Mapping[str, int] | None = None,
        at_version: int | None = None,
    ) -> Appended:
        """One commit to each table that gets something new.

        `transactions`: application id -> offset after this batch; a table that holds them is skipped.
        `at_version`: the version of the events table that the caller decided from.
        Raises UnavailableError if another writer committed meanwhile: decide again.
        """
        if at_version is not None and at_version != self.version():
            raise self._conflict("events", f"version {self.version()} is not {at_version}")
        rejected = REJECTED_SCHEMA.empty_table() if rejected is None else rejected
        refused = self._write("rejected", rejected, REJECTED_SCHEMA, transactions or {})
        stored = self._write("events", events, EVENT_SCHEMA, transactions or {})
        return Appended(stored, refused, self.version())

    def transaction(self, app_id: str) -> int | None:
        """The offset after the last batch of `app_id` that both tables hold; None = none."""
        tables = (self._open("events"), self._open("rejected"))
        held = [None if table is None else table.transaction_version(app_id) for table in tables]
        given = [offset for offset in held if offset is not None]
        return min(given) if len(given) == len(held) else None

    def version(self) -> int:
        """Version of the events table, -1 before the first event."""
        table = self._open("events")
        return -1 if table is None else table.version()

    def count(self) -> int:
        """Stored events, from the log alone: no data file is read; 0 before the first."""
        table = self._open("events")
        return 0 if table is None else table.count()

    def read(
        self,
        *,
        columns: Sequence[str] | None = None,
        months: Sequence[str] | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Events (of these months, at this version) in no particular order."""
        return self._read("events", EVENT_SCHEMA, columns, months, version)

    def read_rejected(self, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Rejected events with their `reason`; empty if none ever was."""
        if self._open("rejected") is None:
            return REJECTED_SCHEMA.empty_table().select(columns or REJECTED_SCHEMA.names)
        return self._read("rejected", REJECTED_SCHEMA, columns, None, None)

    def duckdb(self) -> "DuckDBPyConnection":
        """A DuckDB connection in which `events` (and `rejected`, if any) can be queried."""
        import duckdb  # for reports and tests only; serving replicas never load it

        connection = duckdb.connect()
        for name in ("events", "rejected"):
            table = self._existing(name, None) if name == "events" else self._open(name)
            if table is not None:
                connection.register(name, table.to_pyarrow_dataset())
        return connection

    def _write(self, name: str, rows: pa.Table, schema: pa.Schema, transactions: Mapping[str, int]) -> int:
        table = self._open(name)
        new = [
            Transaction(app_id, offset)
            for app_id, offset in transactions.items()
            if table is None or (table.transaction_version(app_id) or -1) < offset
        ]
        if (transactions and not new) or (not transactions and not len(rows)):
            return 0
        new.append(Transaction(_WRITER, 0 if table is None else table.version() + 1))
        # Through the table object that was checked: opened anew, the same commit would pass twice.
        try:
            write_deltalake(
                self._uri(name) if table is None else table,
                _with_month(rows.cast(schema)),
                mode="append" if table is not None else "error",
                partition_by=["month"],
                storage_options=self._options or None,
                writer_properties=WriterProperties(compression="ZSTD"),
                commit_properties=CommitProperties(app_transactions=new),
            )
        except (CommitFailedError, FileExistsError) as error:
            raise self._conflict(name, str(error)) from error
        except (DeltaError, OSError) as error:
            raise UnavailableError(
                f"can't write {self._uri(name)} ({error}); check the work directory's rights"
            ) from error
        return len(rows)

    def _read(
        self,
        name: str,
        schema: pa.Schema,
        columns: Sequence[str] | None,
        months: Sequence[str] | None,
        version: int | None,
    ) -> pa.Table:
        table = self._existing(name, version)
        wanted = list(columns or schema.names)
        kept = [("month", "in", list(months))] if months is not None else None
        read = table.to_pyarrow_table(columns=wanted, filters=kept)
        return read.select(wanted).cast(pa.schema([schema.field(c) for c in wanted]))

    def _existing(self, name: str, version: int | None) -> DeltaTable:
        table = self._open(name, version)
        if table is None:
            raise DataError(f"no events in {self.uri}: run `recsys ingest` first, or correct workdir")
        return table

    def _open(self, name: str, version: int | None = None) -> DeltaTable | None:
        try:
            return DeltaTable(self._uri(name), version=version, storage_options=self._options or None)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            at = "" if version is None else f" at version {version}"
            raise UnavailableError(
                f"can't open {self._uri(name)}{at} ({error}); check the work directory"
            ) from error

    def _conflict(self, name: str, what: str) -> UnavailableError:
        return UnavailableError(
            f"another writer committed to {self._uri(name)} ({what}); keep one writer and run again"
        )

    def _uri(self, name: str) -> str:
        return f"{self.uri}/{name}"


def _with_month(rows: pa.Table) -> pa.Table:
    month = pc.strftime(pc.floor_temporal(rows["timestamp"], unit="month"), format="%Y-%m")
    return rows.append_column(_MONTH, pc.fill_null(month, "unknown"))
