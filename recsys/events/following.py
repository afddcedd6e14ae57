"""Imports ray. Continuous ingestion: reader actors, and one committer that asks them.

Readers keep nothing: each call names the offsets, so one that was killed is restarted by Ray and the
call is made again. The committer keeps nothing that the store can't give back: killed, it is restarted
by Ray, makes its readers anew and goes on from the store's offsets. While the bus or the store does
not answer it waits and begins again from there. The last commit comes when it is told to stop.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from recsys.errors import RecsysError, UnavailableError
from recsys.events.batch import Batch, judge
from recsys.events.bus import Bus, BusSettings, open_bus, tell_position
from recsys.events.committer import READER, Committed, Committer, IngestCounts, IngestionSettings
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder

BLOCK_MS = 200  # that a read waits for a first record
LIMIT = 20_000  # records that a read takes of each partition
PAUSE_S = 0.5  # before the next try while the bus or the store is away
POLL_S = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Following:
    """What the actors need to know."""

    bus: BusSettings
    validation: ValidationSettings
    settings: IngestionSettings
    store: dict[str, Any]  # arguments of EventStore


@dataclass(frozen=True, slots=True)
class Status:
    """What a committer has done since it was started, the last time that it was."""

    counts: IngestCounts = field(default_factory=lambda: IngestCounts(0, 0, 0, {}))
    commits: int = 0
    last: Committed | None = None
    last_at: float = 0.0  # epoch seconds
    waiting: int = 0  # events that were read and are not committed
    trouble: str | None = None  # why it waits
    pids: tuple[int, ...] = ()  # of the committer and its readers


class Reader:
    """Reads and judges what follows given offsets of its partitions."""

    def __init__(self, following: Following) -> None:
        self.following = following
        self.decoder = Decoder(following.bus.schemas)
        self.bus: Bus | None = None

    def pid(self) -> int:
        return os.getpid()

    def read(self, offsets: Mapping[int, int]) -> list[Batch]:
        self.bus = self.bus or open_bus(self.following.bus)
        try:
            found = self.bus.tail(list(offsets), offsets=offsets, block_ms=BLOCK_MS, limit=LIMIT)
        except UnavailableError:
            with contextlib.suppress(RecsysError):
                self.bus.close()
            self.bus = None
            raise
        return [
            judge(
                records,
                start=offsets[records.partition],
                topic=self.bus.topic,
                decoder=self.decoder,
                validation=self.following.validation,
            )
            for records in found
        ]


class CommitterActor:
    """`run` and `status` are called side by side."""

    def __init__(self, following: Following) -> None:
        self.following = following
        self.stopping = threading.Event()
        self.state = Status()
        self.readers: list[Any] = []

    def run(self) -> Status:
        """Until `stop`. Raises what waiting can't mend."""
        while not self.stopping.is_set():
            try:
                self._follow()
            except UnavailableError as error:
                logger.warning("ingestion waits: %s", error)
                self._note(trouble=str(error), waiting=0)
                self.stopping.wait(PAUSE_S)
        return self.state

    def stop(self) -> None:
        self.stopping.set()

    def status(self) -> Status:
        return self.state

    def _follow(self) -> None:
        following = self.following
        bus = open_bus(following.bus)
        try:
            store = EventStore(**following.store)
            committer = Committer(
                store, topic=bus.topic, begin=bus.begin_offsets(), settings=following.settings
            )
            committer.check_held(bus.begin_offsets(), bus.end_offsets())
            self._loop(committer, bus)
        finally:
            bus.close()

    def _loop(self, committer: Committer, bus: Bus) -> None:
        readers = self._readers(bus.partitions)
        self._note(trouble=None, pids=(os.getpid(), *ray.get([r.pid.remote() for r in readers])))
        shares = {reader: range(n, bus.partitions, len(readers)) for n, reader in enumerate(readers)}
        reading = {self._ask(reader, share, committer): reader for reader, share in shares.items()}
        due = time.monotonic() + committer.settings.commit_s
        while not self.stopping.is_set():
            done, _ = ray.wait(list(reading), timeout=max(0.0, due - time.monotonic()))
            for call in done:
                reader = reading.pop(call)
                for batch in _got(call):
                    committer.add(batch)
                reading[self._ask(reader, shares[reader], committer)] = reader
            self._note(waiting=committer.waiting)
            full = committer.waiting >= committer.settings.commit_events
            if full or time.monotonic() >= due:
                self._commit(committer, bus)
                due = time.monotonic() + committer.settings.commit_s
        self._commit(committer, bus)

    def _readers(self, partitions: int) -> list[Any]:
        if not self.readers:
            # Restarted where they die, and the call that was lost is made again.
            actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)(Reader)
            count = min(self.following.settings.readers, partitions)
            self.readers = [actor.remote(self.following) for _ in range(count)]
        return self.readers

    def _ask(self, reader: Any, share: range, committer: Committer) -> Any:
        return reader.read.remote({p: committer.next[p] for p in share})

    def _commit(self, committer: Committer, bus: Bus) -> None:
        committed = committer.commit()
        if committed is None:
            return
        tell_position(bus, READER, committed.offsets)
        self._note(
            counts=self.state.counts + committed.counts,
            commits=self.state.commits + 1,
            last=committed,
            last_at=time.time(),
            waiting=0,
        )

    def _note(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


def follow(
    following: Following,
    *,
    stop: Callable[[], bool],
    report: Callable[[Status], None] | None = None,
) -> Status:
    """Ingests what the bus gets until `stop()`; `report` is told the status a few times a second.

    Ray must be initialized. Raises what waiting can't mend: DataError, SettingsError.
    """
    actor: Any = ray.remote(CommitterActor)
    committer = actor.options(max_restarts=-1, max_task_retries=-1, num_cpus=0, max_concurrency=4).remote(
        following
    )
    running = committer.run.remote()
    try:
        while not stop():
            if ray.wait([running], timeout=POLL_S)[0]:
                break
            if report:
                with contextlib.suppress(ray.exceptions.GetTimeoutError):  # it is being restarted
                    report(ray.get(committer.status.remote(), timeout=2))
        while not ray.wait([running], timeout=POLL_S)[0]:
            committer.stop.remote()  # again and again: a committer that was just restarted has forgotten it
        return _got(running)
    finally:
        ray.kill(committer)


def _got(call: Any) -> Any:
    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RecsysError):
            raise error.cause from error
        raise
