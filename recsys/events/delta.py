"""One Delta table of the event store: opened, appended to, read and rewritten; Delta's errors become ours.

Every append claims the next version under one application id: Delta lets two appends pass each other,
two claims of one version conflict. What makes a table or takes files away commits the very next version
or not at all: Delta lets two makers of a table, and a removal and a compaction, pass each other too.
Columns that an older table lacks are null, and are added by the next append; columns that we don't know
are kept. The log has statistics of places and times only: a file's largest user id would outlive erasure.
"""

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from recsys.errors import UnavailableError

PERIODS = {"month": "%Y-%m", "day": "%Y-%m-%d"}  # partition column -> how its values are written
WRITER_PROPERTIES = WriterProperties(compression="ZSTD")

ARCHIVED = "recsys-archived"  # application id in the hot table: version of the cold table that belongs to it
WRITER = "recsys-writer"  # application id of the claims: version of the last append
TRIES = 20  # of a commit that met another one

_T = TypeVar("_T")
_FIRST = ("partition", "offset", "appended_at", "timestamp")  # columns of which the log keeps statistics
_STATISTICS, _RETENTION = "delta.dataSkippingNumIndexedCols", "delta.logRetentionDuration"


class ConflictError(UnavailableError):
    """Somebody else committed meanwhile; nothing was written."""


