"""Following the changelog: every reader takes the same records, in the same order, and voids the same ones.

Decides what is void: a claim of a batch whose writer did not know all rows that were given before it, a
change of a row that nobody has, and what can't be read; an item that can't be is not available. What a
change means to a reader is the reader's.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from recsys.catalog.changelog import PARTITION, Change, Log, Position, decode_change
from recsys.catalog.schema import readable_changes
from recsys.errors import DataError, RecsysError, SettingsError, UnavailableError

LIMIT = 1000  # records that are taken together
PAUSE_S = 0.2  # before the next try in an outage
CATCH_UP_S = 600.0  # what takes longer to read is a case for a newer release

# Offsets and changes that hold, in their order.
Apply = Callable[[Sequence[tuple[int, Change]]], None]


class Follower:
    """Reads from `start` on. One thread follows; others may wait for it."""

    def __init__(self, log: Log, *, start: Position, apply: Apply) -> None:
        self.position = start  # all before it is applied
        self.void = self.unreadable = 0  # records
        self.voided: deque[int] = deque(maxlen=10_000)  # offsets of the last void ones
        self.lag_s = 0.0  # between the bus taking the last record and its being applied
        self._log, self._apply = log, apply
        self._moved = threading.Condition()

    def follow(self, *, block_ms: int = 500) -> int:
        """Waits up to `block_ms` for records and applies what came; how many. Raises UnavailableError."""
        taken = 0
        for records in self._log.tail(
            [PARTITION], offsets={PARTITION: self.position.offset}, block_ms=block_ms, limit=LIMIT
        ):
            position, holding = self.position, []
            for offset, body in zip(records.offsets.tolist(), records.bodies):
                position, change = self._read(position, offset, body)
                if change is not None:
                    holding.append((offset, change))
            sound = readable_changes([change for _, change in holding])
            self._apply([(offset, change) for (offset, _), change in zip(holding, sound)])
            taken += len(records.bodies)
            if len(records.bodies):
                self.lag_s = max(0.0, time.time() - int(records.append_time_ms[-1]) / 1000)
            with self._moved:  # last: a writer that knows of a row must find whose it is
                self.position = replace(position, offset=records.end)
                self._moved.notify_all()
        return taken

    def catch_up(self, *, timeout_s: float = CATCH_UP_S) -> None:
        """Returns when everything that the log holds by now is applied. Raises UnavailableError."""
        deadline, end = time.monotonic() + timeout_s, self._log.end_offsets()[PARTITION]
        if end < self.position.offset:
            raise UnavailableError(
                f"the catalog changelog ends at {end}, but {self.position.offset} records of it were read "
                "before: restore it, or begin a new one (`python -m jobs.ingest --new-changelog`) and build "
                "a release"
            )
        while self.position.offset < end:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"the catalog changelog was read to {self.position.offset} of {end} within "
                    f"{timeout_s:g} s: build a newer release, from whose watermark there is less to read"
                )
            self.follow(block_ms=100)
        self.lag_s = 0.0  # of what was there long before

    def behind(self) -> int:
        """Records that are not applied yet. Raises UnavailableError."""
        return max(0, self._log.end_offsets()[PARTITION] - self.position.offset)

    def wait_for(self, offset: int, *, timeout_s: float) -> bool:
        """Whether the record at `offset` was applied, by whoever follows, within that time."""
        with self._moved:
            return self._moved.wait_for(lambda: self.position.offset > offset, timeout_s)

    def _read(self, position: Position, offset: int, body: bytes) -> tuple[Position, Change | None]:
        """Where one is after a record, and its change if that holds."""
        try:
            change = decode_change(body)
        except DataError as error:
            self.unreadable += 1
            logging.getLogger(__name__).warning("offset %d: %s; it is passed over", offset, error)
            return position, None
        claim = change.claim
        if claim is None:
            holds = change.row < position.rows
        else:  # nobody else was given a row since its writer looked
            alone = claim.batch == position.batch or claim.base == position.rows
            holds = alone and change.row == position.rows and change.kind == "upsert"
        if not holds:
            self.void += 1
            self.voided.append(offset)
            return position, None
        if claim is not None:
            position = replace(position, rows=position.rows + 1, batch=claim.batch)
        return position, change


class Tail:
    """A thread that follows, through outages of the bus, until it is stopped."""

    def __init__(self, follower: Follower, *, on_read: Callable[[], None] = lambda: None) -> None:
        """`on_read`: called after each read, also of nothing."""
        self.follower, self._on_read = follower, on_read
        self.outage: RecsysError | None = None
        self.error: Exception | None = None  # that ended it
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="catalog-tail", daemon=True)

    def start(self) -> "Tail":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def check(self) -> None:
        """Raises RuntimeError if the thread ended by itself."""
        if self.error is not None:
            raise RuntimeError(f"the catalog changelog is not followed any more: {self.error}")

    def __enter__(self) -> "Tail":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.follower.follow()
                self.outage = None
                self._on_read()
            except (UnavailableError, SettingsError) as error:  # a password may be changed meanwhile
                if self.outage is None:
                    logging.getLogger(__name__).warning("the catalog changelog waits: %s", error)
                self.outage = error
                self._stopping.wait(PAUSE_S)
            except Exception as error:
                self.error = error
                raise
