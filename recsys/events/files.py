"""Imports ray. Files of events (Parquet, CSV, JSON lines) into one commit of the event store.

Tasks read and judge; the driver drops duplicates and commits once, so a run that fails leaves nothing.
A file has no offsets: a duplicate is an event whose user and id stand in the table or earlier in the
input, so the same file twice stores nothing the second time, and its rejected events are kept once. It
holds the valid events of one call in the driver's memory; a broken line rejects that line, not the file.
"""

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import ray
import ray.data

from recsys.errors import DataError
from recsys.events.committer import IngestCounts
from recsys.events.duplicates import identities
from recsys.events.schema import (
    EVENT_SCHEMA,
    PROVENANCE,
    REJECTED_SCHEMA,
    STORED_SCHEMA,
    TIMESTAMP,
    conform,
)
from recsys.events.store import EventStore
from recsys.events.validation import (
    DEFAULT_SETTINGS,
    ERASED,
    MALFORMED,
    ValidationSettings,
    fill_event_ids,
    reasons,
    split,
)
from recsys.events.wire import Decoder

_REJECTED = EVENT_SCHEMA.append(pa.field("reason", pa.string()))


def ingest_files(
    paths: Sequence[str | Path],
    *,
    store: EventStore,
    now: int,
    settings: ValidationSettings = DEFAULT_SETTINGS,
    progress: Callable[[int], None] | None = None,
) -> IngestCounts:
    """Ingests files of events in EVENT_SCHEMA: Parquet, CSV with a header, or JSON lines, not mixed.

    `now` (epoch seconds) is the time of ingestion; `progress` gets the count of events read so far.
    Ray must be initialized. Raises DataError for files that can't be read.
    """
    files = _checked(paths)
    read, valid, rejected = 0, [EVENT_SCHEMA.empty_table()], [_REJECTED.empty_table()]
    try:
        with ray.data.DataContext.current(_context()):
            dataset = _reading(files).map_batches(
                cast(Any, _validated),
                batch_format="pyarrow",
                batch_size=65_536,
                zero_copy_batch=True,
                fn_kwargs={"now": now, "settings": settings, "where": str(paths[0])},
            )
        for block in cast(Iterable[Any], dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
            read += int(np.sum(block["read"].to_numpy()))
            good, bad = split(block.drop_columns(["read", "reason"]).cast(EVENT_SCHEMA), block["reason"])
            valid.append(good)
            rejected.append(bad)
            if progress:
                progress(read)
    except (ray.exceptions.RayError, pa.ArrowInvalid, OSError) as error:
        raise _data_error(paths, error) from error
    return _commit(store, read, pa.concat_tables(valid), pa.concat_tables(rejected), now=now)


def ingest_events(
    events: pa.Table,
    *,
    store: EventStore,
    workdir: str | Path,
    now: int,
    settings: ValidationSettings = DEFAULT_SETTINGS,
    progress: Callable[[int], None] | None = None,
    parts: int = 4,
) -> IngestCounts:
    """Ingests what a reader of `datasets` returned, by way of `parts` Parquet files under `workdir`."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    size = max(1, -(-len(events) // parts))
    with tempfile.TemporaryDirectory(dir=workdir, prefix="ingest-") as folder:
        files = [Path(folder) / f"part-{start:012d}.parquet" for start in range(0, max(1, len(events)), size)]
        for number, file in enumerate(files):
            pq.write_table(events.slice(number * size, size), file, compression="lz4")
        return ingest_files(files, store=store, now=now, settings=settings, progress=progress)


def _checked(paths: Sequence[str | Path]) -> list[str]:
    files = [Path(p).absolute() for p in paths]
    for file in files:
        if not file.is_file() or not file.stat().st_size:
            raise DataError(f"{file} is no file with events; give Parquet, CSV or JSON-lines files")
    if len({f.suffix.lower() for f in files}) != 1:
        raise DataError(
            f"{len(files)} files of several formats can't be ingested at once; give files of one ending"
        )
    return [str(f) for f in files]


def _context() -> ray.data.DataContext:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False  # the new Parquet reader puts small files into one task
    context.execution_options.preserve_order = True  # which of two duplicates is kept is then decided
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors become ours
    return context


def _reading(files: list[str]) -> ray.data.Dataset:
    blocks = max(2, len(files))
    kind = Path(files[0]).suffix.lower()
    if kind == ".parquet":
        return ray.data.read_parquet(files, override_num_blocks=blocks)
    if kind in (".jsonl", ".ndjson", ".json"):
        return ray.data.read_text(files, override_num_blocks=blocks)
    if kind == ".csv":
        with pa_csv.open_csv(files[0]) as reader:  # all columns as text: an id like 007 is no number
            types = {name: pa.string() for name in reader.schema.names}
        options = pa_csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        return ray.data.read_csv(files, override_num_blocks=blocks, convert_options=options)
    raise DataError(f"{files[0]} has no ending that recsys reads; give .parquet, .csv or .jsonl")


def _validated(batch: pa.Table, *, now: int, settings: ValidationSettings, where: str) -> pa.Table:
    """In a task: the events with their `reason`, and `read`: the rows of this batch, on its first row."""
    if batch.column_names == ["text"]:
        events, broken = Decoder(strict=True)([line.encode() for line in batch["text"].to_pylist()])
        reason = pa.array([None if error is None else MALFORMED for error in broken], pa.string())
    else:
        events, reason = conform(batch, where=where), pa.nulls(len(batch), pa.string())
    reason = pa.compute.coalesce(reason, reasons(events, now=now, settings=settings))
    read = np.zeros(len(events), np.int64)
    read[:1] = len(batch)
    return events.append_column("reason", reason).append_column("read", pa.array(read))


def _commit(store: EventStore, read: int, valid: pa.Table, rejected: pa.Table, *, now: int) -> IngestCounts:
    valid, rejected = _stored(fill_event_ids(valid), now), _stored(fill_event_ids(rejected), now)
    counts = Counter(rejected["reason"].to_pylist())
    version = store.version()
    held = store.read(columns=["user_id", "event_id"], version=version) if version >= 0 else valid.slice(0, 0)
    hashes = identities(valid)
    new = np.zeros(len(valid), bool)
    new[np.unique(hashes, return_index=True)[1]] = True
    new &= ~np.isin(hashes, identities(held))
    unseen = ~np.isin(identities(rejected), identities(store.read_rejected(columns=["user_id", "event_id"])))
    appended = store.append(
        valid.filter(pa.array(new)), rejected=rejected.filter(pa.array(unseen)), at_version=version
    )
    duplicate = int(np.count_nonzero(~new))
    if erased := len(valid) - duplicate - appended.stored:
        counts[ERASED] = erased
    return IngestCounts(read, appended.stored, duplicate, dict(counts.most_common()))


def _stored(events: pa.Table, now: int) -> pa.Table:
    """The events with their provenance: no place on the bus, taken now."""
    taken = {"appended_at": pa.array(np.full(len(events), now * 1_000_000)).cast(TIMESTAMP)}
    for field in PROVENANCE:
        events = events.append_column(field, taken.get(field.name, pa.nulls(len(events), field.type)))
    schema = REJECTED_SCHEMA if "reason" in events.column_names else STORED_SCHEMA
    return events.select(schema.names)


def _data_error(paths: Sequence[str | Path], error: Exception) -> DataError:
    """What went wrong in one line. Of a task's DataError, Ray passes on no more than the text."""
    if raised := re.search(r"\bDataError: (.+)", str(error)):
        return DataError(raised[1])
    text = str(error).strip().splitlines()[-1]
    return DataError(
        f"{paths[0]} (of {len(paths)} files) can't be read ({text}); check its format and ending"
    )
