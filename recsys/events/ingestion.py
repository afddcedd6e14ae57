"""Imports ray. Bounded ingestion: a range of the bus into the event store with Ray Data.

Tasks read slices of partitions, decode and judge them; the driver puts the blocks of a partition back
into their order, hands them to the committer and commits as often as enough has gathered. So memory
does not grow with the range, and a run that was killed goes on from its last commit.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.committer import Committer, IngestCounts, IngestionSettings
from recsys.events.schema import STORED_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder

SLICE = 200_000  # records that a task reads
READ = 20_000  # records of one read
BLOCK_BYTES = 16_000_000

_BLOCK_SCHEMA = pa.schema(
    [*STORED_SCHEMA, ("reason", pa.string()), ("start", pa.int64()), ("read_ms", pa.int64())]
)


@dataclass(frozen=True, slots=True)
class Slice:
    partition: int
    start: int
    end: int


class BusDatasource(Datasource):
    """Slices of a bus as blocks of judged events."""

    def __init__(self, slices: list[Slice], *, bus: BusSettings, validation: ValidationSettings) -> None:
        super().__init__()
        self.slices, self.bus, self.validation = slices, bus, validation

    def estimate_inmemory_data_size(self) -> int:
        return sum(s.end - s.start for s in self.slices) * 300

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [
            ReadTask(
                partial(read_slice, one, bus=self.bus, validation=self.validation),
                BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None),
                schema=_BLOCK_SCHEMA,
            )
            for one in self.slices
        ]


def read_slice(one: Slice, *, bus: BusSettings, validation: ValidationSettings) -> Iterator[pa.Table]:
    """In a task: the judged events of a slice, with the offset from which each was read on."""
    opened, decoder = open_bus(bus), Decoder(bus.schemas)
    try:
        start = one.start
        while start < one.end:
            records = opened.read(one.partition, start=start, limit=min(READ, one.end - start))
            if records.end <= start:
                raise UnavailableError(
                    f"{opened.topic} partition {one.partition} ends at {start}, expected {one.end}: the bus "
                    "lost events"
                )
            batch = judge(records, start=start, topic=opened.topic, decoder=decoder, validation=validation)
            if len(batch.events):
                yield _block(batch)
            start = batch.end
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
    progress: Callable[[int, int], None] | None = None,
) -> IngestCounts:
    """Ingests what the store does not hold yet, up to `end` (absent: the bus's present end).

    `begin`: where a store that holds nothing of the topic begins (absent: the oldest event held by the
    bus). `accept_loss`: events that left the bus before they were ingested are recorded as lost. `progress`
    gets the records read and the records in all. Ray must be initialized. Raises DataError if the store
    holds the topic up to another offset than `begin`, UnavailableError.
    """
    oldest = bus.begin_offsets()
    ends = {p: min(present, (end or {}).get(p, present)) for p, present in bus.end_offsets().items()}
    committer = Committer(store, topic=bus.topic, begin=oldest | dict(begin or {}), settings=settings)
    _check_begin(begin, committer, store)
    committer.check_lost(oldest, accept=accept_loss)
    total = sum(max(0, ends[p] - start) for p, start in committer.next.items())
    counts, done = IngestCounts(0, 0, 0, {}), 0
    for batch in _in_order(_blocks(_slices(committer.next, ends), bus_settings, validation), committer.next):
        committer.add(batch)
        done += batch.end - batch.start
        if committer.waiting >= settings.commit_events:
            counts += _commit(committer, bus)
        if progress:
            progress(done, total)
    for partition, stop in ends.items():  # behind the last event, transactions may have left their markers
        committer.skip_to(partition, stop)
    return counts + _commit(committer, bus)


def _commit(committer: Committer, bus: Bus) -> IngestCounts:
    committed = committer.commit()
    if committed is None:
        return IngestCounts(0, 0, 0, {})
    with contextlib.suppress(UnavailableError):  # for tools only
        bus.note_positions("ingestion", committed.offsets)
    return committed.counts


def _check_begin(begin: Mapping[int, int] | None, committer: Committer, store: EventStore) -> None:
    for partition, asked in (begin or {}).items():
        if (held := committer.committed[partition]) != asked:
            raise DataError(
                f"{store.uri} holds {committer.topic} partition {partition} up to offset {held}: it can't "
                f"begin at {asked} again; replay into another store (--into), or leave out --from"
            )


def _slices(begin: Mapping[int, int], end: Mapping[int, int]) -> list[Slice]:
    """All partitions side by side, so that none waits for another."""
    slices = [
        Slice(partition, first, min(first + SLICE, end[partition]))
        for partition, start in begin.items()
        for first in range(start, end[partition], SLICE)
    ]
    return sorted(slices, key=lambda s: (s.start - begin[s.partition], s.partition))


def _blocks(slices: list[Slice], bus: BusSettings, validation: ValidationSettings) -> Iterator[pa.Table]:
    if not slices:
        return
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors become ours
    try:
        with ray.data.DataContext.current(context):
            source = BusDatasource(slices, bus=bus, validation=validation)
            dataset = ray.data.read_datasource(source, override_num_blocks=len(slices))
        yield from cast(Iterable[Any], dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UnavailableError | DataError):
            raise error.cause from error
        raise


def _block(batch: Batch) -> pa.Table:
    start = np.concatenate([[batch.start], batch.offsets[:-1] + 1])
    columns = [batch.reason, pa.array(start), pa.array(np.full(len(start), batch.read_ms))]
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
            end=block["offset"][-1].as_py() + 1,
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
    if left := {p: sorted(held) for p, held in waiting.items() if held}:
        raise DataError(f"blocks of partition {left} never found their place; this is a bug: report it")
