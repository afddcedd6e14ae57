"""Events over HTTP: decoded and validated by the functions that ingestion uses, then appended to the bus.

One wrong event does not refuse its batch-mates: each is answered on its own. An event without an id
is given a random one, since two equal clicks of one second are two events; one without a time is
given the service's.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from deployments.http_errors import MalformedError
from recsys.errors import DataError, RequestError
from recsys.events.bus import RedisStreamsBus
from recsys.events.codec import decode_events
from recsys.events.redis_server import connect
from recsys.events.validation import ValidationSettings, reasons

MAX_EVENTS = 1000


@dataclass(slots=True)
class EventIntake:
    bus_url: str
    partitions: int
    validation: ValidationSettings
    _bus: RedisStreamsBus | None = field(default=None, repr=False)

    @property
    def bus(self) -> RedisStreamsBus:
        """Connected when first needed. Raises UnavailableError."""
        if self._bus is None:
            self._bus = RedisStreamsBus(connect(self.bus_url), partitions=self.partitions)
        return self._bus

    def take(self, body: bytes, *, now: int) -> list[dict[str, Any]]:
        """One result for each event of the body, in order; accepted = appended to the bus.

        Raises MalformedError, RequestError (no events, or too many), UnavailableError (send all
        again: nothing is lost, but what had been appended is then on the bus twice).
        """
        given = [_completed(event, now) for event in _events(body)]
        tables, why = _decoded(given)
        events = pa.concat_tables(tables)
        found = reasons(events, now=now, settings=self.validation)
        if found.null_count:
            self.bus.publish(events.filter(pc.is_null(found)))
        judged = iter(found.to_pylist())
        why = [next(judged) if reason is None else reason for reason in why]
        return [
            {
                "event_id": event.get("event_id") if isinstance(event, Mapping) else None,
                "status": "accepted" if reason is None else "rejected",
                "reason": reason,
            }
            for event, reason in zip(given, why, strict=True)
        ]


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
    completed = {k: v for k, v in event.items() if v is not None}
    completed.setdefault("event_id", uuid.uuid4().hex)
    completed.setdefault("timestamp", datetime.fromtimestamp(now, UTC).isoformat())
    return completed


def _decoded(given: list[Any]) -> tuple[list[pa.Table], list[str | None]]:
    """Tables of the readable events, and for each event why it is not (None = it is)."""
    try:
        return [decode_events(given)], [None] * len(given)
    except DataError:
        tables, why = [decode_events([])], list[str | None]()
        for event in given:
            try:
                tables.append(decode_events([event]))
                why.append(None)
            except DataError as error:
                why.append(str(error).removeprefix("event 0: "))
        return tables, why