class StoreTable:
    """`period`: the column by whose time rows are partitioned; None = the table is not partitioned."""

    def __init__(
        self,
        uri: str,
        *,
        schema: pa.Schema,
        options: Mapping[str, str],
        period: str | None = None,
        partition_by: str = "month",
    ) -> None:
        self.uri = uri
        self._schema = schema
        self._options = dict(options) or None
        self._period = period
        self._partition_by = partition_by

    def open(self, version: int | None = None) -> DeltaTable | None:
        """The table (at this version), None before it is made."""
        at = "" if version is None else f" at version {version}"
        with storage_errors(f"open {self.uri}{at}"):
            try:
                return DeltaTable(self.uri, version=version, storage_options=self._options)
            except TableNotFoundError:
                return None

    def append(
        self,
        table: DeltaTable | None,
        rows: pa.Table,
        *,
        transactions: Sequence[Transaction] = (),
        by: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> DeltaTable:
        """Commits rows to `table`, or makes it (partitioned `by`); returns it as committed.

        Raises ConflictError if somebody appended to `table` since it was opened.
        """
        claim = Transaction(WRITER, 0 if table is None else table.version() + 1)
        rows = rows.cast(self._schema)
        by = None if self._period is None else (partition_column(table) or by or self._partition_by)
        if by is not None and self._period is not None:
            rows = rows.append_column(by, periods(rows[self._period], by=by))
            rows = rows.select([*_FIRST, *(name for name in rows.column_names if name not in _FIRST)])
        with storage_errors(f"write {self.uri}"):
            # Through the table object that was decided from: opened anew, a stale commit would pass.
            write_deltalake(
                self.uri if table is None else table,
                rows,
                mode="error" if table is None else "append",
                schema_mode=None if table is None else "merge",
                partition_by=None if by is None else [by],
                configuration={_STATISTICS: str(len(_FIRST))} if table is None and self._period else None,
                storage_options=self._options,
                writer_properties=WRITER_PROPERTIES,
                commit_properties=CommitProperties(
                    app_transactions=[*transactions, claim],
                    custom_metadata=dict(metadata or {}) or None,
                    max_commit_retries=0 if table is None else None,
                ),
            )
            return DeltaTable(self.uri, version=0, storage_options=self._options) if table is None else table

    def fence(self) -> DeltaTable:
        """Makes every append fail that was decided from what the table holds now; returns the table."""
        return retried(lambda: self.append(self.open(), self._schema.empty_table()))

    def files(self, table: DeltaTable) -> list[dict[str, Any]]:
        """The data files of the table: `path`, `size_bytes`, `partition` and more."""
        with storage_errors(f"read {self.uri}"):
            return pa.table(table.get_add_actions()).to_pylist()

    def exchange(
        self,
        table: DeltaTable,
        *,
        removed: Sequence[Mapping[str, Any]] = (),
        added: Sequence[AddAction] = (),
        transactions: Sequence[Transaction] = (),
    ) -> DeltaTable:
        """Takes files away and puts others in, whatever was appended meanwhile; returns the table.

        Raises ConflictError if one of `removed` is gone, or another archive or erasure of a cold table
        was committed since `table` was opened.
        """
        now = int(time.time() * 1000)
        actions = [
            RemoveAction(file["path"], True, now, file["size_bytes"], file["partition"]) for file in removed
        ]

        def commit() -> DeltaTable | None:
            newest = self.open()
            assert newest is not None
            version = newest.version()
            held = {file["path"] for file in self.files(newest)}
            archived = [t.transaction_version(ARCHIVED) for t in (table, newest)]
            if archived[0] != archived[1] or not held.issuperset(file["path"] for file in removed):
                return None
            with storage_errors(f"write {self.uri}"):
                newest.create_write_transaction(
                    [*actions, *added],
                    "append",
                    newest.schema(),
                    newest.metadata().partition_columns,
                    commit_properties=CommitProperties(
                        app_transactions=list(transactions), max_commit_retries=0
                    ),
                )
            return self.open(version + 1)

        if (committed := retried(commit)) is None:
            raise ConflictError(f"{self.uri} was compacted, archived or erased from meanwhile; run again")
        return committed

    def rewrite(
        self,
        table: DeltaTable,
        change: Callable[[pa.Table], pa.Table | None],
        *,
        where: pc.Expression,
        transactions: Sequence[Transaction] = (),
    ) -> DeltaTable | None:
        """Exchanges each file that has rows `where` for one of what `change` makes of all its rows.

        None from `change` leaves a file as it is. Returns the table as committed, None if nothing changed.
        """
        dataset, by = self.dataset(table), partition_column(table)
        files = {file["path"]: file for file in self.files(table)}
        removed, added = list[Mapping[str, Any]](), list[AddAction]()
        with storage_errors(f"rewrite {self.uri}"):
            for fragment in dataset.get_fragments():
                if not fragment.scanner(schema=dataset.schema, filter=where).count_rows():
                    continue
                rows = fragment.to_table(schema=dataset.schema)
                changed = change(rows.drop_columns([by] if by else []))
                if changed is None:
                    continue
                file = files[fragment.path]
                removed.append(file)
                if len(changed):
                    added.append(_written(changed, file, dataset.filesystem))
        if not removed and not transactions:
            return None
        return self.exchange(table, removed=removed, added=added, transactions=transactions)

    def forget_statistics(self) -> None:
        """Writes a table anew whose log has statistics of ids, as one made by an older version does."""

        def attempt() -> None:
            table = self.open()
            if table is None or not self._period or _STATISTICS in table.metadata().configuration:
                return
            self.rewrite(table, lambda rows: rows, where=pc.scalar(True))
            table = self.open()
            assert table is not None
            table.alter.set_table_properties({_STATISTICS: "0", _RETENTION: "interval 0 days"})
            table.create_checkpoint()
            table.cleanup_metadata()
            table.alter.set_table_properties({_RETENTION: "interval 30 days"})

        retried(attempt)

    def dataset(self, table: DeltaTable) -> ds.Dataset:
        """What the table holds: its columns, then those of ours that it lacks."""
        # In its own order: the statistics are those of the first columns.
        own, ours = pa.schema(table.schema()), self._schema
        mine = [ours.field(field.name) if field.name in ours.names else field for field in own]
        schema = pa.schema([*mine, *(field for field in ours if field.name not in own.names)])
        with storage_errors(f"read {self.uri}"):
            return table.to_pyarrow_dataset(schema=schema)

    def holds(self, table: DeltaTable, where: pc.Expression) -> bool:
        """Whether there is any such row."""
        dataset = self.dataset(table)
        with storage_errors(f"read {self.uri}"):
            return bool(len(dataset.head(1, columns=[], filter=where)))

    def read(
        self,
        table: DeltaTable,
        *,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        after: DeltaTable | None = None,
    ) -> pa.Table:
        """Rows in no particular order; only those of the files that `after` lacks."""
        dataset = self.dataset(table)
        with storage_errors(f"read {self.uri}"):
            if after is not None:
                known = {file["path"] for file in self.files(after)}
                new = [fragment for fragment in dataset.get_fragments() if fragment.path not in known]
                dataset = ds.FileSystemDataset(new, dataset.schema, dataset.format, dataset.filesystem)
            return dataset.to_table(columns=list(columns or self._schema.names), filter=where)


def partition_column(table: DeltaTable | None) -> str | None:
    """The column that an existing table is partitioned by."""
    return next(iter(table.metadata().partition_columns), None) if table is not None else None


def periods(times: pa.ChunkedArray, *, by: str) -> pa.ChunkedArray:
    """The month or day of each time as text; "unknown" where there is none."""
    # The floor first: formatting a few hundred thousand times with their fractions is slower.
    written = pc.strftime(pc.floor_temporal(times, unit=by), format=PERIODS[by])
    return pc.fill_null(written, "unknown")


def places(rows: pa.Table) -> np.ndarray:
    """Partition and offset of each row as one number, int64 [N]; -1 for an event of a file."""
    place = pc.add(pc.shift_left(rows["partition"].cast(pa.int64()), 48), rows["offset"])
    return pc.fill_null(place, -1).to_numpy()


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Delta's errors as ours; `doing` is what failed: verb and place."""
    try:
        yield
    except (DeltaError, OSError, pa.ArrowException) as error:
        # Two that make one table at once: the second is told only by the text.
        if isinstance(error, CommitFailedError | FileExistsError) or "already exists" in str(error):
            raise ConflictError(
                f"can't {doing}: another writer committed meanwhile ({_line(error)}); run again"
            ) from error
        raise UnavailableError(
            f"can't {doing} ({_line(error)}); check that it is there, its rights and its free space"
        ) from error


def retried(attempt: Callable[[], _T]) -> _T:
    """What `attempt` returns, which is called again if it meets another commit."""
    for number in range(TRIES - 1):
        try:
            return attempt()
        except ConflictError:
            time.sleep(random.random() * min(0.01 * 2**number, 1.0))  # two that undo each other must part
    return attempt()


def _written(rows: pa.Table, file: Mapping[str, Any], filesystem: Any) -> AddAction:
    """`rows` as a new file beside `file`."""
    path = f"{file['path'].rpartition('/')[0]}/part-{uuid.uuid4()}.zstd.parquet".lstrip("/")
    with filesystem.open_output_stream(path) as sink:
        pq.write_table(rows, sink, compression="zstd")
    size, now = filesystem.get_file_info(path).size, int(time.time() * 1000)
    statistics = json.dumps({"numRecords": len(rows)})
    return AddAction(path, size, file["partition"], now, True, statistics)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
