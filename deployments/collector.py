"""Events over HTTP: decoded and judged by the functions that ingestion uses, then appended to the bus.

One wrong event does not refuse its batch-mates: each is answered on its own, and accepted means that
the bus acknowledged it. What concurrent requests bring is judged together and published together. While
the bus does not answer, requests wait, a bounded number of events, and publishing is tried again; who
waits too long or finds no room is refused (503). Some of a refused request may get on the bus all the
same, so it is sent again with the same event ids: readers drop duplicates. An event without an id gets a
random one, since two equal clicks of one second are two events; one without a time the service's.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from deployments.gathering import Gathering
from deployments.http_errors import MalformedError
from deployments.metrics import CollectorMetrics
from recsys.errors import DataError, RequestError, UnavailableError
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.codec import decode_json
from recsys.events.validation import MALFORMED, ValidationSettings, reasons

MAX_EVENTS = 1000  # of one request
TOGETHER = 5000  # events at once: what piled up in an outage is not one call that takes too long
REFUSED = "refused"  # the reason of a valid event that the bus does not take: it is too large

Refusals = list[str | None]  # why the bus does not take each event; None = it has it


@dataclass(frozen=True, slots=True)
class Posted:
    """The events of one request, as parsed from JSON."""

    events: list[Any]
    now: int  # epoch seconds


@dataclass(frozen=True, slots=True)
class Judged:
    """The events of one request."""

    events: pa.Table  # the valid ones, EVENT_SCHEMA
    ids: list[str | None]  # of all, as sent or given
    reason: list[str | None]  # of all: a reason of `validation`, MALFORMED or REFUSED; None = valid
    told: list[str | None]  # of all: the same, but what is malformed or refused is told apart

    def refuse(self, refusals: Refusals) -> None:
        """Notes what the bus said of the valid events."""
        valid = [row for row, why in enumerate(self.reason) if why is None]
        for row, refusal in zip(valid, refusals, strict=True):
            if refusal:
                self.reason[row], self.told[row] = REFUSED, refusal


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
        """`queue_events`: that may be here unanswered; `wait_s`: how long a request waits for the bus."""
        self.bus_settings, self.validation = bus, validation
        self.queue_events, self.wait_s, self.metrics = queue_events, wait_s, metrics
        # A thread each: what was judged is not published behind what is yet to be judged.
        self._judging: Gathering[Posted, Judged] = Gathering(
            self._judge, size=lambda posted: len(posted.events), limit=TOGETHER
        )
        self._publishing: Gathering[pa.Table, Refusals] = Gathering(
            self._publish, size=len, limit=TOGETHER, on_outage=metrics.outages.inc
        )
        self._bus: Bus | None = None  # opened when first needed
        self._events = 0  # of all requests that were not answered yet

    async def take(self, body: bytes, *, now: int) -> list[dict[str, Any]]:
        """One result for each event of the body, in order; accepted = appended to the bus.

        Raises MalformedError, RequestError (no events, or too many), UnavailableError (send all again).
        """
        posted = Posted(events_of(body), now)  # in a thread it would hold the interpreter just as long
        if self._events + len(posted.events) > self.queue_events:
            raise self._refusal(f"{self._events:,} events wait already")
        self._count(len(posted.events))
        try:
            judged = await self._judging.ask(posted)
            if len(judged.events):
                async with asyncio.timeout(self.wait_s):
                    judged.refuse(await self._publishing.ask(judged.events))
        except TimeoutError:
            raise self._refusal(f"the bus did not take the events within {self.wait_s:g} s") from None
        finally:  # also when the client is gone
            self._count(-len(posted.events))
        self.metrics.record(judged.reason)
        return [
            {"event_id": event_id, "status": "rejected" if told else "accepted", "reason": told}
            for event_id, told in zip(judged.ids, judged.told, strict=True)
        ]

    def _refusal(self, problem: str) -> UnavailableError:
        cause = f" ({self._publishing.outage})" if self._publishing.outage else ""
        return UnavailableError(
            f"{problem}{cause}; send all again later, with the same event ids: "
            "an event that is on the bus already is then dropped as a duplicate"
        )

    def _count(self, events: int) -> None:
        self._events += events
        self.metrics.waiting.set(self._events)

    def _judge(self, requests: Sequence[Posted]) -> list[Judged]:
        return judge(requests, validation=self.validation)

    def _publish(self, tables: Sequence[pa.Table]) -> list[Refusals]:
        start = time.perf_counter()
        self._bus = self._bus or open_bus(self.bus_settings)
        refusals = iter(published(self._bus, pa.concat_tables(tables)))
        self.metrics.publish_seconds.observe(time.perf_counter() - start)
        return [list(itertools.islice(refusals, len(table))) for table in tables]


def published(bus: Bus, events: pa.Table) -> Refusals:
    """Publishes the events. What the bus does not take is found by halves; readers drop what it then has
    twice. Raises UnavailableError."""
    try:
        bus.publish(events)
    except DataError as error:
        if len(events) == 1:
            return [str(error)]
        half = len(events) // 2
        return published(bus, events.slice(0, half)) + published(bus, events.slice(half))
    return [None] * len(events)


def judge(requests: Sequence[Posted], *, validation: ValidationSettings) -> list[Judged]:
    """The events of each request; all are judged at once, and each event on its own."""
    given = [_completed(event, posted.now) for posted in requests for event in posted.events]
    now = np.array([posted.now for posted in requests for _ in posted.events], np.int64)
    decoded, errors = decode_json(given)
    found = reasons(decoded, now=now, settings=validation).to_pylist()
    reason = [why if error is None else MALFORMED for why, error in zip(found, errors, strict=True)]
    told = [error or why for error, why in zip(errors, reason, strict=True)]
    ids = [event.get("event_id") if isinstance(event, Mapping) else None for event in given]
    ids = [event_id if isinstance(event_id, str) else None for event_id in ids]
    valid = decoded.filter(pc.is_null(pa.array(reason, pa.string())))
    judged, start, first = [], 0, 0
    for posted in requests:
        rows = slice(start, start + len(posted.events))
        count = reason[rows].count(None)
        judged.append(Judged(valid.slice(first, count), ids[rows], reason[rows], told[rows]))
        start, first = rows.stop, first + count
    return judged


def events_of(body: bytes) -> list[Any]:
    """The events of a body, unread. Raises MalformedError, RequestError."""
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
