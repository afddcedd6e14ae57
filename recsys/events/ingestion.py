"""Imports ray. Bounded ingestion: a range of the bus into the event store with Ray Data.

Tasks read ranges of offsets, decode and judge them; the driver puts the blocks of a partition back
into their order, hands them to the committer and commits as often as enough has gathered. So memory
does not grow with the range, and a run that was killed goes on from its last commit.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from recsys.errors import DataError, UnavailableError
from recsys.events.batch import Batch, judge
from recsys.events.bus import Bus, BusSettings, Records, open_bus, tell_position
from recsys.events.committer import READER, Committer, IngestCounts, IngestionSettings
from recsys.events.schema import STORED_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder

RANGE = 500_000  # records that a task reads
READ = 20_000  # records of one read, which is a block of the data set
EVENT_BYTES = 300  # in a block, about

_BLOCK_SCHEMA = pa.schema(
    [*STORED_SCHEMA, ("reason", pa.string())] + [(name, pa.int64()) for name in ("start", "end", "read_ms")]
)


@dataclass(frozen=True, slots=True)
class OffsetRange:
    partition: int
    start: int
    end: int


class BusDatasource(Datasource):
    """Ranges of a bus as blocks of judged events."""

    def __init__(self, ranges: list[OffsetRange], read: Callable[[OffsetRange], Iterator[pa.Table]]) -> None:
        super().__init__()
        self.ranges, self.read = ranges, read

    def estimate_inmemory_data_size(self) -> int:
        return sum(r.end - r.start for r in self.ranges) * EVENT_BYTES

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(self.read, one),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
                schema=_BLOCK_SCHEMA,
            )
            for one in self.ranges
        ]


def read_range(
    one: OffsetRange, *, bus: BusSettings, validation: ValidationSettings, limit: int = READ
) -> Iterator[pa.Table]:
    """In a task: the judged events of a range, as blocks that say from where to where they reach.

    Kafka keeps markers of transactions between events, so a block may reach beyond its last event, and
    the last block reaches to the end of the range.
    """
    opened, decoder = open_bus(bus), Decoder(bus.schemas)
    held: Batch | None = None  # until it is known how far it reaches
    try:
        start = one.start
        while start < one.end:
            records = opened.read(one.partition, start=start, limit=min(limit, one.end - start))
            records = _before(records, one.end)
            if records.end <= start:
                raise UnavailableError(
                    f"{opened.topic} partition {one.partition} ends at {start}, expected {one.end}: the bus "
                    "lost events"
                )
            if len(records):
                if held is not None:
                    yield _block(held)
                begin = one.start if held is None else held.end
                held = judge(records, start=begin, topic=opened.topic, decoder=decoder, validation=validation)
            elif held is not None:
                held = replace(held, end=records.end)
            start = records.end
        if held is not None:
            yield _block(held)
    finally:
        opened.close()


def ingest_bus(
    bus: Bus,
    *,
    bus_settings: BusSettings,
    store: EventStore,
    settings: IngestionSettings,
    validation: ValidationSettings,
    begin: Mapping[int, int] | None = None,
    end: Mapping[int, int] | None = None,
    accept_loss: bool = False,
    reader: str | None = READER,
    progress: Callable[[int, int], None] | None = None,
) -> IngestCounts:
    """Ingests what the store does not hold yet, up to `end` (absent: the bus's present end).

    `begin`: where a store that holds nothing of the topic begins (absent: the oldest event held by the
    bus). `accept_loss`: events that left the bus before they were ingested are recorded as lost. `reader`:
    the name under which the bus is told how far the store has come; None for a replay into another store.
    `progress` gets the records read and the records in all. Ray must be initialized. Raises DataError if
    the store holds the topic up to another offset than `begin`, UnavailableError.
    """
    oldest = bus.begin_offsets()
    ends = {p: min(present, (end or {}).get(p, present)) for p, present in bus.end_offsets().items()}
    committer = Committer(store, topic=bus.topic, begin=oldest | dict(begin or {}), settings=settings)
    _check_begin(begin, committer, store)
    committer.check_held(oldest, bus.end_offsets(), accept_loss=accept_loss)
    total = sum(max(0, ends[p] - start) for p, start in committer.next.items())
    counts, done = IngestCounts(0, 0, 0, {}), 0
    limit = min(READ, settings.commit_events)
    read = partial(read_range, bus=bus_settings, validation=validation, limit=limit)
    for batch in _in_order(_blocks(_ranges(committer.next, ends), read, limit), committer.next):
        committer.add(batch)
        done += batch.end - batch.start
        if committer.waiting >= settings.commit_events:
            counts += _commit(committer, bus, reader)
        if progress:
            progress(done, total)
    for partition, stop in ends.items():  # behind the last event, transactions may have left their markers
        committer.skip_to(partition, stop)
    return counts + _commit(committer, bus, reader)


def _commit(committer: Committer, bus: Bus, reader: str | None) -> IngestCounts:
    committed = committer.commit()
    if committed is None:
        return IngestCounts(0, 0, 0, {})
    if reader is not None:
        tell_position(bus, reader, committed.offsets)
    return committed.counts


def _check_begin(begin: Mapping[int, int] | None, committer: Committer, store: EventStore) -> None:
    for partition, asked in (begin or {}).items():
        if (held := committer.committed[partition]) != asked:
            raise DataError(
                f"{store.uri} holds {committer.topic} partition {partition} up to offset {held}: it can't "
                f"begin at {asked} again; replay into another store (--into), or leave out --from"
            )


def _ranges(begin: Mapping[int, int], end: Mapping[int, int]) -> list[OffsetRange]:
    """All partitions side by side, so that none waits for another."""
    ranges = [
        OffsetRange(partition, first, min(first + RANGE, end[partition]))
        for partition, start in begin.items()
        for first in range(start, end[partition], RANGE)
    ]
    return sorted(ranges, key=lambda r: (r.start - begin[r.partition], r.partition))


def _blocks(
    ranges: list[OffsetRange], read: Callable[[OffsetRange], Iterator[pa.Table]], limit: int
) -> Iterator[pa.Table]:
    if not ranges:
        return
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = limit * EVENT_BYTES  # Ray Data would put small blocks together
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors become ours
    try:
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_datasource(
                BusDatasource(ranges, read),
                override_num_blocks=len(ranges),
                concurrency=len({r.partition for r in ranges}),
            )
        yield from cast(Iterable[Any], dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnavailableError | DataError):
            raise error.cause from error
        raise


def _before(records: Records, end: int) -> Records:
    """The records with offsets below `end`; where markers take offsets, a read may reach beyond."""
    if records.end <= end:
        return records
    kept = int(np.searchsorted(records.offsets, end))
    return replace(
        records,
        offsets=records.offsets[:kept],
        append_time_ms=records.append_time_ms[:kept],
        bodies=records.bodies[:kept],
        end=end,
    )


def _block(batch: Batch) -> pa.Table:
    """Each row says from where to where it reaches, since Ray Data may cut blocks and put them together."""
    start = np.concatenate([[batch.start], batch.offsets[:-1] + 1])
    end = np.concatenate([batch.offsets[:-1] + 1, [batch.end]])
    read_ms = np.full(len(start), batch.read_ms)
    columns = [batch.reason, *(pa.array(column) for column in (start, end, read_ms))]
    return pa.Table.from_arrays([*batch.events.columns, *columns], schema=_BLOCK_SCHEMA)


def _in_order(blocks: Iterator[pa.Table], begin: Mapping[int, int]) -> Iterator[Batch]:
    """The blocks as batches, each partition's in the order of its offsets."""
    following, waiting = dict(begin), dict[int, dict[int, Batch]]()
    for block in blocks:
        block = block.cast(_BLOCK_SCHEMA)
        partition, start = block["partition"][0].as_py(), block["start"][0].as_py()
        batch = Batch(
            partition=partition,
            start=start,
            end=block["end"][-1].as_py(),
            events=block.select(STORED_SCHEMA.names),
            reason=block["reason"].combine_chunks(),
            read_ms=block["read_ms"][0].as_py(),
        )
        held = waiting.setdefault(partition, {})
        held[start] = batch
        while following[partition] in held:
            batch = held.pop(following[partition])
            following[partition] = batch.end
            yield batch
    for partition, held in waiting.items():
        for start in sorted(held):  # a range of nothing but markers is before it
            yield replace(held[start], start=following[partition])
            following[partition] = held[start].end
