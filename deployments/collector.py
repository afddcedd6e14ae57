"""Events over HTTP: decoded and judged by the functions that ingestion uses, then appended to the bus.

One wrong event does not refuse its batch-mates: each is answered on its own, and accepted means that
the bus has it for good. What concurrent requests bring is published together, by one task. While the
bus does not answer, requests wait in a bounded queue and the task tries again; who waits too long or
finds the queue full is refused (503). Some of a refused request may get on the bus all the same, so it
is sent again with the same event ids: readers drop duplicates. An event without an id is given a random
one, since two equal clicks of one second are two events; one without a time is given the service's.
"""

import asyncio
import functools
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from deployments.http_errors import MalformedError
from deployments.metrics import CollectorMetrics
from recsys.errors import RequestError, UnavailableError
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.codec import decode_json
from recsys.events.validation import MALFORMED, ValidationSettings, reasons

MAX_EVENTS = 1000  # of one request
PUBLISH_EVENTS = 5000  # at once: what piled up in an outage is not one call that takes too long
PAUSE_S = 0.2  # before the next try in an outage


@dataclass(frozen=True, slots=True)
class Judged:
    """The events of one request."""

    events: pa.Table  # the valid ones, EVENT_SCHEMA
    ids: list[str | None]  # of all, as sent or given
    reason: list[str | None]  # of all: a reason of `validation`, or MALFORMED; None = valid
    told: list[str | None]  # of all: the same, but what is malformed is told apart


class Collector:
    def __init__(
        self,
        bus: BusSettings,
        *,
        validation: ValidationSettings,
        queue_events: int,
        wait_s: float,
        metrics: CollectorMetrics,
    ) -> None:
        """`queue_events`: that may wait for the bus; `wait_s`: how long a request waits for it."""
        self.bus_settings, self.validation = bus, validation
        self.queue_events, self.wait_s, self.metrics = queue_events, wait_s, metrics
        # Its own: where the online store hangs and fills the common ones, events are still taken. One
        # publishes, the other judges.
        self._threads = ThreadPoolExecutor(2, "collector")
        self._bus: Bus | None = None  # opened when first needed
        self._waiting: dict[asyncio.Future[None], pa.Table] = {}  # in order of arrival
        self._events = 0  # in _waiting
        self._publisher: asyncio.Task[None] | None = None
        self._outage: UnavailableError | None = None

    async def take(self, body: bytes, *, now: int) -> list[dict[str, Any]]:
        """One result for each event of the body, in order; accepted = appended to the bus.

        Raises MalformedError, RequestError (no events, or too many), UnavailableError (send all again).
        """
        judging = functools.partial(judge, body, now=now, validation=self.validation)
        judged = await asyncio.get_running_loop().run_in_executor(self._threads, judging)
        if len(judged.events):
            await self._appended(judged.events)
        self.metrics.record(judged.reason)
        return [
            {"event_id": event_id, "status": "rejected" if told else "accepted", "reason": told}
            for event_id, told in zip(judged.ids, judged.told, strict=True)
        ]

    async def _appended(self, events: pa.Table) -> None:
        """Returns when the bus has them. Raises UnavailableError."""
        if self._events + len(events) > self.queue_events:
            raise self._refusal(f"{self._events:,} events wait for the bus already")
        waiting = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = events
        self._count(len(events))
        if self._publisher is None or self._publisher.done():
            self._publisher = asyncio.create_task(self._publish_all())
        try:
            async with asyncio.timeout(self.wait_s):
                await waiting
        except TimeoutError:
            raise self._refusal(f"the bus did not take the events within {self.wait_s:g} s") from None
        finally:  # also when the client is gone
            self._waiting.pop(waiting, None)
            self._count(-len(events))

    def _refusal(self, problem: str) -> UnavailableError:
        cause = f" ({self._outage})" if self._outage else ""
        return UnavailableError(
            f"{problem}{cause}; send all again later, with the same event ids: "
            "an event that is on the bus already is then dropped as a duplicate"
        )

    def _count(self, events: int) -> None:
        self._events += events
        self.metrics.waiting.set(self._events)

    async def _publish_all(self) -> None:
        """Publishes until nobody waits; the first in the queue go first, after an outage too."""
        while self._waiting:
            batch = self._next()
            tables = [self._waiting[waiting] for waiting in batch]
            failure: Exception | None = None
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._publish, tables)
                self._outage = None
            except UnavailableError as error:
                if self._outage is None:
                    self.metrics.outages.inc()
                self._outage = error
                await asyncio.sleep(PAUSE_S)
                continue
            except Exception as error:  # a wrong setting or a bug: told to these, the next may fare better
                failure = error
            for waiting in batch:
                self._waiting.pop(waiting, None)
                if waiting.done():  # refused, or its client is gone
                    continue
                if failure:
                    waiting.set_exception(failure)
                else:
                    waiting.set_result(None)

    def _next(self) -> list[asyncio.Future[None]]:
        batch, events = list[asyncio.Future[None]](), 0
        for waiting, table in self._waiting.items():
            events += len(table)
            if batch and events > PUBLISH_EVENTS:
                break
            batch.append(waiting)
        return batch

    def _publish(self, tables: Sequence[pa.Table]) -> None:
        start = time.perf_counter()
        self._bus = self._bus or open_bus(self.bus_settings)
        self._bus.publish(pa.concat_tables(tables))
        self.metrics.publish_seconds.observe(time.perf_counter() - start)


def judge(body: bytes, *, now: int, validation: ValidationSettings) -> Judged:
    """The events of a request's body. Raises MalformedError, RequestError."""
    given = [_completed(event, now) for event in _events(body)]
    events, told = decode_json(given)
    found = reasons(events, now=now, settings=validation).to_pylist()
    reason = [why if error is None else MALFORMED for why, error in zip(found, told, strict=True)]
    told = [error or why for error, why in zip(told, reason, strict=True)]
    ids = [event.get("event_id") if isinstance(event, Mapping) else None for event in given]
    return Judged(
        events=events.filter(pc.is_null(pa.array(reason, pa.string()))),
        ids=[event_id if isinstance(event_id, str) else None for event_id in ids],
        reason=reason,
        told=told,
    )


def _events(body: bytes) -> list[Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is not JSON: {error}") from error
    events = content if isinstance(content, list) else [content]
    if not 1 <= len(events) <= MAX_EVENTS:
        raise RequestError(f"{len(events)} events: send 1 to {MAX_EVENTS:,} at once")
    return events


def _completed(event: Any, now: int) -> Any:
    if not isinstance(event, dict):
        return event
    completed = {name: value for name, value in event.items() if value is not None}
    event_id = completed.get("event_id")
    if event_id is None or (isinstance(event_id, str) and not event_id.strip()):
        completed["event_id"] = uuid.uuid4().hex
    completed.setdefault("timestamp", datetime.fromtimestamp(now, UTC).isoformat())
    return completed
